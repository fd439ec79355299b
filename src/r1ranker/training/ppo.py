"""PPO, as the paper has it. In: problems and a model. Out: the model that was best on dev.

    collect (rollout) -> score (old log-probabilities, values, reference) -> GAE -> clipped updates

One `Learner` holds what changes; `train` is the loop. The names in the log are those of the losses.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r1ranker.backends.encoding import batches
from r1ranker.backends.loading import load
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.errors import DataError
from r1ranker.problem import Problem, Splits
from r1ranker.progress import track
from r1ranker.provenance import write_provenance
from r1ranker.training.advantages import explained_variance, gae, whiten
from r1ranker.training.batch import Batch, Sample, Scores, pack, score
from r1ranker.training.checkpoint import discard, restore, save_checkpoint, save_model
from r1ranker.training.config import PPOConfig, RunConfig
from r1ranker.training.critic import Critic
from r1ranker.training.logs import RunLog
from r1ranker.training.losses import expected_policy_loss, kl_k3, masked_sum, policy_loss, value_loss
from r1ranker.training.rollout import Trajectory, collect
from r1ranker.training.validation import dev_mrr, validation_problems
from r1ranker.training.warmstart import cosine


@dataclass
class Learner:
    """Everything that PPO updates, and how far it has come."""

    backend: TransformersBackend
    reference: Any
    critic: Critic
    optimizer: torch.optim.Optimizer
    step: int = 0
    tokens: int = 0
    best: float = -1.0

    @property
    def policy(self) -> Any:
        """The network being trained."""
        return self.backend.network


@dataclass
class Experience:
    """One sample with what was known when it was sampled. Tensors are (T,), one entry per written token.

    answer_logprobs, answer_advantages: (A,), of every allowed answer, by the tokens that have `answer_rewards`.
    """

    sample: Sample
    old_logprobs: Tensor
    reference: Tensor
    old_values: Tensor
    advantages: Tensor = field(default_factory=lambda: torch.empty(0))
    returns: Tensor = field(default_factory=lambda: torch.empty(0))
    answer_logprobs: dict[int, Tensor] = field(default_factory=dict)
    answer_advantages: dict[int, Tensor] = field(default_factory=dict)


def train(config: RunConfig, splits: Splits, *, resume: bool = False) -> Path:
    """Train by PPO; returns the directory of the model that was best on dev, `<out>/model`."""
    problems = [p for p in splits["train"] if len(p.candidates) > 1 and any(map(p.is_relevant, p.identifiers))]
    if not problems:
        raise DataError("no training problem has two candidates and a relevant one; there is nothing to reward")
    learner = new_learner(config)
    if resume:
        restore(config.out, learner, config)
    else:
        discard(config.out)
    write_provenance(config.out, config.model_dump(mode="json"))
    dev = validation_problems(splits.get("dev", []), config.ppo.validate_problems)
    with (
        RunLog(config.out, learner.step + 1 if resume else 0) as log,
        track(config.ppo.steps, f"ppo {config.design}") as advance,
    ):
        advance(learner.step)
        if learner.step == 0:
            _validate(learner, config, dev, log, {})
        while not finished(learner, config.ppo):
            stats = ppo_step(learner, problems, config)
            learner.step += 1
            last = finished(learner, config.ppo)
            if learner.step % config.ppo.validate_every == 0 or last:
                _validate(learner, config, dev, log, stats)
            else:
                log.write(learner.step, stats)
            if learner.step % config.ppo.checkpoint_every == 0 or last:
                save_checkpoint(config.out, learner, config)
            advance(1)
    return config.out / "model"


def new_learner(config: RunConfig) -> Learner:
    """Policy, frozen reference, critic and optimizer at step 0."""
    network, tokenizer = load(config.model, config.device, config.dtype, config.threads)
    torch.manual_seed(config.seed)
    critic = Critic(network, config.ppo.critic)
    reference = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(network.parameters()), "base_lr": config.ppo.actor_lr},
            {"params": list(critic.parameters()), "base_lr": config.ppo.critic_lr},
        ],
        lr=config.ppo.actor_lr,
        weight_decay=0.0,
    )
    return Learner(TransformersBackend(network, tokenizer, name=config.model), reference, critic, optimizer)


def finished(learner: Learner, ppo: PPOConfig) -> bool:
    """Whether the steps or the token budget are used up."""
    return progress(learner, ppo) >= 1.0


def progress(learner: Learner, ppo: PPOConfig) -> float:
    """Share of the run that is done, by steps or by tokens, whichever is further."""
    by_tokens = learner.tokens / ppo.token_budget if ppo.token_budget else 0.0
    return max(learner.step / ppo.steps, by_tokens)


def ppo_step(learner: Learner, problems: Sequence[Problem], config: RunConfig) -> dict[str, float]:
    """Collect one batch, update on it; returns what is logged.

    All randomness of a step comes from (seed, step), so a resumed run draws what it would have drawn.
    """
    began = time.perf_counter()
    rng = random.Random(f"ppo:{config.seed}:{learner.step}")
    torch.manual_seed(rng.getrandbits(63))
    trajectories = collect(learner.backend, problems, config, rng)
    experience = with_advantages(learner, trajectories, config.ppo)
    stats = _update(learner, experience, config.ppo, rng)
    learner.backend.forget()
    samples = [e.sample for e in experience]
    learner.tokens += sum(s.tokens for s in samples)
    stats |= _sample_stats(samples)
    values = torch.cat([e.old_values for e in experience])
    returns = torch.cat([e.returns for e in experience])
    stats["explained_variance"] = explained_variance(values, returns)
    stats["tokens"] = learner.tokens
    stats["tokens_per_s"] = sum(s.tokens for s in samples) / (time.perf_counter() - began)
    return stats


def with_advantages(learner: Learner, trajectories: Sequence[Trajectory], ppo: PPOConfig) -> list[Experience]:
    """Score every sample under the old policy, reference and critic; then GAE along each trajectory."""
    samples = [sample for trajectory in trajectories for sample in trajectory]
    experience = _score_all(learner, samples, ppo)
    by_trajectory = iter(experience)
    for trajectory in trajectories:
        steps = [next(by_trajectory) for _ in trajectory]
        rewards = torch.cat([_by_token(e.sample, len(e.old_values)) for e in steps])
        advantages, returns = gae(rewards, torch.cat([e.old_values for e in steps]), ppo.gamma, ppo.lam)
        lengths = [len(e.old_values) for e in steps]
        for e, a, r in zip(steps, advantages.split(lengths), returns.split(lengths), strict=True):
            e.advantages, e.returns = a, r
    whitened = whiten(torch.cat([e.advantages for e in experience]))
    for e, a in zip(experience, whitened.split([len(e.advantages) for e in experience]), strict=True):
        e.advantages = a
    _credit_answers(experience)
    return experience


def _credit_answers(experience: Sequence[Experience]) -> None:
    """Advantages of all allowed answers: reward minus its expectation, scaled to deviation 1 over the batch."""
    squares, count = 0.0, 0
    for e in experience:
        for t, values in e.sample.answer_rewards.items():
            rewards, probabilities = torch.tensor(values), e.answer_logprobs[t].exp()
            e.answer_advantages[t] = rewards - (probabilities * rewards).sum()
            squares += float((probabilities * e.answer_advantages[t] ** 2).sum())
            count += 1
    for e in experience:
        for t, advantages in e.answer_advantages.items():
            e.answer_advantages[t] = advantages / ((squares / count) ** 0.5 + 1e-8)


@torch.no_grad()
def _score_all(learner: Learner, samples: Sequence[Sample], ppo: PPOConfig) -> list[Experience]:
    experience: dict[int, Experience] = {}
    for group in batches([s.tokens for s in samples], ppo.micro_tokens):
        batch = pack([samples[i] for i in group], learner.backend.pad_id, learner.policy.device)
        scores = score(learner.policy, batch)
        values_B_T = learner.critic(batch, scores.hidden_B_T_H)
        reference_B_T = score(learner.reference, batch).logprobs_B_T
        for row, i in enumerate(group):
            T = len(samples[i].completion_ids)
            columns = (scores.logprobs_B_T[row, :T], reference_B_T[row, :T], values_B_T[row, :T])
            logprobs, reference, values = (column.cpu() for column in columns)
            experience[i] = Experience(samples[i], logprobs, reference, values)
            for t, values in samples[i].answer_rewards.items():
                assert scores.allowed_logprobs_B_T_A is not None
                experience[i].answer_logprobs[t] = scores.allowed_logprobs_B_T_A[row, t, : len(values)].cpu()
    return [experience[i] for i in range(len(samples))]


def _update(learner: Learner, experience: list[Experience], ppo: PPOConfig, rng: random.Random) -> dict[str, float]:
    """Clipped updates, mini-batch by mini-batch; means over all tokens of what the losses report."""
    factor = 1.0
    if learner.step < ppo.warmup:
        factor = (learner.step + 1) / (ppo.warmup + 1)
    elif ppo.schedule == "cosine":
        factor = cosine(round(progress(learner, ppo) * 10_000), 10_000, 0)
    for group in learner.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    totals: dict[str, float] = {}
    for _ in range(ppo.epochs):
        order = rng.sample(experience, len(experience))
        for first in range(0, len(order), ppo.minibatch):
            for name, value in _minibatch(learner, order[first : first + ppo.minibatch], ppo).items():
                totals[name] = totals.get(name, 0.0) + value
    tokens = ppo.epochs * sum(len(e.old_values) for e in experience)
    return {name: value / tokens for name, value in totals.items()} | {"lr_factor": factor}


def _minibatch(learner: Learner, experience: list[Experience], ppo: PPOConfig) -> dict[str, float]:
    """One optimizer step: gradients add up over micro-batches to the mean over the mini-batch's tokens."""
    tokens = sum(len(e.old_values) for e in experience)
    totals: dict[str, float] = {}
    for group in batches([e.sample.tokens for e in experience], ppo.micro_tokens):
        chosen = [experience[i] for i in group]
        batch = pack([e.sample for e in chosen], learner.backend.pad_id, learner.policy.device)
        loss, parts = ppo_loss(learner, batch, chosen, ppo)
        (loss / tokens).backward()
        for name, value in parts.items():
            totals[name] = totals.get(name, 0.0) + value
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, ppo.max_grad_norm)
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    return totals


