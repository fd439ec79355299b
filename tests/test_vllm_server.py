"""The endpoint backend against a real vLLM server on loopback: it must say what the model says in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from r1ranker.backends.base import Ask, Choice, Completion
from r1ranker.backends.models import NANO, resolve
from r1ranker.backends.openai_ import OpenAIBackend
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.problem import Problem, Splits
from r1ranker.prompts import LAYOUTS, Layout, build_prompt
from r1ranker.ranking.rankers import DRanker, IRanker

PATIENCE_SECONDS = 120
AS_HERE = '{% for message in messages %}{{ message.content }}{{ "\\n" if message.role == "user" }}{% endfor %}'
"""How a model without a chat template is asked in this process; shown in docs/ranking.md."""
THOUGHTLESS = "drop thoughts"
WITHOUT = AS_HERE.replace("message.content", 'message.content.split("</think>")[-1]')
TEMPLATE = f"{{% if {THOUGHTLESS!r} in messages[0].content %}}{WITHOUT}{{% else %}}{AS_HERE}{{% endif %}}"
"""For a query that says so, as templates of models that think: the thoughts of earlier turns are taken out."""


@contextmanager
def serving(log: Path) -> Iterator[str]:
    """The base URL of `vllm serve nano`, as long as the context."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", resolve(NANO)]
    command += ["--served-model-name", NANO, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--block-size", "32", "--enable-prompt-tokens-details"]
    command += ["--chat-template", TEMPLATE]
    small = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    with (
        log.open("w") as out,
        subprocess.Popen(command, env=os.environ | small, stdout=out, stderr=out, text=True) as process,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)


def wait_for(url: str, process: subprocess.Popen[str], log: Path) -> None:
    for _ in range(PATIENCE_SECONDS * 2):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(url).close()
        except urllib.error.URLError:
            time.sleep(0.5)
        else:
            return
    raise TimeoutError(log.read_text()[-2000:])


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAIBackend]:
    with serving(tmp_path_factory.mktemp("server") / "log.txt") as url:
        yield OpenAIBackend(NANO, [url], concurrency=8)


@pytest.fixture(scope="module")
def usual() -> TransformersBackend:
    return TransformersBackend.load(NANO, device="cpu")


@pytest.fixture(scope="module")
def problems(mini_splits: Splits) -> list[Problem]:
    return mini_splits["test"][::3]


def answer(backend: OpenAIBackend, ask: Ask) -> Completion | Choice:
    async def once() -> Completion | Choice:
        async with backend.session() as session:
            return await session.answer(ask)

    return asyncio.run(once())


def test_a_choice_has_the_models_probabilities(
    endpoint: OpenAIBackend, usual: TransformersBackend, problems: list[Problem]
) -> None:
    for problem in problems:
        pool = problem.identifiers[:10]
        prompt = build_prompt(problem, pool, "iranker", think=False)
        said, (expected,) = answer(endpoint, Ask(prompt, pool, 20)), usual.choose([prompt], [pool])
        assert isinstance(said, Choice)
        assert said.probabilities == pytest.approx(expected.probabilities, abs=1e-3)
    (found,) = endpoint.capabilities.values()
    assert found == {"continue": True, "choice": "structured+logprobs"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("think", [True, False])
def test_iranker_ranks_the_same(
    layout: Layout, think: bool, endpoint: OpenAIBackend, usual: TransformersBackend, problems: list[Problem]
) -> None:
    there, here = (
        IRanker(backend, think=think, layout=layout, max_new_tokens=40).rank_many(problems)
        for backend in (endpoint, usual)
    )
    assert [ranking.error for ranking in there] == [""] * len(problems)
    assert [ranking.docids for ranking in there] == [ranking.docids for ranking in here]
    assert sum(ranking.usage.retries for ranking in there) == 0


@pytest.mark.parametrize("think", [True, False])
def test_dranker_ranks_the_same(
    think: bool, endpoint: OpenAIBackend, usual: TransformersBackend, problems: list[Problem]
) -> None:
    there, here = (
        DRanker(backend, think=think, max_new_tokens=60).rank_many(problems) for backend in (endpoint, usual)
    )
    assert [ranking.docids for ranking in there] == [ranking.docids for ranking in here]
    assert [r.steps[0].completion for r in there] == [r.steps[0].completion for r in here]


def test_what_the_server_had_in_its_cache_is_not_counted(endpoint: OpenAIBackend, problems: list[Problem]) -> None:
    prompt = build_prompt(problems[0], problems[0].identifiers, "iranker", think=False)
    first, again = (answer(endpoint, Ask(prompt, problems[0].identifiers, 20)) for _ in range(2))
    assert again.prompt_tokens <= 32
    assert again.prompt_tokens <= first.prompt_tokens


def test_a_template_that_drops_thoughts_is_not_continued(endpoint: OpenAIBackend, problems: list[Problem]) -> None:
    backend = OpenAIBackend(NANO, endpoint.base_urls)
    problem = dataclasses.replace(problems[0], query=THOUGHTLESS)
    ranking = IRanker(backend, think=False).rank(problem)
    assert not ranking.error
    assert len(ranking.docids) == len(problem.candidates)
    assert list(backend.capabilities.values()) == [{"continue": False, "choice": "structured+logprobs"}]
