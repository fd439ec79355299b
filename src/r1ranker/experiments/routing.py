"""Routing, honestly: what can be had for a cost, and where the gap to the oracle comes from. In: a `Study`.

    r1ranker reproduce routing -s 'data=[{source: llmrouter, path: data/llm-routing}]' --system mine=iranker:smol

Every test question counts, also one that all LLMs answer alike. Nothing is fitted to test questions: the best single
LLM and the best of each data set are those of training questions, the routers learn there, and how many neighbours and
clusters they have is what reaches the best curve on dev. A router expects a score and a cost of each LLM on a question
and takes the best score less price * cost, for many prices: these points are its curve. A ranker under test is asked
with each objective, so it has a point for each of the source's option `objectives`; the utility that everyone has at
just these weights is a table of its own (`routing_weights`).

Out: `results.json` and what else an evaluation writes, `curves.json`, and `curve-NAME.svg` for each source.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from r1ranker.backends.encoders import DENSE, load
from r1ranker.backends.loading import pick_dtype
from r1ranker.baselines.notes import noted_by
from r1ranker.baselines.routers import clustered, nearest
from r1ranker.errors import BackendError
from r1ranker.evaluation import routing
from r1ranker.evaluation.results import AVERAGE, Comparison, Row, comparison, rows_of, write_results
from r1ranker.evaluation.routing import Outcome, Outcomes, Point
from r1ranker.evaluation.significance import BOOTSTRAP_SAMPLES, percentile_interval
from r1ranker.experiments.report import Table, save_tables
from r1ranker.experiments.routing_bench import UNKNOWN, Bench, benches
from r1ranker.experiments.routing_tables import (
    LEVEL,
    SINGLE,
    Curve,
    cost_table,
    curve_picture,
    gap_table,
    luck_table,
    means,
    routers_table,
)
from r1ranker.experiments.routing_weights import UTILITY, utilities, weighed, weights_table
from r1ranker.experiments.study import Study
from r1ranker.io.files import replacing, write_whole
from r1ranker.io.progress import track
from r1ranker.io.provenance import provenance

NEIGHBOURS = (10, 20, 40, 80, 160, 320)
CLUSTERS = (4, 8, 16, 32, 64, 128)
PRICES = (0.0, *(10 ** (step / 5) for step in range(-15, 16)))
"""Of costs, as shares of what the dearest LLM costs on average: from quality alone to the cheapest."""
ENCODED_AT_ONCE = 256


def compare_routers(study: Study) -> None:
    """Evaluate routers on each source of outcomes, save rows, tests, curves and tables."""
    rows: list[Row] = []
    tests: list[Comparison] = []
    tables: list[Table] = []
    values: dict[str, dict[str, Any]] = {}
    points: list[dict[str, Any]] = []
    for bench in benches(study.sources, study.limit):
        known = bench.known["test"]
        expected, lacking = routers(study, bench)
        asked = ranker_choices(study, bench)
        choices = _along_prices(bench, expected) | asked
        curves = {"random": [_random(known)]} | {
            name: [routing.chosen_outcomes(one, known) for one in of_system] for name, of_system in choices.items()
        }
        level = next(name for name in (LEVEL, "kmeans", SINGLE) if name in choices)
        shared = bench.in_shares()
        at_weights = weighed(shared, expected if shared is bench else routers(study, shared)[0], asked)
        useful = utilities(shared, at_weights)
        measured = {name: _values(bench, curve) | {UTILITY: useful[name].mean} for name, curve in curves.items()}
        of_bench = {name: {bench.name: of_router} for name, of_router in measured.items()}
        found = [row for name, value in of_bench.items() for row in rows_of(name, "test", value)]
        found = [row for row in found if row.task != AVERAGE] + aiq_rows(bench, curves)
        compared = _tests(of_bench, level)
        tables += [
            routers_table(bench, curves, found, compared, level, lacking),
            *([cost_table(bench, curves)] if bench.unit != UNKNOWN else []),
            weights_table(bench, at_weights, useful, found, compared),
            gap_table(bench, routing.gap_parts(choices[SINGLE][0], choices[level][0], known), level),
            luck_table(bench, curves, level),
        ]
        if len({*bounds(known)}) > 1:  # else there is no axis of costs
            write_whole(study.out / f"curve-{bench.name}.svg", curve_picture(bench, curves))
        points += _points(bench, curves)
        for name, value in of_bench.items():
            values.setdefault(name, {}).update(value)
        rows, tests = rows + found, tests + compared
    origin = provenance() | {"settings": study.settings}
    write_results(study.out / "results.json", rows, {"per_query": values, "comparisons": tests, "provenance": origin})
    write_whole(study.out / "curves.json", json.dumps(points, indent=1) + "\n")
    save_tables(study.out, tables)


def routers(study: Study, bench: Bench) -> tuple[dict[str, Outcomes], str]:
    """What every router that learns expects of test questions; and what was left out, and why."""
    train, known = bench.known["train"], bench.known["test"]
    expected: dict[str, Outcomes] = {SINGLE: routing.expected_by_kind(train, {}, known)}
    if bench.datasets:
        expected[LEVEL] = routing.expected_by_kind(train, bench.datasets, known)
    lacking = ""
    try:
        expected |= _by_embeddings(study, bench)
    except BackendError as error:
        lacking = f"kNN and k-means are left out: {error}"
    expected["oracle"] = known
    return expected, lacking


def _along_prices(bench: Bench, expected: Mapping[str, Outcomes]) -> dict[str, list[dict[str, str]]]:
    """Choices on test questions at each price by every router."""
    prices = _prices(bench.known["train"])
    choices: dict[str, list[dict[str, str]]] = {}
    with track(len(expected) * len(prices), f"{bench.name}, curves") as advance:
        for name, of_router in expected.items():
            choices[name] = routing.choices_by_price(of_router, prices)
            advance(len(prices))
    return choices


def _by_embeddings(study: Study, bench: Bench) -> dict[str, Outcomes]:
    """What kNN and k-means over the same embeddings expect on test questions; their sizes are those best on dev."""
    vectors = {split: embedded(study, bench, split) for split in bench.known}
    train = bench.known["train"]
    learners = {
        "knn": [partial(nearest, neighbours=count) for count in NEIGHBOURS],
        "kmeans": [partial(clustered, clusters=count, seed=study.config.seed) for count in CLUSTERS],
    }
    found: dict[str, Outcomes] = {}
    with track(sum(map(len, learners.values())), f"{bench.name}, sizes on dev") as advance:
        for name, of_kind in learners.items():
            reached: list[float] = []
            fitted = [learn(vectors["train"], _targets(train)) for learn in of_kind]
            for predict in fitted:
                reached.append(_aiq_on_dev(bench, _outcomes(predict(vectors["dev"]), train, bench.known["dev"])))
                advance(1)
            best = fitted[int(np.argmax(reached))]
            found[name] = _outcomes(best(vectors["test"]), train, bench.known["test"])
    return found


def embedded(study: Study, bench: Bench, split: str) -> Any:
    """Unit vectors of a split's questions by MiniLM, kept on disk; shape (questions, dimensions)."""
    texts = [problem.query for problem in next(iter(bench.problems[split].values()))]
    digest = hashlib.sha256("\0".join([DENSE, study.config.dtype, *texts]).encode()).hexdigest()[:12]
    file = study.models.with_name("embeddings") / f"{digest}.npy"
    if not file.is_file():
        encoder = load("SentenceTransformer", DENSE)
        encoder.to(pick_dtype(study.config.dtype, encoder.device, encoder))
        parts = []
        with track(len(texts), f"{bench.name}, {split}: embedding") as advance:
            for start in range(0, len(texts), ENCODED_AT_ONCE):
                some = texts[start : start + ENCODED_AT_ONCE]
                parts.append(encoder.encode(some, normalize_embeddings=True, show_progress_bar=False))
                advance(len(some))
        with replacing(file) as fresh, fresh.open("wb") as opened:
            np.save(opened, np.concatenate(parts))
    return np.load(file)


