"""A step of PPO: its loss against a plain reference, credit, and that it teaches."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quick_runs import VARIANTS, assert_same
from r1ranker.io.config import PPOConfig, RunConfig
from r1ranker.problem import Problem
from r1ranker.training import update as update_module
from r1ranker.training.algorithms.gae import gae
from r1ranker.training.batch import Sample, pack
from r1ranker.training.experience import Experience, _by_group, _by_step, _by_token, with_advantages
from r1ranker.training.learner import Learner, new_learner
from r1ranker.training.parallel import Crew
from r1ranker.training.ppo import batch_stats, largest_pool, ppo_step
from r1ranker.training.rollout import collect, draw
from r1ranker.training.update import mini_batches, ppo_loss

MakeProblem = Callable[..., Problem]
NEVER = 10**9


def moved_experience(learner: Learner, problems: Sequence[Problem], config: RunConfig) -> list[Experience]:
    """Experience as if the policy, reference and critic had changed since it was sampled."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in learner.critic.head.parameters() if learner.critic else ():
            parameter.normal_(std=0.2)
    experience = with_advantages(
        learner, collect(learner.backend, draw(problems, config, random.Random(0)), config), config.ppo
    )
    for e in experience:
        for name, scale in (("old_logprobs", 0.3), ("reference", 0.5), ("old_values", 0.6)):
            column = getattr(e, name)
            setattr(e, name, column + scale * torch.randn_like(column))
        for t, logprobs in e.answer_logprobs.items():
            e.answer_logprobs[t] = (logprobs + 0.3 * torch.randn_like(logprobs)).log_softmax(-1)
    return experience


def naive_loss(learner: Learner, experience: Sequence[Experience], ppo: PPOConfig) -> Tensor:
    """Sample by sample, token by token, no batch and no padding."""
    total = torch.zeros(())
    for e in experience:
        ids, P = e.sample.prompt_ids + e.sample.completion_ids, len(e.sample.prompt_ids)
        out = learner.policy(input_ids=torch.tensor([ids]), output_hidden_states=True)
        hidden = out.hidden_states[-1][0].detach()
        if learner.critic is not None and learner.critic.trunk is not None:
            hidden = learner.critic.trunk(input_ids=torch.tensor([ids])).last_hidden_state[0]
        for t, token in enumerate(e.sample.completion_ids):
            logits = out.logits[0, P - 1 + t]
            allowed = list(e.sample.allowed[t]) if e.sample.allowed else list(range(len(logits)))
            logp = logits[allowed].log_softmax(-1)
            now = logp[allowed.index(token)]
            if not e.answer_advantages:
                ratio, advantage = (now - e.old_logprobs[t]).exp(), e.advantages[t]
                total = total - torch.min(ratio * advantage, ratio.clamp(1 - ppo.clip, 1 + ppo.clip) * advantage)
            elif len(allowed) > 1:
                for a in range(len(allowed)):
                    ratio, advantage = (logp[a] - e.answer_logprobs[t][a]).exp(), e.answer_advantages[t][a]
                    gain = torch.min(ratio * advantage, ratio.clamp(1 - ppo.clip, 1 + ppo.clip) * advantage)
                    total = total - e.answer_logprobs[t][a].exp() * gain
            if learner.critic is not None:
                value = learner.critic.head(hidden[P - 1 + t]).squeeze()
                held = e.old_values[t] + (value - e.old_values[t]).clamp(-ppo.value_clip, ppo.value_clip)
                total = total + 0.5 * torch.max((value - e.returns[t]) ** 2, (held - e.returns[t]) ** 2)
            log_ratio = e.reference[t] - now
            total = total + ppo.kl * (log_ratio.exp() - log_ratio - 1)
            total = total + ppo.entropy * (logp.exp() * logp).sum()
    return total


def gradients(learner: Learner, loss: Tensor) -> list[Tensor]:
    loss.backward()
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    learner.optimizer.zero_grad(set_to_none=True)
    return grads


