"""Credit. In: what the policy did (`rollout`). Out: `Experience`: each sample with what the update needs to know.

    score under the old policy, critic and reference -> advantages, by the estimator -> credit of whole answers

Next in the data flow: `update`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from r1ranker.backends.encoding import batches
from r1ranker.io.config import PPOConfig
from r1ranker.training.algorithms import in_group, is_whitened
from r1ranker.training.algorithms.expected import expected_advantages
from r1ranker.training.algorithms.gae import gae
from r1ranker.training.batch import (
    Batch,
    PoolBatch,
    Sample,
    Scores,
    among,
    pack,
    pack_pools,
    score,
    shared_batches,
)
from r1ranker.training.learner import Learner
from r1ranker.training.rollout import Trajectory


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


def with_advantages(learner: Learner, trajectories: Sequence[Trajectory], ppo: PPOConfig) -> list[Experience]:
    """Score every sample under the old policy, reference and critic; then credit its tokens.

    Trajectories that began alike stand in a row, `ppo.group` of them.
    """
    experience = _score_all(learner, [sample for trajectory in trajectories for sample in trajectory], ppo)
    by_trajectory = iter(experience)
    steps = [[next(by_trajectory) for _ in trajectory] for trajectory in trajectories]
    if ppo.estimator == "gae":
        for trajectory in steps:
            _by_critic(trajectory, ppo)
    else:
        for first in range(0, len(steps), ppo.group):
            _by_group(steps[first : first + ppo.group], ppo)
    if is_whitened(ppo.estimator):
        every = [e.advantages for e in experience]
        whitened = whiten(torch.cat([torch.empty(0), *every]), learner.crew.total)
        for e, a in zip(experience, whitened.split([len(a) for a in every]), strict=True):
            e.advantages = a
    _credit_answers(learner, experience)
    return experience


def _by_critic(trajectory: Sequence[Experience], ppo: PPOConfig) -> None:
    """GAE along all tokens of a trajectory."""
    rewards = torch.cat([_by_token(e.sample) for e in trajectory])
    advantages, returns = gae(rewards, torch.cat([e.old_values for e in trajectory]), ppo.gamma, ppo.lam)
    lengths = [len(e.old_values) for e in trajectory]
    for e, a, r in zip(trajectory, advantages.split(lengths), returns.split(lengths), strict=True):
        e.advantages, e.returns = a, r


def _by_group(group: Sequence[Sequence[Experience]], ppo: PPOConfig) -> None:
    """Each step against the same step of the group's others; for all of its tokens."""
    rewards = [[r for e in trajectory for r in _by_step(e.sample)] for trajectory in group]
    for trajectory, advantages in zip(group, in_group(ppo.estimator)(rewards), strict=True):
        left = iter(advantages)
        for e in trajectory:
            ends = sorted(_rewards(e.sample))
            lengths = [end - begin for begin, end in zip([-1, *ends], ends, strict=False)]
            e.advantages = torch.tensor([a for n in lengths for a in [next(left)] * n])
            e.returns = torch.zeros_like(e.advantages)


def whiten(values: Tensor, total: Callable[..., list[float]] = lambda *numbers: list(numbers)) -> Tensor:
    """Shift to mean 0 and scale to deviation 1; a constant becomes 0.

    total: adds numbers up over all that `values` is a share of (several processes).
    """
    n, summed = total(float(values.numel()), float(values.double().sum()))
    if n < 2:
        return torch.zeros_like(values)
    centred = values - summed / n
    (squares,) = total(float((centred.double() ** 2).sum()))
    return torch.as_tensor(centred / ((squares / n) ** 0.5 + 1e-8))


def _credit_answers(learner: Learner, experience: Sequence[Experience]) -> None:
    """Advantages of all allowed answers (`algorithms.expected`), scaled to deviation 1 over the batch."""
    squares, count = 0.0, 0
    for e in experience:
        for t, values in e.sample.answer_rewards.items():
            e.answer_advantages[t] = expected_advantages(e.answer_logprobs[t], torch.tensor(values))
            squares += float((e.answer_logprobs[t].exp() * e.answer_advantages[t] ** 2).sum())
            count += 1
    squares, total = learner.crew.total(squares, count)
    for e in experience:
        for t, advantages in e.answer_advantages.items():
            e.answer_advantages[t] = advantages / ((squares / total) ** 0.5 + 1e-8)


