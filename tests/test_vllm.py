"""vLLM in this process against the transformers backend, on CPU: the same model must say the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("vllm")

from conftest import SHAPE, save_model
from r1ranker.backends.models import NANO
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.backends.vllm_ import VLLMBackend
from r1ranker.errors import BackendError
from r1ranker.problem import Problem, Splits
from r1ranker.prompts import LAYOUTS, Layout, build_prompt
from r1ranker.ranking.rankers import DRanker, IRanker

MakeProblem = Callable[..., Problem]
pytestmark = pytest.mark.filterwarnings("default")  # vLLM uses what torch and others have deprecated
BLOCK = 32
"""Tokens in a block of the prefix cache; what is shared is found by whole blocks."""
SETTINGS = {"enforce_eager": True, "block_size": BLOCK, "max_num_seqs": 32}


@pytest.fixture(scope="module", autouse=True)
def small_and_unbound() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@contextmanager
def loaded(model: str) -> Iterator[VLLMBackend]:
    """vLLM's engine is a process of its own, which ends with the context."""
    backend = VLLMBackend.load(model, **SETTINGS)
    try:
        yield backend
    finally:
        backend.llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def here() -> Iterator[VLLMBackend]:
    with loaded(NANO) as backend:
        yield backend


@pytest.fixture(scope="module")
def usual() -> TransformersBackend:
    return TransformersBackend.load(NANO, device="cpu")


@pytest.fixture(scope="module")
def several_tokens(
    tmp_path_factory: pytest.TempPathFactory, corpus: list[Problem]
) -> Iterator[tuple[VLLMBackend, TransformersBackend]]:
    """Both over a model whose identifiers are several tokens; vLLM's CPU kernels want heads of 32 or more."""
    shape = SHAPE.model_copy(update={"identifiers": 0, "hidden": 64})
    path = str(save_model(tmp_path_factory.mktemp("several"), corpus, shape))
    with loaded(path) as backend:
        yield backend, TransformersBackend.load(path, device="cpu")


@pytest.fixture(scope="module")
def problems(mini_splits: Splits) -> list[Problem]:
    return mini_splits["test"]


def test_choices_have_the_same_probabilities(
    here: VLLMBackend, usual: TransformersBackend, problems: list[Problem]
) -> None:
    pools = [problem.identifiers for problem in problems]
    prompts = [build_prompt(p, pool, "iranker", think=False) for p, pool in zip(problems, pools, strict=True)]
    expected = usual.choose(prompts, pools)
    for one, other in zip(here.choose(prompts, pools), expected, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-3)
        assert list(one.probabilities) == list(other.probabilities)
        assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert one.generated_tokens == other.generated_tokens == 1
    assert max(max(choice.probabilities.values()) for choice in expected) > 0.5, "a model without an opinion"


def test_identifiers_of_several_tokens_have_the_same_probabilities(
    several_tokens: tuple[VLLMBackend, TransformersBackend], make_problem: MakeProblem
) -> None:
    here, usual = several_tokens
    pools = [(2, 3, 10, 11, 13), (4,), tuple(range(1, 14))]
    prompts = [build_prompt(make_problem(13, qid=f"q{len(pool)}"), pool, "iranker", think=False) for pool in pools]
    for one, other in zip(here.choose(prompts, pools), usual.choose(prompts, pools), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-3)
        assert one.generated_tokens == other.generated_tokens > 1


