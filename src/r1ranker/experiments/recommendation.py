"""One set of recommenders under four judgements: a figure from sampled negatives is not one of the whole catalogue.

In: a `Study` whose data have users' histories. Out: results by judgement, and tables that show the order of each.

| judgement | what a system ranks |
| --- | --- |
| `uniform` | the next item among items drawn uniformly |
| `popularity` | the next item among items drawn in proportion to popularity and one more |
| `whole-catalogue` | all items the user has not had; a place below `DEPTH` counts 0 |
| `new-items` | the next item among items that nobody took yet, drawn uniformly |

Recommenders learn from training users alone and read of a test user what a ranker reads, the history of the problem.
Over the whole catalogue each of them retrieves its own best `DEPTH`. A model cannot read so many, so it ranks those
of the first stage, the recommender that retrieves most of the dev users' targets; what that one misses counts 0, and
`oracle` is the best order of this window. The embedded users are written as a source of their own (`write_shop`).
Sampled measures change the order of systems (Krichene and Rendle, KDD 2020).
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from r1ranker import datasets
from r1ranker.baselines.common import rank_scored
from r1ranker.baselines.notes import noted_by
from r1ranker.baselines.recommenders import RECOMMENDERS, Log, Scores, in_pools, log_of, sasrec_scores
from r1ranker.datasets import mini, mini_recommendation
from r1ranker.datasets.interactions import had_by_group, interactions
from r1ranker.errors import BackendError, ConfigError
from r1ranker.evaluation.protocols import catalogue, new_items, window_of
from r1ranker.evaluation.results import AVERAGE, Comparison, Row, comparison
from r1ranker.evaluation.significance import holm
from r1ranker.evaluation.systems import read_per_query, read_units
from r1ranker.evaluation.table import CEILING, percent, stars, systems_of
from r1ranker.experiments.report import Table, by_system, save_tables, tests_by_system
from r1ranker.experiments.study import Study
from r1ranker.io.bm25 import query_of, scorer
from r1ranker.io.config import DataConfig
from r1ranker.io.files import write_whole
from r1ranker.problem import Problem, Ranking, Usage, first_by_task, rng_for

WHOLE, NEW = "whole-catalogue", "new-items"
JUDGEMENTS = ("uniform", "popularity", WHOLE, NEW)
DEV = "dev"
BASES = ("random", "prior", "bm25", "oracle")
DEPTH = 100
"""Items that a system retrieves of the whole catalogue."""
MEASURES = ("MRR", "nDCG@10", "hit@10")
STEPS = 1000
"""Least steps of SASRec, which has 20 epochs here; three times as many are for the few problems of a ranker."""
FITS: dict[str, Callable[[Log], Scores]] = {**RECOMMENDERS, "sasrec": partial(sasrec_scores, steps=STEPS)}
RANKINGS = TypeAdapter(dict[str, list[Ranking]])
"""Of one recommender, by judgement, and of dev users over the whole catalogue."""


@dataclass
class Judged:
    """The test problems of a judgement, over all sources, and rankings that are made already, by system."""

    problems: list[Problem] = field(default_factory=list)
    given: dict[str, list[Ranking]] = field(default_factory=dict)

    def add(self, problems: Sequence[Problem], given: Mapping[str, Sequence[Ranking]]) -> None:
        """Those of one more source."""
        self.problems += problems
        for name, rankings in given.items():
            self.given.setdefault(name, []).extend(rankings)


@dataclass(frozen=True)
class Source:
    """What a source gives. learn: training users, whole histories. dev, test: problems with uniform negatives.

    popular: the test problems with popular ones. known: all problems, for their items. had: titles that each dev and
    test user had before the target, by group.
    """

    learn: list[Problem]
    dev: list[Problem]
    test: list[Problem]
    popular: list[Problem]
    known: list[Problem]
    had: Mapping[str, Sequence[str]]


def recommendation(study: Study) -> None:
    """Fit every recommender once for each source, judge all systems four times, save the tables."""
    judged = {name: Judged() for name in JUDGEMENTS}
    told: list[str] = []
    for data in sources(study):
        told.append(judge(study, data, judged))
    rows: dict[str, list[Row]] = {}
    for name, of in judged.items():
        if not of.problems:  # of a few test users none may have taken a new item
            continue
        bases = [base for base in BASES if base not in of.given]
        title = f"Recommenders judged by {name} ({study.scale})"
        rows[name] = study.evaluate([*bases, *study.systems], of.problems, name, given=of.given, title=title)
    save_tables(study.out, tables(study.out, rows, told), study.settings)


def sources(study: Study) -> list[DataConfig]:
    """The study's sources with users' histories; the embedded users as such a source. ConfigError: there is none."""
    found: list[DataConfig] = []
    for data in study.sources:
        if "negatives" in datasets.SOURCES[data.source].options:
            found.append(data)
        elif data.source == "mini":
            domains = mini_recommendation.DOMAINS
            found += [write_shop(domain, data, study.out / f"embedded-{domain}") for domain in domains]
    if not found:
        raise ConfigError("data: no source holds users' histories, such as movielens, recbole or csv")
    return found


def write_shop(domain: str, data: DataConfig, folder: Path) -> DataConfig:
    """The embedded users and titles of a domain as files of source `csv`."""
    items, users = mini_recommendation.choices(domain, data.seed, mini.SIZES)
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "items.csv", ("item", "title"), ((item.docid, item.text) for item in items))
    chosen = ((user.name, item.docid) for user in users for item in user.chosen)
    _write_csv(folder / "interactions.csv", ("user", "item"), chosen)
    return data.model_copy(update={"source": "csv", "path": folder, "options": {"task": f"rec-{domain}"}})


def _write_csv(path: Path, header: Sequence[str], rows: Iterator[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read(data: DataConfig) -> Source:
    """A source's problems by both draws, for the same test users, and its interactions, all of them."""
    drawn = {
        negatives: datasets.load(data.source, data.path, seed=data.seed, **(data.options | {"negatives": negatives}))
        for negatives in ("uniform", "popularity")
    }
    whole = interactions(data.source, data.path, seed=data.seed, **data.options)
    uniform = drawn["uniform"]
    return Source(
        learn=whole["train"],
        dev=first_by_task(uniform["dev"], data.limit),
        test=first_by_task(uniform["test"], data.limit),
        popular=first_by_task(drawn["popularity"]["test"], data.limit),
        known=[problem for problems in uniform.values() for problem in problems],
        had=had_by_group(whole),
    )


