"""Token tensors: packing samples, and a policy's log-probabilities of what was sampled.

Names carry their dimensions: B rows, T generated tokens, A allowed tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicLayer

from r1ranker.backends import blocks
from r1ranker.backends.blocks import Blocks
from r1ranker.backends.encoding import TokenPath
from r1ranker.backends.padding import positions
from r1ranker.backends.prefix import keys_and_values
from r1ranker.backends.sampling import Trace
from r1ranker.problem import AnswerKind, Step
from r1ranker.prompts import Wanted

EntropyUse = Literal["none", "shown", "trained"]
"""Over a whole vocabulary an entropy costs as much as the log-probabilities, and its gradient twice that."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One call in training: what was read, what was written, what it earned.

    allowed: for each written token the tokens that could have stood there; None means the whole
        vocabulary. A chosen identifier has them, a free completion has not.
    answer_rewards: for each written token at which identifiers part, what each of the tokens allowed there would have
        earned, in the order of `allowed`. Empty where answers are credited as they were sampled.
    rewards: by written token, where the sample is a whole episode; else `reward` is the last token's.
    chance: by written token that is rewarded, what is taken off there so that a random answer earns 0; mostly empty.
    trace: what the network said as it wrote; None where it did not write freely, or that is not known.
    pool: in layout `blocks`, what was read in place of a prompt. `completion_ids` and `allowed` are then places of
        blocks, an entry for each step; of a judge, `wants` says whether high numbers are named or low ones, and
        `judged` what its numbers were.
    said: the steps it is of, to be looked at (`shown`).
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    allowed: tuple[TokenPath, ...] | None
    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    kind: AnswerKind = "valid"
    task: str = ""
    answer_rewards: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    rewards: Mapping[int, float] = field(default_factory=dict)
    steps: int = 1
    chance: Mapping[int, float] = field(default_factory=dict)
    trace: Trace | None = field(default=None, compare=False)
    pool: Blocks | None = None
    wants: Wanted = "best"
    judged: tuple[float, ...] = ()
    said: tuple[Step, ...] = field(default=(), compare=False)

    @property
    def tokens(self) -> int:
        """Tokens a forward pass over this sample reads."""
        if self.pool is not None:
            return self.pool.tokens
        return len(self.prompt_ids) + len(self.completion_ids)