def ppo_loss(
    learner: Learner, batch: Batch, experience: Sequence[Experience], ppo: PPOConfig
) -> tuple[Tensor, dict[str, float]]:
    """Policy + value + KL - entropy, summed over the batch's tokens; and each part by name, as a sum."""
    mask = batch.mask_B_T
    old = {
        name: _pad([getattr(e, name) for e in experience], mask)
        for name in ("old_logprobs", "reference", "old_values", "advantages", "returns")
    }
    scores = score(learner.policy, batch)
    values = learner.critic(batch, scores.hidden_B_T_H)
    exact = [row for row, e in enumerate(experience) if e.answer_advantages]
    sampled = mask.clone()
    sampled[exact] = 0.0
    policy, clipped = policy_loss(scores.logprobs_B_T, old["old_logprobs"], old["advantages"], sampled, ppo.clip)
    if exact:
        more, more_clipped = _expected_loss(scores, experience, ppo.clip)
        policy, clipped = policy + more, clipped + more_clipped
    value = value_loss(values, old["old_values"], old["returns"], mask, ppo.value_clip)
    kl = kl_k3(scores.logprobs_B_T, old["reference"], mask)
    entropy = masked_sum(scores.entropy_B_T, mask)
    loss = policy + value + ppo.kl * kl - ppo.entropy * entropy
    parts = {"policy_loss": policy, "value_loss": value, "kl": kl, "entropy": entropy, "clip_share": clipped}
    return loss, {name: float(part.detach()) for name, part in parts.items()}


