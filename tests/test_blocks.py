"""Layout `blocks`: who sees whom, and that nothing but the pool that is left decides."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from r1ranker.backends.blocks import Blocks, Question, packed, read_all, separate
from r1ranker.backends.models import resolve
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.backends.weights import add_adapter
from r1ranker.errors import BackendError, ConfigError
from r1ranker.io.config import RunConfig, validated
from r1ranker.io.runs import RANKING
from r1ranker.problem import Candidate, Problem, part_of
from r1ranker.prompts import Readout, Wanted, block_prompt
from r1ranker.ranking.rankers import DRanker, IRanker
from r1ranker.ranking.spec import RankerSpec
from r1ranker.training import pools
from r1ranker.training.batch import Sample, pack_pools, score
from r1ranker.training.learner import new_learner
from r1ranker.training.ppo import ppo_step, train

TEXTS = (
    "the barn owl lives four years",
    "tractors need oil",
    "owls eat mice at night, and sometimes a young rabbit",
    "a red bicycle",
    "how long do barn owls live in the wild",
    "nine lives",
)


@pytest.fixture(scope="module")
def nano() -> TransformersBackend:
    return TransformersBackend.load("nano")


def problem(texts: Sequence[str] = TEXTS) -> Problem:
    candidates = tuple(Candidate(f"d{TEXTS.index(text)}", text) for text in texts)
    gains = {"d0": 2, "d4": 1}
    return Problem("q1", "t", "passage", candidates, query="how long do barn owls live", gains=gains)


def config(**changes: object) -> RunConfig:
    ppo = {"answer": "expected", "critic": "head", "kl": 0.0} | dict(changes.pop("ppo", {}))  # type: ignore[call-overload]
    return validated({"model": "nano", "think": False, "layout": "blocks", "ppo": ppo} | changes, "test")


def test_a_block_sees_the_head_and_itself_and_a_question_the_blocks_that_are_left() -> None:
    row = packed([Blocks((1, 2), ((3, 4), (5,)), (Question((6,), (1,)),)), Blocks((7,), ((8,),))])
    assert row.ids_L.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert row.positions_L.tolist() == [0, 1, 2, 3, 2, 3, 0, 1]
    seen = {
        token: [*part.before, *part.own][: len(part.before) + i + 1]
        for kind in row.kinds
        for part in kind
        for i, token in enumerate(part.own)
    }
    assert [seen[token] for token in range(8)] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 4],
        [0, 1, 4, 5],
        [6],
        [6, 7],
    ]
    assert row.ends_S.tolist() == [3, 4, 7, 5]  # blocks of all pools, then their questions


@pytest.mark.parametrize("ask", ["worst", "best"])
def test_every_step_of_a_judge_is_a_fresh_prompt_of_the_survivors(nano: TransformersBackend, ask: Wanted) -> None:
    whole = problem()
    ranking = IRanker(nano, think=False, layout="blocks", ask=ask).rank(whole)
    assert len(ranking.steps) == len(TEXTS) - 1
    assert ranking.usage.calls == 1
    for step in ranking.steps:
        (values,) = nano.judged([nano.block_ids(block_prompt(part_of(whole, step.pool), "judge", ask))])
        fresh = torch.softmax(values.double() if ask == "best" else -values.double(), -1).tolist()
        assert [step.probabilities[k] for k in step.pool] == pytest.approx(fresh, abs=1e-5)


@pytest.mark.parametrize("ask", ["worst", "best"])
def test_every_step_of_an_identifier_is_a_fresh_prompt_of_the_survivors(nano: TransformersBackend, ask: Wanted) -> None:
    whole = problem()
    ranking = IRanker(nano, think=False, layout="blocks", readout="identifier", ask=ask).rank(whole)
    assert len(ranking.steps) == len(TEXTS) - 1
    read = nano.block_ids(block_prompt(whole, "identifier", ask))
    for step in ranking.steps:
        left = [k - 1 for k in step.pool]
        fresh = Blocks(
            read.head,
            tuple(read.blocks[i] for i in left),
            (replace(read.questions[0], sees=tuple(range(len(left)))),),
            tuple(read.labels[i] for i in left),
        )
        with torch.inference_mode():
            ((logits, _),) = read_all(nano.network, [fresh], nano.encoder.yes_no(), 4096)
        expected = torch.softmax(logits[0].double(), -1).tolist()
        assert [step.probabilities[k] for k in step.pool] == pytest.approx(expected, abs=1e-5)


def test_a_pool_is_read_once_for_all_steps(nano: TransformersBackend) -> None:
    whole = problem()
    read = nano.block_ids(block_prompt(whole, "identifier", "worst"))
    ranking = IRanker(nano, think=False, layout="blocks", readout="identifier").rank(whole)
    questions = len(ranking.steps) * len(read.questions[0].ids)
    assert ranking.usage.prompt_tokens == len(read.head) + sum(map(len, read.blocks)) + questions


@pytest.mark.parametrize("readout", ["judge", "identifier"])
@pytest.mark.parametrize("design", ["worst", "best", "list"])
def test_any_order_of_the_candidates_gives_the_same_ranking(
    nano: TransformersBackend, readout: Readout, design: str
) -> None:
    def ranked(texts: Sequence[str]) -> tuple[str, ...]:
        if design == "list":
            return DRanker(nano, think=False, layout="blocks", readout=readout).rank(problem(texts)).docids
        ask: Wanted = "best" if design == "best" else "worst"
        return IRanker(nano, think=False, layout="blocks", readout=readout, ask=ask).rank(problem(texts)).docids

    first = ranked(TEXTS)
    rng = random.Random(1)
    assert all(ranked(texts) == first for texts in orders(rng, 4))


@pytest.mark.parametrize("query", ["first", "last"])
def test_one_row_is_read_for_any_order_of_the_candidates(
    nano: TransformersBackend, query: Literal["first", "last"]
) -> None:
    """So that no rounding of a pass, which may go by what stands where, tells the orders apart."""
    rng = random.Random(1)
    pools = [nano.block_ids(block_prompt(problem(texts), "judge", "best", query=query)) for texts in orders(rng, 6)]
    rows = [[packed([part]).ids_L.tolist() for _, part in separate(pool, 60)] for pool in pools]
    assert len(rows[0]) > 1
    assert all(row == rows[0] for row in rows)
    for pool in pools:
        for places, part in separate(pool, 60):
            assert part == pool.part(places)


def orders(rng: random.Random, many: int) -> list[list[str]]:
    """The texts, shuffled."""
    return [rng.sample(TEXTS, len(TEXTS)) for _ in range(many)]


def test_worst_and_best_of_one_judge_give_one_order(nano: TransformersBackend) -> None:
    worst, best = (IRanker(nano, think=False, layout="blocks", ask=ask).rank(problem()) for ask in ("worst", "best"))
    assert worst.docids == best.docids == DRanker(nano, think=False, layout="blocks").rank(problem()).docids
    assert [step.removed[0] for step in worst.steps] != [step.removed[0] for step in best.steps]


@pytest.mark.parametrize("readout", ["judge", "identifier"])
def test_selection_stops_when_the_head_is_known(nano: TransformersBackend, readout: Readout) -> None:
    def ranker(top_k: int) -> IRanker:
        return IRanker(nano, think=False, layout="blocks", readout=readout, ask="best", top_k=top_k)

    whole, head = ranker(1).rank(problem()), ranker(2).rank(problem())
    assert head.docids[:2] == whole.docids[:2]
    assert len(head.steps) == 2


def test_pools_longer_than_a_row_are_read_in_parts(nano: TransformersBackend) -> None:
    read = nano.block_ids(block_prompt(problem(), "judge", "best"))
    whole, parts = (read_all(nano.network, [read], nano.encoder.yes_no(), most)[0][0] for most in (4096, 40))
    assert parts.tolist() == pytest.approx(whole.tolist(), abs=1e-4)


def check_one_pass_has_the_gradients_of_its_steps(
    nano: TransformersBackend, episode: Sample, steps: Sequence[Sample]
) -> None:
    """Log-probabilities and gradients of an episode as one sequence are those of its steps as samples of their own."""

    def logprobs_and_gradient(samples: Sequence[Sample]) -> tuple[list[float], torch.Tensor]:
        nano.network.zero_grad()
        batch = pack_pools(samples, nano.encoder.yes_no(), 4096, nano.network.device)
        logprobs = score(nano.network, batch).logprobs_B_T[batch.mask_B_T.bool()]
        (logprobs * torch.arange(1, len(logprobs) + 1)).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in nano.network.parameters() if p.grad is not None])
        return logprobs.tolist(), gradient.clone()

    one, gradient = logprobs_and_gradient([episode])
    many, summed = logprobs_and_gradient(steps)
    nano.network.zero_grad()
    assert one == pytest.approx(many, abs=1e-5)
    assert torch.allclose(gradient, summed, atol=1e-4 * float(summed.abs().max()))


@pytest.mark.parametrize("readout", ["judge", "identifier"])
@pytest.mark.parametrize("ask", ["worst", "best"])
def test_an_episode_as_one_sequence_has_the_gradients_of_its_steps(
    nano: TransformersBackend, readout: Readout, ask: Wanted
) -> None:
    whole = problem()
    state = (whole, whole.identifiers, True, random.Random(3))
    settings = config(readout=readout, ask=ask)
    (episode,) = pools.episodes(nano, [state], settings)
    steps = [_step(episode, t) for t in range(episode.steps)]
    check_one_pass_has_the_gradients_of_its_steps(nano, episode, steps)


def _step(episode: Sample, t: int) -> Sample:
    """One step of an episode as a sample of its own, over a pool that holds only what was left."""
    assert episode.pool is not None and episode.allowed is not None
    left, pool = episode.allowed[t], episode.pool
    questions = tuple(replace(q, sees=tuple(range(len(left)))) for q in pool.questions[t : t + 1])
    labels = tuple(pool.labels[i] for i in left) if pool.labels else ()
    fresh = Blocks(pool.head, tuple(pool.blocks[i] for i in left), questions, labels)
    return replace(
        episode,
        completion_ids=[left.index(episode.completion_ids[t])],
        allowed=(tuple(range(len(left))),),
        steps=1,
        pool=fresh,
    )


def test_steps_are_credited_with_what_each_candidate_left_would_have_earned(nano: TransformersBackend) -> None:
    whole = problem()
    state = (whole, (1, 2, 5), True, random.Random(0))
    (worst,) = pools.episodes(nano, [state], config(ask="worst"))
    (best,) = pools.episodes(nano, [state], config(ask="best"))
    assert worst.answer_rewards[0] == pytest.approx((0.0, 1.0, 0.5))
    assert best.answer_rewards[0] == pytest.approx((1.0, 0.0, 0.5))
    (listed,) = pools.episodes(nano, [state], config(design="dranker"))
    assert len(listed.answer_rewards) == 2
    assert listed.answer_rewards[1][0] == pytest.approx(listed.reward) or listed.answer_rewards[1][1] == pytest.approx(
        listed.reward
    )


def test_labels_say_nothing_of_places_in_training() -> None:
    drawn = {block_prompt(problem(), "identifier", "best", random.Random(seed)).labels for seed in range(20)}
    assert len(drawn) > 10
    assert all(sorted(labels) == [1, 2, 3, 4, 5, 6] for labels in drawn)


def test_an_instruction_replaces_the_question() -> None:
    asked = replace(problem(), instruction="Which sentence says how old [1] owls get?")
    prompt = block_prompt(asked, "judge", "best")
    assert "Which sentence says how old (1) owls get?" in prompt.text
    assert "Which passage" not in prompt.text


def test_what_cannot_be_masked_is_refused_by_name(nano: TransformersBackend, tmp_path: Path) -> None:
    from r1ranker.backends.scripted import ScriptedBackend

    with pytest.raises(ConfigError, match="layout blocks has no thoughts"):
        IRanker(nano, think=True, layout="blocks")
    with pytest.raises(ConfigError, match="layout blocks needs the model in this process"):
        IRanker(ScriptedBackend([]), think=False, layout="blocks")
    windowed = TransformersBackend.load("nano")
    windowed.network.config._attn_implementation = "flash_attention_2"
    with pytest.raises(BackendError, match=r"nano \(llama, flash_attention_2\) has not"):
        IRanker(windowed, think=False, layout="blocks").rank(problem())


def test_settings_that_do_not_go_together_are_refused() -> None:
    for changes, words in (
        ({"think": True}, "layout=blocks has no thoughts"),
        ({"ppo": {"answer": "sampled", "objective": "log"}}, "set ppo.answer=expected"),
    ):
        with pytest.raises(ConfigError, match=words):
            config(**changes)
    only_ranks = config(ppo={"answer": "sampled", "critic": "separate"})
    with pytest.raises(ConfigError, match=r"set ppo\.critic=head"):
        only_ranks.check_training()
    for ppo, words in (({"shard": True}, r"set ppo\.shard=false"), ({"centre": True}, r"set ppo\.centre=false")):
        with pytest.raises(ConfigError, match=words):
            config(ppo=ppo).check_training()


def test_a_model_is_asked_the_way_it_was_trained_and_its_adapter_makes_the_same_model(tmp_path: Path) -> None:
    ppo = {"steps": 2, "batch": 2, "minibatch": 2, "episode_share": 0.0, "lora": 4, "actor_lr": 1e-2, "entropy": 0.0}
    settings = config(ask="best", out=str(tmp_path / "run"), ppo=ppo | {"validate_every": 1, "validate_problems": 1})
    model = train(settings, {"train": [problem()], "dev": []})
    rollouts = (tmp_path / "run" / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    for step in (step for line in rollouts for step in RANKING.validate_json(line).steps):
        assert step.removed[0] in step.pool and set(step.probabilities) == set(step.pool)
        assert sum(step.probabilities.values()) == pytest.approx(1, abs=1e-3)
    trained = TransformersBackend.load(str(model))
    assert trained.trained_in == {"layout": "blocks", "readout": "judge", "ask": "best", "query": "first"}
    ranking = RankerSpec(model=str(model)).around(trained).rank(problem())
    assert ranking.usage.calls == 1 and len(ranking.steps) == len(TEXTS) - 1
    assert [step.removed[0] for step in ranking.steps] == [int(d[1]) + 1 for d in ranking.docids[:-1]]
    add_adapter(Path(resolve("nano")), tmp_path / "run" / "adapter", tmp_path / "again")
    again = TransformersBackend.load(str(tmp_path / "again"))
    assert again.trained_in == trained.trained_in
    for name, value in trained.network.state_dict().items():
        assert torch.allclose(value, again.network.state_dict()[name].float(), atol=5e-3), name


def test_one_pass_a_step_has_the_gradient_of_drawing_first(tmp_path: Path) -> None:
    """Where all answers of one decision are credited, what was drawn does not matter."""

    def updated(**ppo: object) -> dict[str, torch.Tensor]:
        settings = config(ask="best", ppo={"batch": 4, "minibatch": 4, "entropy": 0.0, "episode_share": 0.0} | ppo)
        learner = new_learner(settings)
        for group in learner.optimizer.param_groups:
            group["base_lr"] = 10.0
        learner.optimizer = torch.optim.SGD(learner.optimizer.param_groups, lr=10.0)
        ppo_step(learner, [problem()], settings)
        return {name: value.detach().clone() for name, value in learner.policy.named_parameters()}

    before = {name: value.detach() for name, value in TransformersBackend.load("nano").network.named_parameters()}
    once, drawn = updated(max_grad_norm=1e-2), updated(max_grad_norm=1e-2, kl=1e-12)
    for name, value in before.items():
        one, two = once[name] - value, drawn[name] - value
        assert torch.allclose(one, two, atol=1e-3 * float(two.abs().max()) + 1e-9), name


@pytest.mark.parametrize("ask", ["worst", "best"])
def test_an_episode_is_drawn_by_the_judges_probabilities(nano: TransformersBackend, ask: str) -> None:
    whole = problem()
    settings = config(ask=ask, ppo={"answer": "sampled"})
    (episode,) = pools.episodes(nano, [(whole, whole.identifiers, True, random.Random(0))], settings)
    judged = torch.tensor(episode.judged).double() * (1 if ask == "best" else -1)
    for step in episode.said:
        fresh = torch.softmax(judged[[k - 1 for k in step.pool]], -1).tolist()
        assert [step.probabilities[k] for k in step.pool] == pytest.approx(fresh, abs=1e-6)


def test_chance_is_what_a_random_choice_earns_on_average(nano: TransformersBackend) -> None:
    whole = problem()
    settings = config(ask="best", ppo={"answer": "sampled", "centre": True, "reward": "graded"})
    (episode,) = pools.episodes(nano, [(whole, (1, 2, 5), True, random.Random(0))], settings)
    assert episode.chance[0] == pytest.approx((1.0 + 0.0 + 0.5) / 3)
