"""The update. In: `Experience`, credited. Out: a policy that has learnt from it, and means of the losses.

    mini-batches -> micro-batches -> loss and gradients -> one step of the optimizer each

The loss is clipped surrogate or objective + value + KL - entropy, as a mean over tokens, however a batch is cut and
over however many processes it is spread. Next in the data flow: `ppo`.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import zip_longest

import torch
from torch import Tensor

from r1ranker.errors import ConfigError, NotFiniteError
from r1ranker.io.config import PPOConfig
from r1ranker.training.algorithms.expected import expected_policy_loss
from r1ranker.training.algorithms.listnet import listnet_loss
from r1ranker.training.algorithms.log_expected import log_expected_loss
from r1ranker.training.batch import Batch, PoolBatch, Sample, Scores, pack, score
from r1ranker.training.experience import Experience, micro_batches
from r1ranker.training.learner import Learner, progress
from r1ranker.training.losses import kl_k3, masked_sum, policy_loss, value_loss
from r1ranker.training.memory import recomputing
from r1ranker.training.sharding import clip_gradients
from r1ranker.training.warmstart import cosine

LOSSES = ("policy_loss", "value_loss", "kl", "entropy", "clip_share", "expected_reward")


def update(
    learner: Learner, lanes: Mapping[int, list[Experience]], ppo: PPOConfig, rng: random.Random
) -> dict[str, float]:
    """Clipped updates, mini-batch by mini-batch; means over all tokens of what the losses report."""
    factor = 1.0
    if learner.step < ppo.warmup:
        factor = (learner.step + 1) / (ppo.warmup + 1)
    elif ppo.schedule == "cosine":
        factor = cosine(round(progress(learner, ppo) * 10_000), 10_000, 0)
    for group in learner.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    crew = learner.crew
    sizes = crew.total(*(float(len(lanes.get(lane, ()))) for lane in range(crew.lanes)))
    totals: Counter[str] = Counter()
    for _ in range(ppo.epochs):
        for chosen in mini_batches([round(n) for n in sizes], ppo.minibatch, rng):
            own = [lanes[lane][i] for lane, i in chosen if lane in lanes]
            totals.update(_minibatch(learner, own, ppo))
    summed = dict(zip(("tokens", *LOSSES), crew.total(*(totals[name] for name in ("tokens", *LOSSES))), strict=True))
    if bad := [name for name in LOSSES if not math.isfinite(summed[name])]:
        raise NotFiniteError(f"{bad[0]} is not finite")
    return {name: summed[name] / summed["tokens"] for name in LOSSES} | {"lr_factor": factor}


def mini_batches(sizes: Sequence[int], size: int, rng: random.Random) -> list[list[tuple[int, int]]]:
    """(lane, place in it) of every sample once, in mini-batches to which the lanes contribute alike."""
    shuffled = [[(lane, i) for i in rng.sample(range(n), n)] for lane, n in enumerate(sizes)]
    order = [place for turn in zip_longest(*shuffled) for place in turn if place is not None]
    return [order[first : first + size] for first in range(0, len(order), size)]


def _minibatch(learner: Learner, experience: list[Experience], ppo: PPOConfig) -> Counter[str]:
    """One optimizer step: over micro-batches and processes gradients add up to the mini-batch's mean by token."""
    tokens = sum(len(e.old_values) for e in experience)
    totals: Counter[str] = Counter(tokens=tokens)
    micro = list(micro_batches(learner, [e.sample for e in experience], ppo))
    # Sharded networks make passes together: who has fewer to make makes idle ones.
    idle = learner.crew.most(len(micro)) - len(micro) if learner.sharded else 0
    for group, batch in micro:
        chosen = [experience[i] for i in group]
        with recomputing(learner.policy) if ppo.recompute else nullcontext():
            with learner.passes():
                loss, parts = ppo_loss(learner, batch, chosen, ppo)
            loss.backward()
        totals.update(parts)
    for _ in range(idle):
        _idle_loss(learner).backward()
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]
    (all_tokens,) = learner.crew.total(tokens)
    learner.crew.add_gradients(parameters, 1 / all_tokens)
    norm = clip_gradients(parameters, ppo.max_grad_norm)
    if not math.isfinite(norm):  # the same on every process, and before anything is updated by it
        raise NotFiniteError(f"the gradient is not finite ({', '.join(f'{k} {v:.3g}' for k, v in totals.items())})")
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    return totals


