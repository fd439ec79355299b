"""Data of which nothing was trained on. In: a `Study` with sources held out. Out: results and `tables.json`.

A source is held out by `splits: [test]`. Its problems are ranked by the models of the main table, by what they began
with, and by what needs no training; a first stage stands in the table where the source has one.
"""

from __future__ import annotations

from r1ranker.backends import models
from r1ranker.baselines.notes import load_splits
from r1ranker.errors import ConfigError
from r1ranker.evaluation.table import SHOWN
from r1ranker.experiments.main import costs, differences
from r1ranker.experiments.report import read_comparisons, results_table, save_tables
from r1ranker.experiments.study import Study
from r1ranker.problem import first_by_task

BASE = "base-iterative"
PAIRS = (("iranker", BASE), ("iranker", "bm25"), ("iranker", "minilm"), ("iranker", "dranker"))


def unseen(study: Study) -> None:
    """Train both designs, or find them trained; rank what was held out, save the tables."""
    held = [data for data in study.config.data if data.held_out]
    if not held:
        raise ConfigError("no data are held out, so nothing is unseen: give a source of them splits: [test]")
    problems = first_by_task(load_splits(held, study.config.scenarios)["test"], study.limit)
    dranker, iranker = study.trained_all([["design=dranker"], ["design=iranker"]])
    systems = [
        study.system("base-direct", "dranker", study.config.model),
        study.system(BASE, "iranker", study.config.model),
        study.system("dranker", "dranker", str(dranker)),
        study.system("iranker", "iranker", str(iranker)),
    ]
    encoder = ["minilm"] if models.here(models.MINILM) else []
    title = f"R1-Ranker, unseen data ({study.scale})"
    rows = study.evaluate(["random", "prior", "bm25", *encoder, *systems], problems, baseline=BASE, title=title)
    about = "Nothing in this run was trained on a problem of these tasks."
    about += "" if encoder else f" Left out: minilm (`r1ranker model get {models.MINILM}` has it)."
    tables = [
        results_table("Never trained on", rows, read_comparisons(study.out), about, SHOWN),
        differences("Never trained on, differences in MRR", rows, study.out, PAIRS),
        costs(rows),
    ]
    save_tables(study.out, tables, study.settings)
