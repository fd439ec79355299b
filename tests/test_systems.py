"""Systems side by side: what cannot be measured is refused, and what a figure does not say is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import small_problem
from r1ranker.datasets import mini
from r1ranker.errors import ConfigError, DataError
from r1ranker.evaluation.results import AVERAGE, Row
from r1ranker.evaluation.systems import Evaluation, ModelSystem, evaluate_systems, read_baseline
from r1ranker.evaluation.table import warnings_of
from r1ranker.problem import Problem, Ranking
from r1ranker.ranking.spec import RankerSpec

KNOWN = {f"d{k}": float(5 - k) for k in range(1, 5)}


def problems(count: int = 6, **fields: object) -> list[Problem]:
    """The relevant candidate stands first."""
    return [small_problem(qid=f"{fields.get('task', 'toy')}-{k}", **fields) for k in range(count)]  # type: ignore[arg-type]


def run_of(of: list[Problem], count: int | None = None) -> list[Ranking]:
    return [Ranking(p.qid, tuple(c.docid for c in p.candidates), (4.0, 3.0, 2.0, 1.0)) for p in of[:count]]


def mrr(found: Evaluation, system: str, task: str = "toy") -> Row:
    return next(r for r in found.rows if (r.system, r.task, r.measure) == (system, task, "MRR"))


@pytest.mark.parametrize("settings", [{"top_k": 4}, {"top_k": 9}], ids=str)
def test_a_model_that_asks_nothing_ranks_by_chance_and_is_marked(
    settings: dict[str, int], tiny_dir: Path, tmp_path: Path
) -> None:
    system = ModelSystem("silent", RankerSpec(model=str(tiny_dir), **settings))  # type: ignore[arg-type]
    found = evaluate_systems(["random", system], problems(60), out=tmp_path, baseline="random")
    assert 0.25 < mrr(found, "silent").value < 0.8
    assert "asked nothing about 60 of 60 queries" in warnings_of(found.rows)["silent"][0]
    page = (tmp_path / "report.html").read_text()
    assert "silent †" in page and "asked nothing about 60 of 60 queries" in page


def test_without_a_relevant_candidate_nothing_is_measured(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no candidate of any of the 6 problems is relevant"):
        evaluate_systems(["random"], problems(gains={"elsewhere": 1}), out=tmp_path / "out", baseline="random")
    assert not (tmp_path / "out").exists()


def test_queries_without_a_relevant_candidate_are_counted(tmp_path: Path) -> None:
    some = [*problems(3), *problems(2, task="none", gains={})]
    found = evaluate_systems(["random"], some, out=tmp_path, baseline="random")
    assert (
        "2 of 5 queries have no relevant candidate and count 0 for every system; no query has one on none"
        in found.notes
    )


def test_a_run_that_lacks_queries_counts_0_for_them_and_says_so(tmp_path: Path) -> None:
    of = problems(4, prior=KNOWN)
    runs = {"theirs": [*run_of(of, 3), Ranking("other", ("d1",), (1.0,))]}
    found = evaluate_systems(["prior"], of, out=tmp_path, runs=runs)
    assert (mrr(found, "theirs").value, mrr(found, "theirs").n) == (0.75, 4)
    assert "has no ranking of 1 of 4 queries" in warnings_of(found.rows)["theirs"][0]
    assert "theirs: 1 of its 4 queries are not among the problems and do not count" in found.notes
    foreign = [Ranking(problem.qid, ("x", "y"), (2.0, 1.0)) for problem in of]
    with pytest.raises(DataError, match="run theirs: none of its documents is a candidate of its query"):
        evaluate_systems(["prior"], of, out=tmp_path / "foreign", runs={"theirs": foreign})
    with pytest.raises(DataError, match="run theirs: none of its 1 queries is among the 4 problems"):
        evaluate_systems(["prior"], of, out=tmp_path, runs={"theirs": runs["theirs"][3:]})


def test_a_prior_made_of_nothing_has_no_row_and_another_baseline_is_stated(tmp_path: Path) -> None:
    found = evaluate_systems(["random", "prior", "bm25"], problems(), out=tmp_path)
    assert {row.system for row in found.rows} == {"random", "bm25"}
    assert {one.baseline for one in found.comparisons} == {"bm25"} == {read_baseline(tmp_path)}
    assert "no prior: the problems hold no scores of their candidates, so there is no such row" in found.notes
    assert "differences are tested against bm25 instead" in found.notes
    assert "no prior" in (tmp_path / "report.html").read_text()
    unnamed = evaluate_systems(["random", "bm25"], problems(), out=tmp_path)
    assert {one.baseline for one in unnamed.comparisons} == {"bm25"} and "against bm25 instead" in unnamed.notes[-1]
    alone = evaluate_systems(["prior"], problems(), out=tmp_path, runs={"theirs": run_of(problems())})
    assert alone.comparisons == [] and "no difference is tested" in alone.notes


def test_the_prior_stands_on_the_tasks_that_have_one(tmp_path: Path) -> None:
    some = [*problems(task="with", prior=KNOWN), *problems(task="without")]
    some[0] = small_problem(qid="with-cold", task="with")
    found = evaluate_systems(["random", "prior"], some, out=tmp_path)
    assert {row.task for row in found.rows if row.system == "prior"} == {"with"}
    assert {row.task for row in found.rows if row.system == "random"} == {"with", "without", AVERAGE}
    assert {one.task for one in found.comparisons} == {"with"}
    assert any(note.startswith("no prior on without: ") for note in found.notes)
    assert "no difference is tested on without" in found.notes
    assert "no prior for 1 of 6 queries: there the row is a random order" in found.notes


def test_specialists_learn_from_training_problems_and_stand_on_the_tasks_they_serve(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    splits = mini.load(limit=3)
    found = evaluate_systems(
        ["random", "item-knn", "router-knn"], splits["test"], out=tmp_path, baseline="random", train=splits["train"]
    )
    tasks = {name: {row.task for row in found.rows if row.system == name} for name in ("item-knn", "router-knn")}
    assert all(task.startswith("rec-") for task in tasks["item-knn"]) and len(tasks["item-knn"]) == 3
    assert all(task.startswith("route-") for task in tasks["router-knn"]) and len(tasks["router-knn"]) == 3
    assert {one.task for one in found.comparisons if one.system == "item-knn"} == tasks["item-knn"]
    (note,) = [note for note in found.notes if note.startswith("no item-knn")]
    assert "passage-5" in note and "rec-" not in note and "of tasks that have training problems" in note


def test_a_specialist_that_serves_nothing_here_is_left_out_and_an_unknown_name_has_its_nearest(tmp_path: Path) -> None:
    found = evaluate_systems(["random", "bpr"], problems(), out=tmp_path, baseline="random", train=problems())
    assert {row.system for row in found.rows} == {"random"}
    assert [note for note in found.notes if note.startswith("no bpr: ")]
    with pytest.raises(ConfigError, match="unknown baseline 'item_knn'; did you mean 'item-knn'"):
        evaluate_systems(["random", "item_knn"], problems(), out=tmp_path, baseline="random")


def test_queries_for_which_the_first_stage_found_nothing_count_0_for_all(tiny_dir: Path, tmp_path: Path) -> None:
    empty = small_problem(qid="empty", candidates=(), nothing_found=True)
    systems = ["random", "prior", "bm25", "oracle", ModelSystem("model", RankerSpec(model=str(tiny_dir)))]
    found = evaluate_systems(systems, [*problems(3, prior=KNOWN), empty], out=tmp_path)
    assert (mrr(found, "oracle").value, mrr(found, "oracle").n) == (0.75, 4)
    assert {ranking.docids for of_system in found.rankings.values() for ranking in of_system[3:]} == {()}
    assert len(found.notes) == 1 and "(the first stage found nothing at all for 1)" in found.notes[0]
    assert warnings_of(found.rows) == {}