def _idle_loss(learner: Learner) -> Tensor:
    """Of a pass that teaches nothing, but in which other processes have this one's part of the weights."""
    with learner.passes():
        batch = pack([Sample([0], [0], None, 0.0)], learner.backend.pad_id, learner.policy.device)
        scores = score(learner.policy, batch)
        values = scores.logprobs_B_T if learner.critic is None else learner.critic(batch, scores.hidden_B_T_H)
        return 0.0 * (scores.logprobs_B_T + values).sum()


def ppo_loss(
    learner: Learner, batch: Batch | PoolBatch, experience: Sequence[Experience], ppo: PPOConfig
) -> tuple[Tensor, dict[str, float]]:
    """Policy + value + KL - entropy, summed over the batch's tokens; and each part by name, as a sum."""
    mask = batch.mask_B_T
    old = {
        name: _pad([getattr(e, name) for e in experience], mask)
        for name in ("old_logprobs", "reference", "old_values", "advantages", "returns")
    }
    scores = score(learner.policy, batch, "trained" if ppo.entropy else "shown")
    if isinstance(batch, PoolBatch) and ppo.one_update:
        # The policy is still the one that sampled: its ratio is 1, whatever bfloat16 rounds otherwise in another batch.
        old["old_logprobs"] = scores.logprobs_B_T.detach()
        if not ppo.kl:
            old["reference"] = old["old_logprobs"]
        for row, e in enumerate(experience):
            allowed = scores.allowed_logprobs_B_T_A
            assert allowed is not None
            e.answer_logprobs = {t: allowed[row, t, : len(a)].detach() for t, a in e.answer_advantages.items()}
    exact = [row for row, e in enumerate(experience) if e.answer_advantages]
    sampled = mask.clone()
    sampled[exact] = 0.0
    policy, clipped = policy_loss(scores.logprobs_B_T, old["old_logprobs"], old["advantages"], sampled, ppo.clip)
    expected = policy.new_zeros(())
    if exact:
        more, more_clipped, expected = _expected_loss(scores, experience, ppo)
        policy, clipped = policy + more, clipped + more_clipped
    value = policy.new_zeros(())
    if learner.critic is not None:
        values = learner.critic(batch, scores.hidden_B_T_H)
        value = value_loss(values, old["old_values"], old["returns"], mask, ppo.value_clip)
    kl = kl_k3(scores.logprobs_B_T, old["reference"], mask)
    entropy = masked_sum(scores.entropy_B_T, mask)
    loss = policy + value + ppo.kl * kl - ppo.entropy * entropy
    parts = dict(zip(LOSSES, (policy, value, kl, entropy, clipped, expected), strict=True))
    return loss, {name: float(part.detach()) for name, part in parts.items()}


def _expected_loss(scores: Scores, experience: Sequence[Experience], ppo: PPOConfig) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, clipped share, expected reward), summed over all answers that are credited whole; B is one for each.

    The loss is `expected_policy_loss`, or that of the objective.
    """
    allowed = scores.allowed_logprobs_B_T_A
    assert allowed is not None
    answers = [(row, t) for row, e in enumerate(experience) for t in e.answer_advantages]
    rows, ts = (list(column) for column in zip(*answers, strict=True))
    logprobs_B_A = allowed[rows, ts]
    old_B_A = torch.full_like(logprobs_B_A, -torch.inf)
    advantages_B_A, rewards_B_A = torch.zeros_like(logprobs_B_A), torch.zeros_like(logprobs_B_A)
    for i, (row, t) in enumerate(answers):
        old, advantages = experience[row].answer_logprobs[t], experience[row].answer_advantages[t]
        old_B_A[i, : len(old)] = old
        advantages_B_A[i, : len(advantages)] = advantages
        rewards_B_A[i, : len(advantages)] = torch.tensor(experience[row].sample.answer_rewards[t])
    expected = (logprobs_B_A.detach().exp() * rewards_B_A).sum()
    if ppo.objective != "surrogate":
        if bool((rewards_B_A < 0).any()):
            raise ConfigError(
                f"ppo.objective={ppo.objective} takes rewards of 0 and more, and {ppo.reward} gave "
                f"{float(rewards_B_A.min()):g}: shift them, or take objective=surrogate"
            )
        whole = {"log": log_expected_loss, "listnet": listnet_loss}[ppo.objective]
        return whole(logprobs_B_A, rewards_B_A), logprobs_B_A.new_zeros(()), expected
    return *expected_policy_loss(logprobs_B_A, old_B_A, advantages_B_A, ppo.clip), expected


def _pad(rows: Sequence[Tensor], like_B_T: Tensor) -> Tensor:
    """(B, T) from rows of at most T entries, zeros behind."""
    out = torch.zeros_like(like_B_T)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
