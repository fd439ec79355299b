"""One model for everything against specialists of one scenario. In: a `Study`. Out: results by scenario, tables.

The specialists (`baselines.specialists`) learn from the very training problems that the ranker has, and again, as
`NAME-all`, from all that their source holds without the targets of dev and test users, which is what a recommender
would have. Recommendations are tested three more ways (`evaluation.protocols`): with negatives as popular as the
positive, with negatives that share words with the history, and among the whole catalogue where it is small.
Routers are also shown as quality against cost (`evaluation.routing`).

A specialist whose library, pretrained model or notes are not there is left out, and the tables say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from statistics import fmean

from r1ranker import datasets
from r1ranker.baselines import BASELINES
from r1ranker.baselines.notes import load_splits, noted_by
from r1ranker.baselines.simple import without_prior
from r1ranker.baselines.specialists import ALL, SPECIALISTS
from r1ranker.datasets import llmrouter, mini, routing_log
from r1ranker.datasets.interactions import had_by_group, interactions
from r1ranker.datasets.mini_recommendation import DOMAINS, choices
from r1ranker.errors import BackendError, ConfigError
from r1ranker.evaluation import routing
from r1ranker.evaluation.protocols import full_catalogue, hard_negatives, matched_negatives
from r1ranker.evaluation.results import Row
from r1ranker.evaluation.routing import Outcome, Outcomes, Weights
from r1ranker.evaluation.table import systems_of
from r1ranker.experiments.report import Table, by_system, save_tables
from r1ranker.experiments.routing_bench import mini_asked
from r1ranker.experiments.study import Study
from r1ranker.io.config import DataConfig
from r1ranker.problem import Problem, Ranking, by_task, scenario_names

BASES = ("random", "prior", "oracle")
LARGEST_CATALOGUE = 500
"""Items of a task that are all ranked; a larger catalogue would take thousands of calls a query."""
FEW = 10
"""Test problems per task that are ranked among the whole catalogue."""
LOGS = {"llmrouter": llmrouter.outcomes, "routing-log": routing_log.outcomes}
"""Sources that know what each LLM scored and cost on a query."""
BUDGETS = (0.1, 0.25, 0.5)
"""Mean costs a query, as shares of the dearest LLM's."""


def specialists(study: Study) -> None:
    """Train the ranker in both designs and every specialist, evaluate each scenario, save the tables."""
    models = dict(zip(("dranker", "iranker"), study.trained_all([["design=dranker"], ["design=iranker"]]), strict=True))
    learn, lacking = {"": study.problems("train"), "-all": everything(study)}, dict[str, str]()
    rows: dict[str, list[Row]] = {}
    tables: list[Table] = []
    sets = test_sets(study)
    ranked_by = rankings_of_specialists(learn, sets, lacking)
    for part, problems in sets.items():
        windows = part == "whole-catalogue" and not study.reads_pools_whole
        settings = ["window=20"] if windows else []
        systems = [study.system(name, name, str(model), *settings) for name, model in models.items()]
        given = ranked_by[part]
        title = f"R1-Ranker and specialists, {part} ({study.scale})"
        rows[part] = study.evaluate([*BASES, *systems], problems, part, given=given, baseline="iranker", title=title)
        if part == "routing":
            bases = [name for name in BASES if name != "prior" or not without_prior(problems)]
            ranked = {name: BASELINES[name](problems) for name in bases} | given | study.rankings(systems, problems)
            tables += routing_table(outcomes(study, problems), problems, ranked)
    save_tables(study.out, [_summary(rows, lacking), *tables], study.settings)


def test_sets(study: Study) -> dict[str, list[Problem]]:
    """The study's test problems by scenario, and recommendations by the other protocols."""
    test = study.problems("test")
    sets: dict[str, list[Problem]] = {s: [p for p in test if p.scenario == s] for s in scenario_names(test)}
    for data in study.sources:
        splits = load_splits([data.model_copy(update={"show": ()})], study.config.scenarios)
        wanted = {problem.qid for problem in sets.get("recommendation", ())}
        plain = [problem for problem in splits["test"] if problem.qid in wanted]
        known = [
            problem for problems in splits.values() for problem in problems if problem.scenario == "recommendation"
        ]
        few = [
            problem
            for task, of_task in by_task(plain).items()
            if len({c.docid for p in known if p.task == task for c in p.candidates}) <= LARGEST_CATALOGUE
            for problem in of_task[:FEW]
        ]
        had = had_of(data) if plain else {}
        found = {
            "matched-popularity": matched_negatives(plain, known, had=had),
            "similar-words": hard_negatives(plain, known, had=had),
            "whole-catalogue": full_catalogue(few, known, had=had),
        }
        for part, problems in found.items():
            sets.setdefault(part, []).extend(noted_by(data.show, splits["train"], problems))
    return {part: problems for part, problems in sets.items() if problems}


