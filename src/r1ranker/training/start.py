"""What is looked at before anything is trained. In: a run's config and its problems. Out: those that earn rewards.

A name that is mistyped, or a reward of the user's own that cannot be asked, shows here and not hours later.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from pathlib import Path

from r1ranker.errors import ConfigError, DataError
from r1ranker.io.config import RunConfig
from r1ranker.io.fingerprint import fingerprint_file
from r1ranker.problem import Answer, Problem, first_by_task, scenario_names
from r1ranker.prompts import written_list
from r1ranker.ranking.plans import chosen_step
from r1ranker.rewards import gains_of, is_own, kind_of, own_function, score_ranking, score_removal
from r1ranker.scenarios import SCENARIOS


def rewarded(config: RunConfig, train: Sequence[Problem]) -> list[Problem]:
    """The training problems that earn rewards. Raises ConfigError for settings that cannot be, DataError without any.

    A reward of the user's own is asked once about the first problem of each task.
    """
    config.check_training()
    _check_reward(config)
    known = {*SCENARIOS, *config.scenarios, *scenario_names(train)}
    for name in config.ppo.scenarios or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"ppo.scenarios: no problem is of {name!r}; {meant}there are {', '.join(sorted(known))}")
    problems = [problem for problem in train if config.ppo.learns_from(problem)]
    if not problems:
        asked = ", ".join(config.ppo.scenarios or scenario_names(train))
        raise DataError(f"no training problem ({asked}) has two candidates, one relevant: there is nothing to reward")
    if is_own(config.ppo.reward):
        for problem in first_by_task(problems, 1):
            _ask_once(config, problem)
    return problems


def source_of_reward(config: RunConfig) -> dict[str, str]:
    """A digest of the file of a reward of the user's own, under a name for messages."""
    if not is_own(config.ppo.reward):
        return {}
    file = inspect.getsourcefile(own_function(config.ppo.reward))
    return {f"the file of {config.ppo.reward}": fingerprint_file(Path(file))} if file else {}


def _ask_once(config: RunConfig, problem: Problem) -> None:
    pool, kind = problem.identifiers, config.ppo.reward
    if config.design == "dranker":
        score_ranking(written_list(pool), Answer("valid", pool), problem, pool, kind)
        return
    step = chosen_step(pool, pool[:1], {})
    score_removal(step.completion, step.answer, problem, pool, kind, config.ask)


def _check_reward(config: RunConfig) -> None:
    """Raises ConfigError where the reward cannot be imported, or cannot credit all answers and is asked to."""
    kind_of(config.ppo.reward)
    if config.design == "dranker" and config.ppo.answer == "expected":
        gains_of(config.ppo.reward)
