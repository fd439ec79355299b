"""What elimination adds to judges: quality beside cost, from the embedded model on the embedded tasks.

    python benchmarks/elimination.py --seeds 0 --out runs/elimination      # hours on one core; what is done is kept

A judge gives each candidate a number and a query is one pass; an identifier is a decision that attends to all that are
left. Every run is that of the quickstart with as many training tokens in all, some in two parts: the second begins from
the model of the first, with another read-out. In: nothing. Out: `<out>/seed<N>`, rankings of the test queries by every
system and an evaluation of them, each tested against `judge` where it is asked for.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.evaluation.systems import evaluate_systems
from r1ranker.experiments.study import Study
from r1ranker.io.config import load_config
from r1ranker.io.files import write_whole
from r1ranker.problem import Problem, Ranking
from r1ranker.ranking.rankers import DRanker, Hybrid, IRanker, Ranker

Overrides = tuple[str, ...]
SECOND_LOOK = 5
LONGEST = 20
"""Candidates of the longest pool: so many leaving at once are all in one decision."""
AT_ONCE = 60
"""Queries between two writes of a file."""
BEST: Overrides = ("design=iranker", "readout=judge", "ask=best", "ppo.objective=log")
STEPS: Overrides = ("ppo.validate_problems=10",)
"""A ranking of many decisions costs as much on dev as hundreds of training samples, so fewer choose the model."""
LABEL: Overrides = (*BEST, *STEPS, "readout=identifier")
RELIST: Overrides = (*BEST, *STEPS, "layout=relist", "ppo.actor_lr=5e-5", "ppo.critic=head")
RUNS: dict[str, tuple[tuple[float, Overrides], ...]] = {
    "judge": ((1.0, BEST),),
    "judge-worst": ((1.0, (*BEST, "ask=worst")),),
    "identifier": ((1.0, LABEL),),
    "identifier-worst": ((1.0, (*LABEL, "ask=worst")),),
    "judge, then identifier": ((0.5, BEST), (0.5, LABEL)),
    "judge, and identifier": ((1.0, BEST), (0.25, LABEL)),
    "judge, then relist": ((0.5, BEST), (0.5, RELIST)),
    "list": ((1.0, ("design=dranker", "readout=judge", "ppo.objective=surrogate")),),
}
"""What each part of a run trains, and on how much of the token budget. `judge, and identifier` has a quarter more than
the others: what it does not reach is not for want of tokens."""


def judge(backend: TransformersBackend) -> Ranker:
    """Each candidate by its own number."""
    return IRanker(backend, layout="blocks", ask="best")


def named(backend: TransformersBackend, **settings: str | int) -> IRanker:
    """A decision a step."""
    return IRanker(backend, layout="blocks", readout="identifier", **({"ask": "best"} | settings))  # type: ignore[arg-type]


def listed(backend: TransformersBackend, layout: str, ask: str = "worst") -> IRanker:
    """A decision a step over candidates that see each other; the embedded model was made to remove the worst so."""
    return IRanker(backend, layout=layout, ask=ask)  # type: ignore[arg-type]


def again(backend: TransformersBackend, then: Ranker) -> Ranker:
    """The best few of the judge's order are read once more."""
    return Hybrid(then, first=judge(backend), size=SECOND_LOOK)


