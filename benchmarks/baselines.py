"""Each baseline beside a published or an independently computed value on the same split. Needs `data/` (docs/data.md).

    python benchmarks/baselines.py --json baselines.json      # the config real, 300 test queries a task
    python benchmarks/baselines.py --only bm25 prior                       # some of them

Published: BM25 on TREC-DL as Anserini's regressions state it. The others are computed anew in `independent.py`: from
the raw files, in dense arrays, or by another implementation. A row is the mean over queries of both and the 95 %
bootstrap interval (over queries) of the paired difference; it is noise where zero lies inside. What is learned from a
random start is the mean of two seeds on both sides. Training problems are those that `r1ranker reproduce specialists`
gives; rows marked `all` learn from all interactions of the source, its test users' histories included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import independent
import numpy as np
from independent import Scores
from rich.console import Console
from rich.table import Table

from r1ranker.baselines import BASELINES
from r1ranker.baselines.notes import load_splits
from r1ranker.baselines.specialists import SPECIALISTS
from r1ranker.cli.common import write_json
from r1ranker.datasets import load
from r1ranker.datasets.interactions import interactions
from r1ranker.datasets.llmrouter import OBJECTIVES
from r1ranker.datasets.rankllm import read_qrels
from r1ranker.evaluation.measures import evaluate
from r1ranker.evaluation.significance import confidence_interval
from r1ranker.io.config import DataConfig, load_config
from r1ranker.io.provenance import provenance
from r1ranker.problem import Problem, Ranking, Splits, by_task

LIMIT = 300
SEEDS = (0, 1)
ROUNDING = 5e-5
"""Half of the last digit that is published."""
SOURCES = {"rec-movie": "movielens", "rec-music": "amazon-windows", "rec-game": "recbole"}
EXPECTED, OTHERS = "its expectation, H(n)/n for one relevant of n", 8
ANSERINI = "Anserini's regressions, BM25 with k1 0.9 and b 0.4: published"
PUBLISHED = {"19": {"nDCG@10": 0.5058, "MRR": 0.8245}, "21": {"nDCG@10": 0.4458, "MRR": 0.5060}}
"""By year. What counts as relevant in MRR: 2019 a grade of 1 and 1 000 passages, 2021 a grade of 2 and 100."""
NOT_COMPARED = {
    "router-encoder, dense, cross-encoder": "no pretrained encoder at hand; tests hold them to transformers' own output"
}


@dataclass(frozen=True, slots=True)
class Row:
    """One baseline on one task. agree: share of queries whose ranking is one that the other side's scores allow."""

    baseline: str
    task: str
    measure: str
    beside: str
    queries: int
    ours: float
    other: float
    difference: float
    low: float
    high: float
    agree: float | None
    verdict: str


@dataclass(frozen=True, slots=True)
class Data:
    """What is compared on: the sources, their training problems, the first test problems of each task."""

    sources: dict[str, DataConfig]
    train: dict[str, list[Problem]]
    test: dict[str, list[Problem]]

    def path(self, source: str) -> Path:
        """The raw files."""
        return Path(str(self.sources[source].path))

    def tasks(self, scenario: str) -> list[str]:
        """Names of a scenario's tasks."""
        return [task for task, problems in self.test.items() if problems[0].scenario == scenario]

    def everything(self, task: str) -> list[Problem]:
        """All interactions of a task's source but the targets of dev and test users."""
        source = self.sources[SOURCES[task]]
        splits = interactions(source.source, source.path, seed=source.seed, **source.options)
        return [problem for problems in splits.values() for problem in problems]


def read(config: Path, limit: int) -> Data:
    """The config's problems; a path in it counts from where the command is run."""
    sources = load_config(config, []).data
    splits: Splits = load_splits(sources)
    test = {task: problems[:limit] for task, problems in by_task(splits["test"]).items()}
    return Data({source.source: source for source in sources}, by_task(splits["train"]), test)


def row(name: str, task: str, measure: str, beside: str, ours: Any, other: Any, agree: float | None = None) -> Row:
    """Values of queries on both sides; the other may be one published number."""
    ours, gaps = np.asarray(ours), np.asarray(ours) - np.asarray(other)
    low, high = confidence_interval(gaps)
    published = np.ndim(other) == 0
    alike = abs(gaps.mean()) <= ROUNDING if published else low <= 0 <= high
    verdict = "equal as published" if published and alike else "within noise" if alike else "differs"
    means = (float(ours.mean()), float(np.mean(other)), float(gaps.mean()))
    return Row(name, task, measure, beside, len(ours), *means, low, high, agree, verdict)


def mrr(rankings: Sequence[Ranking], problems: Sequence[Problem], measure: str = "MRR") -> list[float]:
    """The package's value of each problem."""
    return list(evaluate(rankings, problems)[measure].values())


def scored(name: str, task: str, beside: str, test: Sequence[Problem], rankings: Any, scores: Scores) -> Row:
    """A row of MRR, the other side's from scores."""
    agree = independent.allowed(scores, test, [ranking.docids for ranking in rankings])
    return row(name, task, "MRR", beside, mrr(rankings, test), independent.reciprocal_ranks(scores, test), agree)


