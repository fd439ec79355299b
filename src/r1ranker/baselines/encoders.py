"""Rankers by pretrained text encoders, by sentence-transformers. In: `Problem`s. Out: `Ranking`s.

    rankings = dense(train, test, model="minilm")     # a name of ours (`models`), a directory, or a name on the hub

They are not trained here: `train` is ignored. `dense` encodes question and candidate apart and compares them by
cosine; `cross_encoder` reads both together, one pair at a time. Texts are cut at the model's own maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from r1ranker.backends.encoders import DENSE, load
from r1ranker.baselines.common import rank_scored
from r1ranker.errors import BackendError
from r1ranker.problem import Problem, Ranking

CROSS = "cross-encoder/ms-marco-MiniLM-L-6-v2"
BATCH = 32


def dense(train: Sequence[Problem], test: Sequence[Problem], *, model: str = DENSE) -> list[Ranking]:
    """Cosine of the question's and the candidate's embedding; a model's query and document prompts are used."""
    if not test:
        return []
    encoder = load("SentenceTransformer", model)

    def score(problems: Sequence[Problem]) -> list[dict[str, float]]:
        asked = _embedded(encoder.encode_query, [question(problem) for problem in problems])
        shown = _embedded(encoder.encode_document, [c.text for problem in problems for c in problem.candidates])
        return [{c.docid: float(asked[question(p)] @ shown[c.text]) for c in p.candidates} for p in problems]

    return rank_scored(score, test, "dense")


def cross_encoder(train: Sequence[Problem], test: Sequence[Problem], *, model: str = CROSS) -> list[Ranking]:
    """The model's score of question and candidate read together; a model with one output (label) is needed."""
    if not test:
        return []
    reader = load("CrossEncoder", model)
    if reader.num_labels != 1:
        raise BackendError(f"cross-encoder {model}: has {reader.num_labels} outputs; give one that scores relevance")

    def score(problems: Sequence[Problem]) -> list[dict[str, float]]:
        pairs = list(dict.fromkeys((question(p), c.text) for p in problems for c in p.candidates))
        # The raw output: a sigmoid in 32 bits makes all good candidates equal.
        values = reader.predict(pairs, batch_size=BATCH, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        of_pair = dict(zip(pairs, values.tolist(), strict=True))
        return [{c.docid: of_pair[question(p), c.text] for c in p.candidates} for p in problems]

    return rank_scored(score, test, "cross-encoder")


def question(problem: Problem) -> str:
    """What is asked, as one text; the newest titles of a history first, since models cut a text at its end."""
    return "\n".join(part for part in (problem.query, problem.objective, *reversed(problem.history)) if part)


def _embedded(encode: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Unit vector by distinct text."""
    distinct = list(dict.fromkeys(texts))
    vectors = encode(distinct, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)
    return dict(zip(distinct, vectors, strict=True))