def joined(trajectory: Sequence[Sample]) -> Sample | None:
    """A whole episode as one sample, or None where a step's prompt does not go on where the one before ended.

    In layout `append` a step reads all that was read and written before it, so one pass over the last step's
    tokens sees every step: n - 1 prompts become one. What stands between two answers is written by no choice.
    """
    first, last = trajectory[0], trajectory[-1]
    whole = [*last.prompt_ids, *last.completion_ids]
    allowed: list[TokenPath] = [(token,) for token in whole[len(first.prompt_ids) :]]
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
        said=tuple(one for step in trajectory for one in step.said),
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts left-padded, completions right-padded: the written tokens are the last T columns.

    begun: (a row that begins with each distinct prompt, which of these prompts each row has), where rows with the
        same prompt share one pass over it.
    """

    input_ids: Tensor
    attention_mask: Tensor
    tokens_B_T: Tensor
    mask_B_T: Tensor
    allowed_B_T_A: Tensor | None
    begun: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, slots=True)
class PoolBatch:
    """Pools of layout `blocks`, one for each row; what was written, and what was allowed, are places of blocks.

    sign_B: 1 where a judge's high numbers are named, -1 where the low ones are. max_tokens: of one pass.
    """

    pools: tuple[Blocks, ...]
    tokens_B_T: Tensor
    mask_B_T: Tensor
    allowed_B_T_A: Tensor
    sign_B: Tensor
    yes_no: tuple[int, int]
    max_tokens: int


def pack_pools(samples: Sequence[Sample], yes_no: tuple[int, int], max_tokens: int, device: torch.device) -> PoolBatch:
    """One batch of samples in layout `blocks`."""
    T = max(len(sample.completion_ids) for sample in samples)
    tokens, mask = torch.zeros((len(samples), T), dtype=torch.long), torch.zeros((len(samples), T))
    for row, sample in enumerate(samples):
        tokens[row, : len(sample.completion_ids)] = torch.tensor(sample.completion_ids)
        mask[row, : len(sample.completion_ids)] = 1.0
    return PoolBatch(
        tuple(sample.pool for sample in samples if sample.pool is not None),
        tokens.to(device),
        mask.to(device),
        _allowed_tensor(samples, T).to(device),
        torch.tensor([1.0 if sample.wants == "best" else -1.0 for sample in samples], device=device),
        yes_no,
        max_tokens,
    )


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


def pack(samples: Sequence[Sample], pad_id: int, device: torch.device, *, shared: bool = False) -> Batch:
    """One batch. Samples with and without `allowed` do not mix (a run either thinks or does not).

    shared: prompts are read once for all samples that have them. Needs a network that `can_reuse` keys and values.
    """
    input_ids, attention, P = align([(s.prompt_ids, s.completion_ids) for s in samples], pad_id)
    T = input_ids.shape[1] - P
    allowed = None if samples[0].allowed is None else _allowed_tensor(samples, T).to(device)
    input_ids, attention = input_ids.to(device), attention.to(device)
    begun = None
    if shared and P > 1:
        place = {prompt: n for n, prompt in enumerate(dict.fromkeys(tuple(s.prompt_ids) for s in samples))}
        prompt_B = [place[tuple(s.prompt_ids)] for s in samples]
        firsts = [prompt_B.index(n) for n in range(len(place))]
        begun = torch.tensor(firsts, device=device), torch.tensor(prompt_B, device=device)
    return Batch(input_ids, attention, input_ids[:, P:], attention[:, P:].float(), allowed, begun)


def shared_batches(samples: Sequence[Sample], max_tokens: int) -> list[list[int]]:
    """Indices in groups of at most `max_tokens` padded tokens (at least one index); a prompt counts once in a group.

    In the order, of prompts or of lengths, that leaves less padding: long thoughts gain more by standing with others
    as long as by standing with those of the same prompt.
    """
    names = {prompt: n for n, prompt in enumerate(dict.fromkeys(tuple(s.prompt_ids) for s in samples))}
    prompts = [names[tuple(s.prompt_ids)] for s in samples]

    def padded(group: Sequence[int]) -> int:
        read = len({prompts[i] for i in group}) * max(len(samples[i].prompt_ids) for i in group)
        return read + len(group) * max(len(samples[i].completion_ids) for i in group)

    def grouped(order: Sequence[int]) -> list[list[int]]:
        groups: list[list[int]] = []
        for i in order:
            if not groups or padded([*groups[-1], i]) > max_tokens:
                groups.append([])
            groups[-1].append(i)
        return groups

    by_prompt = sorted(range(len(samples)), key=lambda i: (len(samples[i].prompt_ids), prompts[i], i))
    by_length = sorted(range(len(samples)), key=lambda i: (samples[i].tokens, i))
    return min((grouped(order) for order in (by_prompt, by_length)), key=lambda groups: sum(map(padded, groups)))


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
    """A network's view of a batch: of the written tokens, and of all that were allowed (-inf where fewer than A).

    entropy_B_T: of what could have been written, where it was asked for; else 0.
    """

    logprobs_B_T: Tensor
    entropy_B_T: Tensor
    hidden_B_T_H: Tensor
    allowed_logprobs_B_T_A: Tensor | None


def score(network: Any, batch: Batch | PoolBatch, entropy: EntropyUse = "none") -> Scores:
    """One forward pass. Position t's logits are those that predicted written token t.

    entropy: `shown` has no gradient. Over allowed tokens it is always there.
    """
    if isinstance(batch, PoolBatch):
        return among(batch, *read_pools(network, batch))
    logits_B_T_V, hidden_B_T_H = forward(network, batch)
    if batch.allowed_B_T_A is None:
        logprobs_B_T, entropy_B_T = token_logprobs(logits_B_T_V, batch.tokens_B_T, entropy)
        return Scores(logprobs_B_T, entropy_B_T, hidden_B_T_H, None)
    return among(batch, logits_B_T_V, hidden_B_T_H)


def among(batch: Batch | PoolBatch, logits_B_T_V: Tensor, hidden_B_T_H: Tensor) -> Scores:
    """What logits say of those tokens, or places of blocks, that were allowed."""
    assert batch.allowed_B_T_A is not None
    allowed_logprobs_B_T_A = allowed_logprobs(logits_B_T_V, batch.allowed_B_T_A)
    # Padding has no allowed token that matches; any finite value does there, the mask drops it.
    written = batch.allowed_B_T_A == batch.tokens_B_T.unsqueeze(-1)
    logprobs_B_T = allowed_logprobs_B_T_A.masked_fill(~written, 0.0).sum(-1)
    finite = allowed_logprobs_B_T_A.masked_fill(batch.allowed_B_T_A < 0, 0.0)
    entropy_B_T = -(allowed_logprobs_B_T_A.exp() * finite).sum(-1)
    return Scores(logprobs_B_T, entropy_B_T, hidden_B_T_H, allowed_logprobs_B_T_A)


def read_pools(network: Any, batch: PoolBatch) -> tuple[Tensor, Tensor]:
    """(logits (B, T, N) of the blocks at each step, hidden states (B, T, H)) of pools; equal ones are read once.

    A judge's step has the mean hidden state of the blocks that are left.
    """
    distinct = {pool: n for n, pool in enumerate(dict.fromkeys(batch.pools))}
    N, T = max(len(pool.blocks) for pool in batch.pools), batch.tokens_B_T.shape[1]
    read = blocks.read_all(network, list(distinct), batch.yes_no, batch.max_tokens)
    logits, hidden = [], []
    for row, pool in enumerate(batch.pools):
        values, hidden_S_H = read[distinct[pool]]
        if not pool.judged:
            logits.append(F.pad(values, (0, N - len(pool.blocks), 0, T - len(pool.questions))))
            hidden.append(F.pad(hidden_S_H, (0, 0, 0, T - len(pool.questions))))
            continue
        logits.append(F.pad(batch.sign_B[row] * values, (0, N - len(pool.blocks))).expand(T, N))
        left_T_A = batch.allowed_B_T_A[row]
        there_T_A_1 = (left_T_A >= 0).unsqueeze(-1)
        summed_T_H = (hidden_S_H[left_T_A.clamp(min=0)].detach() * there_T_A_1).sum(1)
        hidden.append(summed_T_H / there_T_A_1.sum(1).clamp(min=1))
    return torch.stack(logits), torch.stack(hidden)


def forward(network: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """(logits (B, T, V) in float32, hidden states (B, T, H)) that predicted the written tokens.

    Where the batch says so, the keys and values of each distinct prompt are computed once, and the gradients of all
    rows that have it flow back through them together.
    """
    T = batch.tokens_B_T.shape[1]
    begin, cache = 0, None
    if batch.begun is not None:
        begin = batch.input_ids.shape[1] - T - 1  # the prompt's last token predicts the first that is written
        first_U, prompt_B = batch.begun
        ids_U_P, mask_U_P = batch.input_ids[first_U, :begin], batch.attention_mask[first_U, :begin]
        cache = keys_and_values(network, ids_U_P, mask_U_P, DynamicLayer)
        if len(first_U) < len(prompt_B):
            for layer in cache.layers:  # `index_select` has a faster gradient than indexing
                layer.keys, layer.values = (x.index_select(0, prompt_B) for x in (layer.keys, layer.values))
    out = network(
        input_ids=batch.input_ids[:, begin:-1],
        attention_mask=batch.attention_mask[:, :-1],
        position_ids=positions(batch.attention_mask)[:, begin:-1],
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=T,
        output_hidden_states=True,
    )
    return out.logits.float(), out.hidden_states[-1][:, -T:]


def token_logprobs(logits_B_T_V: Tensor, tokens_B_T: Tensor, entropy: EntropyUse) -> tuple[Tensor, Tensor]:
    """(log-probability of each written token, entropy there), both (B, T), over the whole vocabulary."""
    logp_B_T_V = torch.log_softmax(logits_B_T_V, dim=-1)
    logprobs_B_T = logp_B_T_V.gather(-1, tokens_B_T.unsqueeze(-1)).squeeze(-1)
    if entropy == "none":
        return logprobs_B_T, torch.zeros_like(logprobs_B_T)
    with torch.set_grad_enabled(entropy == "trained" and torch.is_grad_enabled()):
        # A row at a time: more tensors of this size cost more for their memory than for their arithmetic.
        return logprobs_B_T, torch.stack([-(logp_T_V.exp() * logp_T_V).sum(-1) for logp_T_V in logp_B_T_V])


def allowed_logprobs(logits_B_T_V: Tensor, allowed_B_T_A: Tensor) -> Tensor:
    """Log-probabilities (B, T, A) of the allowed tokens among themselves; -inf where there are fewer than A."""
    absent = allowed_B_T_A < 0
    kept_B_T_A = logits_B_T_V.gather(-1, allowed_B_T_A.clamp(min=0)).masked_fill(absent, -torch.inf)
    # Padding positions have no allowed token at all; a finite row keeps them out of NaN.
    kept_B_T_A = torch.where(absent.all(-1, keepdim=True), torch.zeros_like(kept_B_T_A), kept_B_T_A)
    return torch.log_softmax(kept_B_T_A, dim=-1)