def first_stages(data: Data) -> Iterator[Row]:
    """The passages' prior on every query that TREC judged, each year's whole first stage."""
    path = data.path("rankllm")
    splits = load("rankllm", path, tasks=["passage-bm25"], relevant_at=1)
    judged = [problem for problems in splits.values() for problem in problems]
    strict = {p.qid: p for ps in load("rankllm", path, tasks=["passage-bm25"], relevant_at=2).values() for p in ps}
    for year, values in PUBLISHED.items():
        qids = {line.split()[0] for line in next(path.glob(f"qrels*dl{year}*")).read_text().splitlines()}
        assert qids <= read_qrels(path).keys()
        for measure, value in values.items():
            as_asked = strict if (year, measure) == ("21", "MRR") else {}
            of_year = [as_asked.get(p.qid, p) for p in judged if p.qid in qids]
            found = mrr(BASELINES["prior"](of_year), of_year, measure)
            yield row("prior", f"TREC-DL 20{year}", measure, ANSERINI, found, value)


def chances(data: Data) -> Iterator[Row]:
    """Random orders beside their expectation, on training problems too: nothing is learned, and more tell more.

    The order of a problem is always the same; other orders are those of the same problems by other names.
    """
    for task, test in data.test.items():
        problems = [*data.train[task], *test]
        expected = [independent.chance(problem) for problem in problems]
        found = mrr(BASELINES["random"](problems), problems)
        yield row("random", task, "MRR", EXPECTED, found, expected)
        renamed = ([replace(p, qid=f"{p.qid} {n}") for p in problems] for n in range(OTHERS))
        orders = [mrr(BASELINES["random"](of_round), of_round) for of_round in renamed]
        yield row(f"random, {OTHERS} other orders", task, "MRR", EXPECTED, np.mean(orders, axis=0), expected)


def oracles(data: Data) -> Iterator[Row]:
    """By gains: a relevant candidate is always first."""
    for task, test in data.test.items():
        gains = [np.array([float(p.gains.get(c.docid, 0)) for c in p.candidates]) for p in test]
        yield scored("oracle", task, "gains", test, BASELINES["oracle"](test), gains)


def bm25s(data: Data) -> Iterator[Row]:
    """Lucene's formula over the same texts."""
    for task, test in data.test.items():
        scores = independent.lucene_bm25(test)
        yield scored("bm25", task, "Lucene's formula word by word", test, BASELINES["bm25"](test), scores)


def priors(data: Data) -> Iterator[Row]:
    """Popularity and the best average LLM, counted in the raw files."""
    for task in data.tasks("recommendation"):
        test, source = data.test[task], data.sources[SOURCES[task]]
        train = interactions(source.source, source.path, seed=source.seed, **source.options)["train"]
        scores = independent.counted(source.source, data.path(source.source), {p.group[1:] for p in train}, test)
        yield scored("prior", task, "users counted in the raw file", test, BASELINES["prior"](test), scores)
    train = [problem for task in data.tasks("routing") for problem in data.train[task]]
    for task in data.tasks("routing"):
        test, wish = data.test[task], OBJECTIVES[task.removeprefix("route-")]
        scores = independent.mean_utilities(data.path("llmrouter"), train, test, wish.quality, wish.cost)
        yield scored("prior", task, "mean utility in the raw files", test, BASELINES["prior"](test), scores)


Other = Callable[[Sequence[Problem], Sequence[Problem], int], Scores]


def learned(name: str, label: str, task: str, beside: str, other: Other, train: Any, test: Any, seeds: Any) -> Row:
    """A specialist and its counterpart; with seeds, the mean over them of each query's value on both sides."""
    if not seeds:
        return scored(label, task, beside, test, SPECIALISTS[name].rank(train, test), other(train, test, 0))
    ours = [mrr(SPECIALISTS[name].rank(train, test, seed=seed), test) for seed in seeds]
    others = [independent.reciprocal_ranks(other(train, test, seed), test, seed) for seed in seeds]
    return row(label, task, "MRR", beside, np.mean(ours, axis=0), np.mean(others, axis=0))


def recommenders(name: str, beside: str, other: Other, seeds: Sequence[int], data: Data) -> Iterator[Row]:
    """On each task, and on movies with all that the source holds."""
    for task in data.tasks("recommendation"):
        yield learned(name, name, task, beside, other, data.train[task], data.test[task], seeds)
    task = "rec-movie"
    yield learned(name, f"{name}, all", task, beside, other, data.everything(task), data.test[task], seeds)


def sasrecs(data: Data) -> Iterator[Row]:
    """One seed and no more than the ranker's training problems: minutes a task."""
    for task in data.tasks("recommendation"):
        given = data.train[task], data.test[task]
        yield learned("sasrec", "sasrec", task, "SASRec in torch, all items", independent.plain_sasrec, *given, (0,))


