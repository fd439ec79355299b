"""The endpoint backend against a real server that fails on purpose (see `fault_server`)."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fault_server import KINDS, FaultServer
from r1ranker.answers import parse_ranking, parse_removal
from r1ranker.backends import openai_
from r1ranker.backends.base import Ask, AsyncBackend, CallError, Choice, Completion
from r1ranker.backends.openai_ import OpenAIBackend, probabilities
from r1ranker.backends.prices import read_prices
from r1ranker.errors import BackendError, ConfigError
from r1ranker.problem import Problem, Ranking
from r1ranker.prompts import LAYOUTS, NO_THOUGHT, Prompt, build_prompt
from r1ranker.ranking.rankers import DRanker, IRanker

MakeProblem = Callable[..., Problem]
NOTHING: frozenset[str] = frozenset()
SLOW = ("hang", "drip")
EXTRAS = frozenset({"continue", "structured", "logprobs"})


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_, "BACKOFF", 0.01)
    monkeypatch.delenv("R1RANKER_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def asked(server: FaultServer, **settings: object) -> OpenAIBackend:
    return OpenAIBackend("m", [server.base_url], **settings)  # type: ignore[arg-type]


def answer(backend: OpenAIBackend, ask: Ask) -> Completion | Choice:
    async def once() -> Completion | Choice:
        async with backend.session() as session:
            return await session.answer(ask)

    return asyncio.run(once())


def worst_first(ranking: Ranking) -> bool:
    """Whether this is what the server says: the pool in reverse, never its input order."""
    return ranking.docids == tuple(f"d{k}" for k in range(len(ranking.docids), 0, -1)) and not ranking.error


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


SERVERS: dict[str, dict[str, object]] = {
    "that can do all": {},
    "without continuing": {"lacks": frozenset({"continue"})},
    "without structured output": {"lacks": frozenset({"structured"})},
    "without probabilities": {"lacks": frozenset({"logprobs"})},
    "for chat only": {"lacks": EXTRAS},
    "for chat only, silent": {"lacks": EXTRAS, "ignores": True},
    "for chat only, curt": {"lacks": EXTRAS, "names": False},
    "without a stop string": {"lacks": frozenset({"stop"})},
    "with thoughts of its own": {"lacks": frozenset({"continue", "max_tokens"}), "reasoning": True},
    "without tags": {"lacks": EXTRAS, "bare": True},
}


@pytest.mark.parametrize("name", SERVERS)
def test_every_design_works_with_a_server(name: str, make_problem: MakeProblem) -> None:
    with FaultServer(**SERVERS[name]) as server:  # type: ignore[arg-type]
        backend = asked(server)
        assert isinstance(backend, AsyncBackend)
        for think in (True, False):
            if think and name == "without tags":  # a model that never writes a tag has no answer behind a thought
                continue
            rankings = DRanker(backend, think=think).rank_many([make_problem(12)])
            rankings += [IRanker(backend, think=think, layout=layout).rank(make_problem(12)) for layout in LAYOUTS]
            for ranking in rankings:
                assert worst_first(ranking), (think, ranking)
                assert ranking.broken == 0
        usages = rankings[0].usage.calls, rankings[1].usage.calls
        assert usages == (1, 11)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("that can do all", {"continue": True, "choice": "structured+logprobs"}),
        ("without continuing", {"continue": False, "choice": "structured+logprobs"}),
        ("without structured output", {"continue": True, "choice": "logprobs"}),
        ("without probabilities", {"continue": True, "choice": "structured"}),
        ("for chat only", {"continue": False, "choice": "text"}),
        ("for chat only, curt", {"continue": False, "choice": "text"}),
    ],
)
def test_what_a_server_can_do_is_found_once_and_reported(
    name: str, found: dict[str, object], make_problem: MakeProblem
) -> None:
    with FaultServer(**SERVERS[name]) as server:  # type: ignore[arg-type]
        backend = asked(server)
        assert backend.capabilities == {server.base_url: {}}
        first = IRanker(backend, think=False).rank(make_problem(6))
        assert backend.capabilities == {server.base_url: found}
        again = IRanker(backend, think=False).rank(make_problem(6))
        assert server.stats["requests"] == 10 + first.usage.retries
        assert again.usage.retries == 0


def test_a_server_that_ignores_what_it_lacks_is_found_out(make_problem: MakeProblem) -> None:
    with FaultServer(lacks=frozenset({"structured", "logprobs"}), ignores=True) as server:
        backend = asked(server)
        assert worst_first(IRanker(backend, think=False).rank(make_problem(4)))
        assert backend.capabilities[server.base_url]["choice"] == "text"


def test_what_a_wrong_request_was_refused_for_is_not_held_against_the_server() -> None:
    with FaultServer(refuse=400, message="the context holds 8 tokens only") as server:
        backend = asked(server)
        with pytest.raises(BackendError, match="context holds 8"):
            answer(backend, Ask(Prompt("[1] a", prefill=NO_THOUGHT), (1,), 8))
        assert backend.capabilities == {server.base_url: {}}


def test_openai_itself_is_not_asked_for_what_it_does_not_know() -> None:
    capabilities = OpenAIBackend("m", ["https://api.openai.com/v1/"]).capabilities
    assert capabilities["https://api.openai.com/v1"]["continue"] is False


@pytest.mark.parametrize("lacks", [NOTHING, frozenset({"structured"}), frozenset({"structured", "continue"})])
def test_probabilities_are_the_models_over_the_pool(lacks: frozenset[str], make_problem: MakeProblem) -> None:
    problem = make_problem(12)
    with FaultServer(lacks=lacks) as server:
        step = IRanker(asked(server), think=False).rank(problem).steps[0]
    total = sum(2.0**-k for k in problem.identifiers)
    assert step.probabilities == pytest.approx({k: 2.0**-k / total for k in problem.identifiers})


def test_identifiers_that_cannot_be_told_apart_share_their_mass() -> None:
    tokens = [
        {"token": "[", "logprob": -0.1, "top_logprobs": [{"token": "The", "logprob": -2.0}]},
        {
            "token": "3]",
            "logprob": -0.5,
            "top_logprobs": [{"token": "3]", "logprob": -0.5}, {"token": "1", "logprob": -0.5}],
        },
    ]
    assert probabilities(tokens, 3, (1, 3, 12, 20)) == pytest.approx({1: 0.25, 3: 0.5, 12: 0.25, 20: 0.0})


def test_an_identifier_inside_a_longer_token_is_found() -> None:
    top = [{"token": ">[2", "logprob": -1.0}, {"token": ">[4", "logprob": -1.0}, {"token": "!", "logprob": -1.0}]
    tokens = [{"token": "<answer", "logprob": 0.0}, {"token": ">[2", "logprob": -1.0, "top_logprobs": top}]
    tokens.append({"token": "]</answer>", "logprob": 0.0})
    assert probabilities(tokens, 2, (2, 4, 5)) == pytest.approx({2: 0.5, 4: 0.5, 5: 0.0})


def test_mass_is_all_on_what_was_written_where_no_token_says_it() -> None:
    assert probabilities([], 2, (1, 2)) == {1: 0.0, 2: 1.0}


WRITTEN = {
    "<think>hm</think><answer>[3]": "[3]",
    "<think>\n</think>\n<answer>[3]</answer>": "its own prefill again",
    "hm</think><answer>[3]": "a thought the template opened",
    "<think>or <answer>[2]</answer>?</think><answer>[3]": "an answer inside the thought",
    "[3]": "no tag",
    "The worst is [3].": "prose into the answer",
}


@pytest.mark.parametrize("said", WRITTEN)
def test_a_completion_behind_a_prefill_that_was_not_shown_still_parses(said: str) -> None:
    prompt = Prompt("text", prefill=NO_THOUGHT)
    text = openai_._written({"message": {"content": said}, "finish_reason": "stop"}, prompt, continued=False)
    removal = parse_removal(prompt.prefill + text, (1, 2, 3))
    assert (removal.kind, removal.ids) == ("valid", (3,))
    listed = openai_._written(
        {"message": {"content": said.replace("[3]", "[3] > [1] > [2]")}, "finish_reason": "stop"}, prompt, False
    )
    if said != "The worst is [3].":
        assert parse_ranking(prompt.prefill + listed, (1, 2, 3)).ids == (3, 1, 2)


def test_an_answer_is_closed_only_when_it_was_opened_and_not_cut() -> None:
    def written(text: str, finish: str) -> str:
        return openai_._written({"message": {"content": text}, "finish_reason": finish}, Prompt("text"), False)

    assert written("<think></think><answer>[1]", "stop") == "<think></think><answer>[1]</answer>"
    assert written("<think></think><answer>[1", "length") == "<think></think><answer>[1"
    assert written("I would rather not.", "stop") == "I would rather not."


def test_a_completion_cut_by_the_token_limit_is_truncated(make_problem: MakeProblem) -> None:
    with FaultServer() as server:
        ranking = DRanker(asked(server), max_new_tokens=5, think=True).rank(make_problem(4))
    assert [step.answer.kind for step in ranking.steps] == ["truncated"]


def test_removals_are_stated_where_a_transcript_cannot_be_continued(make_problem: MakeProblem) -> None:
    with FaultServer(lacks=frozenset({"continue"})) as server:
        IRanker(asked(server), layout="append", think=True).rank(make_problem(4))
        body = server.bodies[-1]
    assert len(body["messages"]) == 1
    assert body["messages"][0]["content"].endswith("Removed earlier, no longer candidates: [1], [2].")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "wrong_id"])
def test_a_call_that_failed_is_made_again(kind: str, make_problem: MakeProblem) -> None:
    with FaultServer(rate=1, kinds=(kind,), first=1) as server:
        timeout = 1 if kind in SLOW else 60  # short only where it has to pass: the machine may be busy
        ranking = DRanker(asked(server, timeout=timeout), think=True).rank(make_problem(4))
        assert worst_first(ranking)
        assert ranking.usage.retries == 1
        assert (server.stats[kind], server.stats["ok"], server.stats["requests"]) == (1, 1, 2)


@pytest.mark.parametrize("lacks", [NOTHING, EXTRAS])
def test_a_choice_that_names_no_candidate_is_made_again(lacks: frozenset[str], make_problem: MakeProblem) -> None:
    with FaultServer(rate=1, kinds=("wrong_id",), first=1, lacks=lacks) as server:
        ranking = IRanker(asked(server), think=False).rank(make_problem(4))
        assert worst_first(ranking)
        assert server.stats["ok"] == 3
        assert ranking.usage.calls + ranking.usage.retries == server.stats["requests"]


def test_a_choice_that_never_names_a_candidate_fails(make_problem: MakeProblem) -> None:
    with FaultServer(rate=1, kinds=("wrong_id",)) as server:
        ranking = IRanker(asked(server, retries=2), think=False).rank(make_problem(4))
    assert ranking.docids == ()
    assert "names no candidate of the pool" in ranking.error


def test_what_a_failed_query_cost_is_counted(tmp_path: Path, make_problem: MakeProblem) -> None:
    (tmp_path / "prices.yaml").write_text("m: {input: 1.0, output: 4}\n")
    with FaultServer(rate=1, kinds=("wrong_id",)) as server:
        backend = asked(server, retries=2, prices=read_prices(tmp_path / "prices.yaml"))
        ranking = IRanker(backend, think=False).rank(make_problem(4))
        requests = server.stats["requests"]
    usage = ranking.usage
    assert ranking.error and (usage.calls, usage.calls + usage.retries) == (1, requests)
    assert usage.prompt_tokens > 0 and usage.generated_tokens > 0 and usage.seconds > 0
    assert usage.cost == pytest.approx((usage.prompt_tokens + 4 * usage.generated_tokens) / 1e6)


def test_calls_before_the_one_that_failed_are_counted_too(make_problem: MakeProblem) -> None:
    with FaultServer(poison="Removed earlier", lacks=frozenset({"continue"})) as server:
        ranking = IRanker(asked(server, retries=2), think=False, layout="append").rank(make_problem(4))
        requests = server.stats["requests"]
    assert "poisoned" in ranking.error
    assert (ranking.usage.calls, ranking.usage.calls + ranking.usage.retries) == (2, requests)


def test_retry_after_is_waited_for(make_problem: MakeProblem) -> None:
    with FaultServer(rate=1, kinds=("429",), first=1, retry_after="1") as server:
        ranking = DRanker(asked(server), think=True).rank(make_problem(2))
    assert worst_first(ranking)
    assert ranking.usage.seconds >= 1


def test_a_wait_beyond_the_deadline_fails_at_once(make_problem: MakeProblem) -> None:
    with FaultServer(rate=1, kinds=("429",), retry_after="3600") as server:
        began = time.perf_counter()
        ranking = DRanker(asked(server, deadline=30), think=True).rank(make_problem(2))
    assert time.perf_counter() - began < 5
    assert "deadline of 30 s" in ranking.error and "slow down" in ranking.error


def test_the_deadline_ends_a_call_with_its_retries(make_problem: MakeProblem) -> None:
    with FaultServer(rate=1, kinds=("hang",)) as server:
        ranking = DRanker(asked(server, timeout=0.2, deadline=0.5, retries=99), think=True).rank(make_problem(2))
        assert ranking.usage.calls + ranking.usage.retries == server.stats["requests"]
    assert "no answer within 0.2 s; gave up at the deadline of 0.5 s" in ranking.error


@pytest.mark.parametrize(("status", "remedy"), [(400, "not made again"), (401, "R1RANKER_API_KEY"), (404, "base URL")])
def test_a_refused_request_is_not_made_again(status: int, remedy: str, make_problem: MakeProblem) -> None:
    with FaultServer(refuse=status, message="because of this") as server:
        ranking = DRanker(asked(server), think=True).rank(make_problem(2))
        assert server.stats["requests"] == 1
    assert ranking.docids == ()
    assert f"answered {status}" in ranking.error and "because of this" in ranking.error and remedy in ranking.error


def test_a_call_that_fails_for_good_says_where_what_and_how_often(make_problem: MakeProblem) -> None:
    with FaultServer(rate=1, kinds=("500",)) as server:
        ranking = DRanker(asked(server, retries=2), think=True).rank(make_problem(2))
        assert server.stats["requests"] == 3
    assert ranking.error == f"{server.base_url} answered 500: Internal Server Error; gave up after 3 attempts"


@pytest.mark.parametrize(("status", "retries"), [(401, 6), (500, 1), (429, 0)])
def test_a_failed_call_says_the_status_of_the_last_answer(status: int, retries: int) -> None:
    with FaultServer(refuse=status) as server, pytest.raises(CallError) as raised:
        answer(asked(server, retries=retries), Ask(Prompt("hello"), None, 5))
    assert raised.value.status == status
    nobody = OpenAIBackend("m", [f"http://127.0.0.1:{free_port()}/v1"], retries=0)
    with pytest.raises(CallError) as raised:
        answer(nobody, Ask(Prompt("hello"), None, 5))
    assert raised.value.status is None


def test_an_endpoint_that_is_not_there_is_named(make_problem: MakeProblem) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    ranking = DRanker(OpenAIBackend("m", [url], retries=1), think=True).rank(make_problem(2))
    assert f"cannot connect to {url}" in ranking.error


def test_a_failed_query_is_seen_and_the_others_are_ranked(make_problem: MakeProblem) -> None:
    problems = [make_problem(4, qid=f"q{i}") for i in range(10)]
    with FaultServer(poison="what is q7") as server:
        rankings = IRanker(asked(server, retries=1), think=False).rank_many(problems)
    assert [r.qid for r in rankings] == [p.qid for p in problems]
    assert (rankings[7].docids, "poisoned" in rankings[7].error) == ((), True)
    assert all(worst_first(r) for r in rankings if r.qid != "q7")


@pytest.mark.parametrize("think", [True, False])
def test_with_many_faults_every_query_is_ranked_or_failed(think: bool, make_problem: MakeProblem) -> None:
    problems = [make_problem(4, qid=f"q{i}") for i in range(75)]
    quick = tuple(kind for kind in KINDS if kind not in SLOW)  # nothing here may hang on how busy the machine is
    with FaultServer(rate=0.3, kinds=quick, keep_bodies=False) as server:
        backend = asked(server, retries=3)
        rankings = IRanker(backend, think=think).rank_many(problems)
        requests = server.stats["requests"]
    assert [r.qid for r in rankings] == [p.qid for p in problems]
    failed = [r for r in rankings if r.error]
    ranked = [r for r in rankings if not r.error]
    assert all(r.docids == () for r in failed)
    assert all(worst_first(r) or r.broken for r in ranked), "a wrong answer is counted as broken, never silent"
    assert len(ranked) > 65
    assert 0 < sum(r.usage.retries for r in ranked) <= requests - sum(r.usage.calls for r in ranked)


@pytest.mark.parametrize("think", [True, False])
def test_queries_whose_calls_hang_are_ranked_all_the_same(think: bool, make_problem: MakeProblem) -> None:
    problems = [make_problem(3, qid=f"q{i}") for i in range(12)]
    with FaultServer(rate=1, kinds=SLOW, first=8) as server:
        rankings = IRanker(asked(server, timeout=0.5, retries=20), think=think).rank_many(problems)
        assert server.stats["hang"] + server.stats["drip"] == 8
    assert all(map(worst_first, rankings))
    assert sum(r.usage.retries for r in rankings) >= 8


def test_base_urls_share_the_load(make_problem: MakeProblem) -> None:
    problems = [make_problem(3, qid=f"q{i}") for i in range(40)]
    with FaultServer(delay=0.005) as one, FaultServer(delay=0.005) as two:
        rankings = DRanker(OpenAIBackend("m", [one.base_url, two.base_url], concurrency=4), think=True).rank_many(
            problems
        )
        assert all(map(worst_first, rankings))
        assert one.stats["requests"] + two.stats["requests"] == 40
        assert min(one.stats["requests"], two.stats["requests"]) >= 15
        assert one.stats["most in flight"] + two.stats["most in flight"] <= 4


def test_a_base_url_that_is_gone_is_left_alone(make_problem: MakeProblem) -> None:
    problems = [make_problem(3, qid=f"q{i}") for i in range(20)]
    with FaultServer() as server:
        gone = f"http://127.0.0.1:{free_port()}/v1"
        rankings = DRanker(OpenAIBackend("m", [gone, server.base_url], concurrency=2), think=True).rank_many(problems)
    assert all(map(worst_first, rankings))
    assert sum(r.usage.retries for r in rankings) <= 2


def test_a_backend_can_be_used_again_and_inside_a_running_loop(make_problem: MakeProblem) -> None:
    problems = [make_problem(3, qid=f"q{i}") for i in range(5)]
    with FaultServer() as server:
        ranker = IRanker(asked(server), think=False)

        async def in_a_loop() -> list[Ranking]:
            return ranker.rank_many(problems)

        for rankings in (ranker.rank_many(problems), ranker.rank_many(problems), asyncio.run(in_a_loop())):
            assert all(map(worst_first, rankings))


def test_the_key_comes_from_the_environment_and_is_never_shown(
    make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("R1RANKER_API_KEY", "secret")
    with FaultServer(key="secret") as server:
        backend = asked(server)
        assert worst_first(DRanker(backend, think=True).rank(make_problem(2)))
        assert "secret" not in repr(backend)
        refused = DRanker(asked(server, api_key="wrong"), think=True).rank(make_problem(2)).error
        assert "401" in refused and "wrong" not in refused


@pytest.mark.parametrize(
    ("urls", "settings", "message"),
    [
        ([], {}, "base URL ''"),
        (["localhost:8000"], {}, "localhost:8000"),
        (["http://localhost:8000/v1"], {"concurrency": 0}, "concurrency"),
    ],
)
def test_impossible_settings_are_refused(urls: list[str], settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OpenAIBackend("m", urls, **settings)  # type: ignore[arg-type]


def test_cost_and_tokens_are_counted_without_what_was_cached(tmp_path: Path, make_problem: MakeProblem) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("m: {input: 1.0, cached_input: 0.5, output: 4}\n")
    problem = make_problem(2)
    words = len(build_prompt(problem, (1, 2), "dranker").text.split())
    with FaultServer(cached=1000) as server:
        usage = DRanker(asked(server, prices=read_prices(path)), think=True).rank(problem).usage
    assert usage.prompt_tokens == words
    assert usage.generated_tokens > 0
    assert usage.cost == pytest.approx((words + 1000 * 0.5 + 4 * usage.generated_tokens) / 1e6)


def test_a_server_that_counts_no_tokens_is_believed() -> None:
    spent, backend = openai_._Spent(), OpenAIBackend("m", ["http://localhost:1/v1"])
    spent.add({"prompt_tokens": None, "completion_tokens": None, "prompt_tokens_details": None}, backend)
    assert spent == openai_._Spent()


@pytest.mark.parametrize("lacks", [NOTHING, frozenset({"salt"})])
def test_the_prefixes_of_one_owner_are_kept_apart_where_a_server_can(
    lacks: frozenset[str], make_problem: MakeProblem
) -> None:
    prompt = build_prompt(make_problem(2), (1, 2), "iranker")
    with FaultServer(lacks=lacks) as server:
        backend = asked(server)
        for owner in ("", "a", "b"):
            answer(backend, Ask(replace(prompt, owner=owner), None, 100))
        salts = [body.get("cache_salt") for body in server.bodies]
    assert salts[0] is None
    if lacks:
        assert salts[-1] is None, "refused once, it is left out"
    else:
        assert len({salt for salt in salts if salt}) == 2
