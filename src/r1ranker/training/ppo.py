"""PPO, as the paper has it. In: problems and a model. Out: the model that was best on dev.

    draw, collect (rollout) -> score, credit (experience) -> clipped updates (update)

`train` is the loop. The names in the log are those of the losses. Several processes share a batch (parallel).
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from r1ranker.errors import NotFiniteError
from r1ranker.io.config import PPOConfig, RunConfig
from r1ranker.io.files import write_whole
from r1ranker.io.progress import track
from r1ranker.io.provenance import write_provenance
from r1ranker.problem import Problem, Splits, first_by_task, part_of
from r1ranker.prompts import build_prompt
from r1ranker.training.checkpoint import (
    begun,
    checkpoints,
    discard,
    origin_of,
    restore,
    save_checkpoint,
    save_model,
)
from r1ranker.training.critic import explained_variance
from r1ranker.training.experience import Experience, with_advantages
from r1ranker.training.learner import Learner, finished, new_learner, progress
from r1ranker.training.logs import KEPT, KEPT_NAME, RunLog, read_log
from r1ranker.training.memory import give_back_freed, save_adapter
from r1ranker.training.parallel import Crew, join_crew
from r1ranker.training.rollout import State, Trajectory, check_prompts, collect, draw
from r1ranker.training.shown import rollouts
from r1ranker.training.start import rewarded
from r1ranker.training.update import update
from r1ranker.training.validation import dev_mrr

logger = logging.getLogger(__name__)
One = TypeVar("One")

PARTS = 1000
"""Of a run, as its progress bar counts."""
TOO_LONG = 10
"""Steps in a row with mostly broken answers, after which that is said."""
BROKEN = (
    "step %d: %.0f%% of the answers are broken, and more than half were for %d steps: no reward can tell good from "
    "bad. Raise ppo.max_new_tokens (now %d) where they are cut, or warm-start the model on the form of an answer"
)


def train(config: RunConfig, splits: Splits, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train by PPO; returns the directory of the model that was best on dev, `<out>/model`.

    A folder that holds a run is gone on from with `resume` and begun anew with `overwrite`; else ConfigError.
    """
    if not join_crew().leads:
        return _train(config, splits, resume)
    with begun(config.out, resume=resume, overwrite=overwrite):
        return _train(config, splits, resume)


def _train(config: RunConfig, splits: Splits, resume: bool) -> Path:
    problems = rewarded(config, splits["train"])
    learner = new_learner(config)
    check_prompts(learner.backend.encoder, problems, config)
    learner.origin = origin_of(config, splits)
    if resume:
        restore(config.out, learner, config)
    elif learner.crew.leads:
        discard(config.out)
    if learner.crew.leads:
        write_provenance(config.out, config.model_dump(mode="json"))
    dev = first_by_task(splits.get("dev", []), config.ppo.validate_problems)
    written = _written(config.out, learner.step)
    # A run that is gone on from may end where it stands; the leading process has its log.
    unseen = learner.crew.most(int(learner.crew.leads and KEPT not in written)) > 0
    stands = learner.step == 0 or (unseen and finished(learner, config.ppo))
    with (
        RunLog(config.out, learner.step + (not stands), writes=learner.crew.leads) as log,
        track(PARTS, f"ppo {config.design}" if learner.crew.leads else "") as advance,
    ):
        shown, broken = advance_to(advance, learner, config.ppo, 0), 0
        if stands:
            _validate(learner, config, dev, log, written)
        while not finished(learner, config.ppo):
            with _stopping(learner, config):
                stats = ppo_step(learner, problems, config, log)
                learner.step += 1
                last = finished(learner, config.ppo)
                if learner.step % config.ppo.validate_every == 0 or last:
                    _validate(learner, config, dev, log, stats)
                else:
                    log.write(learner.step, stats)
                if learner.step % config.ppo.checkpoint_every == 0 or last:
                    _check_answers(learner, problems[0], config)
                    save_checkpoint(config.out, learner, config)
            broken = broken + 1 if stats["broken"] > 0.5 else 0
            if broken == TOO_LONG and learner.crew.leads:
                logger.warning(BROKEN, learner.step, 100 * stats["broken"], TOO_LONG, config.ppo.max_new_tokens)
            shown = advance_to(advance, learner, config.ppo, shown)
    learner.crew.wait()
    return config.out / "model"


def _written(out: Path, step: int) -> dict[str, float]:
    """What the log says of a step."""
    rows = [row for row in read_log(out) if row["step"] == step] if step else []
    return {name: value for row in rows for name, value in row.items() if name != "step"}


@contextmanager
def _stopping(learner: Learner, config: RunConfig) -> Iterator[None]:
    """What is said where a step meets a number that is none. Files stay as they were before it."""
    step, found = learner.step + 1, checkpoints(config.out)
    try:
        yield
    except NotFiniteError as error:
        ppo, model = config.ppo, config.out / "model"
        going_on = f"go on from {found[-1].name} with --resume, or " if found else ""
        raise NotFiniteError(
            f"training stopped at step {step}: {error}. {model} stays that of step {learner.kept}. Lower ppo.actor_lr "
            f"(now {ppo.actor_lr:g}), ppo.critic_lr (now {ppo.critic_lr:g}) or ppo.max_grad_norm (now "
            f"{ppo.max_grad_norm:g}) and {going_on}start anew with another out"
        ) from error


def _check_answers(learner: Learner, problem: Problem, config: RunConfig) -> None:
    """Raises NotFiniteError where the policy says nothing any more: no run could go on from its checkpoint."""
    two = part_of(problem, problem.identifiers[:2])  # whatever is asked, and however long the pool is
    prompt = build_prompt(two, two.identifiers, config.design, think=False)
    with learner.alone(), learner.passes():
        learner.backend.choose([prompt], [two.identifiers])
    learner.backend.forget()