def judge(study: Study, data: DataConfig, judged: Mapping[str, Judged]) -> str:
    """Add what a source gives to each judgement; returns what a reader has to know of it.

    Recommenders rank all of its test users, whatever the study's limit, so that one fit serves every later run.
    """
    source = read(data)
    new, remaining = new_items(source.test, source.known, source.learn, data.seed, source.had)
    sampled = {"uniform": source.test, "popularity": source.popular, NEW: new}
    shelf = Shelf.of(log_of(source.learn), source)
    # No model says anything of an item that it was fitted without, so a log without the new ones does for a second fit.
    few = shelf.log.only(log_of(remaining).numbers)

    def rank(name: str) -> dict[str, list[Ranking]]:
        scores = FITS[name](shelf.log)
        logs = {part: few if part == NEW else shelf.log for part in sampled}
        found = {part: rank_scored(in_pools(logs[part], scores), of_part, name) for part, of_part in sampled.items()}
        whole = {DEV: source.dev, WHOLE: source.test}
        return found | {part: shelf.retrieve(name, shelf.way(scores), of_part) for part, of_part in whole.items()}

    made, lacking = _made(study, shelf.log, sampled | {DEV: source.dev}, rank)
    for name, way in shelf.simple().items():
        made[name] = {part: shelf.retrieve(name, way, of) for part, of in ((DEV, source.dev), (WHOLE, source.test))}
    first, share = _first_stage(source.dev, {name: of[DEV] for name, of in made.items()})
    sampled[WHOLE] = window_of(source.test, {r.qid: r.docids for r in made[first][WHOLE]}, source.known)
    asked = {problem.qid for problem in first_by_task(source.test, study.limit)}
    for part, problems in sampled.items():
        given = {name: [r for r in of[part] if r.qid in asked] for name, of in made.items() if part in of}
        learn = remaining if part == NEW else source.learn
        judged[part].add(noted_by(data.show, learn, [p for p in problems if p.qid in asked]), given)
    return (
        f"{source.test[0].task}: {len(shelf.log.sequences)} training users, {len(shelf.log.numbers)} items; first "
        f"stage {first}, which retrieves {percent(share)} of the targets of {len(source.dev)} dev users.{lacking}"
    )


