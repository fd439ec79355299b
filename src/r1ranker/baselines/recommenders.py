"""Recommenders that read no words: item-kNN, BPR, SASRec. In: training and test problems. Out: `Ranking`s.

    rankings = bpr(splits["train"], splits["test"])                            # what the training problems hold
    everything = interactions("movielens", "ml-1m", seed=0)                    # see datasets.interactions
    rankings = bpr([p for split in everything.values() for p in split], splits["test"])

An interaction is a title in a training problem's history, or its positive: all that a language model could learn
from too. Problems of one user (`group`) are joined. A test user is new: each model reads the test problem's
history and nothing else of the user. A candidate that no training user chose comes last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from r1ranker.backends.loading import pick_device
from r1ranker.baselines.common import Scorer, fit_and_rank
from r1ranker.errors import DataError
from r1ranker.io.extras import library
from r1ranker.problem import Candidate, Problem, Ranking

_YEAR = re.compile(r" \(\d{4}\)$")
CONTEXT = 20
"""Titles that SASRec reads: as many as a history holds by default."""
BATCH, NEGATIVES = 128, 512


def item_knn(train: Sequence[Problem], test: Sequence[Problem]) -> list[Ranking]:
    """A candidate's cosine similarity to each title of the history, summed (Sarwar et al., WWW 2001).

    The vectors are the items' users, 0 or 1; all neighbours count, since the pool holds few near ones. Not by
    cornac: its ItemKNN compares two items over their common users only, where all 0-1 vectors are alike.
    """
    return fit_and_rank(partial(_fitted, learn=item_knn_scores), train, test, "item-knn", "recommendation")


def bpr(train: Sequence[Problem], test: Sequence[Problem], *, seed: int = 0) -> list[Ranking]:
    """Matrix factorisation by Bayesian personalised ranking (Rendle et al., UAI 2009), by cornac.

    The factors of a new user are the mean item factors of the history, made as long as those of training users
    are on average: a mean of many is short, and item biases (popularity) would decide alone.
    """
    fit = partial(_fitted, learn=partial(bpr_scores, seed=seed))
    return fit_and_rank(fit, train, test, "bpr", "recommendation")


def sasrec(
    train: Sequence[Problem], test: Sequence[Problem], *, seed: int = 0, steps: int = 3000, epochs: int = 20
) -> list[Ranking]:
    """Self-attention over the history (Kang and McAuley, ICDM 2018); on a GPU where there is one.

    Trained for so many steps or epochs, whichever is more, by cross-entropy against many items, not one, which is
    what makes it as good as its successors (Klenitskiy and Vasilev, RecSys 2023). The network is transformers' GPT-2.
    Not by cornac: its SASRec is weak.
    """
    fit = partial(_fitted, learn=partial(sasrec_scores, seed=seed, steps=steps, epochs=epochs))
    return fit_and_rank(fit, train, test, "sasrec", "recommendation")


@dataclass(frozen=True)
class Log:
    """Who chose what: titles, or other names of items, by user, oldest first and each once; and a number for each."""

    sequences: Mapping[str, tuple[str, ...]]
    numbers: Mapping[str, int]

    @classmethod
    def of(cls, chosen: Mapping[str, Iterable[str]]) -> Log:
        """From what each user chose."""
        sequences = {user: tuple(dict.fromkeys(items)) for user, items in chosen.items()}
        distinct = dict.fromkeys(item for items in sequences.values() for item in items)
        return cls(sequences, {item: number for number, item in enumerate(distinct)})

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(user, title) for user, titles in self.sequences.items() for title in titles]

    def history(self, problem: Problem) -> list[int]:
        """Numbers of the history's known titles, oldest first."""
        return [self.numbers[title] for title in problem.history if title in self.numbers]

    def pool(self, candidates: Iterable[Candidate]) -> dict[str, int]:
        """Number of each known candidate, by docid."""
        titles = {c.docid: title_of(c.text, self.numbers) for c in candidates}
        return {docid: self.numbers[title] for docid, title in titles.items() if title in self.numbers}

    def only(self, known: Container[str]) -> Log:
        """The same numbers for fewer items: a model fitted to the whole knows nothing of the others by this log."""
        return Log(self.sequences, {item: number for item, number in self.numbers.items() if item in known})


class Scores(Protocol):
    """A fitted model: what a history, oldest first, says of items. All are numbers of a `Log`; None: all its items."""

    def __call__(self, history: Sequence[int], items: Sequence[int] | None = None) -> Any:
        """An array (items,), higher is better."""


def log_of(train: Sequence[Problem]) -> Log:
    """What the users of training problems chose, by title; problems of one user are joined."""
    named = {title for problem in train for title in problem.history}
    chosen: dict[str, dict[str, None]] = {}
    for problem in train:
        positives = [problem.candidate(k).text for k in problem.identifiers if problem.is_relevant(k)]
        titles = [*problem.history, *(title_of(text, named) for text in positives)]
        chosen.setdefault(problem.group, {}).update(dict.fromkeys(titles))
    return Log.of(chosen)


def title_of(text: str, known: Container[str]) -> str:
    """The title that a candidate shows: histories hold "Heat", candidates "Heat | Action" or "Heat (1995)"."""
    bare, beginning = text.partition(" | ")[0], text
    while beginning not in known and " | " in beginning:
        beginning = beginning.rpartition(" | ")[0]
    dated = _YEAR.sub("", bare)
    return next((title for title in (beginning, dated) if title in known), bare)


