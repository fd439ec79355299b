"""PPO, as the paper has it. In: problems and a model. Out: the model that was best on dev.

    draw, collect (rollout) -> score, credit (experience) -> clipped updates

`train` is the loop. The names in the log are those of the losses. Several processes share a batch (parallel).
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from r1ranker.errors import ConfigError, NotFiniteError
from r1ranker.io.config import PPOConfig, RunConfig
from r1ranker.io.files import write_whole
from r1ranker.io.progress import track
from r1ranker.io.provenance import write_provenance
from r1ranker.problem import Problem, Splits, first_by_task, part_of
from r1ranker.prompts import build_prompt
from r1ranker.training.algorithms.expected import expected_policy_loss
from r1ranker.training.algorithms.listnet import listnet_loss
from r1ranker.training.algorithms.log_expected import log_expected_loss
from r1ranker.training.batch import Batch, PoolBatch, Sample, Scores, pack, score
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
from r1ranker.training.experience import Experience, micro_batches, with_advantages
from r1ranker.training.learner import Learner, finished, new_learner, progress
from r1ranker.training.logs import KEPT, KEPT_NAME, RunLog, read_log
from r1ranker.training.losses import kl_k3, masked_sum, policy_loss, value_loss
from r1ranker.training.memory import give_back_freed, recomputing, save_adapter
from r1ranker.training.parallel import Crew, join_crew
from r1ranker.training.rollout import State, Trajectory, check_prompts, collect, draw
from r1ranker.training.sharding import clip_gradients
from r1ranker.training.shown import rollouts
from r1ranker.training.start import rewarded
from r1ranker.training.validation import dev_mrr
from r1ranker.training.warmstart import cosine

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
LOSSES = ("policy_loss", "value_loss", "kl", "entropy", "clip_share", "expected_reward")


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
    stands = learner.step == 0 or finished(learner, config.ppo)  # a run that is gone on from may end there
    written = _written(config.out, learner.step)
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
    stats = _update(learner, experience, ppo, rng)
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


def _update(
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