def _made(
    study: Study, log: Log, problems: Mapping[str, Sequence[Problem]], rank: Callable[[str], dict[str, list[Ranking]]]
) -> tuple[dict[str, dict[str, list[Ranking]]], str]:
    """Rankings of every recommender by name, made once and kept on disk; and what is to be said of those left out."""
    pools = {part: [(p.qid, [c.docid for c in p.candidates]) for p in of_part] for part, of_part in problems.items()}
    made, lacking = {}, ""
    for name in FITS:
        digest = study.digest(
            {"recommender": name, "log": log.sequences, "pools": pools, "depth": DEPTH, "steps": STEPS}
        )
        file = study.models.with_name("rankings") / f"{name}-{digest}.json"
        try:
            if not file.is_file():
                write_whole(file, RANKINGS.dump_json(rank(name)).decode())
        except BackendError as error:
            lacking += f" Left out: {name} ({error})."
            continue
        made[name] = RANKINGS.validate_json(file.read_bytes())
    return made, lacking


def _first_stage(dev: Sequence[Problem], retrieved: Mapping[str, Sequence[Ranking]]) -> tuple[str, float]:
    """The system that retrieves most targets of dev users, and the share of them."""
    found = {
        name: fmean(bool(p.gains.keys() & set(r.docids)) for p, r in zip(dev, rankings, strict=True))
        for name, rankings in retrieved.items()
    }
    return max(found.items(), key=lambda one: one[1])


Way = Callable[[Problem], Any]
"""Scores of all items of a log for a problem, an array."""


@dataclass(frozen=True)
class Shelf:
    """The items that training users took, by the numbers of the log. docids: "" for one that stands in no pool."""

    log: Log
    docids: Sequence[str]
    texts: Sequence[str]
    popularity: Any
    had: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, log: Log, source: Source) -> Shelf:
        """Of a source's items."""
        candidates = catalogue(source.known).candidates
        docids = [""] * len(log.numbers)
        for docid, number in log.pool(candidates.values()).items():
            docids[number] = docid
        texts = [candidates[docid].text if docid else title for title, docid in zip(log.numbers, docids, strict=True)]
        popularity = np.zeros(len(texts))
        for titles in log.sequences.values():
            popularity[[log.numbers[title] for title in titles]] += 1
        return cls(log, docids, texts, popularity, source.had)

    def simple(self) -> dict[str, Way]:
        """Systems that need no fit, by name."""
        words = scorer(self.texts)
        return {
            "random": lambda _: np.zeros(len(self.texts)),
            "prior": lambda _: self.popularity,
            "bm25": lambda problem: next(words([query_of(problem)])),
        }

    def way(self, scores: Scores) -> Way:
        """That of a fitted recommender."""
        return lambda problem: scores(self.log.history(problem))

    def retrieve(self, system: str, way: Way, problems: Sequence[Problem]) -> list[Ranking]:
        """The best `DEPTH` of all that each user has not had, ties by a coin."""
        return [self._retrieve(system, way, problem) for problem in problems]

    def _retrieve(self, system: str, way: Way, problem: Problem) -> Ranking:
        began = time.perf_counter()
        # Two items of one title are one to a log: the target is the one that is meant.
        relevant = [c for c in problem.candidates if problem.gains.get(c.docid)]
        meant = {number: docid for docid, number in self.log.pool(relevant).items()}
        barred = [self.log.numbers[title] for title in self.had[problem.group] if title in self.log.numbers]
        scores = np.array(way(problem), dtype=float)
        scores[[*barred, *(number for number, docid in enumerate(self.docids) if not docid)]] = -np.inf
        most = min(DEPTH, len(scores))  # only those that may be among them are sorted
        found = np.flatnonzero((scores >= np.partition(scores, -most)[-most]) & (scores > -np.inf))
        coin = np.random.default_rng(rng_for(system, problem.task, problem.qid).getrandbits(64)).random(len(found))
        best = found[np.lexsort((coin, -scores[found]))][:DEPTH]
        usage = Usage(seconds=time.perf_counter() - began)
        places = tuple(float(len(best) - place) for place in range(len(best)))
        docids = tuple(meant.get(number, self.docids[number]) for number in best.tolist())
        return Ranking(problem.qid, docids, places, usage=usage)