def routers(name: str, beside: str, other: Other, seeds: Sequence[int], data: Data) -> Iterator[Row]:
    """On each objective."""
    for task in data.tasks("routing"):
        yield learned(name, name, task, beside, other, data.train[task], data.test[task], seeds)


def fusions(data: Data) -> Iterator[Row]:
    """On every task, over the places that the config shows."""
    other = unseeded(independent.choice_model)
    for task, test in data.test.items():
        beside = "conditional logit, a linear model of the same places"
        yield learned("lambdamart", "lambdamart", task, beside, other, data.train[task], test, ONCE)


def perceptron(train: Sequence[Problem], test: Sequence[Problem], seed: int) -> Scores:
    """The library's network of 100 hidden units, stopped by a tenth of the training queries; untamed, it overfits."""
    from sklearn.neural_network import MLPRegressor

    return independent.regressed(train, test, MLPRegressor(early_stopping=True, random_state=seed))


def ridge(train: Sequence[Problem], test: Sequence[Problem], seed: int) -> Scores:
    """Linear, by least squares: the same inputs as the matrix factorisation, another loss."""
    from sklearn.linear_model import Ridge

    return independent.regressed(train, test, Ridge())


def outside(model: str, python: str, train: Sequence[Problem], test: Sequence[Problem], seed: int) -> Scores:
    """Scores by another library, in a Python that has it."""
    of_users = independent.sequences(train)
    numbers = independent.numbered(of_users.values())
    pools: list[list[int]] = []
    independent.pools(test, numbers, lambda _, pool: pools.append(pool.tolist()) or 0)
    asked = {
        "model": model,
        "seed": seed,
        "items": len(numbers),
        "train": [[numbers[name] for sequence in of_user for name in sequence] for of_user in of_users.values()],
        "histories": [[numbers[name] for name in p.history if name in numbers] for p in test],
        "pools": pools,
    }
    script = str(Path(__file__).with_name("outside.py"))
    answer = subprocess.run([python, script], input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=True)
    scores = json.loads(answer.stdout)["scores"]
    return independent.pools(test, numbers, lambda of_problem, _: scores[of_problem])


def unseeded(score: Callable[[Sequence[Problem], Sequence[Problem]], Scores]) -> Other:
    """What needs no seed, as what takes one."""
    return lambda train, test, seed: score(train, test)


ONCE: tuple[int, ...] = ()
COMPARED: dict[str, Callable[[Data], Iterator[Row]]] = {
    "trec": first_stages,
    "random": chances,
    "oracle": oracles,
    "bm25": bm25s,
    "prior": priors,
    "item-knn": partial(recommenders, "item-knn", "cosines of dense columns", unseeded(independent.item_cosines), ONCE),
    "router-knn": partial(routers, "router-knn", "NearestNeighbors, mean", unseeded(independent.neighbours), ONCE),
    "router-mlp": partial(routers, "router-mlp", "MLPRegressor, stopped early", perceptron, SEEDS),
    "router-mf": partial(routers, "router-mf", "Ridge, a linear model of another loss", ridge, SEEDS),
    "bpr": partial(recommenders, "bpr", "BPR in torch, test users as rows", independent.plain_bpr, SEEDS),
    "sasrec": sasrecs,
    "lambdamart": fusions,
}


def peers(python: str | None) -> dict[str, Callable[[Data], Iterator[Row]]]:
    """Comparisons with `implicit` where a Python that has it is given."""
    if python is None:
        return {}
    bpr, cosine = (partial(outside, model, python) for model in ("bpr", "cosine"))
    return {
        "item-knn, implicit": partial(recommenders, "item-knn", "implicit's CosineRecommender", cosine, ONCE),
        "bpr, implicit": partial(recommenders, "bpr", "implicit's BPR, test users as rows", bpr, SEEDS),
    }


def main() -> None:
    """Parse, compare, print each row when it is there, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("real"))
    parser.add_argument("--limit", type=int, default=LIMIT, help="test queries a task")
    parser.add_argument("--only", nargs="+", choices=COMPARED, default=list(COMPARED), metavar="NAME")
    parser.add_argument("--peers-python", metavar="PATH", help="a Python that has implicit")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    console, data = Console(), read(given.config, given.limit)
    compared = peers(given.peers_python) | {name: COMPARED[name] for name in given.only}
    settings = {"limit": given.limit, "seeds": SEEDS, "not compared": NOT_COMPARED}
    saved: dict[str, Any] = {"provenance": provenance(), "settings": settings, "rows": []}
    for compare in compared.values():
        for each in compare(data):
            saved["rows"].append(asdict(each))
            console.print(each)
            write_json(given.json, saved)
    shown = ("baseline", "task", "measure", "queries", "ours", "other", "difference", "low", "high", "agree", "verdict")
    table = Table(*shown, title="baselines beside independent values")
    for of_row in saved["rows"]:
        table.add_row(*(f"{of_row[k]:.4f}" if isinstance(of_row[k], float) else str(of_row[k]) for k in shown))
    console.print(table)


if __name__ == "__main__":
    main()
