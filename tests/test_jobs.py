"""The rank job: killed, resumed, failing in part; its files always tell what happened."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from r1ranker.backends.base import Ask, AsyncBackend, Backend, CallError, Choice, Completion, PromptError, Session
from r1ranker.backends.scripted import ScriptedBackend
from r1ranker.cli import main as cli
from r1ranker.errors import BackendError, ConfigError, DataError
from r1ranker.io.locks import held
from r1ranker.io.problems import iter_jsonl, write_jsonl
from r1ranker.io.runs import read_run
from r1ranker.problem import Candidate, Problem
from r1ranker.ranking.drive import AHEAD
from r1ranker.ranking.jobs import JobResult, rank_file
from r1ranker.ranking.journal import failed_of, journal_of
from r1ranker.ranking.rankers import IRanker
from r1ranker.ranking.spec import RankerSpec

MakeProblem = Callable[..., Problem]
SPEC = RankerSpec(model="scripted")


@dataclass
class Endpoint(AsyncBackend):
    """A scripted model behind a session: the calls of some queries fail, those of others come late."""

    name: str = "endpoint"
    concurrency: int = 4
    failing: set[str] = field(default_factory=set)
    calls: int = 0

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        yield self

    async def answer(self, ask: Ask) -> Completion | Choice:
        self.calls += 1
        if any(f"what is {qid}\n" in ask.prompt.text for qid in self.failing):
            raise CallError("the endpoint refused", prompt_tokens=10**6, retries=2)
        return ScriptedBackend(weigh=lambda prompt, k: 1.0 + k % 3).choose([ask.prompt], [ask.pool or ()])[0]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    made = Endpoint()
    use(made, monkeypatch)
    return made


def use(backend: Backend | AsyncBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RankerSpec, "backend", lambda spec: backend)


@pytest.fixture
def given(tmp_path: Path, make_problem: MakeProblem) -> Path:
    """Problems of uneven size, so that they are finished out of order."""
    path = tmp_path / "problems.jsonl"
    write_jsonl([make_problem(2 + 5 * i % 7, qid=f"q{i}") for i in range(12)], path)
    return path


def rank(given: Path, out: Path, spec: RankerSpec = SPEC, *, resume: bool = False, trace: bool = False) -> JobResult:
    return rank_file(given, spec, out, resume=resume, trace=trace_of(out) if trace else None)


def trace_of(out: Path) -> Path:
    return out.with_suffix(".trace")


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_holds_every_query_in_input_order(given: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    result = rank(given, tmp_path / "run.trec", trace=True)
    problems = list(iter_jsonl(given))
    rankings = read_run(tmp_path / "run.trec")
    assert [r.qid for r in rankings] == [p.qid for p in problems]
    for ranking, problem in zip(rankings, problems, strict=True):
        assert sorted(ranking.docids) == sorted(c.docid for c in problem.candidates)
    assert (tmp_path / "run.trec").read_text().splitlines()[0].endswith(" r1ranker-iranker")
    calls = sum(len(p.candidates) - 1 for p in problems)
    assert (result.queries, result.kept, result.failed, result.broken, result.usage.calls) == (12, 0, 0, 0, calls)
    assert result.tokens_per_second == pytest.approx(
        (result.usage.prompt_tokens + result.usage.generated_tokens) / result.seconds
    )
    traced = lines(trace_of(tmp_path / "run.trec"))
    assert [tuple(t["docids"]) for t in traced] == [r.docids for r in rankings]
    assert [len(t["steps"]) for t in traced] == [len(p.candidates) - 1 for p in problems]
    assert not failed_of(tmp_path / "run.trec").exists()


@pytest.mark.parametrize("cut", [0, 1, 7, 60, 400, 10**6])
@pytest.mark.parametrize("which", ["out", "trace", "journal"])
def test_a_file_cut_anywhere_is_mended(cut: int, which: str, given: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    out = tmp_path / "run.trec"
    first = rank(given, out, trace=True)
    whole = {path: path.read_bytes() for path in (out, trace_of(out))}
    path = {"out": out, "trace": trace_of(out), "journal": journal_of(out)}[which]
    header = path.read_bytes().index(b"\n") + 1 if which == "journal" else 0
    os.truncate(path, max(header, path.stat().st_size - cut))
    result = rank(given, out, resume=True, trace=True)
    assert out.read_bytes() == whole[out]
    strip = [{k: v for k, v in record.items() if k != "usage"} for record in lines(trace_of(out))]
    assert strip == [
        {k: v for k, v in json.loads(line).items() if k != "usage"} for line in whole[trace_of(out)].splitlines()
    ]
    assert (result.queries, result.failed) == (12, 0)
    assert result.usage.calls == first.usage.calls
    assert result.kept == 12 if cut == 0 else result.kept < 12


def test_a_finished_job_asks_nothing_again(given: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    rank(given, tmp_path / "run.trec")
    calls = endpoint.calls
    assert rank(given, tmp_path / "run.trec", resume=True).kept == 12
    assert endpoint.calls == calls


def test_an_interrupted_job_leaves_the_beginning_of_the_run(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(ScriptedBackend(), monkeypatch)
    rank(given, tmp_path / "whole.trec")

    class Dying(ScriptedBackend):
        dead = False

        def choose(self, prompts: Any, pools: Any) -> list[Choice]:
            self.dead |= any("what is q7\n" in prompt.text for prompt in prompts)
            if self.dead:
                raise BackendError("out of memory")
            return super().choose(prompts, pools)

    out = tmp_path / "run.trec"
    use(Dying(), monkeypatch)
    with pytest.raises(BackendError, match="out of memory"):
        rank(given, out, RankerSpec(model="scripted", batch_size=2))
    begun = out.read_bytes()
    assert begun and (tmp_path / "whole.trec").read_bytes().startswith(begun)
    use(ScriptedBackend(), monkeypatch)
    assert rank(given, out, resume=True).kept >= 4  # with another batch size: that is no other ranking
    assert out.read_bytes() == (tmp_path / "whole.trec").read_bytes()


def test_a_killed_process_goes_on_to_the_same_bytes(tmp_path: Path, make_problem: MakeProblem) -> None:
    given, whole, out = tmp_path / "p.jsonl", tmp_path / "whole.trec", tmp_path / "run.trec"
    write_jsonl([make_problem(2 + i % 5, qid=f"q{i}") for i in range(80)], given)
    command = [sys.executable, "-m", "r1ranker", "rank", str(given), "--batch-size", "2", "--device", "cpu", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    assert CliRunner().invoke(cli.app, [*command[3:], str(whole)]).exit_code == 0
    process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, env=environment)
    while not out.exists() or out.read_bytes().count(b"\n") < 20:
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert whole.read_bytes().startswith(out.read_bytes())
    assert len(out.read_bytes()) < len(whole.read_bytes())
    done = CliRunner().invoke(cli.app, [*command[3:], str(out), "--resume"])
    assert done.exit_code == 0, done.output
    assert out.read_bytes() == whole.read_bytes()
    assert "kept 0" not in done.output


class Choosy(ScriptedBackend):
    """Cannot read q7, alone or with others, and no more than two prompts at a time."""

    def choose(self, prompts: Any, pools: Any) -> list[Choice]:
        if any("what is q7\n" in prompt.text for prompt in prompts):
            raise PromptError("a prompt of 9000 tokens exceeds the context")
        if len(prompts) > 2:
            raise BackendError("out of memory")
        return super().choose(prompts, pools)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_query_that_cannot_be_read_fails_alone(
    batch_size: int, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(ScriptedBackend(), monkeypatch)
    rank(given, tmp_path / "whole.trec")
    use(Choosy(), monkeypatch)
    out, spec = tmp_path / "run.trec", RankerSpec(model="scripted", batch_size=batch_size)
    assert rank(given, out, spec).failed == 1
    assert lines(failed_of(out)) == [{"qid": "q7", "error": "a prompt of 9000 tokens exceeds the context"}]
    whole = [line for line in (tmp_path / "whole.trec").read_text().splitlines() if not line.startswith("q7 ")]
    assert out.read_text().splitlines() == whole
    assert rank(given, out, spec, resume=True).failed == 1


def test_a_text_too_long_for_a_real_model_fails_alone(
    tiny: Backend, tmp_path: Path, make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tiny, monkeypatch)
    problems = [make_problem(3, qid=f"q{i}") for i in range(5)]
    long = (Candidate("d1", "good " * 4000), *problems[3].candidates[1:])
    problems[3] = make_problem(3, qid="q3", candidates=long)
    write_jsonl(problems, tmp_path / "p.jsonl")
    assert rank(tmp_path / "p.jsonl", tmp_path / "run.trec").failed == 1
    (failed,) = lines(failed_of(tmp_path / "run.trec"))
    assert failed["qid"] == "q3" and "exceeds the context" in failed["error"]
    cut = rank(tmp_path / "p.jsonl", tmp_path / "cut.trec", RankerSpec(model="scripted", truncate=400))
    assert (cut.failed, cut.usage.cut) == (0, 1)


@pytest.mark.parametrize("network", [False, True])
def test_half_a_character_fails_its_query_alone(network: bool, make_problem: MakeProblem) -> None:
    broken = make_problem(2, qid="q1", candidates=(Candidate("d1", "an owl \ud83d"), Candidate("d2", "fox")))
    backend = Endpoint() if network else ScriptedBackend()
    rankings = IRanker(backend).rank_many([make_problem(2, qid="q0"), broken, make_problem(2, qid="q2")])
    assert [bool(ranking.docids) for ranking in rankings] == [True, False, True]
    assert "holds half a character ('\\ud83d' behind" in rankings[1].error


def test_rankings_come_soon_whatever_the_batch(make_problem: MakeProblem) -> None:
    sizes = []

    class Watched(ScriptedBackend):
        def choose(self, prompts: Any, pools: Any) -> list[Choice]:
            sizes.append(len(prompts))
            return super().choose(prompts, pools)

    ranker = IRanker(Watched(), batch_size=64)
    assert len(ranker.rank_many([make_problem(2, qid=f"q{i}") for i in range(100)])) == 100
    assert sizes == [4, 8, 16, 32, 40]


def test_a_job_is_written_by_one_process_at_a_time(given: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    out = tmp_path / "run.trec"
    for path in (out, trace_of(out)):
        with held(path), pytest.raises(ConfigError, match=f"another job is writing .*{path.name}"):
            rank(given, out, resume=True, trace=True)
    assert endpoint.calls == 0
    rank(given, out, trace=True)
    assert not list(tmp_path.glob("*.lock"))


def test_a_model_that_changed_is_refused_by_part(
    given: Path, endpoint: Endpoint, tmp_path: Path, tiny_dir: Path
) -> None:
    model, out = Path(shutil.copytree(tiny_dir, tmp_path / "model")), tmp_path / "run.trec"
    spec = RankerSpec(model=str(model))
    rank(given, out, spec)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ConfigError, match="a model of which this has changed: chat template"):
        rank(given, out, spec, resume=True)


def test_a_trace_of_something_else_is_never_touched(given: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    out, other = tmp_path / "run.trec", tmp_path / "other.jsonl"
    other.write_text("mine\n")
    with pytest.raises(ConfigError, match=r"other\.jsonl exists and is not of this job"):
        rank_file(given, SPEC, out, resume=False, trace=other)
    rank(given, out, trace=True)
    with pytest.raises(ConfigError, match=r"begun with the trace run\.trace"):
        rank_file(given, SPEC, out, resume=True, trace=other)
    with pytest.raises(ConfigError, match="the trace and the run file are the same file"):
        rank_file(given, SPEC, tmp_path / "x", resume=False, trace=tmp_path / "x")
    assert other.read_text() == "mine\n"


def test_a_job_that_asks_nothing_is_refused_and_one_that_asks_little_says_so(
    given: Path, endpoint: Endpoint, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"top_k=8 asks nothing: .* the longest list has 8 candidates"):
        rank(given, tmp_path / "none.trec", RankerSpec(top_k=8))
    assert rank(given, tmp_path / "best.trec", RankerSpec(top_k=8, ask="best")).unasked == 0
    small = sum(len(problem.candidates) <= 4 for problem in iter_jsonl(given))
    assert rank(given, tmp_path / "few.trec", RankerSpec(top_k=4)).unasked == small > 0
    assert rank(given, tmp_path / "all.trec").unasked == 0


def test_depth_ranks_the_head_and_keeps_the_tail(given: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    rank(given, tmp_path / "run.trec", RankerSpec(depth=3))
    for ranking, problem in zip(read_run(tmp_path / "run.trec"), iter_jsonl(given), strict=True):
        docids = [candidate.docid for candidate in problem.candidates]
        assert sorted(ranking.docids[:3]) == docids[:3] and list(ranking.docids[3:]) == docids[3:]


def test_a_job_stopped_by_hand_says_how_to_go_on(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(ScriptedBackend):
        def choose(self, prompts: Any, pools: Any) -> list[Choice]:
            if any("what is q9\n" in prompt.text for prompt in prompts):
                raise KeyboardInterrupt
            return super().choose(prompts, pools)

    use(Stopped(), monkeypatch)
    arguments = ["rank", str(given), "--out", str(tmp_path / "run.trec"), "--batch-size", "2"]
    done = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 130 and "--resume" in done.output
    use(ScriptedBackend(), monkeypatch)
    assert CliRunner().invoke(cli.app, [*arguments, "--resume"]).exit_code == 0
    assert len(read_run(tmp_path / "run.trec")) == 12


def test_a_tenth_of_broken_answers_is_a_warning(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, said, warned in (("bad", "no idea", True), ("good", "<think></think><answer>[1]</answer>", False)):
        use(ScriptedBackend(lambda prompt, said=said: said), monkeypatch)  # type: ignore[misc]
        arguments = ["rank", str(given), "--out", str(tmp_path / f"{name}.trec"), "--think", "--top-k", "7"]
        done = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        assert ("answers were broken, and the order" in done.output) == warned


def test_failed_queries_are_named_counted_and_tried_again_when_their_file_is_removed(
    given: Path, endpoint: Endpoint, tmp_path: Path
) -> None:
    out = tmp_path / "run.trec"
    endpoint.failing = {"q3", "q8"}
    result = rank(given, out, trace=True)
    assert (result.queries, result.failed) == (12, 2)
    assert lines(failed_of(out)) == [{"qid": qid, "error": "the endpoint refused"} for qid in ("q3", "q8")]
    assert {"q3", "q8"}.isdisjoint(r.qid for r in read_run(out))

    endpoint.failing = set()
    calls = endpoint.calls
    assert rank(given, out, resume=True, trace=True).failed == 2
    assert endpoint.calls == calls

    failed_of(out).unlink()
    endpoint.failing = {"q8"}
    assert rank(given, out, resume=True, trace=True).failed == 1
    assert [record["qid"] for record in lines(failed_of(out))] == ["q8"]
    failed_of(out).unlink()
    endpoint.failing = set()
    assert rank(given, out, resume=True, trace=True).failed == 0
    assert [r.qid for r in read_run(out)] == [f"q{i}" for i in range(12) if i not in (3, 8)] + ["q3", "q8"]
    assert not failed_of(out).exists()


def test_what_failed_queries_cost_is_in_the_totals(given: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    out = tmp_path / "run.trec"
    endpoint.failing = {"q3", "q8"}
    usage = rank(given, out).usage
    assert (usage.calls, usage.retries, usage.prompt_tokens // 10**6) == (endpoint.calls, 4, 2)
    failed_of(out).unlink()
    endpoint.failing = set()
    usage = rank(given, out, resume=True).usage
    assert (usage.calls, usage.retries, usage.prompt_tokens // 10**6) == (endpoint.calls, 4, 2)


def test_the_command_exits_with_1_after_all_is_done(given: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.failing = {"q1"}
    out, as_json = tmp_path / "run.trec", tmp_path / "result.json"
    arguments = ["rank", str(given), "--out", str(out), "--json", str(as_json), "--top-k", "3"]
    done = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 1
    assert "failed: 1 queries" in done.output and "run.trec.failed.jsonl" in done.output and "--resume" in done.output
    assert len(read_run(out)) == 11
    result = json.loads(as_json.read_text())
    assert (result["failed"], result["spec"]["top_k"]) == (1, 3)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (RankerSpec(model="other"), r"begun with model=scripted, not model=other"),
        (RankerSpec(model="scripted", top_k=2), r"begun with top_k=1, not top_k=2"),
        (RankerSpec(model="scripted", window=5), r"begun with window=None, not window=5"),
    ],
)
def test_other_settings_are_refused_by_name(
    spec: RankerSpec, named: str, given: Path, endpoint: Endpoint, tmp_path: Path
) -> None:
    rank(given, tmp_path / "run.trec")
    with pytest.raises(ConfigError, match=named):
        rank(given, tmp_path / "run.trec", spec, resume=True)


def test_other_problems_or_another_trace_are_refused(
    given: Path, endpoint: Endpoint, tmp_path: Path, make_problem: MakeProblem
) -> None:
    rank(given, tmp_path / "run.trec")
    with pytest.raises(ConfigError, match="begun without a trace"):
        rank(given, tmp_path / "run.trec", resume=True, trace=True)
    write_jsonl([make_problem(4)], given)
    with pytest.raises(ConfigError, match="begun with other problems"):
        rank(given, tmp_path / "run.trec", resume=True)


def test_a_run_that_is_there_is_never_written_over(given: Path, endpoint: Endpoint, tmp_path: Path) -> None:
    out = tmp_path / "run.trec"
    rank(given, out)
    written = out.read_bytes()
    with pytest.raises(ConfigError, match=r"run\.trec exists; .*--resume, or remove the file"):
        rank(given, out)
    journal_of(out).unlink()
    with pytest.raises(ConfigError, match=r"has no run\.trec\.journal\.jsonl"):
        rank(given, out, resume=True)
    assert out.read_bytes() == written
    out.unlink()
    rank(given, out, RankerSpec(model="another", top_k=2), resume=True)  # nothing to go on from: it begins


def test_a_model_that_cannot_be_loaded_leaves_no_files(given: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no model directory"):
        rank(given, tmp_path / "run.trec", RankerSpec(model="./gone"), trace=True)
    assert [path.name for path in tmp_path.iterdir()] == [given.name]


def test_faults_in_the_problems_show_before_anything_is_ranked(
    given: Path, endpoint: Endpoint, tmp_path: Path, make_problem: MakeProblem
) -> None:
    out = tmp_path / "run.trec"
    with given.open("a") as more:
        more.write('{"qid": "x"}\n')
    with pytest.raises(DataError, match=r"problems\.jsonl:13: field 'task' is missing"):
        rank(given, out)
    write_jsonl([make_problem(2), make_problem(2, task="other")], given)
    with pytest.raises(DataError, match=r"problems\.jsonl:2: qid 'q1' already stands on line 1"):
        rank(given, out)
    write_jsonl([make_problem(2, candidates=(Candidate("a b", "text"),), gains={})], given)
    with pytest.raises(DataError, match="docid 'a b' of query 'q1' is empty or has whitespace"):
        rank(given, out)
    write_jsonl([make_problem(2), make_problem(2)], given)
    with pytest.raises(DataError, match=r"problems\.jsonl:2: qid 'q1' already stands on line 1"):
        rank(given, out)
    assert (endpoint.calls, out.exists()) == (0, False)


def test_an_empty_file_is_a_fault(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError, match=r"none\.jsonl: is empty"):
        rank(tmp_path / "none.jsonl", tmp_path / "run.trec")
    assert not (tmp_path / "run.trec").exists()


def test_memory_does_not_grow_with_the_number_of_queries(
    tmp_path: Path, make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(ScriptedBackend(), monkeypatch)
    long = tuple(Candidate(f"d{k}", "word " * 400) for k in range(2))

    def many(count: int) -> Iterator[Problem]:
        return (make_problem(2, candidates=long, gains={}, qid=f"q{i}") for i in range(count))

    peaks = []
    for count in (100, 100, 800):  # the first pays for what is loaded once
        given = tmp_path / f"{count}.jsonl"
        write_jsonl(many(count), given)
        tracemalloc.start()
        rank_file(given, RankerSpec(batch_size=4), tmp_path / f"{len(peaks)}.trec", resume=False, trace=None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 700 * 600, "of a query its name may be kept, not its 4000 bytes of text"


@pytest.mark.parametrize("taken", [1, 3])
def test_calls_do_not_run_ahead_of_who_takes_the_rankings(taken: int, make_problem: MakeProblem) -> None:
    endpoint, most = Endpoint(), AHEAD * Endpoint.concurrency
    rankings = IRanker(endpoint, think=False).rank_each(make_problem(2, qid=f"q{i}") for i in range(400))
    for _ in range(taken):
        next(rankings)
    time.sleep(0.1)
    assert endpoint.calls == most + taken
    if taken == 1:
        rankings.close()  # type: ignore[attr-defined]
        assert endpoint.calls == most + taken
    else:
        assert len(list(rankings)) == 400 - taken


def test_the_options_of_the_command_default_to_those_of_a_spec() -> None:
    options = {name: option.default for name, option in inspect.signature(cli.rank).parameters.items()}
    options["base_urls"] = tuple(options["base_url"] or ())
    spec = dataclasses.asdict(RankerSpec())
    assert {name: options[name] for name in spec} == spec