def had_of(data: DataConfig) -> Mapping[str, Sequence[str]]:
    """Titles that the users of a source had, by group, where it knows more than a problem's history."""
    if data.source == "mini":
        users = (user for domain in DOMAINS for user in choices(domain, data.seed, mini.SIZES)[1])
        return {user.name: [item.title for item in user.chosen] for user in users}
    if "history" in datasets.SOURCES[data.source].options:
        return had_by_group(interactions(data.source, data.path, seed=data.seed, **data.options))
    return {}


def everything(study: Study) -> list[Problem]:
    """All that the sources let specialists learn from, where that is more than the run's training problems."""
    found: list[Problem] = []
    for data in study.sources:
        if "history" in datasets.SOURCES[data.source].options:
            splits = interactions(data.source, data.path, seed=data.seed, **data.options)
            found += [problem for problems in splits.values() for problem in problems]
        elif data.limit is not None and data.path is not None:  # a limit of the embedded source is for a quick test
            found += datasets.load(
                data.source, data.path, seed=data.seed, scenarios=study.config.scenarios, **data.options
            )["train"]
    return found


def rankings_of_specialists(
    learn: Mapping[str, Sequence[Problem]], sets: Mapping[str, Sequence[Problem]], lacking: dict[str, str]
) -> dict[str, dict[str, list[Ranking]]]:
    """Rankings of each test set by every specialist of its scenario, by name and the suffix of what it learnt from.

    All test sets of a scenario are ranked at once, so that each specialist is trained once for each set of training
    problems. A task that a larger set does not hold is learnt from the first one. `lacking` collects why one is
    left out.
    """
    given: dict[str, dict[str, list[Ranking]]] = {part: {} for part in sets}
    for scenario in scenario_names(problem for problems in sets.values() for problem in problems):
        of_scenario = {part: problems for part, problems in sets.items() if problems[0].scenario == scenario}
        tasks = {problem.task for problems in of_scenario.values() for problem in problems}
        small = [problem for problem in learn[""] if problem.task in tasks]
        for suffix, problems in learn.items():
            of_tasks = [problem for problem in problems if problem.task in tasks]
            held = {problem.task for problem in of_tasks}
            train = [*of_tasks, *(problem for problem in small if problem.task not in held)]
            # A test set of which the larger set holds nothing would be ranked as it already was.
            asked = {part: ps for part, ps in of_scenario.items() if not suffix or held & {p.task for p in ps}}
            for part, found in _ranked(scenario, suffix, train, asked, lacking):
                given[part] |= found
    return given


def _ranked(
    scenario: str,
    suffix: str,
    train: Sequence[Problem],
    sets: Mapping[str, Sequence[Problem]],
    lacking: dict[str, str],
) -> Iterator[tuple[str, dict[str, list[Ranking]]]]:
    for name, specialist in SPECIALISTS.items():
        if scenario not in specialist.scenarios and specialist.scenarios != ALL:
            continue
        # Those of all scenarios learn nothing from all interactions: encoders are not trained here, and the places that
        # LambdaMART weighs stand in the ranker's own problems. They take each set alone, for seconds of its own.
        trains = specialist.scenarios != ALL
        together = [sets] if trains else [{part: problems} for part, problems in sets.items() if not suffix]
        for batch in filter(None, together):
            if name in lacking:
                continue
            try:
                rankings = iter(specialist.rank(train, [p for problems in batch.values() for p in problems]))
            except (BackendError, ConfigError) as error:
                lacking[name] = str(error)
                continue
            for part, problems in batch.items():
                yield part, {name + suffix: list(islice(rankings, len(problems)))}


