"""Token tensors: packing samples, and a policy's log-probabilities of what was sampled.

Names carry their dimensions: B rows, T generated tokens, A allowed tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from r1ranker.backends.encoding import Path
from r1ranker.backends.padding import positions
from r1ranker.problem import AnswerKind


@dataclass(frozen=True, slots=True)
class Sample:
    """One call in training: what was read, what was written, what it earned.

    allowed: for each written token the tokens that could have stood there; None means the whole
        vocabulary. A chosen identifier has them, a free completion has not.
    answer_rewards: for a written token at which the identifiers part, what each of the allowed answers would
        have earned, in the order of `allowed` there. Empty where it is not known for all of them.
    rewards: by written token, where the sample is a whole episode; else `reward` is the last token's.
    chance: by written token that is rewarded, what is taken off there so that a random answer earns 0; mostly empty.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    allowed: tuple[Path, ...] | None
    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    kind: AnswerKind = "valid"
    task: str = ""
    answer_rewards: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    rewards: Mapping[int, float] = field(default_factory=dict)
    steps: int = 1
    chance: Mapping[int, float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens a forward pass over this sample reads."""
        return len(self.prompt_ids) + len(self.completion_ids)


def joined(trajectory: Sequence[Sample]) -> Sample | None:
    """A whole episode as one sample, or None where a step's prompt does not go on where the one before ended.

    In layout `append` a step reads all that was read and written before it, so one pass over the last step's
    tokens sees every step: n - 1 prompts become one. What stands between two answers is written by no choice.
    """
    first, last = trajectory[0], trajectory[-1]
    whole = [*last.prompt_ids, *last.completion_ids]
    allowed: list[Path] = [(token,) for token in whole[len(first.prompt_ids) :]]
    answers: dict[int, tuple[float, ...]] = {}
    rewards: dict[int, float] = {}
    chance: dict[int, float] = {}
    for step in trajectory:
        read = [*step.prompt_ids, *step.completion_ids]
        if step.allowed is None or whole[: len(read)] != read:
            return None
        begin = len(step.prompt_ids) - len(first.prompt_ids)
        allowed[begin : begin + len(step.completion_ids)] = step.allowed
        answers |= {begin + t: values for t, values in step.answer_rewards.items()}
        rewards[begin + len(step.completion_ids) - 1] = step.reward
        chance |= {begin + t: value for t, value in step.chance.items()}
    names = dict.fromkeys(name for step in trajectory for name in step.parts)
    return Sample(
        first.prompt_ids,
        whole[len(first.prompt_ids) :],
        tuple(allowed),
        fmean(step.reward for step in trajectory),
        {name: fmean(step.parts[name] for step in trajectory) for name in names},
        first.kind,
        first.task,
        answers,
        rewards,
        len(trajectory),
        chance,
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts left-padded, completions right-padded: the written tokens are the last T columns."""

    input_ids: Tensor
    attention_mask: Tensor
    tokens_B_T: Tensor
    mask_B_T: Tensor
    allowed_B_T_A: Tensor | None


def align(pairs: Sequence[tuple[list[int], list[int]]], pad_id: int) -> tuple[Tensor, Tensor, int]:
    """(input_ids, attention_mask, P) of (read, written) pairs: in every row the written tokens begin at column P."""
    P = max(len(read) for read, _ in pairs)
    T = max(len(written) for _, written in pairs)
    input_ids = torch.full((len(pairs), P + T), pad_id, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, (read, written) in enumerate(pairs):
        columns = slice(P - len(read), P + len(written))
        input_ids[row, columns] = torch.tensor(read + written)
        mask[row, columns] = 1
    return input_ids, mask, P


def pack(samples: Sequence[Sample], pad_id: int, device: torch.device) -> Batch:
    """One batch. Samples with and without `allowed` do not mix (a run either thinks or does not)."""
    input_ids, attention, P = align([(s.prompt_ids, s.completion_ids) for s in samples], pad_id)
    T = input_ids.shape[1] - P
    allowed = None if samples[0].allowed is None else _allowed_tensor(samples, T).to(device)
    input_ids, attention = input_ids.to(device), attention.to(device)
    return Batch(input_ids, attention, input_ids[:, P:], attention[:, P:].float(), allowed)


def _allowed_tensor(samples: Sequence[Sample], T: int) -> Tensor:
    """(B, T, A) token ids, -1 where there are fewer than A."""
    A = max(len(tokens) for s in samples for tokens in s.allowed or ())
    out = torch.full((len(samples), T, A), -1, dtype=torch.long)
    for i, sample in enumerate(samples):
        for t, tokens in enumerate(sample.allowed or ()):
            out[i, t, : len(tokens)] = torch.tensor(tokens)
    return out


@dataclass(frozen=True, slots=True)
class Scores:
    """A network's view of a batch: of the written tokens, and of all that were allowed (-inf where fewer than A)."""

    logprobs_B_T: Tensor
    entropy_B_T: Tensor
    hidden_B_T_H: Tensor
    allowed_logprobs_B_T_A: Tensor | None


def score(network: Any, batch: Batch) -> Scores:
    """One forward pass. Position t's logits are those that predicted written token t."""
    T = batch.tokens_B_T.shape[1]
    out = network(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=positions(batch.attention_mask),
        logits_to_keep=T + 1,
        output_hidden_states=True,
        use_cache=False,
    )
    logits_B_T_V = out.logits[:, :-1].float()
    hidden_B_T_H = out.hidden_states[-1][:, -T - 1 : -1]
    if batch.allowed_B_T_A is None:
        logprobs_B_T, entropy_B_T = token_logprobs(logits_B_T_V, batch.tokens_B_T)
        return Scores(logprobs_B_T, entropy_B_T, hidden_B_T_H, None)
    allowed_logprobs_B_T_A = allowed_logprobs(logits_B_T_V, batch.allowed_B_T_A)
    # Padding has no allowed token that matches; any finite value does there, the mask drops it.
    written = batch.allowed_B_T_A == batch.tokens_B_T.unsqueeze(-1)
    logprobs_B_T = allowed_logprobs_B_T_A.masked_fill(~written, 0.0).sum(-1)
    finite = allowed_logprobs_B_T_A.masked_fill(batch.allowed_B_T_A < 0, 0.0)
    entropy_B_T = -(allowed_logprobs_B_T_A.exp() * finite).sum(-1)
    return Scores(logprobs_B_T, entropy_B_T, hidden_B_T_H, allowed_logprobs_B_T_A)


def token_logprobs(logits_B_T_V: Tensor, tokens_B_T: Tensor) -> tuple[Tensor, Tensor]:
    """(log-probability of each written token, entropy there), both (B, T), over the whole vocabulary."""
    logp_B_T_V = torch.log_softmax(logits_B_T_V, dim=-1)
    entropy_B_T = -(logp_B_T_V.exp() * logp_B_T_V).sum(-1)
    return logp_B_T_V.gather(-1, tokens_B_T.unsqueeze(-1)).squeeze(-1), entropy_B_T


def allowed_logprobs(logits_B_T_V: Tensor, allowed_B_T_A: Tensor) -> Tensor:
    """Log-probabilities (B, T, A) of the allowed tokens among themselves; -inf where there are fewer than A."""
    absent = allowed_B_T_A < 0
    kept_B_T_A = logits_B_T_V.gather(-1, allowed_B_T_A.clamp(min=0)).masked_fill(absent, -torch.inf)
    # Padding positions have no allowed token at all; a finite row keeps them out of NaN.
    kept_B_T_A = torch.where(absent.all(-1, keepdim=True), torch.zeros_like(kept_B_T_A), kept_B_T_A)
    return torch.log_softmax(kept_B_T_A, dim=-1)
