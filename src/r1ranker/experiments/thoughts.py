"""Thought templates (paper, IRanker-CoT). In: a `Study`. Out: recorded thoughts, results, and the gains by task.

The trained model ranks training problems aloud and its thoughts are kept (`ranking.thoughts`). Then the model as it
was before training ranks the test problems three times: as it is, behind thoughts on similar queries, and behind as
many thoughts on queries drawn at random. Only what the second has over the third is owed to similarity.

A run whose model answers without thoughts (the embedded one does) first gets a short supervised start with them,
and that is then what counts as untrained.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from r1ranker.evaluation.results import Row, TaskValues, comparison
from r1ranker.evaluation.significance import Units
from r1ranker.evaluation.systems import read_per_query, read_units
from r1ranker.evaluation.table import stars, tasks_of
from r1ranker.experiments.main import tested
from r1ranker.experiments.report import Table, results_table, save_tables
from r1ranker.experiments.study import SHORT, Study
from r1ranker.io.files import named_by_content
from r1ranker.problem import first_by_task
from r1ranker.ranking.thoughts import Thought, recorded, worth_showing, write_thoughts

UNTRAINED, SIMILAR, RANDOM, TRAINED = "untrained", "similar-thoughts", "random-thoughts", "iranker"
TEACH_THOUGHTS = (
    *("warmstart.scratch=null", "warmstart.pointwise=0"),
    *("warmstart.think_share=1", "warmstart.ranking_share=0", "warmstart.append_share=0"),
)
ALOUD = ("layout=relist", "ask=worst")
"""How a run that answers without thoughts asks for them: blocks have none, and examples remove the worst."""
GENTLY = ("think=true", "ppo.answer=sampled", "ppo.objective=surrogate", "ppo.kl=0.01", *ALOUD)


def thoughts(study: Study) -> None:
    """Record thoughts of the trained model, show them to the untrained one, save the tables."""
    untrained, trained = _models(study)
    store, kept = record(study, trained)
    aloud, shown = (untrained, *_aloud(study)), f"thoughts={json.dumps(str(store))}"
    systems = [
        study.system(UNTRAINED, "iranker", *aloud),
        study.system(RANDOM, "iranker", *aloud, shown, "recall=random"),
        study.system(SIMILAR, "iranker", *aloud, shown),
        study.system(TRAINED, "iranker", trained, *_aloud(study)),
    ]
    title = f"R1-Ranker, thought templates ({study.scale})"
    rows = study.evaluate(["random", "prior", *systems], study.problems("test"), baseline=UNTRAINED, title=title)
    values, units = read_per_query(study.out), read_units(study.out)
    tests = comparison(UNTRAINED, values, units=units)
    tables = [gains(rows, values, units), results_table("Thought templates", rows, tests), stock(kept)]
    save_tables(study.out, tables)


def _models(study: Study) -> tuple[str, str]:
    """The model before training and after, both of which think."""
    if study.config.think:
        return study.config.model, str(study.trained(["design=iranker"]))
    untrained = str(study.warmstarted([*TEACH_THOUGHTS, *study.size.taught_aloud]))
    settings = (*GENTLY, f"model={json.dumps(untrained)}", f"ppo.token_budget={study.budget(SHORT)}")
    return untrained, str(study.trained(["design=iranker", *study.size.taught_aloud, *settings]))


def _aloud(study: Study) -> tuple[str, ...]:
    """The settings of a ranker that thinks."""
    return ("think=true",) if study.config.think else ("think=true", *ALOUD)


def record(study: Study, trained: str) -> tuple[Path, list[Thought]]:
    """The thoughts of the trained model on training problems, and their file, which is named by its content."""
    problems = first_by_task(study.problems("train"), study.size.aloud)
    system = study.system(TRAINED, "iranker", trained, *_aloud(study))
    rankings = study.rankings([system], problems)[TRAINED]
    kept = list(recorded(problems, rankings, study.config.ppo.reward, system.spec.ask or study.config.ask))
    return named_by_content(study.out, partial(write_thoughts, kept), "thoughts-{}.jsonl"), kept


def gains(rows: Sequence[Row], values: Mapping[str, TaskValues], units: Units) -> Table:
    """MRR behind similar thoughts less MRR without any and behind random ones, by task."""
    over = {base: tested(SIMILAR, base, values, units) for base in (UNTRAINED, RANDOM)}
    mrr = {(row.task, row.system): row.value for row in rows if row.measure == "MRR"}
    lines = []
    for task in tasks_of(rows):
        measured = [mrr[task, system] for system in (UNTRAINED, RANDOM, SIMILAR)]
        relative = f"{measured[-1] / measured[0] - 1:+.1%}" if measured[0] else "none: at 0"
        differences = (f"{tests[task].difference:+.3f} {stars(tests[task])}".strip() for tests in over.values())
        lines.append((task, *(f"{value:.3f}" for value in measured), *differences, relative))
    columns = ("task", UNTRAINED, RANDOM, SIMILAR, f"over {UNTRAINED}", f"over {RANDOM}", "relative gain")
    note = (
        "MRR of the untrained model without thoughts and behind three recorded ones; * p < 0.05, ** p < 0.01 (paired "
        "randomisation, Holm over the tasks of a column), ↓ worse. The paper reports gains on all nine tasks, the "
        "largest +22.87 % relative."
    )
    return Table("Gain by recorded thoughts", columns, lines, note)


def stock(kept: Sequence[Thought]) -> Table:
    """What was recorded, by task: steps, share of valid answers, words of a thought, thoughts fit to show."""
    usable = Counter(thought.task for thought in worth_showing(kept))
    lines = []
    for task in dict.fromkeys(thought.task for thought in kept):
        of_task = [thought for thought in kept if thought.task == task]
        valid = sum(thought.kind == "valid" for thought in of_task) / len(of_task)
        words = sum(len(thought.thought.split()) for thought in of_task) / len(of_task)
        lines.append((task, str(len(of_task)), f"{valid:.0%}", f"{words:.1f}", str(usable[task])))
    note = "Of the trained model on training problems, while a relevant candidate was left. usable: one of a query."
    return Table("Recorded thoughts", ("task", "steps", "valid", "words", "usable"), lines, note)