def ranker_choices(study: Study, bench: Bench) -> dict[str, list[dict[str, str]]]:
    """The first LLM of each ranker under test, for each objective, by the question's name."""
    if not study.systems:
        return {}
    of_objective = {
        name: noted_by(bench.show, bench.problems["train"][name], problems)
        for name, problems in bench.problems["test"].items()
    }
    together = [problem for problems in of_objective.values() for problem in problems]
    choices: dict[str, list[dict[str, str]]] = {}
    for name, rankings in study.rankings(study.systems, together).items():
        first = routing.first_choices(rankings)
        choices[name] = [
            {qid: first[problem.qid] for qid, problem in zip(bench.known["test"], problems, strict=True)}
            for problems in of_objective.values()
        ]
    return choices


def aiq_rows(bench: Bench, curves: Mapping[str, Curve]) -> list[Row]:
    """Area under each curve (AIQ), and what it has above that of the single LLMs, with intervals by question.

    The same questions are drawn for all, so differences are paired. Bounds are the mean costs of the cheapest and of
    the dearest LLM.
    """
    low, high = bounds(bench.known["test"])
    whole = {name: routing.aiq(means(curve), low, high) for name, curve in curves.items()}
    n = len(bench.known["test"])
    shares_B_Q = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP_SAMPLES) / n
    drawn = {name: _aiq_samples(curve, shares_B_Q, low, high) for name, curve in curves.items()}
    rows = []
    for name in curves:
        difference = percentile_interval(drawn[name] - drawn[SINGLE])
        rows.append(Row(bench.name, name, "test", "AIQ", whole[name], n, *percentile_interval(drawn[name])))
        rows.append(Row(bench.name, name, "test", "AIQ above", whole[name] - whole[SINGLE], n, *difference))
    return rows


