"""The supervised start: demonstrations are right answers, and a model learns to give them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from r1ranker.answers import parse_ranking, parse_removal, thought_of
from r1ranker.backends.encoding import Encoder
from r1ranker.backends.padding import positions
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.config import RunConfig, ScratchConfig, WarmstartConfig
from r1ranker.problem import Problem
from r1ranker.prompts import NO_THOUGHT
from r1ranker.rewards import score_ranking, score_removal
from r1ranker.training.checkpoint import save_model
from r1ranker.training.demonstrations import Demonstration, demonstrate, random_pool
from r1ranker.training.logs import read_log
from r1ranker.training.scratch import new_network, train_tokenizer
from r1ranker.training.warmstart import attention_scores, cosine, warmstart

MakeProblem = Callable[..., Problem]
PROBLEM = {"gains": {"d2": 2, "d5": 1}}
N = 6


def shares(*, think: float, ranking: float, append: float = 0.0) -> WarmstartConfig:
    return WarmstartConfig(think_share=think, ranking_share=ranking, append_share=append)


def completion_of(encoder: Encoder, example: Demonstration) -> str:
    """What the model is taught to write, with the prefill that stands at the end of the prompt."""
    prefill = NO_THOUGHT if encoder.decode(example.prompt_ids).endswith(NO_THOUGHT) else ""
    return prefill + encoder.decode(example.target_ids)


def shown_in(encoder: Encoder, example: Demonstration, problem: Problem) -> list[int]:
    """The problem's own identifiers of the candidates that a prompt shows, in order, whatever they are called there."""
    text = encoder.decode(example.prompt_ids)
    order = {text.find(f" {problem.candidate(k).text}\n"): k for k in problem.identifiers}
    return [k for place, k in sorted(order.items()) if place >= 0]


def pool_of(encoder: Encoder, example: Demonstration, problem: Problem) -> tuple[int, ...]:
    text = encoder.decode(example.prompt_ids)
    gone = [k for k in problem.identifiers if f"<answer>[{k}]</answer>" in text]
    return tuple(k for k in problem.identifiers if f"\n[{k}] " in text and k not in gone)


@pytest.mark.parametrize("think", [0.0, 1.0])
def test_removal_demonstrations_are_perfect_answers(
    think: float, backend: TransformersBackend, make_problem: MakeProblem
) -> None:
    problem, encoder = make_problem(N, **PROBLEM), backend.encoder
    for seed in range(25):
        example = demonstrate(problem, encoder, shares(think=think, ranking=0), random.Random(seed))
        pool, text = pool_of(encoder, example, problem), completion_of(encoder, example)
        assert len(pool) >= 2
        answer = parse_removal(text, pool)
        assert answer.kind == "valid"
        assert score_removal(text, answer, problem, pool, kind="graded").total == 1.0
        assert bool(thought_of(text)) == bool(think)
        if think:
            assert f"[{answer.ids[0]}]" in thought_of(text)


def test_an_episode_is_perfect_answers_one_after_the_other(
    backend: TransformersBackend, make_problem: MakeProblem
) -> None:
    problem, encoder = make_problem(N, **PROBLEM), backend.encoder
    lengths = set()
    for seed in range(25):
        example = demonstrate(problem, encoder, shares(think=0, ranking=0, append=1), random.Random(seed))
        shown = shown_in(encoder, example, problem)
        left = list(range(1, len(shown) + 1))
        for text in completion_of(encoder, example).removeprefix("<think>\n</think>\n").split("<answer>")[1:]:
            answer = parse_removal(f"{NO_THOUGHT}{text}", tuple(left))
            assert answer.kind == "valid"
            gains = {k: problem.gain(shown[k - 1]) for k in left}
            assert gains[answer.ids[0]] == min(gains.values())
            left.remove(answer.ids[0])
        assert len(left) == 1
        lengths.add(len(shown))
    assert len(lengths) > 2


@pytest.mark.parametrize("ranking", [0.0, 1.0])
def test_examples_by_the_prior_answer_as_the_prior_would_and_are_judged_by_the_gains(
    ranking: float, tiny: TransformersBackend, make_problem: MakeProblem
) -> None:
    prior = {f"d{k}": float(k) for k in range(1, N + 1)}
    problem = make_problem(N, gains={"d1": 2}, prior=prior)
    config = shares(think=0, ranking=ranking).model_copy(update={"answers": "prior"})
    for seed in range(10):
        example = demonstrate(problem, tiny.encoder, config, random.Random(seed))
        pool, text = pool_of(tiny.encoder, example, problem), completion_of(tiny.encoder, example)
        if ranking:
            assert parse_ranking(text, pool).ids == tuple(sorted(pool, reverse=True))
        else:
            assert parse_removal(text, pool).ids == (min(pool),)
        assert [gain for _, _, gain in example.ends] == [float(k == 1) for k in pool]


