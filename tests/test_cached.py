"""Replies on disk: what is asked again, what is not, and that nothing changes but the price."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from r1ranker.backends.base import Ask, AsyncBackend, Backend, Choice, Completion, Session
from r1ranker.backends.cached import cached
from r1ranker.backends.scripted import ScriptedBackend
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.errors import BackendError, ConfigError
from r1ranker.problem import Problem, Ranking
from r1ranker.prompts import Prompt
from r1ranker.ranking.rankers import DRanker, IRanker

MakeProblem = Callable[..., Problem]
PROMPTS = [Prompt("one"), Prompt("two"), Prompt("three")]


class Watched(Backend):
    """A model that notes what it is asked."""

    def __init__(self, inner: Backend, name: str = "watched") -> None:
        self.name = name
        self.inner = inner
        self.asked: list[list[str]] = []

    def generate(self, prompts: Sequence[Prompt], **settings: object) -> list[Completion]:
        self.asked.append([prompt.text for prompt in prompts])
        return self.inner.generate(prompts, **settings)  # type: ignore[arg-type]

    def choose(self, prompts: Sequence[Prompt], pools: Sequence[Sequence[int]]) -> list[Choice]:
        self.asked.append([prompt.text for prompt in prompts])
        return self.inner.choose(prompts, pools)


class Endpoint(AsyncBackend):
    """A scripted model behind a session; `down` makes every call fail."""

    name = "endpoint"
    concurrency = 3

    def __init__(self) -> None:
        self.inner = ScriptedBackend(weigh=lambda prompt, k: 1.0 + k % 3)
        self.calls = 0
        self.down = False

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        yield self

    async def answer(self, ask: Ask) -> Completion | Choice:
        self.calls += 1
        if self.down:
            raise BackendError("the endpoint is down")
        if ask.pool is None:
            return self.inner.generate([ask.prompt], max_new_tokens=ask.max_new_tokens)[0]
        return self.inner.choose([ask.prompt], [ask.pool])[0]


def model(backend: Backend | AsyncBackend) -> Backend:
    assert not isinstance(backend, AsyncBackend)
    return backend


def said(rankings: list[Ranking]) -> list[object]:
    return [(r.docids, r.scores, [(s.completion, s.probabilities) for s in r.steps]) for r in rankings]


def test_only_what_is_missing_is_asked_in_one_call_and_order_is_kept(tmp_path: Path) -> None:
    watched = Watched(ScriptedBackend(lambda prompt: f"said {prompt.text}"))
    backend = model(cached(watched, tmp_path))
    backend.generate(PROMPTS[1:2])
    completions = backend.generate([*PROMPTS, PROMPTS[0]])
    assert watched.asked == [["two"], ["one", "three"]]
    assert [c.text for c in completions] == ["said one", "said two", "said three", "said one"]
    assert [c.generated_tokens for c in completions] == [2, 0, 2, 0]


def test_a_reply_from_disk_costs_nothing(tmp_path: Path) -> None:
    class Priced(ScriptedBackend):
        def generate(self, prompts: Sequence[Prompt], **settings: object) -> list[Completion]:
            return [Completion("x", True, 10, 5, retries=2, cost=0.5) for _ in prompts]

    first = model(cached(Priced(), tmp_path)).generate(PROMPTS[:1])
    again = model(cached(Priced(), tmp_path)).generate(PROMPTS[:1])
    assert first == [Completion("x", True, 10, 5, retries=2, cost=0.5)]
    assert again == [Completion("x", True, 0, 0)]


@pytest.mark.parametrize(
    "other",
    [
        Ask(Prompt("else", "past", "start"), (1, 2), 8),
        Ask(Prompt("text", "", "start"), (1, 2), 8),
        Ask(Prompt("text", "past", ""), (1, 2), 8),
        Ask(Prompt("text", "past", "start"), (2, 1), 8),
        Ask(Prompt("text", "past", "start"), (1,), 8),
        Ask(Prompt("text", "past", "start"), None, 8),
        Ask(Prompt("text", "past", "start"), None, 9),
    ],
)
def test_whatever_decides_the_reply_is_part_of_the_key(other: Ask, tmp_path: Path) -> None:
    watched = Watched(ScriptedBackend())
    backend = model(cached(watched, tmp_path))
    for ask in (Ask(Prompt("text", "past", "start"), (1, 2), 8), other, other):
        if ask.pool is None:
            backend.generate([ask.prompt], max_new_tokens=ask.max_new_tokens)
        else:
            backend.choose([ask.prompt], [ask.pool])
    assert len(watched.asked) == 2


def test_models_do_not_answer_for_each_other(tmp_path: Path) -> None:
    watched = [Watched(ScriptedBackend(), name) for name in ("a", "b")]
    for one in watched:
        model(cached(one, tmp_path)).generate(PROMPTS)
    assert [len(one.asked) for one in watched] == [1, 1]


def test_a_model_trained_anew_in_the_same_directory_is_another_model(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    for weights in (b"old", b"newer"):
        (directory / "model.safetensors").write_bytes(weights)
        watched = Watched(ScriptedBackend(), str(directory))
        model(cached(watched, tmp_path / "cache")).generate(PROMPTS)
        assert watched.asked


def test_another_chat_template_or_tokenizer_is_another_model(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"weights")
    for name in ("chat_template.jinja", "tokenizer.json"):
        for content in ("one", "two", "two"):
            (directory / name).write_text(content)
            watched = Watched(ScriptedBackend(), str(directory))
            model(cached(watched, tmp_path / "cache")).generate([Prompt(name)])
        assert not watched.asked, "nothing has changed since the last time"
    moved = directory.rename(tmp_path / "moved")
    watched = Watched(ScriptedBackend(), str(moved))
    model(cached(watched, tmp_path / "cache")).generate([Prompt("tokenizer.json")])
    assert not watched.asked


def test_another_precision_is_another_model(tiny_dir: Path, tmp_path: Path) -> None:
    wide, narrow = (TransformersBackend.load(str(tiny_dir), dtype=dtype) for dtype in ("float32", "bfloat16"))
    ask = [Prompt("how long do owls live [1] [2] [3]")], [(1, 2, 3)]
    model(cached(wide, tmp_path)).choose(*ask)
    (second,) = model(cached(narrow, tmp_path)).choose(*ask)
    assert second.prompt_tokens > 0, "it was read, not taken from what the other said"
    assert model(cached(narrow, tmp_path)).choose(*ask)[0].prompt_tokens == 0


def test_sampled_completions_are_not_kept(tmp_path: Path) -> None:
    watched = Watched(ScriptedBackend())
    backend = model(cached(watched, tmp_path))
    for _ in range(2):
        backend.generate(PROMPTS, temperature=0.7)
    assert len(watched.asked) == 2


@pytest.mark.parametrize("think", [True, False])
def test_a_real_model_ranks_the_same_from_disk(
    think: bool, tiny: TransformersBackend, make_problem: MakeProblem, tmp_path: Path
) -> None:
    problems = [make_problem(n, qid=f"q{n}") for n in (4, 2, 5)]
    watched = Watched(tiny)
    rankers = [IRanker(b, think=think, max_new_tokens=6) for b in (tiny, cached(watched, tmp_path))]
    plain, first, again = rankers[0].rank_many(problems), *(rankers[1].rank_many(problems) for _ in range(2))
    assert said(plain) == said(first) == said(again)
    asked = len(watched.asked)
    DRanker(rankers[1].backend, max_new_tokens=6, think=True).rank_many(problems)
    assert len(watched.asked) == asked + 1
    assert all(r.usage.prompt_tokens == r.usage.generated_tokens == 0 for r in again)


def test_an_endpoint_is_called_once_for_each_question(make_problem: MakeProblem, tmp_path: Path) -> None:
    endpoint = Endpoint()
    backend = cached(endpoint, tmp_path)
    assert isinstance(backend, AsyncBackend) and backend.concurrency == 3
    problems = [make_problem(4, qid=f"q{i}") for i in range(5)]
    first = IRanker(backend, think=False).rank_many(problems)
    assert endpoint.calls == 15
    endpoint.down = True
    again = IRanker(cached(endpoint, tmp_path), think=False).rank_many(problems)
    assert (endpoint.calls, said(again)) == (15, said(first))


def test_a_failed_call_is_not_kept(make_problem: MakeProblem, tmp_path: Path) -> None:
    endpoint = Endpoint()
    endpoint.down = True
    ranker = IRanker(cached(endpoint, tmp_path), think=False)
    assert "is down" in ranker.rank(make_problem(3)).error
    endpoint.down = False
    assert ranker.rank(make_problem(3)).docids


WRITE_MANY = """
import sys
from pathlib import Path
from r1ranker.backends.cached import cached
from r1ranker.backends.scripted import ScriptedBackend
from r1ranker.prompts import Prompt
for i in range(60):
    cached(ScriptedBackend(lambda prompt: prompt.text * 50), Path(sys.argv[1])).generate([Prompt(f"p{i}")])
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", WRITE_MANY, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    watched = Watched(ScriptedBackend(), "scripted")
    completions = model(cached(watched, tmp_path)).generate([Prompt(f"p{i}") for i in range(60)])
    assert watched.asked == []
    assert [c.text for c in completions] == [f"p{i}" * 50 for i in range(60)]


def test_a_folder_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot keep replies in .*file"):
        cached(ScriptedBackend(), tmp_path / "file")
