"""The package in one function each: `rank`, `recommend`, `route`; `train`, `evaluate`, `compare`.

    from r1ranker import rank

    for hit in rank("how long do barn owls live", ["About four years.", "It eats several mice in a night."]):
        print(hit.rank, hit.score, hit.text)

The first three take what a program has in memory (`datasets.inline`) and load a model once in a process
(`ranking.loaded`); `arank`, `arecommend` and `aroute` are for `await`. The others do what the commands of their names
do, from the same files. All imports are in the functions, so that ranking loads nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from r1ranker.errors import BackendError, ConfigError
from r1ranker.problem import Candidate, Problem

if TYPE_CHECKING:
    from r1ranker.datasets.inline import Texts
    from r1ranker.evaluation.results import Comparison
    from r1ranker.evaluation.systems import Evaluation, ModelSystem
    from r1ranker.io.config import RunConfig
    from r1ranker.ranking.ranked import Ranked

Result = TypeVar("Result")
MODEL = "smol"
BASELINES = ("random", "prior", "bm25")
EITHER = "resume goes on with the run that overwrite deletes: give one of them"


@overload
def rank(
    query: str, texts: Texts, model: str = ..., *, top_k: int | None = ..., instruction: str = ..., **settings: Any
) -> Ranked: ...
@overload
def rank(
    query: Sequence[str],
    texts: Texts,
    model: str = ...,
    *,
    top_k: int | None = ...,
    instruction: str = ...,
    **settings: Any,
) -> list[Ranked]: ...
def rank(
    query: str | Sequence[str],
    texts: Texts,
    model: str = MODEL,
    *,
    top_k: int | None = None,
    instruction: str = "",
    **settings: Any,
) -> Ranked | list[Ranked]:
    """Texts by how well they answer the query, best first.

    texts: a list of strings, of dicts (text, title, docid), a mapping of docids, or a DataFrame (`datasets.inline`).
    A `score` of each is the first stage's, for `fuse`.
    Of several queries: a list or table for each, or one for all; the answer is a list, and a query that failed has no
    hits and says why in `ranking.error`. top_k: how many to return (None: all). instruction: what is wanted, in your
    own words. settings: any field of a `RankerSpec` but `query` and `store`, such as `design` or `base_urls`. A call of
    `arank` that is given up goes on to its end in its thread.

    Raises BackendError where the model cannot be had or the only query failed; ConfigError and DataError for settings
    and texts that cannot be used.
    """
    from r1ranker.datasets.inline import pool_of

    if not isinstance(query, Iterable):
        raise ConfigError(f"the query is {query!r}: give a text, or a list of them")
    queries = [query] if isinstance(query, str) else list(query)
    pools = [texts] if isinstance(query, str) else _pools(texts, len(queries))
    problems = [
        Problem(
            f"query-{place}",
            "rank",
            "passage",
            candidates,
            query=text,
            prior=prior,
            instruction=instruction,
        )
        for place, (text, (candidates, prior)) in enumerate(zip(queries, map(pool_of, pools), strict=True), start=1)
    ]
    ranked = _ranked(problems, model, top_k, settings)
    return _only(ranked) if isinstance(query, str) else ranked


def recommend(
    history: Texts,
    items: Texts,
    model: str = MODEL,
    *,
    query: str = "",
    top_k: int | None = None,
    instruction: str = "",
    **settings: Any,
) -> Ranked:
    """Items by how likely the user takes them next. history: what they took, oldest first; items and the rest: see
    `rank`. query: what else is known of the user or asked for."""
    from r1ranker.datasets.inline import pool_of, titles_of

    candidates, prior = pool_of(items)
    problem = Problem(
        "user",
        "recommend",
        "recommendation",
        candidates,
        query=query,
        history=titles_of(history),
        prior=prior,
        instruction=instruction,
    )
    return _only(_ranked([problem], model, top_k, settings))


def route(
    prompt: str,
    llms: Texts,
    model: str = MODEL,
    *,
    cost_quality: float | None = None,
    objective: str = "",
    top_k: int | None = None,
    instruction: str = "",
    **settings: Any,
) -> Ranked:
    """LLMs by how well they serve the prompt; `[0].docid` is the name to send it to.

    llms: names, dicts (name, description, size, input_price and output_price per million tokens), a mapping of names
    to descriptions, or a DataFrame. cost_quality: the weight of quality, from 0, only price matters, to 1, only
    quality, said as a number; left out, both matter equally. objective: that in words, in its place. The rest: see
    `rank`.
    """
    from r1ranker.datasets.inline import llms_of, objective_of

    if objective != "" and cost_quality is not None:
        raise ConfigError("cost_quality and objective say the same thing: give one of them")
    if isinstance(cost_quality, str):
        raise ConfigError(f"cost_quality is {cost_quality!r}: give a number from 0 to 1, or words as objective")
    given: str | float = "balance" if objective == "" else objective
    wish = objective_of(given if cost_quality is None else cost_quality)
    pool: tuple[Candidate, ...] = llms_of(llms)
    problem = Problem("prompt", "route", "routing", pool, query=prompt, objective=wish, instruction=instruction)
    return _only(_ranked([problem], model, top_k, settings))


async def arank(query: str | Sequence[str], texts: Texts, model: str = MODEL, **settings: Any) -> Any:
    """`rank`, in a thread of its own."""
    return await _in_thread(rank, query, texts, model, **settings)


async def arecommend(history: Texts, items: Texts, model: str = MODEL, **settings: Any) -> Ranked:
    """`recommend`, in a thread of its own."""
    return await _in_thread(recommend, history, items, model, **settings)


async def aroute(prompt: str, llms: Texts, model: str = MODEL, **settings: Any) -> Ranked:
    """`route`, in a thread of its own."""
    return await _in_thread(route, prompt, llms, model, **settings)


def train(
    config: RunConfig | Path | str, *, settings: Sequence[str] = (), resume: bool = False, overwrite: bool = False
) -> Path:
    """Train by PPO as `r1ranker train` does; returns the directory of the model that was best on dev.

    config: of the run, or its YAML file; settings: as `-s`, such as `["ppo.steps=100"]`.
    """
    from r1ranker.baselines.notes import load_splits
    from r1ranker.io.locks import check_folder
    from r1ranker.training.ppo import train as run

    loaded = _config(config, settings)
    check_folder(loaded.out, "out")
    if resume and overwrite:
        raise ConfigError(EITHER)
    return run(loaded, load_splits(loaded.data, loaded.scenarios), resume=resume, overwrite=overwrite)


def evaluate(
    config: RunConfig | Path | str,
    systems: Sequence[str | ModelSystem] = (),
    *,
    settings: Sequence[str] = (),
    baselines: Sequence[str] = BASELINES,
    runs: Mapping[str, Path | str] | None = None,
    against: str = "prior",
    split: str = "test",
    out: Path | str = "runs/eval",
    workers: int = 1,
    overwrite: bool = False,
) -> Evaluation:
    """Compare systems on the data of a config as `r1ranker evaluate` does; files and a page are in `out`.

    systems: `NAME=DESIGN:MODEL`, such as `iranker=iranker:runs/x/model`, or a `ModelSystem`. runs: TREC run files by
    name. The page shows the learning curves of all systems whose model lies in the folder of its training run.
    """
    from r1ranker.baselines.notes import load_splits
    from r1ranker.evaluation.systems import check_systems, evaluate_systems, parse_system
    from r1ranker.io.files import at_home
    from r1ranker.io.locks import check_folder, held
    from r1ranker.io.runs import check_names, read_run

    loaded, folder = _config(config, settings), Path(out)
    models = [parse_system(one, loaded) if isinstance(one, str) else one for one in systems]
    named: list[str | ModelSystem] = [*baselines, *models]
    check_systems(named, runs or (), against)
    check_folder(folder, "out")
    if (folder / "report.html").exists() and not overwrite:
        replace = "give --overwrite (in Python overwrite=True) to replace it"
        raise ConfigError(f"{folder} holds an evaluation; name another out, or {replace}")
    with ExitStack() as stack:
        stack.enter_context(held(folder / "results.json"))
        ranked = {name: read_run(at_home(path)) for name, path in (runs or {}).items()}
        for one in models:
            one.spec.check()
        splits = load_splits(loaded.data, loaded.scenarios)
        if not splits.get(split):
            raise ConfigError(f"the data have no {split!r} problems; splits: {', '.join(splits)}")
        check_names(splits[split])
        return evaluate_systems(
            named,
            splits[split],
            out=folder,
            split=split,
            baseline=against,
            settings=loaded.model_dump(mode="json"),
            runs=ranked,
            train=splits["train"],
            curves=_curves(models),
            workers=workers,
        )


def compare(out: Path | str, against: str | None = None, *, measure: str = "MRR") -> list[Comparison]:
    """Paired tests of a finished evaluation as `r1ranker compare` makes them. against: None is as in the evaluation."""
    from r1ranker.evaluation.results import comparison
    from r1ranker.evaluation.systems import read_baseline, read_per_query, read_units

    folder = Path(out)
    values = read_per_query(folder)
    known = sorted({name for tasks in values.values() for of_task in tasks.values() for name in of_task})
    if measure not in known:
        raise ConfigError(f"{folder} has no measure {measure!r}; there are {', '.join(known)}")
    return comparison(against or read_baseline(folder), values, measures=[measure], units=read_units(folder))


async def _in_thread(function: Callable[..., Result], *given: Any, **settings: Any) -> Result:
    import asyncio

    return await asyncio.to_thread(function, *given, **settings)


def _pools(texts: Texts, count: int) -> list[Texts]:
    """A pool for each query: those given, where each is a list or a table, else the one for all."""
    from r1ranker.datasets.inline import is_table

    if not (isinstance(texts, list | tuple) and texts and all(isinstance(t, list) or is_table(t) for t in texts)):
        once = isinstance(texts, Iterator)  # which the first query would use up
        return [list(texts) if once else texts] * count
    if len(texts) != count:
        raise ConfigError(
            f"there are {count} queries and {len(texts)} lists of texts: give one for each, or one for all"
        )
    return list(texts)


def _ranked(problems: Sequence[Problem], model: str, top_k: int | None, settings: Mapping[str, Any]) -> list[Ranked]:
    from r1ranker.ranking.loaded import loaded
    from r1ranker.ranking.ranked import Ranked, answered
    from r1ranker.ranking.rankers import First
    from r1ranker.ranking.spec import RankerSpec, changed

    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise ConfigError(f"top_k must be a whole number of at least 1, not {top_k!r}; None returns all")
    if settings.get("store"):
        raise ConfigError("a store is kept by `r1ranker rank --store`, or by a CandidateStore of your own")
    spec = changed(RankerSpec(), {"model": model, **settings})
    with loaded(spec) as ranker:
        rankings = (First(ranker, top_k) if top_k else ranker).rank_many(problems)
    rankings = [answered(ranking) for ranking in rankings]
    return [Ranked.of(problem, ranking, top_k) for problem, ranking in zip(problems, rankings, strict=True)]


def _only(ranked: Sequence[Ranked]) -> Ranked:
    if error := ranked[0].ranking.error:
        raise BackendError(error)
    return ranked[0]


def _config(config: RunConfig | Path | str, settings: Sequence[str]) -> RunConfig:
    from r1ranker.io.config import RunConfig, load_config

    if not isinstance(config, RunConfig):
        return load_config(Path(config), settings)
    if settings:
        raise ConfigError("settings change what a file says: give the file, or a config that has them")
    return config


def _curves(models: Sequence[ModelSystem]) -> dict[str, list[dict[str, float]]]:
    """Training logs of models that lie in their run's folder, by the system's name."""
    from r1ranker.training.logs import read_log

    logs = {one.name: read_log(Path(one.spec.model).parent) for one in models if Path(one.spec.model).is_dir()}
    return {name: log for name, log in logs.items() if log}
