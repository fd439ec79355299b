"""Experience: what is sampled, what it is asked in, and what it earns."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from r1ranker.answers import parse_ranking, parse_removal
from r1ranker.backends.base import Choice, Completion
from r1ranker.backends.encoding import build_trie
from r1ranker.backends.scripted import ScriptedBackend
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.errors import ConfigError
from r1ranker.io.config import RunConfig
from r1ranker.problem import Answer, Problem
from r1ranker.prompts import LAYOUTS, NO_THOUGHT, Prompt, build_prompt, list_prompt, written_list
from r1ranker.ranking.rankers import DRanker, IRanker
from r1ranker.rewards import score_ranking, score_removal
from r1ranker.training import rollout
from r1ranker.training.batch import pack, score
from r1ranker.training.rollout import (
    State,
    _credit,
    check_prompts,
    collect,
    draw,
    episodes,
    rank_once,
    removals,
    sampled_state,
    whole_episode,
)

MakeProblem = Callable[..., Problem]


def run_config(**settings: Any) -> RunConfig:
    ppo = {"batch": 12, "max_new_tokens": 6} | settings.pop("ppo", {})
    return RunConfig.model_validate({"think": False, "ppo": ppo} | settings)


@pytest.fixture
def problems(make_problem: MakeProblem) -> list[Problem]:
    return [make_problem(n, positive=1 + n % 3, qid=f"q{n}") for n in (3, 4, 5, 6)]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_batch_mixes_sampled_states_and_own_episodes(
    share: float, tiny: TransformersBackend, problems: list[Problem]
) -> None:
    config = run_config(ppo={"episode_share": share, "batch": 20})
    trajectories = collect(tiny, draw(problems, config, random.Random(0)), config)
    own = [t for t in trajectories if len(t) > 1]
    samples = sum(len(t) for t in trajectories)
    assert 20 <= samples < 20 + 5
    assert 20 * share <= sum(len(t) for t in own) < 20 * share + 5
    assert all(len(t) in (1, 2, 3, 4, 5) for t in trajectories)


def test_a_direct_batch_holds_one_ranking_per_trajectory(tiny: TransformersBackend, problems: list[Problem]) -> None:
    config = run_config(design="dranker")
    trajectories = collect(tiny, draw(problems, config, random.Random(0)), config)
    assert [len(t) for t in trajectories] == [1] * 12


def test_sampled_states_hold_a_relevant_candidate_and_have_every_size(make_problem: MakeProblem) -> None:
    problem = make_problem(6, gains={"d2": 1, "d5": 1})
    rng = random.Random(0)
    states = [sampled_state(problem, run_config(), rng) for _ in range(300)]
    assert all({2, 5} & set(s.pool) for s in states)
    sizes = Counter(len(s.pool) for s in states)
    assert set(sizes) == {2, 3, 4, 5, 6}
    assert min(sizes.values()) > 30
    capped = [sampled_state(problem, run_config(), rng, largest=3) for _ in range(50)]
    assert {len(s.pool) for s in capped} == {2, 3}


def test_a_sampled_state_in_append_tells_what_has_left(make_problem: MakeProblem) -> None:
    problem = make_problem(6)
    for seed in range(20):
        state = sampled_state(problem, run_config(layout="append"), random.Random(seed))
        gone = [parse_removal(entry, problem.identifiers).ids[0] for entry in state.past]
        assert sorted([*gone, *state.pool]) == list(problem.identifiers)


@pytest.mark.parametrize("reward", ["paper", "graded"])
def test_a_chosen_removal_is_the_tokens_of_its_identifier_and_earns_its_reward(
    reward: str, backend: TransformersBackend, make_problem: MakeProblem
) -> None:
    problem = make_problem(12, gains={"d1": 2, "d2": 1})
    states = [State(problem, pool) for pool in [(1, 2, 3), (1, 10, 11, 12), (2, 7)]] * 4
    config = run_config(ppo={"reward": reward})
    seen = set()
    for state, step in zip(states, removals(backend, states, config), strict=True):
        sample, answer = step.sample, step.answer
        prompt = build_prompt(problem, state.pool, "iranker", think=False)
        assert sample.prompt_ids == backend.encoder.encode(prompt)
        assert answer.kind == sample.kind == "valid"
        assert answer.ids[0] in state.pool
        assert backend.encoder.decode(sample.completion_ids) == f"[{answer.ids[0]}]"
        assert sample.allowed == backend.encoder.trie(state.pool).allowed(answer.ids[0])
        text = f"{prompt.prefill}[{answer.ids[0]}]</answer>"
        expected = score_removal(text, answer, problem, state.pool, kind=reward)
        assert (sample.reward, sample.parts, sample.task) == (expected.total, expected.parts, "toy")
        seen.add(sample.reward)
    assert len(seen) > 1


def test_identifiers_are_drawn_by_the_policys_probabilities(
    tiny: TransformersBackend, make_problem: MakeProblem
) -> None:
    problem = make_problem(4)
    states = [State(problem, problem.identifiers)] * 800
    drawn = Counter(step.answer.ids[0] for step in removals(tiny, states, run_config()))
    prompt = build_prompt(problem, problem.identifiers, "iranker", think=False)
    (choice,) = tiny.choose([prompt], [problem.identifiers])
    for k, p in choice.probabilities.items():
        assert drawn[k] / 800 == pytest.approx(p, abs=4 * (p * (1 - p) / 800) ** 0.5 + 1e-3)


def test_a_thought_is_parsed_and_rewarded_as_in_ranking(tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    problem = make_problem(3)
    torch.manual_seed(0)
    config = run_config(think=True)
    for step in removals(tiny, [State(problem, (1, 2, 3))] * 8, config):
        sample, answer = step.sample, step.answer
        text = tiny.encoder.decode(sample.completion_ids)
        truncated = len(sample.completion_ids) == 6 and not text.endswith("</answer>")
        assert answer == parse_removal(text, (1, 2, 3), truncated)
        assert sample.reward == score_removal(text, answer, problem, (1, 2, 3), kind="graded").total
        assert sample.allowed is None
        assert 1 <= len(sample.completion_ids) <= 6


def test_a_list_is_drawn_among_what_is_left_and_rewarded_whole(
    backend: TransformersBackend, make_problem: MakeProblem
) -> None:
    problem, encoder = make_problem(3), backend.encoder
    states = [dataclasses.replace(whole_episode(problem), rng=random.Random(k)) for k in range(12)]
    orders = set()
    for (sample,) in rank_once(backend, states, run_config(design="dranker")):
        prompt = build_prompt(problem, (1, 2, 3), "dranker", think=False)
        assert sample.prompt_ids == encoder.encode(prompt)
        first, second = (int(k) for k in encoder.decode(sample.completion_ids).strip("[]").split("]>["))
        text = written_list((first, second, 6 - first - second))
        answer = parse_ranking(text, (1, 2, 3))
        assert sample.kind == answer.kind == "valid"
        assert sample.reward == score_ranking(text, answer, problem, (1, 2, 3), kind="graded").total
        assert sample.allowed is not None and len(sample.allowed) == len(sample.completion_ids)
        assert all(token in allowed for token, allowed in zip(sample.completion_ids, sample.allowed, strict=True))
        orders.add(answer.ids)
    assert len(orders) > 2


def test_lists_are_drawn_as_often_as_the_rankers_choices_say(
    tiny: TransformersBackend, make_problem: MakeProblem
) -> None:
    problem = make_problem(3)
    prompt = build_prompt(problem, (1, 2, 3), "dranker", think=False)
    (first,) = tiny.choose([list_prompt(prompt, ())], [(1, 2, 3)])
    (then,) = tiny.choose([list_prompt(prompt, (2,))], [(1, 3)])
    states = [dataclasses.replace(whole_episode(problem), rng=random.Random(k)) for k in range(800)]
    drawn = Counter(
        tiny.encoder.decode(s.completion_ids) for (s,) in rank_once(tiny, states, run_config(design="dranker"))
    )
    p = first.probabilities[2] * then.probabilities[3]
    assert drawn["[2]>[3]"] / 800 == pytest.approx(p, abs=4 * (p * (1 - p) / 800) ** 0.5 + 1e-3)


def test_each_place_of_a_list_knows_what_every_candidate_left_would_have_earned_there(
    tiny: TransformersBackend, make_problem: MakeProblem
) -> None:
    problem, ids = make_problem(4, gains={"d1": 3, "d3": 1}), (1, 2, 3, 4)
    token = {tuple(tiny.encoder.encode_text(f"[{k}]")): k for k in ids}
    ppo = {"answer": "expected"}
    states = [dataclasses.replace(whole_episode(problem), rng=random.Random(k)) for k in range(8)]
    for (sample,) in rank_once(tiny, states, run_config(design="dranker", ppo=ppo)):
        assert sample.allowed is not None and len(sample.answer_rewards) == 3
        named = [token[sample.completion_ids[t],] for t in sample.answer_rewards]
        order = [*named, *(k for k in ids if k not in named)]
        for place, (t, rewards) in enumerate(sample.answer_rewards.items()):
            for allowed, reward in zip(sample.allowed[t], rewards, strict=True):
                k = token[allowed,]
                moved = (*order[:place], k, *(j for j in order[place:] if j != k))
                text = written_list(moved)
                earned = score_ranking(text, parse_ranking(text, ids), problem, ids, kind="graded").total
                assert reward == pytest.approx(earned, abs=1e-12)
                if k == named[place]:
                    assert reward == pytest.approx(sample.reward, abs=1e-12)


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_episode_in_training_asks_what_the_ranker_asks(
    layout: str, think: bool, tiny: TransformersBackend, make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "joined", lambda trajectory: None)  # to see each step's own prompt
    problem = make_problem(5)
    torch.manual_seed(1)
    config = run_config(layout=layout, think=think)
    (trajectory,) = episodes(tiny, [whole_episode(problem)], config)
    assert len(trajectory) == 4
    asked: list[Prompt] = []

    class Replay(ScriptedBackend):
        """Answers as the trajectory did."""

        def generate(self, prompts: Any, **settings: Any) -> list[Completion]:
            sample = trajectory[len(asked)]
            asked.extend(prompts)
            text = tiny.encoder.decode(sample.completion_ids)
            return [Completion(text, sample.kind == "truncated", 0, 0)]

    def weigh(prompt: Prompt, identifier: int) -> float:
        if not asked or asked[-1] != prompt:
            asked.append(prompt)
        said = tiny.encoder.decode(trajectory[len(asked) - 1].completion_ids)
        return float(said == f"[{identifier}]") + 1e-6

    ranker = IRanker(Replay(weigh=weigh), think=think, layout=layout, max_new_tokens=6)  # type: ignore[arg-type]
    ranking = ranker.rank(problem)
    assert [tiny.encoder.encode(prompt) for prompt in asked] == [sample.prompt_ids for sample in trajectory]
    assert [step.answer.kind for step in ranking.steps] == [sample.kind for sample in trajectory]


def test_a_direct_prompt_in_training_is_the_rankers(tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    problem = make_problem(3)
    asked: list[Prompt] = []

    def write(prompt: Prompt) -> str:
        asked.append(prompt)
        return ""

    def weigh(prompt: Prompt, identifier: int) -> float:
        asked.append(prompt)
        return 1.0

    for think in (True, False):
        asked.clear()
        DRanker(ScriptedBackend(write, weigh), think=think).rank(problem)
        ((sample,),) = rank_once(tiny, [whole_episode(problem)], run_config(design="dranker", think=think))
        assert sample.prompt_ids == tiny.encoder.encode(asked[0])


def test_episodes_of_different_length_run_side_by_side(tiny: TransformersBackend, problems: list[Problem]) -> None:
    trajectories = episodes(tiny, [whole_episode(p) for p in problems], run_config())
    assert [len(t) for t in trajectories] == [len(p.candidates) - 1 for p in problems]


def test_expected_credit_knows_the_reward_of_every_answer(tiny: TransformersBackend, make_problem: MakeProblem) -> None:
    problem = make_problem(6, gains={"d2": 2, "d4": 1})
    pool = (1, 2, 4, 6)
    (step,) = removals(tiny, [State(problem, pool)], run_config(ppo={"answer": "expected"}))
    sample, answer = step.sample, step.answer
    assert sample.allowed is not None and sample.answer_rewards
    by_token = {tiny.encoder.encode_text(f"[{k}]")[0]: k for k in pool}
    ((branch, rewards),) = sample.answer_rewards.items()
    for token, reward in zip(sample.allowed[branch], rewards, strict=True):
        k = by_token[token]
        assert (
            reward
            == score_removal(
                f"<think>\n</think>\n<answer>[{k}]</answer>", Answer("valid", (k,)), problem, pool, kind="graded"
            ).total
        )
    assert sorted(rewards) == [0.0, 0.5, 1.0, 1.0]
    written = sample.allowed[branch].index(sample.completion_ids[branch])
    assert rewards[written] == sample.reward
    assert answer.ids[0] == by_token[sample.completion_ids[branch]]


def test_expected_credit_of_identifiers_of_several_tokens_has_the_gradient_of_the_expected_reward() -> None:
    paths = {1: (7, 1, 8), 10: (7, 1, 0, 8), 11: (7, 1, 1, 8), 2: (7, 2, 8), 3: (7, 3, 8)}
    earned = {1: 0.3, 10: 1.0, 11: 0.0, 2: 0.5, 3: 0.1}
    trie = build_trie(paths)
    logits = {node: torch.randn(len(tokens), requires_grad=True) for node, tokens in trie.branches.items()}
    share = {node: values.softmax(-1) for node, values in logits.items()}
    probability = {}
    for k, path in paths.items():
        forks = [path[:i] for i in range(len(path)) if path[:i] in trie.branches]
        probability[k] = torch.stack([share[n][trie.branches[n].index(path[len(n)])] for n in forks]).prod()
    sum(probability[k] * earned[k] for k in paths).backward()  # type: ignore[union-attr]
    choice = Choice({k: float(p.detach()) for k, p in probability.items()}, 0, 0)
    on_average = {node: torch.zeros_like(values) for node, values in share.items()}
    for k, path in paths.items():
        for t, worth in _credit(trie, k, choice, earned).items():
            rewards, of = torch.tensor(worth), share[path[:t]].detach()
            on_average[path[:t]] += choice.probabilities[k] * of * (rewards - (of * rewards).sum())
    for node, gradient in on_average.items():
        assert gradient.tolist() == pytest.approx(logits[node].grad.tolist(), abs=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("answer", ["sampled", "expected"])
def test_an_episode_in_append_is_one_sample_with_each_reward_on_its_step(
    answer: str, backend: TransformersBackend, make_problem: MakeProblem
) -> None:
    problem = make_problem(12, gains={"d3": 2, "d12": 1})
    config = run_config(layout="append", ppo={"answer": answer})
    ((whole,),) = episodes(backend, [whole_episode(problem)], config)
    assert whole.steps == len(whole.rewards) == 11
    text = NO_THOUGHT + backend.encoder.decode(whole.completion_ids)
    removed = [int(k) for k in re.findall(r"\[(\d+)\]", text)]
    assert len(set(removed)) == 11
    assert whole.reward == pytest.approx(sum(whole.rewards.values()) / 11)
    rewards = iter(sorted(whole.rewards.items()))
    for k, left in zip(removed, range(12, 1, -1), strict=True):
        pool = [j for j in problem.identifiers if j not in removed[: 12 - left]]
        done = score_removal(f"{NO_THOUGHT}[{k}]</answer>", Answer("valid", (k,)), problem, pool, kind="graded").total
        assert next(rewards)[1] == done


def test_an_episode_as_one_sample_has_the_log_probabilities_and_gradients_of_its_steps(
    tiny: TransformersBackend, make_problem: MakeProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(layout="append")
    ((whole,),) = episodes(tiny, [whole_episode(make_problem(9))], config)
    monkeypatch.setattr(rollout, "joined", lambda trajectory: None)
    (steps,) = episodes(tiny, [whole_episode(make_problem(9))], config)
    assert len(steps) == whole.steps == 8
    sums, gradients = [], []
    for samples in ([whole], steps):
        total = score(tiny.network, pack(samples, tiny.pad_id, torch.device("cpu"))).logprobs_B_T.sum()
        weights = [p for p in tiny.network.parameters() if p.requires_grad]
        gradients.append(torch.autograd.grad(total, weights))
        sums.append(float(total.detach()))
    assert sums[0] == pytest.approx(sums[1], abs=1e-3)
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-2, rtol=1e-3)
    assert whole.tokens < sum(step.tokens for step in steps) / 4


@pytest.mark.parametrize("design", ["iranker", "dranker"])
@pytest.mark.parametrize("think", [True, False])
def test_the_same_seed_draws_the_same_experience(
    design: str, think: bool, tiny: TransformersBackend, problems: list[Problem]
) -> None:
    config = run_config(design=design, think=think, ppo={"batch": 6})

    def drawn(seed: int) -> list[Any]:
        torch.manual_seed(seed)
        return collect(tiny, draw(problems, config, random.Random(seed)), config)

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


@pytest.mark.parametrize("settings", [{"think": False}, {"think": True}, {"design": "dranker"}])
def test_a_training_prompt_that_is_too_long_is_refused(
    settings: dict[str, Any], tiny: TransformersBackend, problems: list[Problem]
) -> None:
    config = run_config(ppo={"max_prompt_tokens": 20}, **settings)
    with pytest.raises(ConfigError, match=r"more than ppo.max_prompt_tokens=20; raise it"):
        collect(tiny, draw(problems, config, random.Random(0)), config)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_trajectories_of_a_group_begin_alike_and_go_on_differently(
    share: float, tiny: TransformersBackend, problems: list[Problem]
) -> None:
    config = run_config(ppo={"estimator": "rloo", "group": 4, "batch": 48, "episode_share": share})
    states = draw(problems, config, random.Random(0))
    groups = [states[i : i + 4] for i in range(0, len(states), 4)]
    assert all(len({(s.problem.qid, s.pool, s.whole) for s in group}) == 1 for group in groups)
    assert len({(g[0].problem.qid, g[0].pool) for g in groups}) > 1
    trajectories = collect(tiny, states, config)
    assert 48 <= sum(len(t) for t in trajectories) < 48 + 4 * 5
    said = [
        [[sample.completion_ids for sample in t] for t in trajectories[i : i + 4]] for i in range(0, len(states), 4)
    ]
    assert any(one != other for group in said for one, other in pairwise(group))


def test_an_answer_does_not_depend_on_who_else_is_in_the_batch(
    tiny: TransformersBackend, problems: list[Problem]
) -> None:
    config = run_config(ppo={"episode_share": 0.5})

    def drawn() -> list[State]:
        return draw(problems, config, random.Random(3))

    together = collect(tiny, drawn(), config)
    apart = [trajectory for state in drawn() for trajectory in collect(tiny, [state], config)]
    assert [[s.completion_ids for s in t] for t in together] == [[s.completion_ids for s in t] for t in apart]


def test_a_curriculum_keeps_pools_small_at_first(tiny: TransformersBackend, problems: list[Problem]) -> None:
    config = run_config(ppo={"episode_share": 0.5, "batch": 60})
    states = draw(problems, config, random.Random(0), largest=3)
    assert {len(s.pool) for s in states} == {2, 3}
    for start in states:
        assert any(map(start.problem.is_relevant, start.pool))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chance_is_what_a_random_removal_earns(
    layout: str, tiny: TransformersBackend, make_problem: MakeProblem
) -> None:
    config = run_config(layout=layout, ppo={"centre": True, "reward": "paper"})
    problem = make_problem(5)
    (trajectory,) = collect(tiny, [whole_episode(problem)], config)
    chance = [value for sample in trajectory for _, value in sorted(sample.chance.items())]
    kept = [r for sample in trajectory for _, r in sorted((sample.rewards or {0: sample.reward}).items())]
    alive, expected = True, []
    for size, reward in zip((5, 4, 3, 2), kept, strict=True):
        expected.append((size - 1) / size if alive else 1.0)
        alive = alive and reward == 1.0
    assert chance == pytest.approx(expected)


def test_problems_too_long_for_a_prompt_are_refused_before_training(
    tiny: TransformersBackend, problems: list[Problem]
) -> None:
    for layout in LAYOUTS:
        with pytest.raises(ConfigError, match=r"more than ppo.max_prompt_tokens=20; raise it"):
            check_prompts(tiny.encoder, problems, run_config(layout=layout, ppo={"max_prompt_tokens": 20}))
        check_prompts(tiny.encoder, problems, run_config(layout=layout))
    whole = collect(tiny, [whole_episode(problems[-1])], run_config(layout="append"))[0][0]
    longest = whole.tokens - len(whole.completion_ids[-1:])
    for limit, refused in ((longest, False), (longest - 1, True)):
        config = run_config(layout="append", ppo={"max_prompt_tokens": limit})
        if refused:
            with pytest.raises(ConfigError):
                check_prompts(tiny.encoder, [problems[-1]], config)
        else:
            check_prompts(tiny.encoder, [problems[-1]], config)