SYSTEMS: dict[str, tuple[str, Callable[[TransformersBackend], Ranker]]] = {
    "judge": ("judge", judge),
    "judge-worst": ("judge-worst", lambda b: IRanker(b, layout="blocks", ask="worst")),
    "list": ("list", lambda b: DRanker(b, layout="blocks")),
    "identifier": ("identifier", named),
    "identifier-one-step": ("identifier", lambda b: named(b, drop=LONGEST)),
    "taught": ("judge, then identifier", named),
    "taught-one-step": ("judge, then identifier", lambda b: named(b, drop=LONGEST)),
    "taught-judge": ("judge, then identifier", judge),
    "taught-judge-5": ("judge, then identifier", lambda b: again(b, named(b))),
    "added": ("judge, and identifier", named),
    "added-one-step": ("judge, and identifier", lambda b: named(b, drop=LONGEST)),
    "added-judge": ("judge, and identifier", judge),
    "added-judge-5": ("judge, and identifier", lambda b: again(b, named(b))),
    "judge-judge-5": ("judge", lambda b: again(b, judge(b))),
    "judge-relist-5": ("judge", lambda b: again(b, listed(b, "relist"))),
    "judge-relist-5-best": ("judge", lambda b: again(b, listed(b, "relist", "best"))),
    "judge-append-5": ("judge", lambda b: again(b, listed(b, "append"))),
    "identifier-worst": ("identifier-worst", lambda b: named(b, ask="worst")),
    "identifier-worst-one-step": ("identifier-worst", lambda b: named(b, ask="worst", drop=LONGEST)),
    "relisted": ("judge, then relist", lambda b: listed(b, "relist", "best")),
    "relisted-judge": ("judge, then relist", judge),
    "relisted-judge-5": ("judge, then relist", lambda b: again(b, listed(b, "relist", "best"))),
}
"""By name: the run whose model ranks, and how."""
RANKINGS = TypeAdapter(list[Ranking])


def study_of(seed: int, limit: int | None, out: Path) -> Study:
    """The quickstart's run with this seed; models are shared by all that ask for the same."""
    base = load_config(Path("quickstart"), [f"seed={seed}", "threads=1"])
    part = f"seed{seed}" + (f"-{limit}" if limit else "")
    return Study("elimination", "mini", base, out / part, out / "models", limit)


def trained(study: Study, run: str) -> Path:
    """The model of a run, its parts one after the other; what is done is not done again."""
    model = study.config.model
    for share, overrides in RUNS[run]:
        model = str(study.trained([*overrides, f"model={model}", f"ppo.token_budget={study.budget(share)}"]))
    return Path(model)


def ranked(study: Study, system: str, problems: Sequence[Problem]) -> list[Ranking]:
    """The rankings of a system; those in its file are not made again."""
    file = study.models.parent / "rankings" / f"seed{study.config.seed}" / f"{system}.json"
    known = {ranking.qid: ranking for ranking in RANKINGS.validate_json(file.read_bytes())} if file.is_file() else {}
    todo = [problem for problem in problems if problem.qid not in known]
    if todo:
        run, ranker = SYSTEMS[system]
        backend = TransformersBackend.load(str(trained(study, run)))
        for first in range(0, len(todo), AT_ONCE):
            known |= {r.qid: r for r in ranker(backend).rank_many(todo[first : first + AT_ONCE])}
            write_whole(file, RANKINGS.dump_json(list(known.values())).decode())
    return [known[problem.qid] for problem in problems]


def by_oracle(problem: Problem, ranking: Ranking) -> Ranking:
    """The best few of an order in the order of their gains: more than this no second look can give."""
    head = sorted(ranking.docids[:SECOND_LOOK], key=lambda docid: -problem.gains.get(docid, 0.0))
    return dataclasses.replace(ranking, docids=(*head, *ranking.docids[SECOND_LOOK:]))


def main() -> None:
    """Train, rank and evaluate, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--limit", type=int, help="test queries of each task (all)")
    parser.add_argument("--out", type=Path, default=Path("runs/elimination"), help="what is done is not done again")
    asked = parser.parse_args()
    for seed in asked.seeds:
        study = study_of(seed, asked.limit, asked.out)
        problems = study.problems("test")
        given = {name: ranked(study, name, problems) for name in asked.systems}
        models, judged = list(given), given.get("judge", [])
        if judged:
            given["oracle-5"] = [by_oracle(*pair) for pair in zip(problems, judged, strict=True)]
        evaluate_systems(
            ["random", "prior"],
            problems,
            out=study.out,
            baseline="judge" if judged else "prior",
            title="What elimination adds to judges",
            settings=study.settings,
            given=given,
            models=models,
        )


if __name__ == "__main__":
    main()