def _expected_loss(scores: Scores, experience: Sequence[Experience], clip: float) -> tuple[Tensor, Tensor]:
    """`expected_policy_loss` of all answers that are credited whole; B is one for each of them."""
    allowed = scores.allowed_logprobs_B_T_A
    assert allowed is not None
    answers = [(row, t) for row, e in enumerate(experience) for t in e.answer_advantages]
    rows, ts = (list(column) for column in zip(*answers, strict=True))
    logprobs_B_A = allowed[rows, ts]
    old_B_A = torch.full_like(logprobs_B_A, -torch.inf)
    advantages_B_A = torch.zeros_like(logprobs_B_A)
    for i, (row, t) in enumerate(answers):
        old, advantages = experience[row].answer_logprobs[t], experience[row].answer_advantages[t]
        old_B_A[i, : len(old)] = old
        advantages_B_A[i, : len(advantages)] = advantages
    return expected_policy_loss(logprobs_B_A, old_B_A, advantages_B_A, clip)


def _pad(rows: Sequence[Tensor], like_B_T: Tensor) -> Tensor:
    """(B, T) from rows of at most T entries, zeros behind."""
    out = torch.zeros_like(like_B_T)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _by_token(sample: Sample, length: int) -> Tensor:
    """Rewards (T,): each step's on the last token it wrote."""
    rewards = torch.zeros(length)
    for t, reward in (sample.rewards or {length - 1: sample.reward}).items():
        rewards[t] = reward
    return rewards


def _sample_stats(samples: Sequence[Sample]) -> dict[str, float]:
    """Means over steps."""
    n = sum(s.steps for s in samples)
    stats = {
        "reward": sum(s.steps * s.reward for s in samples) / n,
        "broken": sum(s.kind != "valid" for s in samples) / n,
        "completion_tokens": sum(len(s.completion_ids) for s in samples) / n,
    }
    for part in sorted({name for s in samples for name in s.parts}):
        stats[f"reward_{part}"] = sum(s.steps * s.parts.get(part, 0.0) for s in samples) / n
    return stats


def _validate(
    learner: Learner, config: RunConfig, dev: Sequence[Problem], log: RunLog, stats: dict[str, float]
) -> None:
    """Log the dev MRR; keep the model when it is the best so far (without dev problems, the newest)."""
    scores = dev_mrr(learner.backend, dev, config)
    log.write(learner.step, stats | scores)
    mean = scores.get("dev_mrr", float(learner.step))
    if mean > learner.best:
        learner.best = mean
        save_model(config.out / "model", learner.policy, learner.backend.encoder.tokenizer)
