"""One peer's own cost of a ranking. In: a server's URL and a peer's name. Out: a line of JSON, or why there is none.

    PEERS/bin/python benchmarks/peers.py rerankers http://127.0.0.1:8000/v1 300

`endpoint.py` starts this by the Python that has the peer; it imports nothing of this project. A peer is used as its
own documentation shows, one query after the other, over the queries that our rankers get. Those that count tokens by
tiktoken need its vocabulary: from the network, or from a folder named in TIKTOKEN_CACHE_DIR.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

CANDIDATES = 20
PASSAGE = "what a passage says takes a line or two in which some words of the query may stand"
REPEATS = 5

Query = tuple[str, list[tuple[str, str]]]
"""What is asked, and docid and text of each candidate."""
Rank = Callable[[Query], tuple[list[str], int]]
"""docids in their new order, and how many calls that took."""


def query(number: int, n: int = CANDIDATES) -> Query:
    """A query with n passages of some 17 words."""
    return f"what does passage {number} say", [(f"d{k}", f"{PASSAGE} {number} {k}") for k in range(1, n + 1)]


def cpu_milliseconds(work: Callable[[], Any], queries: int) -> float:
    """This process's CPU time for one query, all threads; the least of some runs, after one that warms up."""
    work()
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return 1000 * min(times) / queries


def rerankers(url: str) -> Rank:
    """RankGPT through LiteLLM."""
    os.environ["OPENAI_API_BASE"] = url
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices
    from rerankers import Document  # type: ignore[import-not-found]
    from rerankers.models.rankgpt_rankers import RankGPTRanker  # type: ignore[import-not-found]

    ranker = RankGPTRanker("openai/m", "none", verbose=0)

    def rank(asked: Query) -> tuple[list[str], int]:
        text, candidates = asked
        documents = [Document(text=passage, doc_id=docid) for docid, passage in candidates]
        ranked = ranker.rank(text, documents, rank_end=CANDIDATES)  # it ranks none by default
        return [result.document.doc_id for result in ranked.results], 1

    return rank


def llm_rankers(url: str, way: str) -> Rank:
    """`listwise`: one window over the whole pool. `setwise`: its defaults, a heap sort of the best ten by fours."""
    import openai  # type: ignore[import-not-found]
    from llmrankers.listwise import OpenAiListwiseLlmRanker  # type: ignore[import-not-found]
    from llmrankers.rankers import SearchResult  # type: ignore[import-not-found]
    from llmrankers.setwise import OpenAiSetwiseLlmRanker  # type: ignore[import-not-found]

    if not openai.__version__.startswith("0."):  # with another one its listwise ranker asks again for ever
        raise ImportError(f"needs openai<1, which removed the calls that it makes; found {openai.__version__}")
    openai.api_base = url
    if way == "listwise":
        ranker = OpenAiListwiseLlmRanker("gpt-3.5-turbo", "none", CANDIDATES, CANDIDATES, 1)
    else:
        ranker = OpenAiSetwiseLlmRanker("gpt-3.5-turbo", "none")

    def rank(asked: Query) -> tuple[list[str], int]:
        text, candidates = asked
        ranked = ranker.rerank(text, [SearchResult(docid, 0.0, passage) for docid, passage in candidates])
        return [result.docid for result in ranked], ranker.total_compare

    return rank


def rank_llm(url: str) -> Rank:
    """RankGPT through the openai client."""
    for module in ("vllm", "vllm.outputs"):  # imported with every ranker, used by none that calls an endpoint
        sys.modules[module] = MagicMock()
    from rank_llm.data import Candidate, Query, Request  # type: ignore[import-not-found]
    from rank_llm.rerank.listwise import SafeOpenai  # type: ignore[import-not-found]
    from rank_llm.rerank.rankllm import PromptMode  # type: ignore[import-not-found]

    ranker = SafeOpenai("m", 16384, PromptMode.RANK_GPT, window_size=CANDIDATES, keys="none", base_url=f"{url}/")

    def rank(asked: Any) -> tuple[list[str], int]:
        text, candidates = asked
        hits = [Candidate(docid, 0.0, {"contents": passage}) for docid, passage in candidates]
        ranked = ranker.rerank_batch([Request(Query(text, 0), hits)], rank_end=CANDIDATES)[0]
        return [candidate.docid for candidate in ranked.candidates], 1

    return rank


PEERS: dict[str, tuple[str, Callable[[str], Rank]]] = {
    "rerankers": ("RankGPT", rerankers),
    "rank_llm": ("RankGPT", rank_llm),
    "llm-rankers": ("listwise", lambda url: llm_rankers(url, "listwise")),
    "llm-rankers setwise": ("setwise", lambda url: llm_rankers(url, "setwise")),
}
"""Distribution (and which of its ways), that way's name, and what makes the ranker."""
NOTES = {
    "rank_llm": "with an empty module for vLLM, which it imports, and transformers<4.49",
    "llm-rankers setwise": "the server's answer names no passage, so it takes the first: cost per call only",
}


def measured(name: str, url: str, queries: int) -> dict[str, Any]:
    """The row of one peer. Raises whatever the peer raises."""
    way, make = PEERS[name]
    rank, asked = make(url), [query(i) for i in range(queries)]
    order, calls = rank(asked[0])
    wanted = [docid for docid, _ in asked[0][1]][::-1]  # the server's order is the reverse of the input
    assert order == wanted or name == "llm-rankers setwise", f"a wrong order: {order}"
    ms = cpu_milliseconds(lambda: [rank(each) for each in asked], queries)
    distribution = name.split()[0]
    system = f"{distribution} {version(distribution)} {way}"
    return {"system": system, "calls": calls, "ms": ms, "note": NOTES.get(name, "")}


def main() -> None:
    """The row as the only line of stdout, whatever the peer prints."""
    name, url, queries = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        try:
            row = measured(name, url, queries)
        except Exception as error:  # whatever it is, it is the reason that there is no figure
            row = {"system": name, "note": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