def outcomes(study: Study, problems: Sequence[Problem]) -> Outcomes:
    """Score and relative cost of each LLM on each test query, where the source knows them."""
    found: dict[str, dict[str, Outcome]] = {}
    for data in study.sources:
        if data.source in LOGS and data.path is not None:
            qids = [problem.qid for problem in problems]
            told = {key: value for key, value in data.options.items() if key in ("task", "llms")}
            known = LOGS[data.source](data.path, qids, **told)
            found |= {qid: {llm: Outcome(*pair) for llm, pair in pairs.items()} for qid, pairs in known.items()}
        if data.source == "mini":
            _, _, asked = mini_asked(data)
            mine = {problem.qid: asked[problem.qid] for problem in problems if problem.qid in asked}
            found |= {q: {llm: Outcome(s, one.costs[llm]) for llm, s in one.scores.items()} for q, one in mine.items()}
    return found


def routing_table(known: Outcomes, problems: Sequence[Problem], ranked: Mapping[str, Sequence[Ranking]]) -> list[Table]:
    """Mean score and cost of what each router chose under each objective, and the area under these points.

    Only questions that stand in every task count, so that all points are of the same. None where costs are not known.
    """
    tasks = by_task(problems)
    shared = set.intersection(*({p.group for p in of_task} for of_task in tasks.values()))
    asked = {p.qid: p.task for p in problems if p.group in shared and p.qid in known}
    if not asked:
        return []
    alone = routing.llm_points({qid: known[qid] for qid in asked})
    low, high = min(p.cost for p in alone.values()), max(p.cost for p in alone.values())
    lines = [("all LLMs, mixed", *[""] * len(tasks), *_curve(list(alone.values()), low, high), "")]
    for name, rankings in ranked.items():
        chosen = routing.first_choices(r for r in rankings if r.qid in asked)
        of_task = {task: {q: llm for q, llm in chosen.items() if asked[q] == task} for task in tasks}
        points = [routing.point(choices, known) for choices in of_task.values()]
        lost = [fmean(routing.regret(c, known, _weights(task)).values()) for task, c in of_task.items()]
        cells = [f"{point.quality:.3f} for {point.cost:.3f}" for point in points]
        lines.append((name, *cells, *_curve(points, low, high), f"{fmean(lost):.3f}"))
    within = (f"quality within {share:.0%}" for share in BUDGETS)
    note = (
        f"Mean score for mean cost on {len(shared)} questions, costs as shares of the dearest LLM's. AIQ "
        f"(RouterBench): mean quality over all mean costs from {low:.3f} to {high:.3f}, on the convex hull of a "
        "router's points; so is quality within a mean cost. regret: utility lost to the oracle, mean over the "
        "objectives. The router's own cost is not in it: no price of its tokens is known here."
    )
    columns = ("router", *(task.removeprefix("route-") for task in tasks), "AIQ", *within, "regret")
    return [Table("Routing: quality and cost", columns, lines, note)]


def _curve(points: Sequence[routing.Point], low: float, high: float) -> list[str]:
    values = [routing.aiq(points, low, high), *(routing.quality_within(points, share * high) for share in BUDGETS)]
    return [f"{value:.3f}" for value in values]


def _weights(task: str) -> Weights:
    objective = llmrouter.objective_for(task.rpartition("-")[2])
    return Weights(objective.quality, objective.cost)


def _summary(rows: Mapping[str, Sequence[Row]], lacking: Mapping[str, str]) -> Table:
    """MRR of every system on every set of test problems, mean over tasks."""
    found = {part: by_system(of_part, "MRR") for part, of_part in rows.items()}
    systems = systems_of([row for of_part in rows.values() for row in of_part])
    lines = [(s, *(f"{of[s].value:.3f}" if s in of else "" for of in found.values())) for s in systems]
    counts = ", ".join(f"{part} {next(iter(of.values())).n}" for part, of in found.items())
    note = (
        f"MRR, mean over tasks; test queries: {counts}. Names with -all learnt from all that the source holds, the "
        "others from the training problems of the ranker. Intervals and tests stand in the parts below."
    )
    absent = "".join(f" Left out: {name} ({reason})." for name, reason in lacking.items())
    return Table("Specialists", ("system", *(part.replace("-", " ") for part in rows)), lines, note + absent)
