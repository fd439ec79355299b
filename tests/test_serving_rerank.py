"""The rerank family over HTTP: the rules that real clients break on, each as a request to a running server."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from r1ranker.backends.scripted import ScriptedBackend
from r1ranker.problem import Candidate, Problem
from r1ranker.ranking.rankers import DRanker, IRanker, Ranker
from r1ranker.serving.errors import HttpError
from r1ranker.serving.rerank import _all_ranked
from r1ranker.serving.settings import ServeSettings
from serving_server import Server, malformed

DOCUMENTS = ["a barn owl hunts at night", "tractors need oil", "owls eat mice", "the sea is salt", "a barn is a house"]
ASKED = {"query": "what do barn owls eat", "documents": DOCUMENTS}
RERANK = ["/rerank", "/v1/rerank", "/v2/rerank"]


def rerank(served: Server, **changes: Any) -> dict[str, Any]:
    """The answer to a sound request."""
    status, _, answer = served.post("/rerank", ASKED | changes)
    assert status == 200, answer
    return answer  # type: ignore[no-any-return]


def places(answer: dict[str, Any]) -> list[int]:
    return [result["index"] for result in answer["results"]]


@pytest.mark.parametrize("path", RERANK)
def test_one_object_for_cohere_jina_and_vllm(served: Server, path: str) -> None:
    status, headers, answer = served.post(path, ASKED)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert set(answer) == {"id", "object", "model", "results", "usage", "meta"}
    assert answer["model"] == "nano"
    assert 0 < answer["usage"]["prompt_tokens"] < answer["usage"]["total_tokens"]
    meta = answer["meta"]
    assert meta["api_version"] == {"version": "2"}
    assert meta["billed_units"] == {"search_units": 1}
    assert meta["tokens"]["input_tokens"] == answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize("model", ["nano", "direct", "best"])
def test_scores_fall_strictly_and_every_place_stands_once(served: Server, model: str) -> None:
    for documents in (DOCUMENTS, ["one"], ["same"] * 7):
        answer = rerank(served, documents=documents, model=model)
        values = [result["relevance_score"] for result in answer["results"]]
        assert sorted(places(answer)) == list(range(len(documents)))
        assert all(0 < value <= 1 and math.isfinite(value) for value in values)
        assert all(one > other for one, other in pairwise(values))


def test_nothing_extra_stands_inside_a_result(served: Server) -> None:
    assert all(set(result) == {"index", "relevance_score"} for result in rerank(served)["results"])
    shown = rerank(served, return_documents=True)["results"]
    assert all(result["document"] == {"text": DOCUMENTS[result["index"]]} for result in shown)


@pytest.mark.parametrize(("top_n", "given"), [(None, 5), (0, 5), (2, 2), ("3", 3), (5, 5), (99, 5)])
@pytest.mark.parametrize("model", ["nano", "best"])
def test_top_n_is_the_head_of_the_whole_order(served: Server, top_n: Any, given: int, model: str) -> None:
    whole = places(rerank(served, model=model))
    assert places(rerank(served, model=model, top_n=top_n)) == whole[:given]


def test_a_ranker_that_selects_the_best_asks_no_more_than_top_n_needs(served: Server) -> None:
    few, all_ = rerank(served, model="best", top_n=1), rerank(served, model="best")
    assert few["usage"]["total_tokens"] < all_["usage"]["total_tokens"]


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"top_n": -1}, 422, "top_n"),
        ({"top_n": "many"}, 422, "top_n"),
        ({"documents": []}, 400, "documents"),
        ({"documents": None}, 400, "documents"),
        ({"documents": "text"}, 422, "documents"),
        ({"documents": [1]}, 422, "documents"),
        ({"query": " \n"}, 400, "query"),
        ({"query": None}, 400, "query"),
        ({"query": 5}, 422, "query"),
        ({"model": "no-such"}, 404, "model"),
        ({"return_documents": "perhaps"}, 422, "return_documents"),
        ({"deadline_s": 0}, 422, "deadline_s"),
        ({"query": "half \ud83d"}, 400, None),
    ],
)
@pytest.mark.parametrize("path", RERANK)
def test_a_bad_request_is_refused_in_words_that_all_clients_read(
    served: Server, path: str, changes: dict[str, Any], status: int, param: str | None
) -> None:
    given, _, answer = served.post(path, ASKED | changes)
    assert given == status, answer
    assert set(answer) == {"error", "message", "detail"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["message"] == answer["message"] == answer["detail"]
    assert isinstance(answer["detail"], str)
    assert answer["error"]["param"] == param


def test_an_unknown_model_is_told_which_there_are(served: Server) -> None:
    answer = served.post("/rerank", ASKED | {"model": "rerank-v3.5"})[2]
    assert "nano, direct, best" in answer["message"]


def test_unknown_fields_are_left_aside_and_every_optional_may_be_null(served: Server) -> None:
    plain = rerank(served)["results"]
    names = "model top_n return_documents rank_fields max_tokens_per_doc max_chunks_per_doc truncation priority user"
    assert rerank(served, **dict.fromkeys(names.split()))["results"] == plain
    assert rerank(served, max_chunks_per_doc=10, truncate="END", anything={"at": "all"})["results"] == plain


def test_booleans_may_be_strings(served: Server) -> None:
    assert all("document" in result for result in rerank(served, return_documents="true")["results"])
    assert not any("document" in result for result in rerank(served, return_documents="false")["results"])


def test_documents_may_be_objects(served: Server) -> None:
    documents = [{"text": "a", "x": 1}, {"title": "b", "year": 7}, {"title": "c"}, "d"]

    def read(**changes: Any) -> list[str]:
        explained = rerank(served, documents=documents, explain=True, **changes)["explain"]
        return [candidate["text"] for candidate in explained["candidates"]]

    assert read() == ["a", "title: b\nyear: 7", "c", "d"]
    assert read(rank_fields=["title", "x"]) == ["1", "b", "c", "d"]


def test_the_trace_comes_only_when_asked_and_at_the_top(served: Server) -> None:
    assert "explain" not in rerank(served)
    answer = rerank(served, explain="true", top_n=2)
    trace = answer["explain"]
    assert (trace["query"], trace["ask"], trace["error"]) == (ASKED["query"], "worst", "")
    assert [int(docid) for docid in trace["docids"][:2]] == places(answer)
    assert len(trace["docids"]) == len(trace["candidates"]) == 5
    assert [len(step["pool"]) for step in trace["steps"]] == [5, 4, 3, 2]


def test_an_instruction_is_read_by_the_model(served: Server) -> None:
    plain, told = (rerank(served, instruction=text) for text in (None, "Which is about agriculture, in few words?"))
    assert told["usage"]["prompt_tokens"] != plain["usage"]["prompt_tokens"]


def test_a_user_of_a_recommendation_has_a_history_and_no_query(served: Server) -> None:
    assert rerank(served, query=None, scenario="recommendation", history=["Alien", "Aliens"])["results"]
    assert served.post("/rerank", ASKED | {"query": None, "history": ["Alien"]})[0] == 400, "passages have a query"
    assert served.post("/rerank", ASKED | {"scenario": "no-such"})[0] == 400


def test_what_is_late_is_ordered_by_what_is_known_and_says_so(served: Server) -> None:
    answer = rerank(served, model="steady", deadline_s=2)
    assert sorted(places(answer)) == [0, 1, 2, 3, 4]
    assert re.match(r"the deadline of 2 s came after [123] steps", answer["meta"]["warnings"][0])
    assert "warnings" not in rerank(served)["meta"]


def test_an_order_of_which_the_model_said_nothing_in_time_is_no_answer(served: Server) -> None:
    late = {"model": "slow", "deadline_s": 0.2}
    status, headers, answer = served.post("/v1/rerank", ASKED | late)
    assert (status, answer["error"]["code"]) == (504, "deadline")
    assert "fewer or shorter documents" in answer["message"] and headers["retry-after"] == "1"
    status, _, answer = served.post("/rerank", {"query": "q", "texts": DOCUMENTS} | late)
    assert (status, answer["error_type"]) == (504, "Overloaded")


@pytest.mark.parametrize("path", ["/voyage/v1/rerank", "/rerank", "/v1/rerank", "/score"])
def test_warnings_stand_in_a_header_whatever_the_shape(served: Server, path: str) -> None:
    texts = "texts" if path == "/rerank" else "documents"
    asked = {"query": "q", "queries": "q", texts: [12 * f"{text} " for text in DOCUMENTS]}
    _, headers, _ = served.post(path, asked | {"model": "short"})
    assert headers["x-r1ranker-warnings"] == "texts were cut to fit the model"
    assert "x-r1ranker-warnings" not in served.post(path, asked)[1]


def test_where_one_query_of_scores_is_refused_the_others_are_dropped() -> None:
    dropped = []

    class Refusing:
        async def rank(self, problem: Problem, **_: object) -> None:
            if problem.query == "b":
                raise HttpError(422, "too long")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                dropped.append(problem.query)
                raise

    async def score() -> None:
        problems = [Problem(q, "t", "passage", (Candidate("1", "x"),), query=q) for q in ("a", "b")]
        with pytest.raises(HttpError):
            await _all_ranked(Refusing(), problems, None, "")  # type: ignore[arg-type]
        await asyncio.sleep(0)

    asyncio.run(score())
    assert dropped == ["a"]


def test_a_query_whose_client_has_gone_is_dropped(served: Server) -> None:
    def dropped() -> float:
        found = re.search(r'te_request_failure_total{err="gone",model="slow"} (\S+)', served.get("/metrics")[2])
        return float(found[1]) if found else 0.0

    before, body = dropped(), json.dumps(ASKED | {"model": "slow", "deadline_s": 60}).encode()
    head = f"POST /rerank HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: key-a\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as sock:
        sock.sendall(head.encode() + body)
        time.sleep(0.2)
    until = time.monotonic() + 30
    while dropped() == before:
        assert time.monotonic() < until, "it is still waited for, though nobody does"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("trained_in", "given", "design"),
    [
        ({}, {}, DRanker),
        ({"layout": "relist"}, {}, IRanker),
        ({}, {"ask": "worst"}, IRanker),
        ({}, {"design": "iranker"}, IRanker),
    ],
)
def test_a_model_that_does_not_say_how_it_was_trained_makes_one_list(
    trained_in: dict[str, str], given: dict[str, str], design: type[Ranker]
) -> None:
    backend = ScriptedBackend(weigh=lambda prompt, identifier: 1.0)
    backend.trained_in = trained_in  # type: ignore[attr-defined]
    spec = ServeSettings.model_validate({"rankers": {"a": {"model": "m", **given}}}).rankers["a"]
    assert isinstance(spec.around(backend), design)


def test_a_model_that_fails_is_an_error_and_never_the_order_given(served: Server) -> None:
    status, _, answer = served.post("/rerank", ASKED | {"model": "refused"})
    assert status == 502
    assert "results" not in answer


def test_texts_in_place_of_documents_get_teis_shape(served: Server) -> None:
    asked = {"query": ASKED["query"], "texts": DOCUMENTS, "raw_scores": False, "truncate": True}
    status, _, answer = served.post("/rerank", asked | {"truncation_direction": "right", "top_n": 1})
    assert status == 200
    assert all(set(result) == {"index", "score"} for result in answer)
    assert [result["index"] for result in answer] == places(rerank(served)), "best first, all of them"
    answer = served.post("/rerank", asked | {"return_text": True})[2]
    assert all(result["text"] == DOCUMENTS[result["index"]] for result in answer)


def test_an_error_about_texts_has_teis_shape(served: Server) -> None:
    status, _, answer = served.post("/rerank", {"query": "q", "texts": []})
    assert (status, set(answer)) == (400, {"error", "error_type"})
    assert isinstance(answer["error"], str)


def test_info_says_that_this_is_a_reranker(served: Server) -> None:
    answer = served.get("/info")[2]
    assert answer["model_id"] == "nano"
    assert "reranker" in answer["model_type"]
    assert answer["max_client_batch_size"] == 60
    assert answer["max_input_length"] > 0


@pytest.mark.parametrize("path", ["/v1/v1/rerank", "/v1/v2/rerank", "/v2/v1/rerank"])
def test_a_base_url_may_end_in_a_version_that_the_client_writes_again(served: Server, path: str) -> None:
    status, _, answer = served.post(path, ASKED)
    assert status == 200
    assert places(answer) == places(rerank(served))
    assert served.get("/v1/info")[2] == served.get("/info")[2]
    assert served.post("/v1/v1/v1/rerank", ASKED)[0] == 404


def test_voyage_has_its_own_shape(served: Server) -> None:
    asked = {"query": ASKED["query"], "documents": DOCUMENTS, "top_k": 3, "truncation": True, "return_documents": True}
    status, _, answer = served.post("/voyage/v1/rerank", asked)
    assert status == 200
    assert set(answer) == {"object", "data", "model", "usage"}
    assert [one["index"] for one in answer["data"]] == places(rerank(served))[:3]
    assert all(one["document"] == DOCUMENTS[one["index"]] for one in answer["data"])
    assert answer["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("names", [("queries", "documents"), ("text_1", "text_2")])
@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_scores_come_in_the_order_given(served: Server, names: tuple[str, str], path: str) -> None:
    status, _, answer = served.post(path, {names[0]: ASKED["query"], names[1]: DOCUMENTS})
    assert status == 200
    assert [one["index"] for one in answer["data"]] == list(range(5))
    best_first = sorted(range(5), key=lambda i: -answer["data"][i]["score"])
    assert best_first == places(rerank(served))


def test_pairs_of_one_query_are_ranked_together(served: Server) -> None:
    queries = [ASKED["query"], "salt", ASKED["query"], "salt"]
    answer = served.post("/score", {"queries": queries, "documents": DOCUMENTS[:4]})[2]
    scores = [one["score"] for one in answer["data"]]
    for query, i, j in ((ASKED["query"], 0, 2), ("salt", 1, 3)):
        order = places(rerank(served, query=query, documents=[DOCUMENTS[i], DOCUMENTS[j]]))
        assert (scores[i] > scores[j]) == (order == [0, 1])
    assert served.post("/score", {"queries": ["a", "b"], "documents": ["c", "d", "e"]})[0] == 422
    assert served.post("/score", {"queries": [], "documents": ["c"]})[0] == 400


def test_what_there_is_can_be_asked(served: Server) -> None:
    models = served.get("/v1/models")[2]
    assert [model["id"] for model in models["data"]] == ["nano", "direct", "best", "short", "slow", "steady", "refused"]
    assert served.get("/health")[2]["rankers"]["nano"] == "ok"
    assert served.get("/ready")[0] == 200
    schema = served.get("/openapi.json")[2]
    assert {*RERANK, "/voyage/v1/rerank", "/score", "/info", "/metrics"} <= set(schema["paths"])
    body = schema["paths"]["/rerank"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"query", "documents", "texts", "top_n", "explain"} <= set(body["properties"])


def test_metrics_count_what_was_asked(served: Server) -> None:
    def counts() -> dict[str, float]:
        lines = (line.rsplit(" ", 1) for line in served.get("/metrics")[2].splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    rerank(served)
    served.post("/rerank", ASKED | {"model": "refused"})
    before = counts()
    rerank(served)
    served.post("/rerank", ASKED | {"model": "refused"})
    after = counts()
    for name in ("te_request_count_total", "te_request_success_total", "te_request_duration_count"):
        assert after[f'{name}{{model="nano"}}'] == before[f'{name}{{model="nano"}}'] + 1
    failed = 'te_request_failure_total{err="backend",model="refused"}'
    assert after[failed] == before[failed] + 1
    assert after['te_tokens_total{kind="read",model="nano"}'] > before['te_tokens_total{kind="read",model="nano"}']
    assert after['te_queue_size{model="nano"}'] == 0
    assert after['te_healthy{model="nano"}'] == 1


def test_metrics_are_those_of_the_docs_and_no_others(served: Server) -> None:
    rerank(served)
    text = served.get("/metrics")[2]
    assert "_created" not in text
    page = Path(__file__).parents[1] / "docs" / "serving.md"
    if not page.is_file():
        pytest.skip("needs a checkout")
    named = set(re.findall(r"`((?:te|r1ranker)_[a-z_]+)", page.read_text())) - {"te_", "r1ranker_upstream_"}
    told = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    assert {"te_request_count_total", "te_queue_size"} < named <= told


def test_everyone_gets_an_answer_about_their_own_documents(served: Server) -> None:
    def ask(client: int) -> tuple[list[str], dict[str, Any]]:
        documents = [f"text {client} {place}" for place in range(2 + client % 4)]
        answer = rerank(served, documents=documents, return_documents=True, model=["nano", "direct"][client % 2])
        return documents, answer

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(48)))
    for documents, answer in answers:
        assert {result["index"]: result["document"]["text"] for result in answer["results"]} == dict(
            enumerate(documents)
        )
    assert len({answer["id"] for _, answer in answers}) == 48


def test_no_bad_request_is_a_fault_of_the_server(served: Server) -> None:
    rng = random.Random(5)
    bodies = [malformed(rng) for _ in range(400)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda one: served.request("POST", *one), bodies))
    for (path, body), (status, _, answer) in zip(bodies, answers, strict=True):
        assert status < 500, (path, body[:300], answer)
        assert status == 200 or json.dumps(answer), "refused in words"
    statuses = {status for status, _, _ in answers}
    assert {200, 400, 422} <= statuses
    assert rerank(served)["results"]