def test_examples_by_the_prior_need_one(tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    config = WarmstartConfig(answers="prior")
    with pytest.raises(DataError, match=r"no prior for 'd1'.*warmstart.answers=gains"):
        demonstrate(make_problem(N, **PROBLEM), tiny.encoder, config, random.Random(0))


@pytest.mark.parametrize(("by", "removed"), [("prior", 1), ("gains", 2)])
def test_examples_answer_by_what_the_config_says(
    by: str, removed: int, tiny: TransformersBackend, make_problem: MakeProblem
) -> None:
    problem = make_problem(2, gains={"d1": 1}, prior={"d1": 1.0, "d2": 2.0})
    config = WarmstartConfig.model_validate({"think_share": 0, "ranking_share": 0, "answers": by})
    text = completion_of(tiny.encoder, demonstrate(problem, tiny.encoder, config, random.Random(0)))
    assert parse_removal(text.partition("</answer>")[0] + "</answer>", (1, 2)).ids == (removed,)


def test_in_an_episode_answers_are_chosen_among_what_is_left(
    tiny: TransformersBackend, make_problem: MakeProblem
) -> None:
    encoder = tiny.encoder
    example = demonstrate(make_problem(N), encoder, shares(think=0, ranking=0, append=1), random.Random(1))
    left = set(example.allowed[0])
    for position in sorted(example.allowed):
        assert set(example.allowed[position]) == left
        assert set(example.alternatives[position]) <= left
        left.remove(example.target_ids[position])
    assert len(left) == 1


@pytest.mark.parametrize("think", [0.0, 1.0])
def test_ranking_demonstrations_are_perfect_answers(
    think: float, backend: TransformersBackend, make_problem: MakeProblem
) -> None:
    problem, encoder = make_problem(N, **PROBLEM), backend.encoder
    for seed in range(25):
        example = demonstrate(problem, encoder, shares(think=think, ranking=1), random.Random(seed))
        pool, text = pool_of(encoder, example, problem), completion_of(encoder, example)
        answer = parse_ranking(text, pool)
        assert answer.kind == "valid"
        assert score_ranking(text, answer, problem, pool, kind="graded").total == pytest.approx(1.0)
        assert bool(thought_of(text)) == bool(think)


@pytest.mark.parametrize("think", [0.0, 1.0])
@pytest.mark.parametrize("ranking", [0.0, 1.0])
def test_soft_targets_spread_over_equally_right_answers(
    ranking: float, think: float, tiny: TransformersBackend, make_problem: MakeProblem
) -> None:
    problem, encoder = make_problem(N, **PROBLEM), tiny.encoder
    identifier = {encoder.encode_text(f"[{k}]")[0]: k for k in problem.identifiers}
    spread = 0
    for seed in range(25):
        example = demonstrate(problem, encoder, shares(think=think, ranking=ranking), random.Random(seed))
        for position, weights in example.alternatives.items():
            assert sum(weights.values()) == pytest.approx(1)
            assert len(set(weights.values())) == 1
            assert example.target_ids[position] in weights
            gains = {problem.gain(identifier[token]) for token in weights}
            assert len(gains) == 1
            spread += len(weights) > 1
    assert spread > 5 or (think and not ranking)


def test_after_a_thought_the_answer_has_no_alternative(tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    problem = make_problem(N)
    for seed in range(20):
        example = demonstrate(problem, tiny.encoder, shares(think=1, ranking=0), random.Random(seed))
        assert example.alternatives == {}


@pytest.mark.parametrize("append", [0.0, 1.0])
def test_candidates_are_judged_where_their_lines_end_and_nowhere_else(
    append: float, tiny: TransformersBackend, make_problem: MakeProblem
) -> None:
    problem, encoder = make_problem(N, **PROBLEM), tiny.encoder
    for seed in range(10):
        example = demonstrate(problem, encoder, shares(think=0, ranking=0, append=append), random.Random(seed))
        shown = shown_in(encoder, example, problem)
        best = max(problem.gain(k) for k in (shown if append else problem.identifiers))
        assert [gain for _, _, gain in example.ends] == [problem.gain(k) / best for k in shown]
        for place, (k, (position, _, _)) in enumerate(zip(shown, example.ends, strict=True), start=1):
            name = place if append else k
            assert encoder.decode(example.prompt_ids[: position + 1]).endswith(
                f"[{name}] {problem.candidate(k).text}\n"
            )


def test_the_attention_that_is_trained_is_the_one_that_the_network_uses(tiny_dir: Path) -> None:
    backend = TransformersBackend.load(str(tiny_dir))
    backend.network.set_attn_implementation("eager")
    ids = torch.tensor([backend.encoder.encode_text("which of [1] and [2] fits the query\nleast")])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        out = backend.network(input_ids=ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
        L = ids.shape[1]
        reader = (torch.zeros(L, dtype=torch.long), torch.full((L,), L - 1))
        read = (torch.zeros(L, dtype=torch.long), torch.arange(L))
        scores = attention_scores(backend.network, out.hidden_states[-2], positions(mask), reader, read)
    assert torch.allclose(scores.T.softmax(-1), out.attentions[-1][0, :, -1], atol=1e-5)


def test_pools_have_every_size_and_hold_a_relevant_candidate(make_problem: MakeProblem) -> None:
    problem, rng = make_problem(N, **PROBLEM), random.Random(0)
    pools = [random_pool(problem, rng) for _ in range(400)]
    sizes = [len(pool) for pool in pools]
    assert set(sizes) == {2, 3, 4, 5, 6}
    assert sizes.count(2) > sizes.count(6)
    assert all({2, 5} & set(pool) for pool in pools)
    assert all(len(random_pool(make_problem(3, gains={}), rng)) >= 2 for _ in range(10))
    assert random_pool(make_problem(1), rng) == (1,)


def test_the_schedule_rises_then_falls_to_its_floor() -> None:
    factors = [cosine(step, 20, 5) for step in range(21)]
    assert factors[:5] == sorted(factors[:5])
    assert factors[5] == pytest.approx(1)
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[20] == pytest.approx(0.05)
    assert min(factors) > 0


@pytest.mark.parametrize("pointwise", [0.0, 0.5])
def test_a_model_from_nothing_learns_and_loads(pointwise: float, tmp_path: Path, make_problem: MakeProblem) -> None:
    problems = [make_problem(4, positive=1 + i % 4, qid=f"q{i}") for i in range(8)]
    config = RunConfig.model_validate(
        {
            "out": tmp_path,
            "device": "cpu",
            "warmstart": {
                "scratch": {"vocab": 330, "hidden": 32, "layers": 1, "heads": 2, "context": 512},
                "steps": 25,
                "batch": 8,
                "lr": 1e-2,
                "warmup": 3,
                "log_every": 1,
                "pointwise": pointwise,
            },
        }
    )
    directory = warmstart(config, problems)
    losses = [row["loss"] for row in read_log(tmp_path)]
    assert len(losses) == 25
    assert losses[0] > 5
    assert sum(losses[-3:]) / 3 < losses[0] / 2
    backend = TransformersBackend.load(str(directory))
    for text in ("<think>", "</think>", "<answer>", "</answer>", "[1]", "[20]"):
        assert len(backend.encoder.encode_text(text)) == 1
        assert backend.encoder.decode(backend.encoder.encode_text(text)) == text


def test_a_context_that_holds_no_prompt_is_refused_before_anything_is_learnt(
    tmp_path: Path, make_problem: MakeProblem
) -> None:
    shape = {"vocab": 330, "hidden": 32, "layers": 1, "heads": 2, "context": 16}
    config = RunConfig.model_validate({"out": tmp_path, "device": "cpu", "warmstart": {"scratch": shape, "steps": 1}})
    with pytest.raises(ConfigError, match=r"a prompt has \d+ tokens, and the model reads 16: raise warmstart\.scratch"):
        warmstart(config, [make_problem(4)])
    assert not (tmp_path / "model").exists()


def test_a_model_from_nothing_is_read_back_with_the_tokenizer_it_was_taught_with(
    tmp_path: Path, make_problem: MakeProblem
) -> None:
    shape = ScratchConfig(vocab=330, hidden=32, layers=1, heads=2, context=512)
    tokenizer = train_tokenizer((candidate.text for candidate in make_problem(6).candidates), shape)
    save_model(tmp_path / "model", new_network(tokenizer, shape, 0), tokenizer)
    backend = TransformersBackend.load(str(tmp_path / "model"))
    text = "The Iron Galaxy (1995)\n[3] Text GOOD, text good"
    assert backend.encoder.encode_text(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert backend.encoder.encode_text("GOOD") == backend.encoder.encode_text("good")


def test_a_given_model_is_trained_further(tiny_dir: Path, tmp_path: Path, make_problem: MakeProblem) -> None:
    config = RunConfig.model_validate(
        {
            "model": str(tiny_dir),
            "out": tmp_path,
            "device": "cpu",
            "warmstart": {"steps": 12, "batch": 8, "lr": 5e-3, "warmup": 2, "log_every": 1},
        }
    )
    directory = warmstart(config, [make_problem(4, qid=f"q{i}") for i in range(4)])
    losses = [row["loss"] for row in read_log(tmp_path)]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert TransformersBackend.load(str(directory)).network.config.hidden_size == 32


def test_the_same_seed_gives_the_same_model(tiny_dir: Path, tmp_path: Path, make_problem: MakeProblem) -> None:
    logs = []
    for name in ("one", "two"):
        settings = {"steps": 3, "batch": 4, "lr": 1e-2, "log_every": 1, "pointwise": 1.0}
        config = RunConfig.model_validate({"model": str(tiny_dir), "out": tmp_path / name, "warmstart": settings})
        warmstart(config, [make_problem(4, qid=f"q{i}") for i in range(4)])
        logs.append([row["loss"] for row in read_log(tmp_path / name)])
    assert logs[0] == logs[1]