def in_pools(log: Log, scores: Scores) -> Scorer:
    """Scores of the candidates that the log knows, from a model that was fitted to it."""

    def score(problem: Problem) -> dict[str, float]:
        pool = log.pool(problem.candidates)
        if not pool:
            return {}
        return dict(zip(pool, scores(log.history(problem), list(pool.values())).tolist(), strict=True))

    return lambda problems: [score(problem) for problem in problems]


def _fitted(train: Sequence[Problem], learn: Callable[[Log], Scores]) -> Scorer:
    log = log_of(train)
    if not log.numbers:
        raise DataError(f"task {train[0].task!r}: no training problem has a history or a positive to learn from")
    return in_pools(log, learn(log))


def item_knn_scores(log: Log) -> Scores:
    """Item-kNN as in `item_knn`."""
    users = {user: row for row, user in enumerate(log.sequences)}
    cells = np.array([(users[user], log.numbers[title]) for user, title in log.pairs]).T
    chosen = library("scipy.sparse").csc_array((np.ones(cells.shape[1]), cells), shape=(len(users), len(log.numbers)))
    unit = library("sklearn.preprocessing").normalize(chosen, axis=0)

    def scores(history: Sequence[int], items: Sequence[int] | None = None) -> Any:
        # The sum of cosines is one product with the sum of the history's unit vectors.
        return (unit if items is None else unit[:, items]).T @ unit[:, history].sum(axis=1)

    return scores


def bpr_scores(log: Log, seed: int = 0) -> Scores:
    """BPR as in `bpr`."""
    data = library("cornac.data").Dataset.from_uir([(*pair, 1.0) for pair in log.pairs], seed=seed)
    # The settings are the best on dev of three public sources and level with fewer steps on the embedded one.
    model = library("cornac.models").BPR(k=64, max_iter=400, learning_rate=0.05, lambda_reg=0.02, seed=seed)
    model.fit(data)
    # cornac numbers items in the order it meets them, which is the log's.
    factors, biases = model.i_factors, model.i_biases
    length = np.linalg.norm(model.u_factors, axis=1).mean()

    def scores(history: Sequence[int], items: Sequence[int] | None = None) -> Any:
        asked = slice(None) if items is None else items
        if not history:
            return biases[asked]
        mean = factors[history].mean(axis=0)
        return biases[asked] + factors[asked] @ mean * (length / max(np.linalg.norm(mean), 1e-9))

    return scores


def sasrec_scores(log: Log, seed: int = 0, steps: int = 3000, epochs: int = 20) -> Scores:
    """SASRec as in `sasrec`."""
    device = pick_device()
    rows = [[log.numbers[title] for title in titles] for titles in log.sequences.values() if len(titles) > 1]
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = _next_item_network(len(log.numbers)).to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.001, betas=(0.9, 0.98))
        step = epoch = 0
        while rows and (step < steps or epoch < epochs):
            for read, following in _batches(rows, rng):
                step += 1
                loss = _sampled_softmax(network, read.to(device), following.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            epoch += 1
    network.eval()

    @torch.inference_mode()
    def scores(history: Sequence[int], items: Sequence[int] | None = None) -> Any:
        asked = network.wte.weight if items is None else network.wte.weight[list(items)]
        if not history:
            return np.zeros(len(asked))
        state = network(torch.tensor([history[-CONTEXT:]], device=device)).last_hidden_state[0, -1]
        return (asked @ state).cpu().numpy()

    return scores


def _next_item_network(items: int) -> Any:
    """SASRec's network: two causal blocks of one head over items and places; GPT-2's has GELU where it has ReLU."""
    from transformers import GPT2Config, GPT2Model

    drop = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.5)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"))
    return GPT2Model(GPT2Config(vocab_size=items, n_positions=CONTEXT, n_embd=64, n_layer=2, n_head=1, **drop, **ends))


def _batches(rows: Sequence[Sequence[int]], rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """(B, S) items and what follows each, -1 beyond a row's end. Rows are cut at random, and batched by length."""
    parts = [
        torch.tensor(row[max(0, at) : at + CONTEXT + 1])
        for row in rows
        for at in range(-int(rng.integers(CONTEXT)), len(row) - 1, CONTEXT)
    ]
    parts.sort(key=len)
    for first in rng.permutation(range(0, len(parts), BATCH)):
        padded = pad_sequence(parts[first : first + BATCH], batch_first=True, padding_value=-1)
        yield padded[:, :-1].clamp(min=0), padded[:, 1:]


def _sampled_softmax(network: Any, read: Tensor, following: Tensor) -> Tensor:
    """Cross-entropy of the item that follows among itself and items drawn uniformly, as those of a pool are."""
    items, wanted = network.wte.weight, following[following >= 0]
    state = network(read, use_cache=False).last_hidden_state[following >= 0]
    others = torch.randint(len(items), (NEGATIVES,), device=items.device)
    against = (state @ items[others].T).masked_fill(others == wanted[:, None], -torch.inf)
    logits = torch.cat([(state * items[wanted]).sum(-1, keepdim=True), against], dim=1)
    return functional.cross_entropy(logits, torch.zeros_like(wanted))


RECOMMENDERS: dict[str, Callable[[Log], Scores]] = {
    "item-knn": item_knn_scores,
    "bpr": bpr_scores,
    "sasrec": sasrec_scores,
}
"""What fits each; one fit serves pools and whole catalogues."""