def loss_of(learner: Learner, experience: Sequence[Experience], ppo: PPOConfig) -> Tensor:
    batch = pack([e.sample for e in experience], learner.backend.pad_id, torch.device("cpu"), shared=True)
    return ppo_loss(learner, batch, experience, ppo)[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_and_its_gradient_equal_a_plain_reference(
    name: str, config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    settings = VARIANTS[name]
    run = config(**settings | {"ppo": settings["ppo"] | {"kl": 0.3, "entropy": 0.2, "gamma": 0.9, "lam": 0.8}})
    learner = new_learner(run)
    experience = moved_experience(learner, problems, run)
    fast, slow = loss_of(learner, experience, run.ppo), naive_loss(learner, experience, run.ppo)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-5, abs=1e-4)
    ours, theirs = gradients(learner, fast), gradients(learner, slow)
    assert sum(bool(g.any()) for g in ours) > 10
    scale = max(float(g.abs().max()) for g in theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * scale, rtol=1e-3)


@pytest.mark.parametrize("name", ["chosen", "all answers credited", "thinking"])
def test_micro_batches_add_up_to_the_gradient_of_one_batch(
    name: str, config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    run = config(**VARIANTS[name])
    learner = new_learner(run)
    experience = moved_experience(learner, problems, run)
    whole = gradients(learner, loss_of(learner, experience, run.ppo))
    parts = [
        gradients(learner, loss_of(learner, group, run.ppo))
        for group in (experience[:3], experience[3:4], experience[4:])
    ]
    scale = max(float(g.abs().max()) for g in whole)
    for i, grad in enumerate(whole):
        torch.testing.assert_close(sum(p[i] for p in parts), grad, atol=1e-5 * scale, rtol=1e-3)


def test_the_size_of_micro_batches_does_not_change_a_step(
    config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    after = []
    for micro in (1, 100_000):
        run = config(ppo={"micro_tokens": micro})
        learner = new_learner(run)
        stats = ppo_step(learner, problems, run)
        after.append((torch.cat([p.detach().flatten() for p in learner.policy.parameters()]), stats))
    (one, one_stats), (other, other_stats) = after
    torch.testing.assert_close(one, other, atol=2e-4, rtol=0)
    for key in ("reward", "kl", "entropy", "value_loss", "policy_loss"):
        assert one_stats[key] == pytest.approx(other_stats[key], abs=1e-4)


def test_advantages_run_over_whole_episodes_with_rewards_on_last_tokens(
    config: Callable[..., RunConfig], problems: list[Problem], plain_dir: Path
) -> None:
    run = config(model=str(plain_dir), ppo={"episode_share": 1.0, "gamma": 0.9, "lam": 0.7})
    learner = new_learner(run)
    torch.nn.init.normal_(learner.critic.head[-1].weight, std=0.1)
    trajectories = collect(learner.backend, draw(problems, run, random.Random(0)), run)
    experience = with_advantages(learner, trajectories, run.ppo)
    assert [e.sample for e in experience] == [sample for trajectory in trajectories for sample in trajectory]
    advantages, returns, left = [], [], list(experience)
    for trajectory in trajectories:
        steps, left = left[: len(trajectory)], left[len(trajectory) :]
        rewards = [r for e in steps for r in [0.0] * (len(e.sample.completion_ids) - 1) + [e.sample.reward]]
        a, r = gae(torch.tensor(rewards), torch.cat([e.old_values for e in steps]), 0.9, 0.7)
        advantages.append(a)
        returns.append(r)
    expected = torch.cat(advantages)
    expected = (expected - expected.mean()) / expected.std(unbiased=False)
    torch.testing.assert_close(torch.cat([e.advantages for e in experience]), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat([e.returns for e in experience]), torch.cat(returns))
    assert max(len(t) for t in trajectories) > 1
    assert any(len(e.sample.completion_ids) > 1 for e in experience)


def test_a_step_of_an_episode_is_credited_with_what_it_and_later_ones_earn_against_its_group(
    config: Callable[..., RunConfig], problems: list[Problem], plain_dir: Path
) -> None:
    for layout in ("relist", "append"):
        settings = {"episode_share": 1.0, "estimator": "rloo", "group": 2, "batch": 16}
        run = config(model=str(plain_dir), layout=layout, ppo=settings)
        learner = new_learner(run)
        assert learner.critic is None
        trajectories = collect(learner.backend, draw(problems, run, random.Random(0)), run)
        experience = iter(with_advantages(learner, trajectories, run.ppo))
        credited, expected = [], []
        for first in range(0, len(trajectories), 2):
            pair = trajectories[first : first + 2]
            rewards = [[r for s in t for _, r in sorted((s.rewards or {0: s.reward}).items())] for t in pair]
            for i, trajectory in enumerate(pair):
                credited.append(torch.cat([next(experience).advantages for _ in trajectory]))
                for k in range(len(rewards[i])):
                    expected.append(sum(rewards[i][k:]) - sum(rewards[1 - i][k:]))
        tokens = torch.cat(credited)
        assert len(set(tokens.tolist())) > 2
        levels = {round(float(a), 4) for a in tokens}
        whole = [e for c in credited for e in c.tolist()]
        mean = sum(whole) / len(whole)
        assert abs(mean) < 1e-5
        assert len(levels) == len({round(e, 4) for e in expected})


def test_credit_of_all_answers_is_their_reward_against_the_expected_one(
    config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    run = config(ppo={"answer": "expected"})
    learner = new_learner(run)
    experience = with_advantages(learner, collect(learner.backend, draw(problems, run, random.Random(0)), run), run.ppo)
    squares = 0.0
    for e in experience:
        ((t, values),) = e.sample.answer_rewards.items()
        p, advantages = e.answer_logprobs[t].exp(), e.answer_advantages[t]
        assert float(p.sum()) == pytest.approx(1, abs=1e-5)
        assert float((p * advantages).sum()) == pytest.approx(0, abs=1e-5)
        rewards = torch.tensor(values)
        assert (rewards.argsort(stable=True) == advantages.argsort(stable=True)).all()
        squares += float((p * advantages**2).sum())
        written = e.sample.allowed[0].index(e.sample.completion_ids[0])  # type: ignore[index]
        assert float(e.answer_logprobs[t][written]) == pytest.approx(float(e.old_logprobs[0]), abs=1e-5)
    assert squares / len(experience) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "credit",
    [
        {"answer": "sampled"},
        {"answer": "expected"},
        {"estimator": "grpo", "group": 4},
        {"estimator": "dr_grpo", "group": 4},
    ],
)
def test_a_few_steps_teach_to_keep_the_good_candidate(
    credit: dict[str, Any], config: Callable[..., RunConfig], make_problem: MakeProblem
) -> None:
    train_set = [make_problem(4, positive=1 + i % 4, qid=f"q{i}") for i in range(8)]
    steps = 100 if "group" in credit else 60  # within a group there is less to compare
    run = config(
        ppo={"batch": 48, "minibatch": 24, "steps": steps, "actor_lr": 3e-3, "critic_lr": 3e-3, "critic": "head"}
        | credit
        | {"episode_share": 0.0}
    )
    learner = new_learner(run)
    rewards = []
    for _ in range(steps):
        rewards.append(ppo_step(learner, train_set, run)["reward"])
        learner.step += 1
    before, after = sum(rewards[:4]) / 4, sum(rewards[-4:]) / 4
    assert before < 0.8
    assert after > before + 0.15, f"reward went from {before:.3f} to {after:.3f}"


def test_the_reference_never_moves_and_the_critic_starts_at_zero(
    config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    for critic in ("separate", "head"):
        run = config(ppo={"critic": critic, "minibatch": NEVER})
        learner = new_learner(run)
        start = {name: tensor.clone() for name, tensor in learner.reference.state_dict().items()}
        experience = with_advantages(
            learner, collect(learner.backend, draw(problems, run, random.Random(0)), run), run.ppo
        )
        assert all(not e.old_values.any() for e in experience)
        assert all(torch.allclose(e.reference, e.old_logprobs, atol=1e-5) for e in experience)
        first = ppo_step(learner, problems, run)
        assert_same(start, dict(learner.reference.state_dict()))
        assert any(not torch.equal(start[name], tensor) for name, tensor in learner.policy.state_dict().items())
        learner.step += 1
        second = ppo_step(learner, problems, run)
        assert first["kl"] == pytest.approx(0, abs=1e-6)
        assert second["kl"] > 1e-4


def test_the_head_critic_sends_no_gradient_into_the_policy(
    config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    run = config(ppo={"critic": "head", "kl": 0.0, "entropy": 0.0})
    learner = new_learner(run)
    experience = moved_experience(learner, problems, run)
    for e in experience:
        e.advantages = torch.zeros_like(e.advantages)
    grads = gradients(learner, loss_of(learner, experience, run.ppo))
    own = len(list(learner.policy.parameters()))
    assert not any(g.any() for g in grads[:own])
    assert all(g.any() for g in grads[own:])


def test_the_largest_pool_grows_with_the_run(problems: list[Problem]) -> None:
    ppo = PPOConfig(curriculum=0.5)
    assert [largest_pool(problems, done, ppo) for done in (0.0, 0.2, 0.4, 0.5, 1.0)] == [2, 3, 5, None, None]
    assert largest_pool(problems, 1.0, PPOConfig(largest_pool=4)) == 4


def test_mini_batches_hold_every_sample_once_and_deal_the_lanes_out_evenly() -> None:
    sizes = [5, 4, 4, 4, 4, 4, 4, 4]
    chosen = mini_batches(sizes, 8, random.Random(0))
    assert sorted(place for batch in chosen for place in batch) == [
        (k, i) for k, n in enumerate(sizes) for i in range(n)
    ]
    assert all(sorted(lane for lane, _ in batch) == list(range(8)) for batch in chosen[:4])


def test_what_the_policy_said_as_it_wrote_is_what_a_pass_over_it_says(
    config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    for settings in ({"think": True}, {"design": "dranker", "think": True}, {"think": True, "layout": "append"}):
        run = config(**settings, ppo={"critic": "head"})
        learner = new_learner(run)
        trajectories = collect(learner.backend, draw(problems, run, random.Random(0)), run)
        assert all(sample.trace for trajectory in trajectories for sample in trajectory)
        bare = [[dataclasses.replace(sample, trace=None) for sample in trajectory] for trajectory in trajectories]
        with torch.no_grad():
            learner.critic.head[-1].weight.normal_()  # type: ignore[union-attr]
        traced, scored = (with_advantages(learner, each, run.ppo) for each in (trajectories, bare))
        for one, other in zip(traced, scored, strict=True):
            torch.testing.assert_close(one.old_logprobs, other.old_logprobs, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(one.old_values, other.old_values, atol=1e-4, rtol=1e-3)


def test_recomputed_activations_change_nothing_of_a_step(
    config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    weights = []
    for again in (False, True):
        run = config(design="dranker", ppo={"recompute": again, "estimator": "grpo", "group": 4, "actor_lr": 1e-3})
        learner = new_learner(run)
        ppo_step(learner, problems, run)
        weights.append(learner.policy.state_dict())
    for name, plain in weights[0].items():
        torch.testing.assert_close(weights[1][name], plain, atol=3e-3, rtol=0)


def known(sample: Sample) -> Experience:
    zero = torch.zeros(len(sample.completion_ids))
    return Experience(sample, zero, zero, zero)


def test_each_steps_tokens_have_its_own_advantage() -> None:
    one, other = (
        known(Sample([0], [1] * 4, None, 0.0, rewards={1: first, 3: 0.0})) for first in (1.0, 0.0)
    )  # two steps of two tokens
    _by_group([[one], [other]], PPOConfig(estimator="dr_grpo", group=2))
    assert one.advantages.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert other.advantages.tolist() == [-0.5, -0.5, 0.0, 0.0]


def test_chance_is_taken_off_the_reward() -> None:
    sample = Sample([0], [1, 2], None, 1.0, chance={1: 0.25})
    assert _by_token(sample).tolist() == [0.0, 0.75]
    assert _by_step(sample) == [0.75]


def test_every_epoch_goes_over_the_batch(config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    run, made = config(ppo={"epochs": 3, "minibatch": 4}), list[object]()
    monkeypatch.setattr(update_module, "_minibatch", lambda *given: made.append(given) or Counter(tokens=1))
    update_module.update(new_learner(run), {0: [None] * 8}, run.ppo, random.Random(0))
    assert len(made) == 3 * 2


def moved_weights(config: Callable[..., RunConfig], problems: list[Problem], most: float) -> tuple[Tensor, Tensor]:
    run = config(ppo={"max_grad_norm": most, "kl": 0.3})
    learner = new_learner(run)
    experience = moved_experience(learner, problems, run)
    wanted = torch.cat([g.flatten() for g in gradients(learner, loss_of(learner, experience, run.ppo))])
    learner.optimizer = torch.optim.SGD(learner.optimizer.param_groups, lr=1.0)
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]
    for group in learner.optimizer.param_groups:
        group["lr"] = 1.0
    before = torch.cat([p.detach().flatten().clone() for p in parameters])
    update_module._minibatch(learner, experience, run.ppo)
    moved = before - torch.cat([p.detach().flatten() for p in parameters])
    return moved, wanted / sum(len(e.old_values) for e in experience)


def test_a_step_is_the_mean_by_token(config: Callable[..., RunConfig], problems: list[Problem]) -> None:
    moved, mean = moved_weights(config, problems, 1e9)
    assert float((moved - mean).norm()) < 1e-3 * float(mean.norm())


def test_gradients_are_scaled_down_to_the_bound(config: Callable[..., RunConfig], problems: list[Problem]) -> None:
    moved, mean = moved_weights(config, problems, 1e-2)
    assert float(mean.norm()) > 1e-2
    assert float(moved.norm()) == pytest.approx(1e-2, rel=1e-2)


def test_the_logged_reward_is_the_mean_over_steps() -> None:
    long = Sample([0], [1, 1, 1], None, 1.0, {"exclusion": 1.0}, steps=3)
    short = Sample([0], [1], None, 0.0, {"exclusion": 0.0})
    both = [known(long), known(short)]
    for e in both:
        e.returns = torch.zeros_like(e.old_values)
    stats = batch_stats(both, Crew())
    assert (stats["reward"], stats["reward_exclusion"], stats["tokens"]) == (0.75, 0.75, 6)