def bounds(known: Outcomes) -> tuple[float, float]:
    """Mean cost of the cheapest and of the dearest LLM."""
    costs = [one.cost for one in routing.llm_points(known).values()]
    return min(costs), max(costs)


def _aiq_samples(curve: Curve, shares_B_Q: Any, low: float, high: float) -> Any:
    """One AIQ for each bootstrap sample of the questions, of which `shares_B_Q` are the parts they have in it."""
    costs_P_Q = np.array([[one.cost for one in at_price.values()] for at_price in curve])
    scores_P_Q = np.array([[one.score for one in at_price.values()] for at_price in curve])
    pairs = zip((shares_B_Q @ costs_P_Q.T).tolist(), (shares_B_Q @ scores_P_Q.T).tolist(), strict=True)
    return np.array([routing.aiq([*map(Point, *pair)], low, high) for pair in pairs])


def _aiq_on_dev(bench: Bench, expected: Outcomes) -> float:
    dev = bench.known["dev"]
    choices = routing.choices_by_price(expected, _prices(bench.known["train"]))
    return routing.aiq([routing.point(one, dev) for one in choices], *bounds(dev))


def _prices(train: Outcomes) -> list[float]:
    dearest = bounds(train)[1] or 1.0  # where all cost nothing, no price matters
    return [price / dearest for price in PRICES]


def _targets(train: Outcomes) -> Any:
    """Scores and then costs of the LLMs on each training question; shape (questions, 2 * LLMs)."""
    return np.array([[*(o.score for o in q.values()), *(o.cost for o in q.values())] for q in _aligned(train).values()])


def _outcomes(predicted_Q_V: Any, train: Outcomes, asked: Outcomes) -> Outcomes:
    llms = list(next(iter(_aligned(train).values())))
    return {
        qid: {llm: Outcome(row[k], row[len(llms) + k]) for k, llm in enumerate(llms)}
        for qid, row in zip(asked, predicted_Q_V.tolist(), strict=True)
    }


def _aligned(known: Outcomes) -> dict[str, dict[str, Outcome]]:
    """LLMs in one order for every question."""
    return {qid: dict(sorted(of_query.items())) for qid, of_query in known.items()}


def _random(known: Outcomes) -> dict[str, Outcome]:
    """What a fair draw among the LLMs has on each question, in the mean."""
    return {
        qid: Outcome(fmean(o.score for o in of_query.values()), fmean(o.cost for o in of_query.values()))
        for qid, of_query in known.items()
    }


def _values(bench: Bench, curve: Curve) -> dict[str, dict[str, float]]:
    quality = {qid: one.score for qid, one in curve[0].items()}
    if bench.unit == UNKNOWN:
        return {"quality": quality}
    return {"quality": quality, "cost": {qid: one.cost for qid, one in curve[0].items()}}


def _points(bench: Bench, curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    return [
        {"task": bench.name, "system": name, **point._asdict()}
        for name, curve in curves.items()
        for point in means(curve)
    ]


def _tests(of_bench: Mapping[str, Any], level: str) -> list[Comparison]:
    """Every system against the best single LLM, and those above it against `level`: two families of each measure."""
    measures = ["quality", UTILITY]
    tests = comparison(SINGLE, of_bench, measures=measures)
    if level != SINGLE:
        others = {name: value for name, value in of_bench.items() if name != SINGLE}
        tests += comparison(level, others, measures=measures)
    return tests