def advance_to(advance: Callable[[int], object], learner: Learner, ppo: PPOConfig, shown: int) -> int:
    """Move the bar from the parts it has shown to those that are done; returns these."""
    done = round(PARTS * min(1.0, progress(learner, ppo)))
    advance(done - shown)
    return done


def ppo_step(
    learner: Learner, problems: Sequence[Problem], config: RunConfig, log: RunLog | None = None
) -> dict[str, float]:
    """Collect one batch, update on it; returns what is logged. A few rollouts are shown before each validation.

    All randomness of a step comes from (seed, step), so a resumed run draws what it would have drawn.
    """
    began = time.perf_counter()
    crew, ppo = learner.crew, config.ppo
    rng = random.Random(f"ppo:{config.seed}:{learner.step}")
    torch.manual_seed(rng.getrandbits(63) + crew.rank)
    states = draw(problems, config, rng, largest_pool(problems, progress(learner, ppo), ppo))
    lanes = own_lanes(states, crew, ppo.group)
    trajectories, experience = collect_experience(learner, lanes, config)
    stats = update(learner, experience, ppo, rng)
    step = learner.step + 1
    if log is not None and (step == 1 or step % ppo.validate_every == 0):
        log.show(rollouts(step, _all(lanes), _all(trajectories), _all(experience), config.design, config.ask))
    learner.backend.forget()
    give_back_freed()
    stats |= batch_stats(_all(experience), crew)
    if config.reads_once:  # what was drawn says nothing of the policy
        stats |= {name: stats["expected_reward"] for name in stats if name.startswith("reward")}
    learner.tokens += round(stats["tokens"])
    return stats | {"tokens": learner.tokens, "tokens_per_s": stats["tokens"] / (time.perf_counter() - began)}


def _all(lanes: Mapping[int, Sequence[One]]) -> list[One]:
    return [one for lane in lanes.values() for one in lane]


def largest_pool(problems: Sequence[Problem], done: float, ppo: PPOConfig) -> int | None:
    """The largest pool now, by `largest_pool` and by the curriculum when `done` of the run is over; None: any."""
    if done >= ppo.curriculum:
        return ppo.largest_pool
    most = ppo.largest_pool or max(len(problem.candidates) for problem in problems)
    return 2 + int((most - 1) * done / ppo.curriculum)


def own_lanes(states: Sequence[State], crew: Crew, group: int) -> dict[int, list[State]]:
    """This process's lanes of a batch: groups are dealt out to lanes, lanes to processes."""
    return {
        lane: [
            s for first in range(lane * group, len(states), crew.lanes * group) for s in states[first : first + group]
        ]
        for lane in crew.share(range(crew.lanes))
    }


def collect_experience(
    learner: Learner, lanes: Mapping[int, list[State]], config: RunConfig
) -> tuple[dict[int, list[Trajectory]], dict[int, list[Experience]]]:
    """What the policy does from the states of each lane, and its samples credited, lane by lane."""
    with learner.alone(), learner.passes():
        trajectories = collect(learner.backend, [state for states in lanes.values() for state in states], config)
        experience = iter(with_advantages(learner, trajectories, config.ppo))
    done = iter(trajectories)
    of_lanes = {lane: [next(done) for _ in states] for lane, states in lanes.items()}
    return of_lanes, {
        lane: [next(experience) for trajectory in of_lane for _ in trajectory] for lane, of_lane in of_lanes.items()
    }


def batch_stats(experience: Sequence[Experience], crew: Crew) -> dict[str, float]:
    """Means over all steps of all processes, and how well the critic knew the returns."""
    rows = [row for part in crew.gather([_row(e) for e in experience]) for row in part]
    n = sum(row["steps"] for row in rows)
    per_step = [name for name in dict.fromkeys(k for row in rows for k in row) if name not in ("steps", "tokens")]
    stats = {name: sum(row.get(name, 0.0) for row in rows) / n for name in per_step}
    stats["tokens"] = sum(row["tokens"] for row in rows)
    parts = crew.gather([(e.old_values, e.returns) for e in experience])
    values, returns = (torch.cat(column) for column in zip(*(pair for part in parts for pair in part), strict=True))
    return stats | {"explained_variance": explained_variance(values, returns)}


def _row(e: Experience) -> dict[str, float]:
    """What one sample adds to the statistics: sums over its steps."""
    s = e.sample
    return {
        "steps": s.steps,
        "tokens": s.tokens,
        "reward": s.steps * s.reward,
        "broken": float(s.kind != "valid"),
        "completion_tokens": len(s.completion_ids),
    } | {f"reward_{name}": s.steps * value for name, value in s.parts.items()}


def _validate(
    learner: Learner, config: RunConfig, dev: Sequence[Problem], log: RunLog, stats: dict[str, float]
) -> None:
    """Log the dev MRR; keep the model when it is the best so far (without dev problems, the newest)."""
    with learner.alone(), learner.passes():
        scores = dev_mrr(learner.backend, dev, config, learner.crew)
    mean = scores.get("dev_mrr", float(learner.step))
    if mean > learner.best:
        learner.best, learner.kept = mean, learner.step
        tokenizer, writes = learner.backend.encoder.tokenizer, learner.crew.leads
        save_model(config.out / "model", learner.policy, tokenizer, learner.dtype, way=config.way, writes=writes)
        if config.ppo.lora and writes:
            save_adapter(learner.policy, config.out / "adapter", config.way)
        if writes:  # last: what it names is then there whole
            write_whole(config.out / KEPT_NAME, json.dumps({"step": learner.kept, "score": learner.best}) + "\n")
    log.write(learner.step, stats | scores | {KEPT: learner.kept})
