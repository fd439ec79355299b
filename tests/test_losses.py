"""Loss terms against plain loops over tokens, and the packing and scoring that feed them."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.training.algorithms.expected import expected_policy_loss
from r1ranker.training.algorithms.listnet import listnet_loss
from r1ranker.training.algorithms.log_expected import log_expected_loss
from r1ranker.training.batch import Sample, allowed_logprobs, pack, score, shared_batches, token_logprobs
from r1ranker.training.losses import kl_k3, masked_sum, policy_loss, value_loss

B, T = 3, 5
LENGTHS = (5, 2, 4)


def random_B_T(seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(B, T, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.fixture
def mask_B_T() -> Tensor:
    return torch.tensor([[1.0] * n + [0.0] * (T - n) for n in LENGTHS])


def looped(term: Callable[..., float], *columns: Tensor) -> float:
    """Sum of `term` over the written tokens, one after the other, in double precision."""
    return math.fsum(term(*(float(column[b, t]) for column in columns)) for b in range(B) for t in range(LENGTHS[b]))


def clipped_surrogate(logprob: float, old: float, advantage: float, clip: float = 0.2) -> float:
    ratio = math.exp(logprob - old)
    return -min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)


@pytest.mark.parametrize("seed", range(3))
def test_policy_loss_equals_the_clipped_surrogate(seed: int, mask_B_T: Tensor) -> None:
    logprobs, old, advantages = random_B_T(seed, 0.4), random_B_T(seed + 10, 0.4), random_B_T(seed + 20)
    loss, clipped = policy_loss(logprobs, old, advantages, mask_B_T, 0.2)
    assert float(loss) == pytest.approx(looped(clipped_surrogate, logprobs, old, advantages), abs=1e-5)

    def is_clipped(logprob: float, old_: float, advantage: float) -> float:
        ratio = math.exp(logprob - old_)
        return float((advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8))

    assert float(clipped) == looped(is_clipped, logprobs, old, advantages) > 0


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "moves"),
    [
        (1.0, 1.5, -1.2, False),
        (1.0, 0.5, -0.5, True),
        (-1.0, 0.5, 0.8, False),
        (-1.0, 1.5, 1.5, True),
        (2.0, 1.1, -2.2, True),
    ],
)
def test_the_clip_stops_the_gradient_only_where_the_policy_has_moved_far_enough(
    advantage: float, ratio: float, loss: float, moves: bool
) -> None:
    logprob = torch.tensor([[math.log(ratio)]], requires_grad=True)
    ones = torch.ones(1, 1)
    value, clipped = policy_loss(logprob, torch.zeros(1, 1), advantage * ones, ones, 0.2)
    value.backward()
    assert value.item() == pytest.approx(loss, abs=1e-6)
    assert logprob.grad is not None
    assert (float(logprob.grad) != 0) == moves
    assert float(clipped) == (not moves)


@pytest.mark.parametrize("seed", range(3))
def test_value_loss_is_the_larger_of_free_and_clipped_error(seed: int, mask_B_T: Tensor) -> None:
    values, old, returns = random_B_T(seed), random_B_T(seed + 10), random_B_T(seed + 20)

    def term(value: float, before: float, target: float) -> float:
        held = min(max(value, before - 0.5), before + 0.5)
        return 0.5 * max((value - target) ** 2, (held - target) ** 2)

    assert float(value_loss(values, old, returns, mask_B_T, 0.5)) == pytest.approx(
        looped(term, values, old, returns), abs=1e-5
    )


def test_a_value_that_ran_past_its_clip_towards_the_return_gets_no_gradient() -> None:
    value = torch.tensor([[0.9]], requires_grad=True)
    one = torch.ones(1, 1)
    value_loss(value, 0 * one, one, one, 0.5).backward()
    assert float(value.grad) == 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
def test_kl_equals_the_k3_estimator(seed: int, mask_B_T: Tensor) -> None:
    logprobs, reference = random_B_T(seed), random_B_T(seed + 10)
    expected = looped(lambda p, r: math.exp(r - p) - (r - p) - 1, logprobs, reference)
    assert float(kl_k3(logprobs, reference, mask_B_T)) == pytest.approx(expected, rel=1e-5)


@given(st.floats(-50, 0), st.floats(-50, 0))
def test_kl_is_never_negative_and_zero_at_equality(logprob: float, reference: float) -> None:
    one = torch.ones(1, 1)
    assert float(kl_k3(logprob * one, reference * one, one)) >= -1e-6
    assert float(kl_k3(logprob * one, logprob * one, one)) == 0


def test_kl_estimates_the_divergence_when_sampled_from_the_policy() -> None:
    torch.manual_seed(0)
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])
    drawn = torch.multinomial(policy, 40_000, replacement=True).unsqueeze(0)
    estimate = kl_k3(policy.log()[drawn], reference.log()[drawn], torch.ones(drawn.shape)) / drawn.numel()
    assert float(estimate) == pytest.approx(float((policy * (policy / reference).log()).sum()), abs=0.01)


def test_masked_tokens_have_no_influence(mask_B_T: Tensor) -> None:
    columns = [random_B_T(seed, 0.4) for seed in range(3)]
    spoiled = [torch.where(mask_B_T > 0, column, torch.full_like(column, 1e3)) for column in columns]
    for term in (
        lambda a, b, c: policy_loss(a, b, c, mask_B_T, 0.2)[0],
        lambda a, b, c: policy_loss(a, b, c, mask_B_T, 0.2)[1],
        lambda a, b, c: value_loss(a, b, c, mask_B_T, 0.5),
        lambda a, b, c: kl_k3(a, b, mask_B_T) + masked_sum(c, mask_B_T),
    ):
        assert float(term(*spoiled)) == pytest.approx(float(term(*columns)), rel=1e-6)


V = 11


@pytest.fixture
def logits_B_T_V() -> Tensor:
    return torch.randn(B, T, V, generator=torch.Generator().manual_seed(3)) * 2


def test_logprobs_and_entropy_over_the_whole_vocabulary(logits_B_T_V: Tensor) -> None:
    tokens = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(4))
    logprobs, entropy = token_logprobs(logits_B_T_V, tokens, "trained")
    for b in range(B):
        for t in range(T):
            weights = [math.exp(float(x)) for x in logits_B_T_V[b, t]]
            p = [w / sum(weights) for w in weights]
            assert float(logprobs[b, t]) == pytest.approx(math.log(p[tokens[b, t]]), abs=1e-5)
            assert float(entropy[b, t]) == pytest.approx(-sum(q * math.log(q) for q in p), abs=1e-5)


def test_allowed_logprobs_are_renormalised_over_the_allowed_tokens(logits_B_T_V: Tensor) -> None:
    allowed = torch.full((B, T, 4), -1)
    rng = random.Random(5)
    for b in range(B):
        for t in range(T):
            kept = rng.sample(range(V), rng.randint(1, 4))
            allowed[b, t, : len(kept)] = torch.tensor(kept)
    logits = logits_B_T_V.clone().requires_grad_()
    logprobs = allowed_logprobs(logits, allowed)
    for b in range(B):
        for t in range(T):
            kept = [k for k in allowed[b, t].tolist() if k >= 0]
            weights = [logits[b, t, k].exp().item() for k in kept]
            expected = [math.log(w / sum(weights)) for w in weights] + [-math.inf] * (4 - len(kept))
            assert logprobs[b, t].tolist() == pytest.approx(expected, abs=1e-5)
    logprobs[allowed >= 0].sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_expected_policy_loss_is_the_mean_of_policy_loss_over_the_answers() -> None:
    old = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.4, 0.0]]).log()
    new = torch.tensor([[0.3, 0.3, 0.4], [0.7, 0.3, 0.0]]).log()
    advantages = torch.tensor([[1.0, -0.5, 2.0], [-1.0, 1.0, 0.0]])
    loss, clipped = expected_policy_loss(new, old, advantages, 0.2)
    expected = clips = 0.0
    for b, answers in enumerate((3, 2)):
        for a in range(answers):
            one = (column[b, a].reshape(1, 1) for column in (new, old, advantages))
            term, is_clipped = policy_loss(*one, torch.ones(1, 1), 0.2)
            expected += old[b, a].exp().item() * term.item()
            clips += old[b, a].exp().item() * is_clipped.item()
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    assert float(clipped) == pytest.approx(clips, abs=1e-6)
    assert clips > 0


def test_expected_policy_loss_has_the_gradient_of_the_sampled_one_on_average() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 4, requires_grad=True)
    old = logits.detach().log_softmax(-1)
    rewards = torch.tensor([[0.0, 1.0, 1.0, 0.5]])
    advantages = rewards - (old.exp() * rewards).sum()
    expected_policy_loss(logits.log_softmax(-1), old, advantages, 0.2)[0].backward()
    exact, logits.grad = logits.grad, None
    drawn = torch.multinomial(old.exp()[0], 60_000, replacement=True)
    sampled = policy_loss(
        logits.log_softmax(-1)[:, drawn], old[:, drawn], advantages[:, drawn], torch.ones(1, len(drawn)), 0.2
    )[0]
    (sampled / len(drawn)).backward()
    torch.testing.assert_close(logits.grad, exact, atol=0.01, rtol=0)


def test_absent_answers_have_no_gradient() -> None:
    logits = torch.randn(2, 1, 5, requires_grad=True)
    logprobs = allowed_logprobs(logits, torch.tensor([[[0, 1, 2]], [[3, 4, -1]]]))[:, 0]
    old = logprobs.detach()
    expected_policy_loss(logprobs, old, torch.tensor([[1.0, 0.0, -1.0], [1.0, -1.0, 0.0]]), 0.2)[0].backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[1, 0, :3].any()
    assert not logits.grad[0, 0, 3:].any()


def free_samples(backend: TransformersBackend, seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    ids = range(4, len(backend.encoder.tokenizer))
    return [
        Sample(rng.choices(ids, k=prompt), rng.choices(ids, k=completion), None, 0.0)
        for prompt, completion in [(7, 3), (20, 1), (4, 9), (12, 5)]
    ]


def test_packed_rows_hold_prompt_then_completion(tiny: TransformersBackend) -> None:
    samples = free_samples(tiny)
    batch = pack(samples, tiny.pad_id, torch.device("cpu"))
    for row, sample in enumerate(samples):
        n = len(sample.completion_ids)
        assert (
            batch.input_ids[row][batch.attention_mask[row] == 1].tolist() == sample.prompt_ids + sample.completion_ids
        )
        assert batch.tokens_B_T[row, :n].tolist() == sample.completion_ids
        assert batch.mask_B_T[row].tolist() == [1.0] * n + [0.0] * (batch.mask_B_T.shape[1] - n)


@pytest.mark.parametrize("shared", [False, True])
def test_scores_in_a_padded_batch_equal_an_unpadded_pass(tiny: TransformersBackend, shared: bool) -> None:
    samples = free_samples(tiny)
    # two that begin like others, but not next to them
    samples += [dataclasses.replace(samples[i], completion_ids=samples[j].completion_ids) for i, j in ((2, 0), (0, 3))]
    with torch.no_grad():
        scores = score(tiny.network, pack(samples, tiny.pad_id, torch.device("cpu"), shared=shared), "shown")
        for row, sample in enumerate(samples):
            ids, P, n = sample.prompt_ids + sample.completion_ids, len(sample.prompt_ids), len(sample.completion_ids)
            out = tiny.network(input_ids=torch.tensor([ids]), output_hidden_states=True)
            logp = out.logits[0, P - 1 : -1].log_softmax(-1)
            expected = [float(logp[t, token]) for t, token in enumerate(sample.completion_ids)]
            assert scores.logprobs_B_T[row, :n].tolist() == pytest.approx(expected, abs=1e-4)
            entropy = -(logp.exp() * logp).sum(-1)
            torch.testing.assert_close(scores.entropy_B_T[row, :n], entropy, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(
                scores.hidden_B_T_H[row, :n], out.hidden_states[-1][0, P - 1 : -1], atol=1e-3, rtol=1e-3
            )


def test_samples_that_share_a_prompt_have_the_gradients_of_each_alone(tiny: TransformersBackend) -> None:
    samples = free_samples(tiny)
    samples += [dataclasses.replace(samples[1], completion_ids=s.completion_ids) for s in samples]
    gradients = []
    for shared in (False, True):
        tiny.network.zero_grad()
        batch = pack(samples, tiny.pad_id, torch.device("cpu"), shared=shared)
        assert (batch.begun is not None) == shared
        scores = score(tiny.network, batch, "trained")
        (masked_sum(scores.logprobs_B_T - scores.entropy_B_T, batch.mask_B_T)).backward()
        gradients.append([p.grad.clone() for p in tiny.network.parameters() if p.grad is not None])
    tiny.network.zero_grad()
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-3, rtol=1e-3)


def test_shared_batches_hold_every_sample_once_and_count_a_prompt_once() -> None:
    rng = random.Random(0)
    prompts = [[n] * length for n, length in enumerate((30, 30, 12, 50))]
    samples = [Sample(rng.choice(prompts), [7] * rng.randint(1, 9), None, 0.0) for _ in range(40)]
    groups = shared_batches(samples, 100)
    assert sorted(i for group in groups for i in group) == list(range(40))
    for group in groups:
        distinct = {tuple(samples[i].prompt_ids) for i in group}
        read = len(distinct) * max(map(len, distinct))
        assert len(group) == 1 or read + len(group) * max(len(samples[i].completion_ids) for i in group) <= 100
    assert len(groups) < sum(s.tokens for s in samples) / 100
    assert sorted(i for group in shared_batches(samples, 1) for i in group) == list(range(40))


def test_long_completions_stand_with_others_as_long() -> None:
    samples = [Sample([n % 4] * 3, [7] * (5 if n < 8 else 90), None, 0.0) for n in range(16)]
    for group in shared_batches(samples, 800):
        assert len({len(samples[i].completion_ids) for i in group}) == 1


def chosen_samples(backend: TransformersBackend) -> list[Sample]:
    """Samples whose tokens were chosen among a few; of several lengths where identifiers are several tokens."""
    rng = random.Random(1)
    ids = range(4, len(backend.encoder.tokenizer))
    samples = []
    for prompt, pool, drawn in [(9, (1, 2, 12, 13), 13), (5, (3, 4), 3), (14, (7, 11, 12), 12)]:
        trie = backend.encoder.trie(pool)
        samples.append(Sample(rng.choices(ids, k=prompt), list(trie.paths[drawn]), trie.allowed(drawn), 1.0))
    return samples


def test_scores_of_chosen_tokens_count_the_allowed_ones_only(backend: TransformersBackend) -> None:
    samples = chosen_samples(backend)
    batch = pack(samples, backend.pad_id, torch.device("cpu"))
    scores = score(backend.network, batch)
    for row, sample in enumerate(samples):
        ids, P = sample.prompt_ids + sample.completion_ids, len(sample.prompt_ids)
        logits = backend.network(input_ids=torch.tensor([ids])).logits[0, P - 1 : -1].detach()
        for t, (token, allowed) in enumerate(zip(sample.completion_ids, sample.allowed or (), strict=True)):
            p = logits[t, list(allowed)].softmax(-1)
            assert scores.logprobs_B_T[row, t].item() == pytest.approx(math.log(p[allowed.index(token)]), abs=1e-4)
            assert scores.entropy_B_T[row, t].item() == pytest.approx(float(-(p * p.log()).sum()), abs=1e-4)
    backend.network.zero_grad()
    (masked_sum(scores.logprobs_B_T, batch.mask_B_T) + masked_sum(scores.entropy_B_T, batch.mask_B_T)).backward()
    grads = [p.grad for p in backend.network.parameters() if p.grad is not None]
    backend.network.zero_grad()
    assert grads
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_the_logarithm_of_an_expected_reward_is_met_by_enumeration() -> None:
    logits = torch.tensor([[0.3, -1.0, 0.8], [1.0, 2.0, -torch.inf]], requires_grad=True)
    rewards = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0]])
    loss = log_expected_loss(torch.log_softmax(logits, -1), rewards)
    p, q = torch.softmax(torch.tensor([0.3, -1.0, 0.8]), -1), torch.softmax(torch.tensor([1.0, 2.0]), -1)
    assert float(loss.detach()) == pytest.approx(-math.log(p[0] + 0.5 * p[1]) - math.log(q[1]), abs=1e-6)
    loss.backward()
    # d log sum_b p_b r_b / d logit_a = p_a r_a / sum - p_a
    expected = p * rewards[0] / (p * rewards[0]).sum() - p
    assert logits.grad is not None
    assert (-logits.grad[0]).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert (-logits.grad[1, :2]).tolist() == pytest.approx([-float(q[0]), 1 - float(q[1])], abs=1e-6)


def test_with_one_answer_that_earns_the_logarithm_is_the_cross_entropy_of_it() -> None:
    logprobs = torch.log_softmax(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), -1)
    right = torch.tensor([0, 3, 2, 4])
    rewards = torch.nn.functional.one_hot(right, 5).float()
    assert float(log_expected_loss(logprobs, rewards)) == pytest.approx(
        float(torch.nn.functional.nll_loss(logprobs, right, reduction="sum")), abs=1e-5
    )


def test_labels_pull_the_policy_to_their_shares_and_answers_that_are_absent_are_left_out() -> None:
    logits = torch.tensor([[0.3, -1.0, 0.8, -torch.inf]], requires_grad=True)
    listnet_loss(torch.log_softmax(logits, -1), torch.tensor([[3.0, 0.0, 1.0, 0.0]])).backward()
    p = torch.softmax(torch.tensor([0.3, -1.0, 0.8]), -1)
    assert logits.grad is not None
    expected = [*(p - torch.tensor([0.75, 0.0, 0.25])).tolist(), 0.0]
    assert logits.grad[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("whole", [log_expected_loss, listnet_loss])
def test_answers_that_all_earn_the_same_teach_nothing(whole: Callable[[Tensor, Tensor], Tensor]) -> None:
    logprobs = torch.log_softmax(torch.zeros(2, 3), -1).requires_grad_()
    loss = whole(logprobs, torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logprobs.grad is not None and not logprobs.grad.any()
