"""mteb's search model, by mteb's own evaluation of tasks that need no network."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("mteb")

import mteb
from datasets import Dataset
from mteb.mocks.mock_tasks.reranking import MockInstructionReranking, MockRerankingTask
from mteb.mocks.mock_tasks.retrieval import MockRetrievalTask
from mteb.models import SearchProtocol

from known_order import BEST_FIRST, QUERY, TEXTS, by_shared_words
from r1ranker import ConfigError
from r1ranker.adapters.mteb import R1Ranker

CORPUS = [{"id": f"d{at}", "title": "", "text": text} for at, text in enumerate(TEXTS)]
QUERIES = [{"id": "q1", "text": QUERY}, {"id": "q2", "text": "tractors"}, {"id": "q3", "text": "no first stage"}]
FIRST = {"q1": ["d0", "d1", "d3"], "q2": ["d2", "d0"]}
"""Candidates by query."""


class Owls(MockRerankingTask):
    """Two queries, each with a judged document that is relevant and one that is not."""

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        data = {
            "corpus": Dataset.from_list(CORPUS),
            "queries": Dataset.from_list(QUERIES[:2]),
            "relevant_docs": {"q1": {"d3": 1, "d0": 0}, "q2": {"d2": 1, "d0": 0}},
            "top_ranked": FIRST,
        }
        self.dataset = {"default": {"test": data}}
        self.data_loaded = True


def model() -> R1Ranker:
    return R1Ranker(by_shared_words(), name="r1-ranker/words")


def measured(task: Any) -> dict[str, Any]:
    found = mteb.evaluate(model(), [task], cache=None, co2_tracker=False, show_progress_bar=False)
    scores: dict[str, Any] = found.task_results[0].scores["test"][0]
    return scores


@pytest.mark.filterwarnings("ignore")  # mteb's own
def test_mteb_measures_its_order() -> None:
    assert isinstance(model(), SearchProtocol)
    assert measured(Owls())["mrr_at_10"] == pytest.approx((1 + 1 / 2) / 2)


@pytest.mark.filterwarnings("ignore")
def test_a_task_with_instructions_is_ranked() -> None:
    assert 0 < measured(MockInstructionReranking())["mrr_at_10"] <= 1


@pytest.mark.filterwarnings("ignore")
def test_a_retrieval_task_needs_a_first_stage() -> None:
    with pytest.raises(ConfigError, match="convert_to_reranking"):
        measured(MockRetrievalTask())


def test_titles_and_instructions_are_read_and_the_best_are_kept() -> None:
    ranker = model()
    ranker.index([*CORPUS, {"id": "titled", "title": "barn owls live", "text": "long"}])
    rows = [{"id": "q1", "text": "how long do", "instruction": "barn owls live"}, *QUERIES[2:]]
    found = ranker.search(rows, top_k=2, top_ranked={"q1": ["d0", "d2", "titled", "d3"]})
    assert list(found["q1"]) == [f"d{BEST_FIRST[0]}", "titled"]
    assert found["q3"] == {}
