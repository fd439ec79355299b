"""Whole runs of PPO: logs, validation, checkpoints and resuming, schedules."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import small_problem
from quick_runs import VARIANTS, assert_same
from r1ranker.backends.scripted import ScriptedBackend
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.config import RunConfig
from r1ranker.io.runs import RANKING
from r1ranker.problem import Candidate, Problem, part_of
from r1ranker.prompts import build_prompt
from r1ranker.training import ppo as ppo_module
from r1ranker.training.checkpoint import checkpoints, discard
from r1ranker.training.learner import Learner, new_learner
from r1ranker.training.logs import KEPT, RunLog, kept_of, read_log
from r1ranker.training.ppo import ppo_step, train
from r1ranker.training.rollout import check_prompts
from r1ranker.training.shown import SHOWN
from r1ranker.training.validation import dev_mrr

MakeProblem = Callable[..., Problem]
NEVER = 10**9


LOGGED = ("reward", "kl", "clip_share", "entropy", "value_loss", "policy_loss", "explained_variance", "broken")
LOGGED += ("tokens", "tokens_per_s", "lr_factor", "completion_tokens", "dev_mrr")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_run_trains_validates_and_logs(
    name: str, config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    settings = VARIANTS[name]
    run = config(**settings | {"ppo": settings["ppo"] | {"steps": 2, "validate_problems": 2}})
    directory = train(run, {"train": problems, "dev": problems[:3], "test": []})
    rows = read_log(run.out)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert {*LOGGED, "dev_mrr/toy"} <= rows[-1].keys()
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[2]["tokens"] > rows[1]["tokens"] > 0
    assert 0 <= rows[-1]["broken"] <= 1
    assert (rows[-1]["broken"] == 0) == (not run.think)
    assert 0 <= rows[-1]["clip_share"] <= 1
    assert directory == run.out / "model"
    assert TransformersBackend.load(str(directory)).encoder.encode_text("[3]") != []
    assert {p.name for p in run.out.iterdir()} >= {"config.yaml", "provenance.json", "tensorboard"}
    assert checkpoints(run.out)
    check_rollouts(run, problems)


def check_rollouts(run: RunConfig, problems: list[Problem]) -> None:
    """They are rankings as `rank --trace` writes them, of pools of the problems, and say what was earned."""
    by_qid = {problem.qid: problem for problem in problems}
    lines = (run.out / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["training_step"] for row in rows} == {1, 2}
    assert 4 <= len(rows) <= 2 * SHOWN
    for line, row in zip(lines, rows, strict=True):
        ranking, problem = RANKING.validate_json(line), by_qid[row["qid"]]
        assert row["task"] == problem.task and math.isfinite(row["reward"])
        shown = {problem.candidate(k).docid for k in ranking.steps[0].pool}
        assert set(ranking.docids) == shown and len(ranking.docids) == len(shown)
        for step in ranking.steps:
            assert step.answer.kind == "valid" or run.think
            assert set(step.removed) <= set(step.pool) and bool(step.removed) == (run.design == "iranker")
            if step.probabilities:
                assert step.probabilities.keys() == set(step.pool)
                assert sum(step.probabilities.values()) == pytest.approx(1)
        if run.design == "iranker" and not run.think:
            assert all(step.probabilities for step in ranking.steps)
            assert ranking.docids[-1] == problem.candidate(ranking.steps[0].removed[0]).docid


def weights(path: Path) -> dict[str, Any]:
    return torch.load(checkpoints(path)[-1], weights_only=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("think", [True, False])
def test_a_killed_run_resumes_and_ends_where_it_would_have(
    think: bool,
    config: Callable[..., RunConfig],
    problems: list[Problem],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    splits = {"train": problems, "dev": problems[:4], "test": []}
    runs = [
        config(
            think=think,
            out=str(tmp_path / name),
            ppo={"steps": 4, "checkpoint_every": 2, "schedule": "cosine", "keep": keep},
        )
        for name, keep in (("whole", 1), ("killed", 2))
    ]
    train(runs[0], splits)

    class Killed(Exception):
        pass

    def killing_step(learner: Learner, *rest: Any) -> dict[str, float]:
        if learner.step == 3:
            raise Killed
        return ppo_step(learner, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ppo_module, "ppo_step", killing_step)
        with pytest.raises(Killed):
            train(runs[1], splits)
    assert weights(runs[1].out)["step"] == 2
    train(runs[1], splits, resume=True)
    assert_same(weights(runs[0].out), weights(runs[1].out))
    assert [len(checkpoints(run.out)) for run in runs] == [1, 2]
    checkpoints(runs[1].out)[-1].unlink()
    train(runs[1], splits, resume=True)
    assert_same(weights(runs[0].out), weights(runs[1].out))
    timeless = [
        [{key: value for key, value in row.items() if key != "tokens_per_s"} for row in read_log(run.out)]
        for run in runs
    ]
    assert timeless[0] == timeless[1]
    shown = [(run.out / "rollouts.jsonl").read_text(encoding="utf-8") for run in runs]
    assert shown[0] == shown[1] != ""
    saved = [TransformersBackend.load(str(run.out / "model")).network.state_dict() for run in runs]
    assert_same(dict(saved[0]), dict(saved[1]))


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(
    config: Callable[..., RunConfig], problems: list[Problem], tmp_path: Path
) -> None:
    splits = {"train": problems, "dev": [], "test": []}
    runs = [config(out=str(tmp_path / f"{i}"), seed=seed, ppo={"steps": 2}) for i, seed in enumerate((5, 5, 6))]
    for run in runs:
        train(run, splits)
    first, second, third = (weights(run.out)["policy"] for run in runs)
    assert_same(first, second)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_the_model_that_was_best_on_dev_is_kept(
    config: Callable[..., RunConfig], problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, seen = iter([0.2, 0.5, 0.3, 0.5]), []

    def scripted(backend: TransformersBackend, *rest: Any) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in backend.network.state_dict().items()})
        return {"dev_mrr": next(scores)}

    monkeypatch.setattr(ppo_module, "dev_mrr", scripted)
    run = config(ppo={"steps": 3, "validate_every": 1})
    directory = train(run, {"train": problems, "dev": problems[:2], "test": []})
    kept = TransformersBackend.load(str(directory)).network.state_dict()
    assert_same(dict(kept), seen[1])
    assert any(not torch.equal(kept[name], seen[2][name]) for name in kept)
    assert not list(run.out.glob("*.new"))


def test_without_dev_problems_the_newest_model_is_kept(
    config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    run = config(ppo={"steps": 2})
    directory = train(run, {"train": problems, "dev": [], "test": []})
    kept = dict(TransformersBackend.load(str(directory)).network.state_dict())
    policy = weights(run.out)["policy"]
    assert all(torch.equal(kept[name], policy[name]) for name in policy)
    assert "dev_mrr" not in read_log(run.out)[-1]


def test_a_token_budget_ends_the_run_before_its_steps(
    config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    run = config(ppo={"steps": 50, "token_budget": 1500, "checkpoint_every": NEVER})
    train(run, {"train": problems, "dev": [], "test": []})
    rows = read_log(run.out)
    assert len(rows) < 10
    assert rows[-1]["tokens"] >= 1500 > rows[-2].get("tokens", 0)
    assert weights(run.out)["tokens"] == rows[-1]["tokens"]


def test_the_learning_rate_rises_then_falls(config: Callable[..., RunConfig], problems: list[Problem]) -> None:
    run = config(ppo={"steps": 5, "warmup": 2, "schedule": "cosine", "actor_lr": 1e-3, "critic_lr": 4e-3})
    learner = new_learner(run)
    factors = []
    for _ in range(5):
        factors.append(ppo_step(learner, problems, run)["lr_factor"])
        actor, critic = (group["lr"] for group in learner.optimizer.param_groups)
        assert (actor, critic) == pytest.approx((1e-3 * factors[-1], 4e-3 * factors[-1]))
        learner.step += 1
    assert factors[0] == pytest.approx(1 / 3)
    assert factors[1] == pytest.approx(2 / 3)
    assert factors[2] > factors[3] > factors[4] > 0


def test_resuming_where_nothing_was_saved_is_refused_with_a_way_out(
    config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    run, splits = config(ppo={"steps": 1}), {"train": problems, "dev": [], "test": []}
    with pytest.raises(ConfigError, match=r"nothing to resume: .*start without --resume"):
        train(run, splits, resume=True)
    train(run, splits)
    discard(run.out)  # as where it was killed before its first checkpoint
    with pytest.raises(ConfigError, match=r"nothing to resume: .*begin anew with --overwrite"):
        train(run, splits, resume=True)
    train(run, splits, overwrite=True)


@pytest.mark.parametrize("keep", [1, 2, 3, 5])
def test_as_many_checkpoints_are_kept_as_are_wanted(keep: int, tmp_path: Path) -> None:
    for saved in range(1, 12):
        (tmp_path / f"checkpoint-{saved:08d}.pt").touch()
        discard(tmp_path, keep)
        names = [f"checkpoint-{step:08d}.pt" for step in range(max(1, saved - keep + 1), saved + 1)]
        assert [path.name for path in checkpoints(tmp_path)] == names


def test_a_model_that_is_newer_than_the_checkpoint_stays_until_one_is_better(
    config: Callable[..., RunConfig], problems: list[Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.35, 0.45])
    monkeypatch.setattr(ppo_module, "dev_mrr", lambda *_: {"dev_mrr": next(scores)})
    run = config(ppo={"steps": 4, "validate_every": 1, "checkpoint_every": 2, "keep": 2})
    splits = {"train": problems, "dev": problems[:2], "test": []}
    train(run, splits)
    kept = (run.out / "model" / "model.safetensors").read_bytes()
    checkpoints(run.out)[-1].unlink()
    train(run, splits, resume=True)
    assert [row["kept_step"] for row in read_log(run.out)] == [0, 1, 2, 4, 4]
    assert (run.out / "model" / "model.safetensors").read_bytes() == kept


def test_a_pool_longer_than_the_context_is_no_obstacle_where_candidates_stand_side_by_side(
    config: Callable[..., RunConfig], make_problem: MakeProblem
) -> None:
    long = make_problem(60, candidates=tuple(Candidate(f"d{k}", f"text {k} " * 30) for k in range(1, 61)))
    ppo = {"steps": 1, "largest_pool": 3, "answer": "expected", "critic": "head", "kl": 0.0, "checkpoint_every": 1}
    run = config(layout="blocks", ask="best", ppo=ppo)
    train(run, {"train": [long], "dev": [], "test": []})
    assert checkpoints(run.out)


ONCE = {"answer": "expected", "critic": "head", "kl": 0.0, "episode_share": 0.0, "batch": 8, "minibatch": 8}


def test_where_nobody_draws_the_reward_is_what_the_policy_earns(
    config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    run = config(layout="blocks", ask="best", ppo=ONCE | {"objective": "log", "steps": 3, "validate_every": 1})
    assert run.reads_once
    train(run, {"train": problems, "dev": [], "test": []})
    for row in read_log(run.out)[1:]:
        assert row["reward"] == row["reward_selection"] == row["expected_reward"]
    for line in (run.out / "rollouts.jsonl").read_text(encoding="utf-8").splitlines():
        (step,) = RANKING.validate_json(line).steps
        assert step.removed[0] == max(step.probabilities, key=step.probabilities.__getitem__)
        assert 0 < json.loads(line)["reward"] < 3


def test_the_surrogate_learns_alike_with_and_without_a_reference(
    config: Callable[..., RunConfig], problems: list[Problem], tmp_path: Path
) -> None:
    """Without one, and where an update is one pass, its advantages are still of the policy that it starts from."""
    saved = []
    for kl in (0.0, 1e-12):
        run = config(layout="blocks", ask="best", out=str(tmp_path / str(kl)), ppo=ONCE | {"kl": kl, "steps": 3})
        train(run, {"train": problems, "dev": [], "test": []})
        saved.append(weights(run.out)["policy"])
    for name, value in saved[0].items():
        torch.testing.assert_close(value, saved[1][name], msg=name)


def test_a_run_that_is_ended_early_is_validated_where_it_ends(
    config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    splits = {"train": problems, "dev": problems[:4], "test": []}
    ppo = {"steps": 6, "checkpoint_every": 2, "keep": 9, "validate_every": 9}
    train(config(ppo=ppo), splits)
    for newer in checkpoints(config().out)[1:]:
        newer.unlink()
    shorter = config(ppo=ppo | {"steps": 2, "checkpoint_every": 1, "max_prompt_tokens": 2000})
    train(shorter, splits, resume=True)
    rows = read_log(shorter.out)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert {"dev_mrr", "policy_loss"} <= rows[-1].keys()


def test_what_was_kept_is_told_by_the_model_not_by_a_log_that_began_again(tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_text('{"step": 8, "score": 0.75}')
    with RunLog(tmp_path) as log:
        log.write(0, {KEPT: 0, "dev_mrr": 0.4})
        log.write(4, {KEPT: 8, "dev_mrr": 0.7})
    assert str(kept_of(tmp_path)) == "step 4, kept step 8: dev MRR 0.750, 0.400 at the start, 0.700 at the end"


def test_a_run_begun_anew_leaves_nothing_of_the_one_before(
    config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    pytest.importorskip("peft")
    splits = {"train": problems, "dev": [], "test": []}
    run = config(ppo={"steps": 1, "lora": 2})
    train(run, splits)
    assert (run.out / "adapter").is_dir()
    train(config(ppo={"steps": 1}), splits, overwrite=True)
    assert not (run.out / "adapter").exists()


def test_a_checkpoint_that_cannot_be_read_never_replaces_one_that_can(
    config: Callable[..., RunConfig], problems: list[Problem]
) -> None:
    splits = {"train": problems, "dev": [], "test": []}
    run = config(ppo={"steps": 2, "checkpoint_every": 2})
    train(run, splits)
    (run.out / "checkpoint-00000005.pt").write_bytes(b"cut")
    longer = config(ppo={"steps": 3, "checkpoint_every": 2})
    train(longer, splits, resume=True)
    assert [path.name for path in checkpoints(run.out)] == ["checkpoint-00000003.pt"]
    assert weights(run.out)["step"] == 3


def test_prompts_are_checked_by_the_candidates_that_have_the_most_tokens(
    config: Callable[..., RunConfig], make_problem: MakeProblem
) -> None:
    texts = ["the cat sat on the mat and then the cat sat on the mat", *(["鯨鷹梟鮭鱒鮎鯉鱈"] * 3)]
    mixed = make_problem(4, candidates=tuple(Candidate(f"d{k}", text) for k, text in enumerate(texts)))
    run = config(ppo={"max_prompt_tokens": 10**6, "largest_pool": 3})
    encoder = new_learner(run).backend.encoder
    dense = part_of(mixed, (2, 3, 4))
    tokens = len(encoder.encode(build_prompt(dense, dense.identifiers, run.design, layout=run.layout, think=run.think)))
    for most in (tokens, tokens - 1):
        limited = config(ppo={"max_prompt_tokens": most, "largest_pool": 3})
        with nullcontext() if most == tokens else pytest.raises(ConfigError, match=f"a training prompt has {tokens}"):
            check_prompts(encoder, [mixed], limited)


def test_prompts_are_checked_at_the_largest_pool_that_is_trained_on(
    config: Callable[..., RunConfig], make_problem: MakeProblem
) -> None:
    ppo = {"steps": 1, "max_prompt_tokens": 250, "episode_share": 0.0}
    splits = {"train": [make_problem(40)], "dev": [], "test": []}
    with pytest.raises(ConfigError, match="max_prompt_tokens=250"):
        train(config(ppo=ppo), splits)
    train(config(ppo=ppo | {"largest_pool": 3}), splits)


def test_a_log_keeps_what_was_before_and_drops_what_comes_again(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for step in range(4):
            log.write(step, {"reward": step / 2})
    with RunLog(tmp_path, first_step=3) as log:
        log.write(3, {"reward": 9.0})
    assert [(row["step"], row["reward"]) for row in read_log(tmp_path)] == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 9.0)]
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1]) == {"step": 3, "reward": 9.0}
    with RunLog(tmp_path):
        pass
    assert read_log(tmp_path) == []


def test_problems_that_teach_nothing_are_left_out(config: Callable[..., RunConfig], make_problem: MakeProblem) -> None:
    useless = [make_problem(3, gains={}), make_problem(1, qid="q2")]
    with pytest.raises(DataError, match="nothing to reward"):
        train(config(), {"train": useless, "dev": [], "test": []})
    with pytest.raises(DataError, match=r"no training problem \(routing\)"):
        train(config(ppo={"scenarios": ["routing"]}), {"train": [make_problem(3)], "dev": [], "test": []})
    run = config(ppo={"steps": 1})
    train(run, {"train": [*useless, make_problem(3, qid="q3")], "dev": [], "test": []})
    assert read_log(run.out)[-1]["reward"] > 0


def test_a_damaged_line_of_a_run_s_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 0}\n{"step": \n{"step": 2}\n{"st')
    with pytest.raises(DataError, match=r"log\.jsonl:2: not JSON"):
        read_log(tmp_path)


def test_the_kept_model_is_chosen_by_tasks_that_count_alike(config: Callable[..., RunConfig]) -> None:
    dev = [small_problem(4, positive=1, qid=f"a{i}", task="a") for i in range(3)]
    dev.append(small_problem(4, positive=4, qid="b", task="b"))
    found = dev_mrr(ScriptedBackend(weigh=lambda prompt, k: float(k)), dev, config())
    assert found == {"dev_mrr": 0.625, "dev_mrr/a": 1.0, "dev_mrr/b": 0.25}
