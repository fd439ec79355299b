"""What an experiment works with. In: a run's config and folders. Out: trained models, rankings, results on disk.

    study = Study("main", "mini", config, Path("runs/x/main"), Path("runs/x/models"), limit=None)
    model = study.trained(["design=dranker"])
    rows = study.evaluate(["random", "prior", study.system("dranker", "dranker", str(model))], study.problems("test"))

Everything is named by a hash of what it was made from: asked for again it is found done, and what was killed
half way goes on. Paths below the folder that holds `models` do not count, so that folder can be moved.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from r1ranker.backends.loading import pick_device
from r1ranker.backends.models import resolve
from r1ranker.baselines.notes import load_splits
from r1ranker.errors import ConfigError
from r1ranker.evaluation.measures import MEASURES
from r1ranker.evaluation.results import Row, read_results
from r1ranker.evaluation.systems import ModelSystem, evaluate_systems, model_system, name_of
from r1ranker.experiments.quickstart import train_side_by_side, worker_pool
from r1ranker.experiments.scales import SCALES, Scale
from r1ranker.io.config import DataConfig, RunConfig, load_config
from r1ranker.io.files import named_by_content, write_whole
from r1ranker.io.fingerprint import fingerprint_model, fingerprint_problems
from r1ranker.io.problems import write_jsonl
from r1ranker.io.runs import RANKING
from r1ranker.problem import Problem, Ranking, Splits, first_by_task
from r1ranker.ranking.jobs import WHERE, rank_file
from r1ranker.ranking.journal import failed_of
from r1ranker.ranking.spec import RankerSpec, parse_spec
from r1ranker.training.checkpoint import checkpoints, discard

DONE = "done.json"
"""In the folder of a model: what it was made from. It is written last."""
STAMP = "stamp"
"""In the folder of results: a hash of what they are of. It is written last, and only when every query was ranked."""
SHORT = 0.25
"""Share of the token budget in experiments that train many models."""
LEAST = 100_000
"""Tokens of training below which another process takes longer to start than it saves."""
IN_CONFIG = {"curves", "train", "workers"}
"""What an evaluation is given that its config has said already, or that changes no result."""
WARMSTART_KEYS = {"model", "data", "scenarios", "seed", "device", "dtype", "threads", "warmstart"}
"""The settings that the supervised start reads."""


@dataclass(frozen=True, slots=True)
class Study:
    """What an experiment gets.

    name: of the experiment. scale: a name in `SCALES` (and its packaged YAML), or the stem of a user's YAML.
    config: the base run: data, model, PPO settings, seed. limit: test problems per task (None: all).
    out: folder of this experiment. models: shared by all experiments, so a model is trained once; rankings lie
        beside it. systems: more rankers to judge, in an experiment that takes some.
    """

    name: str
    scale: str
    config: RunConfig
    out: Path
    models: Path
    limit: int | None
    systems: tuple[ModelSystem, ...] = ()

    @property
    def workers(self) -> int:
        """Processes side by side: one on a GPU or for small jobs, else one for each of at most two cores."""
        alone = pick_device(self.config.device).type == "cuda" or (self.config.ppo.token_budget or LEAST) < LEAST
        return 1 if alone else min(2, os.cpu_count() or 1)

    @property
    def size(self) -> Scale:
        """How much of the run each experiment takes."""
        return SCALES.get(self.scale, Scale())

    @property
    def sources(self) -> list[DataConfig]:
        """The data that are trained on; those held out are for the experiments `unseen` and `ir`."""
        return [data for data in self.config.data if not data.held_out]

    @property
    def reads_pools_whole(self) -> bool:
        """Whether each candidate is judged apart from the others, so that no pool needs windows."""
        return self.config.layout == "blocks" and self.config.readout == "judge"

    @property
    def settings(self) -> dict[str, Any]:
        """What its results are made with, as it is saved beside them."""
        return self.config.model_dump(mode="json") | {"experiment": self.name, "scale": self.scale, "limit": self.limit}

    def budget(self, share: float = 1.0) -> int:
        """Training tokens of each model in an experiment that has this share of the base run's."""
        if self.config.ppo.token_budget is None:
            raise ConfigError("models are compared at equal training tokens: set ppo.token_budget")
        return round(share * self.config.ppo.token_budget)

    def problems(self, split: str) -> list[Problem]:
        """The problems of a split; of the test split the first `limit` of each task. None of data that are held out."""
        found = _splits(self.config).get(split, [])
        limit = self.limit if split == "test" else None
        return first_by_task(found, limit)

    def changed(self, overrides: Sequence[str]) -> RunConfig:
        """The base run with `key=value` overrides. Raises ConfigError."""
        base = [
            f"{key}={json.dumps(value, ensure_ascii=False)}"
            for key, value in self.config.model_dump(mode="json").items()
        ]
        return load_config(None, [*base, *overrides])

    def trained(self, overrides: Sequence[str] = ()) -> Path:
        """Model directory of the base run with overrides: trains, goes on, or finds it done."""
        return self.trained_all([overrides])[0]

    def trained_all(self, variants: Sequence[Sequence[str]]) -> list[Path]:
        """`trained` for each list of overrides, several at a time where there is room."""
        runs = [self._placed(self.changed(overrides)) for overrides in variants]
        todo = {config.out.name: config for config in runs if not (config.out / DONE).is_file()}
        if len(todo) > 1 and self.workers > 1:
            train_side_by_side(todo, workers=self.workers, train=train_or_resume)
        else:
            for config in todo.values():
                train_or_resume(config)
        return [config.out / "model" for config in runs]

    def warmstarted(self, overrides: Sequence[str] = ()) -> Path:
        """Model directory of the supervised start of the base run with overrides; begins anew when it was killed."""
        from r1ranker.training.warmstart import warmstart

        config = self.changed(overrides)
        settings = config.model_dump(mode="json", include=WARMSTART_KEYS)
        settings["problems"] = _digest_of(config)
        if config.warmstart.scratch:
            del settings["model"]
        config = config.model_copy(update={"out": self.models / f"warmstart-{self.digest(settings)}"})
        if not (config.out / DONE).is_file():
            warmstart(config, _splits(config)["train"], overwrite=True)
            write_whole(config.out / DONE, json.dumps(settings, indent=2))
        return config.out / "model"

    def system(self, name: str, design: str, model: str, *settings: str) -> ModelSystem:
        """A model as a ranker; what `settings` (`key=value` of a `RankerSpec`) do not say is as in the base run."""
        base = model_system(name, self.config.design, model, self.config).spec
        return ModelSystem(name, parse_spec(base, [f"design={design}", *settings]))

    def rankings(self, systems: Sequence[ModelSystem], problems: Sequence[Problem]) -> dict[str, list[Ranking]]:
        """Rankings by system, made once and kept on disk; a killed job goes on at the query where it was."""
        file = self._problem_file(problems)
        outs = {system.name: file.with_name(f"{file.stem}-{self._spec_digest(system.spec)}.trec") for system in systems}
        todo = {outs[system.name]: (file, system.spec) for system in systems}
        if len(todo) > 1 and self.workers > 1:
            with worker_pool(self.workers) as pool:
                list(pool.map(_rank, todo, *zip(*todo.values(), strict=True)))
        else:
            for out, (of, spec) in todo.items():
                _rank(out, of, spec)
        return {name: _read_rankings(out, problems) for name, out in outs.items()}

    def evaluate(
        self, systems: Sequence[str | ModelSystem], problems: Sequence[Problem], part: str = "", **more: Any
    ) -> list[Row]:
        """`evaluate_systems` to `out/part`; skipped when its results are there, for the same settings and systems."""
        out, given = self.out / part, dict(more.pop("given", None) or {})
        models = {system.name: system for system in systems if isinstance(system, ModelSystem)}
        stamp = self.digest(
            {
                "systems": {name: self._spec_digest(system.spec) for name, system in models.items()},
                "baselines": [name_of(system) for system in systems if name_of(system) not in models],
                "given": {name: [ranking.docids for ranking in rankings] for name, rankings in given.items()},
                "problems": self._problem_file(problems).stem,
                "measures": MEASURES,
                "config": self.config.model_dump(mode="json", exclude={"out"}) | {"problems": _digest_of(self.config)},
                "more": {key: str(value) for key, value in more.items() if key not in IN_CONFIG},
            }
        )
        if (out / STAMP).is_file() and (out / STAMP).read_text(encoding="utf-8") == stamp:
            return read_results(out / "results.json")
        (out / STAMP).unlink(missing_ok=True)
        specs = {name: dataclasses.asdict(system.spec) for name, system in models.items()}
        settings = self.settings | {"ranked": specs} | dict(more.pop("settings", None) or {})
        rankings = given | self.rankings(list(models.values()), problems)
        baselines = [system for system in systems if isinstance(system, str)]
        result = evaluate_systems(
            baselines, problems, out=out, given=rankings, models=models, settings=settings, **more
        )
        if not any(ranking.error for of_system in result.rankings.values() for ranking in of_system):
            write_whole(out / STAMP, stamp)
        return result.rows

    def _placed(self, config: RunConfig) -> RunConfig:
        """The run with the folder that its settings name."""
        digest = self.digest(config.model_dump(mode="json", exclude={"out"}) | {"problems": _digest_of(config)})
        return config.model_copy(update={"out": self.models / f"{config.design}-{digest}"})

    def _problem_file(self, problems: Sequence[Problem]) -> Path:
        """The problems as a file that is named by its content."""
        return named_by_content(self.models.with_name("rankings"), partial(write_jsonl, problems))

    def _spec_digest(self, spec: RankerSpec) -> str:
        return self.digest({key: value for key, value in dataclasses.asdict(spec).items() if key not in WHERE})

    def digest(self, settings: Mapping[str, Any]) -> str:
        """A short name for settings, wherever the folder of all experiments lies; of a model its files count.

        Those of our own folder are named by what made them.
        """
        model = settings.get("model")
        if model and not Path(model).is_relative_to(self.models):
            here = resolve(model)  # of a hub the name: whether it has been fetched yet makes no other run
            settings = {**settings, "model": fingerprint_model(here) if Path(here).is_dir() else model}
        text = json.dumps(settings, sort_keys=True, default=str).replace(f"{self.models.parent}/", "")
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def train_or_resume(config: RunConfig) -> Path:
    """Train to the end, from the checkpoint in the run's folder where there is one; then it is of no more use."""
    from r1ranker.training.ppo import train

    model = train(config, _splits(config), resume=bool(checkpoints(config.out)), overwrite=True)
    write_whole(config.out / DONE, json.dumps(config.model_dump(mode="json"), indent=2))
    discard(config.out)
    return model