@torch.no_grad()
def _score_all(learner: Learner, samples: Sequence[Sample], ppo: PPOConfig) -> list[Experience]:
    experience: dict[int, Experience] = {}
    for group, batch in micro_batches(learner, samples, ppo):
        scores = _known(learner, [samples[i] for i in group], batch) or score(learner.policy, batch)
        values_B_T = torch.zeros_like(scores.logprobs_B_T)
        if learner.critic is not None:
            values_B_T = learner.critic(batch, scores.hidden_B_T_H)
        reference_B_T = learner.reference_scores(batch).logprobs_B_T if ppo.kl else scores.logprobs_B_T
        for row, i in enumerate(group):
            T = len(samples[i].completion_ids)
            columns = (scores.logprobs_B_T[row, :T], reference_B_T[row, :T], values_B_T[row, :T])
            logprobs, reference, values = (column.cpu() for column in columns)
            experience[i] = Experience(samples[i], logprobs, reference, values)
            for t, rewards in samples[i].answer_rewards.items():
                assert scores.allowed_logprobs_B_T_A is not None
                experience[i].answer_logprobs[t] = scores.allowed_logprobs_B_T_A[row, t, : len(rewards)].cpu()
    return [experience[i] for i in range(len(samples))]


def micro_batches(
    learner: Learner, samples: Sequence[Sample], ppo: PPOConfig
) -> Iterator[tuple[list[int], Batch | PoolBatch]]:
    """(indices, batch) of what goes through the networks at a time: at most `micro_tokens` of each network's tokens.

    Samples with the same prompt share one pass over it, where the network allows. A pass that is recomputed for its
    gradients must not add to the keys and values that it found, and a sharded network has to end what it begins.
    """
    if samples and samples[0].pool is not None:
        yes_no, row = learner.backend.encoder.yes_no(), learner.backend.max_row
        for group in batches([sample.tokens for sample in samples], ppo.micro_tokens):
            yield group, pack_pools([samples[i] for i in group], yes_no, row, learner.policy.device)
        return
    shared = learner.backend.keeps and not ppo.recompute and not learner.sharded
    if shared and (learner.critic is None or learner.critic.trunk is None):
        groups = shared_batches(samples, ppo.micro_tokens)
    else:  # some network reads every prompt for each sample
        groups = list(batches([sample.tokens for sample in samples], ppo.micro_tokens))
    for group in groups:
        chosen = [samples[i] for i in group]
        yield group, pack(chosen, learner.backend.pad_id, learner.policy.device, shared=shared)


def _known(learner: Learner, samples: Sequence[Sample], batch: Batch | PoolBatch) -> Scores | None:
    """What `score` would say of the policy, from what it said as it wrote or judged.

    None where that is not known, or not the same: in bfloat16 a token's log-probability depends on how many are
    computed at once, and a first update must find the probabilities that it starts from.
    """
    if isinstance(batch, PoolBatch):
        return _judged(samples, batch) if learner.critic is None else None
    traces = [sample.trace for sample in samples]
    if learner.dtype != torch.float32 or None in traces:
        return None
    logprobs_B_T, hidden_B_T_H = (
        pad_sequence([getattr(trace, name) for trace in traces], batch_first=True).to(batch.mask_B_T.device)
        for name in ("logprobs_T", "hidden_T_H")
    )
    return Scores(logprobs_B_T, torch.zeros_like(logprobs_B_T), hidden_B_T_H, None)


def _judged(samples: Sequence[Sample], batch: PoolBatch) -> Scores | None:
    """From a judge's numbers. Rounding of bfloat16 does not matter here: see `update.ppo_loss`."""
    if not all(sample.judged for sample in samples):
        return None
    values_B_N = pad_sequence([torch.tensor(sample.judged) for sample in samples], batch_first=True)
    logits_B_N = batch.sign_B[:, None] * values_B_N.to(batch.sign_B.device)
    logits_B_T_N = logits_B_N[:, None].expand(-1, batch.tokens_B_T.shape[1], -1)
    return among(batch, logits_B_T_N, torch.zeros((*batch.tokens_B_T.shape, 1), device=logits_B_N.device))


def _rewards(sample: Sample) -> dict[int, float]:
    """Rewards by written token: each step's on the last it wrote."""
    return dict(sample.rewards) or {len(sample.completion_ids) - 1: sample.reward}


def _by_step(sample: Sample) -> list[float]:
    """Rewards in the order of steps, less chance where the run takes that off."""
    return [reward - sample.chance.get(t, 0.0) for t, reward in sorted(_rewards(sample).items())]


def _by_token(sample: Sample) -> Tensor:
    """Rewards (T,), less chance where the run takes that off."""
    rewards = torch.zeros(len(sample.completion_ids))
    for t, reward in _rewards(sample).items():
        rewards[t] = reward - sample.chance.get(t, 0.0)
    return rewards