def tables(out: Path, rows: Mapping[str, Sequence[Row]], told: Sequence[str]) -> list[Table]:
    """Places at a glance, all measures, and which differences hold."""
    systems = systems_of([row for of_part in rows.values() for row in of_part])
    return [_places(systems, rows, told), _all(out, systems, rows), _differences(out, systems, rows)]


def _places(systems: Sequence[str], rows: Mapping[str, Sequence[Row]], told: Sequence[str]) -> Table:
    found = {name: by_system(of_part, "MRR") for name, of_part in rows.items()}
    lines = []
    for system in systems:
        cells = [f"{found[name][system].value:.3f}{_place(system, found[name])}" for name in found]
        lines.append((system, *cells))
    counts = ", ".join(f"{name} {next(iter(of.values())).n}" for name, of in found.items())
    note = (
        f"MRR and, in brackets, the place by it; users: {counts}. Over the whole catalogue a place below {DEPTH} "
        "counts 0, oracle and models rank what the first stage retrieved, and all others retrieve by themselves. Of "
        f"new items popularity and recommenders know nothing: a coin. {' '.join(told)}"
    )
    return Table("The order of systems by judgement", ("system", *rows), lines, note)


def _place(system: str, found: Mapping[str, Row]) -> str:
    if system == CEILING:
        return ""
    better = sum(row.value > found[system].value for name, row in found.items() if name != CEILING)
    return f" ({better + 1})"


def _all(out: Path, systems: Sequence[str], rows: Mapping[str, Sequence[Row]]) -> Table:
    lines = []
    for name, of_part in rows.items():
        tests = {measure: tests_by_system(out / name, measure) for measure in MEASURES}
        found = {measure: by_system(of_part, measure) for measure in MEASURES}
        for system in systems:
            cells = [_cell(found[measure][system], tests[measure].get(system)) for measure in MEASURES]
            lines.append((name, system, *cells))
    note = (
        "Mean over tasks ± half of the 95 % bootstrap interval. * p < 0.05, ** p < 0.01 against prior, which is "
        "popularity (paired randomisation, Holm within a judgement and measure), ↓ worse; hit@10 is not tested."
    )
    return Table("All measures", ("judgement", "system", *MEASURES), lines, note)


def _cell(row: Row, test: Comparison | None) -> str:
    return f"{row.value:.3f} ±{(row.ci_high - row.ci_low) / 2:.3f} {stars(test)}".rstrip()


def _differences(out: Path, systems: Sequence[str], rows: Mapping[str, Sequence[Row]]) -> Table:
    """Pairs of systems that do not stand in the same order in every judgement of known items."""
    known = [by_system(of_part, "MRR") for name, of_part in rows.items() if name != NEW]
    compared = [system for system in systems if system not in ("random", CEILING)]
    pairs = [(a, b) for a, b in combinations(compared, 2) if len({of[a].value > of[b].value for of in known}) > 1]
    found = {name: _tested(pairs, out / name) for name in rows}
    lines = [
        (f"{a} − {b}", *(f"{found[name][a, b].difference:+.3f} {stars(found[name][a, b])}".rstrip() for name in rows))
        for a, b in pairs
    ]
    note = "Difference in MRR on the same users; * p < 0.05, ** p < 0.01 (paired randomisation, Holm within a column)."
    return Table("Systems whose order changes", ("systems", *rows), lines, note)


def _tested(pairs: Sequence[tuple[str, str]], out: Path) -> dict[tuple[str, str], Comparison]:
    tests, values, units = {}, read_per_query(out), read_units(out)
    for a, b in pairs:
        found = comparison(b, {a: values[a], b: values[b]}, measures=["MRR"], units=units)
        of_tasks = {one.task: one for one in found}
        tests[a, b] = of_tasks.get(AVERAGE) or next(iter(of_tasks.values()))
    adjusted = holm([test.p for test in tests.values()])
    return {pair: replace(test, p_holm=p) for (pair, test), p in zip(tests.items(), adjusted, strict=True)}