def _splits(config: RunConfig) -> Splits:
    """The problems of the data that are trained on."""
    return _loaded(_data_of(config))


def _data_of(config: RunConfig) -> str:
    used = config.model_copy(update={"data": tuple(data for data in config.data if not data.held_out)})
    settings = used.model_dump(mode="json")
    return json.dumps({key: settings[key] for key in ("data", "scenarios")})


def _digest_of(config: RunConfig) -> str:
    """Of the problems: files may change where they lie."""
    return _digest_of_problems(_data_of(config))


@lru_cache(maxsize=64)
def _digest_of_problems(settings: str) -> str:
    return fingerprint_problems(_loaded(settings))


@lru_cache(maxsize=4)
def _loaded(settings: str) -> Splits:
    config = RunConfig.model_validate(json.loads(settings))
    return load_splits(config.data, config.scenarios)


def _rank(out: Path, problems: Path, spec: RankerSpec) -> None:
    """Rank to the end; a job that left no query without a ranking is not looked at again."""
    trace, done = out.with_suffix(".jsonl"), out.with_suffix(".done")
    if done.exists():
        return
    failed_of(out).unlink(missing_ok=True)  # so that they are tried again
    if not out.exists():  # a job that was killed before its first query may have left one
        trace.unlink(missing_ok=True)
    if not rank_file(problems, spec, out, resume=True, trace=trace).failed:
        done.touch()


def _read_rankings(out: Path, problems: Sequence[Problem]) -> list[Ranking]:
    """In the problems' order; of a query that was tried again, the last."""
    with out.with_suffix(".jsonl").open("rb") as lines:
        by_qid = {ranking.qid: ranking for ranking in map(RANKING.validate_json, lines)}
    return [by_qid[problem.qid] for problem in problems]