def test_more_identifiers_than_one_request_may_name(
    here: VLLMBackend, usual: TransformersBackend, problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r1ranker.backends.vllm_.AT_ONCE", 3)
    prompt = build_prompt(problems[0], problems[0].identifiers, "iranker", think=False)
    (one,), (other,) = (backend.choose([prompt], [problems[0].identifiers]) for backend in (here, usual))
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("think", [True, False])
def test_iranker_ranks_the_same(
    layout: Layout, think: bool, here: VLLMBackend, usual: TransformersBackend, problems: list[Problem]
) -> None:
    one, other = (
        IRanker(backend, think=think, layout=layout, max_new_tokens=40).rank_many(problems) for backend in (here, usual)
    )
    assert [ranking.docids for ranking in one] == [ranking.docids for ranking in other]
    assert [r.usage.generated_tokens for r in one] == [r.usage.generated_tokens for r in other]


@pytest.mark.parametrize("think", [True, False])
def test_dranker_ranks_the_same(
    think: bool, here: VLLMBackend, usual: TransformersBackend, problems: list[Problem]
) -> None:
    one, other = (DRanker(backend, think=think, max_new_tokens=60).rank_many(problems) for backend in (here, usual))
    assert [ranking.docids for ranking in one] == [ranking.docids for ranking in other]
    assert [r.steps[0].completion for r in one] == [r.steps[0].completion for r in other]


@pytest.mark.parametrize("limit", [3, 60])
def test_what_is_written_ends_the_same(
    limit: int, here: VLLMBackend, usual: TransformersBackend, problems: list[Problem]
) -> None:
    prompts = [build_prompt(p, p.identifiers, "iranker") for p in problems]
    one, other = (backend.generate(prompts, max_new_tokens=limit) for backend in (here, usual))
    assert [(c.text, c.truncated, c.generated_tokens) for c in one] == [
        (c.text, c.truncated, c.generated_tokens) for c in other
    ]
    assert all(c.truncated for c in one) == (limit == 3)


def test_a_prefix_that_was_read_is_not_counted_again(here: VLLMBackend, problems: list[Problem]) -> None:
    problem = max(problems, key=lambda p: len(build_prompt(p, p.identifiers, "iranker").text))
    here.llm.reset_prefix_cache()
    prompt = build_prompt(problem, problem.identifiers, "iranker", think=False)
    length = len(here.encoder.encode(prompt))
    first, again = (here.choose([prompt], [problem.identifiers])[0] for _ in range(2))
    assert first.prompt_tokens == length > 2 * BLOCK
    assert again.prompt_tokens <= BLOCK
    assert again.probabilities == pytest.approx(first.probabilities, abs=1e-5)


def test_branchings_share_their_prompt(
    several_tokens: tuple[VLLMBackend, TransformersBackend], make_problem: MakeProblem
) -> None:
    here, _ = several_tokens
    prompt = build_prompt(make_problem(13), tuple(range(1, 14)), "iranker", think=False)
    here.llm.reset_prefix_cache()
    (choice,) = here.choose([prompt], [tuple(range(1, 14))])
    branchings, length = len(here.encoder.trie(range(1, 14)).branches), len(here.encoder.encode(prompt))
    assert branchings > 1
    assert choice.prompt_tokens <= length + (branchings - 1) * 2 * BLOCK < branchings * length


def test_sampling_differs_from_one_draw_to_the_next(here: VLLMBackend, problems: list[Problem]) -> None:
    prompt = build_prompt(problems[0], problems[0].identifiers, "iranker")
    assert len({out.text for out in here.generate([prompt] * 8, max_new_tokens=12, temperature=2.0)}) > 1


def test_no_prompts_cost_no_call(here: VLLMBackend) -> None:
    assert here.generate([]) == []
    assert here.choose([], []) == []


def test_a_prompt_beyond_the_context_is_refused_with_the_remedy(
    here: VLLMBackend, usual: TransformersBackend, problems: list[Problem]
) -> None:
    prompt = build_prompt(problems[0], problems[0].identifiers, "iranker")
    for backend in (here, usual):
        with pytest.raises(BackendError, match=r"exceeds the context of 2048 tokens .* smaller pool"):
            backend.generate([prompt], max_new_tokens=2048)


@pytest.mark.parametrize("model", ["./not/here", "nobody/no-such-model"])
def test_a_model_that_is_not_there_is_named(model: str) -> None:
    with pytest.raises(BackendError, match=f"cannot load '{model}'"):
        VLLMBackend.load(model)
