"""`reproduce recommendation`: what each judgement is of, checked by hand on small data, and all of it end to end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from r1ranker.baselines import BASELINES
from r1ranker.baselines.common import rank_scored
from r1ranker.baselines.recommenders import RECOMMENDERS, in_pools, item_knn, item_knn_scores, log_of
from r1ranker.cli import app
from r1ranker.errors import ConfigError
from r1ranker.evaluation.measures import evaluate
from r1ranker.evaluation.protocols import new_items, window_of
from r1ranker.evaluation.results import read_results
from r1ranker.evaluation.systems import ModelSystem, read_per_query
from r1ranker.experiments import recommendation
from r1ranker.experiments.recommendation import JUDGEMENTS, Shelf, Source
from r1ranker.experiments.study import Study
from r1ranker.io.config import DataConfig, load_config
from r1ranker.problem import Candidate, Problem
from r1ranker.ranking.spec import RankerSpec


def choice(user: str, history: Sequence[str], target: str, others: Sequence[str] = ()) -> Problem:
    """Docids are the titles in lower case; candidates show a genre behind the title."""
    pool = [target, *others]
    candidates = tuple(Candidate(title.lower(), f"{title} | Drama") for title in pool)
    return Problem(user, "rec", "recommendation", candidates, history=tuple(history), gains={target.lower(): 1})


# Users took A four times, B three times, C twice, D once; nobody took E.
LEARN = [choice("u1", "ABC", "D"), choice("u2", "AB", "C"), choice("u3", "A", "B"), choice("u4", "A", "A")]


def shelf(*asked: Problem, had: str = "A") -> tuple[Shelf, list[Problem]]:
    known = [*LEARN, *asked, choice("k", "A", "E", "ABCD")]
    source = Source(LEARN, [], list(asked), [], known, {problem.group: tuple(had) for problem in asked})
    return Shelf.of(log_of(LEARN), source), list(asked)


def mrr(ranked: Any, problems: Sequence[Problem]) -> list[float]:
    return list(evaluate(ranked, problems)["MRR"].values())


# The whole catalogue.


def test_of_the_whole_catalogue_what_the_user_had_is_left_out_and_the_rest_counts() -> None:
    whole, problems = shelf(choice("v1", "A", "C"), choice("v2", "A", "E"))
    ranked = whole.retrieve("prior", whole.simple()["prior"], problems)
    assert [r.docids for r in ranked] == [("b", "c", "d")] * 2, "by popularity; A was had"
    assert mrr(ranked, problems) == [1 / 2, 0.0], "nobody took E, so no system retrieves it"


def test_a_place_below_the_depth_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommendation, "DEPTH", 2)
    whole, problems = shelf(choice("v1", "A", "C"), choice("v2", "A", "D"))
    assert mrr(whole.retrieve("prior", whole.simple()["prior"], problems), problems) == [1 / 2, 0.0]


def test_the_whole_history_is_left_out_not_only_what_the_ranker_reads() -> None:
    whole, problems = shelf(choice("v1", "B", "D"), had="AB")
    (ranking,) = whole.retrieve("prior", whole.simple()["prior"], problems)
    assert ranking.docids == ("c", "d")


def test_the_first_stage_is_the_one_that_retrieves_most_dev_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommendation, "DEPTH", 1)
    whole, dev = shelf(choice("v1", "A", "B"), choice("v2", "A", "B"), choice("v3", "A", "D"))
    ways = {"rarest": lambda _: -whole.popularity, "prior": lambda _: whole.popularity}
    retrieved = {name: whole.retrieve(name, way, dev) for name, way in ways.items()}
    # What is left is B, taken three times, C and D: the rarest is D.
    assert recommendation._first_stage(dev, retrieved) == ("prior", pytest.approx(2 / 3))


def test_ties_are_a_coin_that_falls_alike_each_time() -> None:
    whole, problems = shelf(*(choice(f"v{n}", "A", "D") for n in range(200)))
    ranked = whole.retrieve("random", whole.simple()["random"], problems)
    assert ranked[3].docids == whole.retrieve("random", whole.simple()["random"], problems[3:4])[0].docids
    first = sum(ranking.docids[0] == "d" for ranking in ranked)
    assert 45 <= first <= 90, "one of three"


def test_what_the_first_stage_misses_counts_nothing_whatever_the_order() -> None:
    problems = [choice("v1", "A", "C"), choice("v2", "A", "E")]
    found = window_of(problems, {"v1": ["b", "c"], "v2": ["b", "c", "d"]}, [*LEARN, choice("k", "A", "E", "ABCD")])
    assert [[c.docid for c in problem.candidates] for problem in found] == [["b", "c"], ["b", "c", "d"]]
    assert mrr(BASELINES["oracle"](found), found) == [1.0, 0.0]
    assert [problem.gains for problem in found] == [{"c": 1}, {"e": 1}]


# New items.

TITLES = [f"Film {n:02}" for n in range(60)]


def users(first: int, count: int) -> list[Problem]:
    """Each took five films in a row, with two others beside the last."""
    return [
        choice(f"w{n}", own[:4], own[4], own[5:])
        for n in range(first, first + count)
        for own in [[TITLES[(7 * n + k) % 60] for k in range(7)]]
    ]


def test_new_items_are_taken_away_from_all_that_is_learnt_from() -> None:
    learn, test = users(0, 60), users(60, 40)
    asked, remaining = new_items(test, learn, learn, seed=0)
    new = {c.docid for problem in asked for c in problem.candidates}
    left = {title.lower() for problem in remaining for title in problem.history}
    left |= {c.docid for problem in remaining for c in problem.candidates}
    assert not new & left
    assert 10 < len(asked) < 30 and {p.qid for p in asked} < {p.qid for p in test}
    assert all(set(problem.prior.values()) == {0.0} and len(problem.candidates) == 3 for problem in asked)
    assert all(not {c.docid for c in p.candidates} & {title.lower() for title in p.history} for p in asked)
    assert new_items(test, learn, learn, seed=0)[0] == asked != new_items(test, learn, learn, seed=1)[0]


def test_a_log_without_the_new_items_does_for_a_second_fit() -> None:
    pytest.importorskip("sklearn")
    learn, test = users(0, 60), users(60, 40)
    asked, remaining = new_items(test, learn, learn)
    log = log_of(learn)
    few = log.only(log_of(remaining).numbers)
    by_log = rank_scored(in_pools(few, item_knn_scores(log)), asked, "item-knn")
    refitted = item_knn(remaining, asked)
    assert [ranking.docids for ranking in by_log] == [ranking.docids for ranking in refitted]
    informed = item_knn(learn, asked)
    assert [ranking.docids for ranking in informed] != [ranking.docids for ranking in refitted], "who took them knows"


@pytest.mark.parametrize("name", RECOMMENDERS)
def test_scores_of_all_items_are_those_of_each(name: str) -> None:
    for module in ("cornac", "sklearn"):
        pytest.importorskip(module)
    log = log_of(users(0, 60))
    scores = RECOMMENDERS[name](log) if name != "sasrec" else short_sasrec(log)
    everything = scores([3, 1])
    assert len(everything) == len(log.numbers)
    assert list(scores([3, 1], [5, 0, 2])) == pytest.approx([everything[5], everything[0], everything[2]], rel=1e-4)


def short_sasrec(log: Any) -> Any:
    from r1ranker.baselines.recommenders import sasrec_scores

    return sasrec_scores(log, steps=2, epochs=1)


# From end to end.

SIZES = {"train": 160, "dev": 30, "test": 60}


@pytest.fixture(autouse=True)
def few_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommendation.mini, "SIZES", SIZES)
    monkeypatch.setattr(recommendation.mini_recommendation, "DOMAINS", ("movie",))


def study(out: Path, *overrides: str, limit: int | None = None, systems: tuple[ModelSystem, ...] = ()) -> Study:
    path = Path(str(files("r1ranker") / "configs" / "reproduce-small.yaml"))
    config = load_config(path, ["warmstart.scratch=null", *overrides])
    return Study("recommendation", "small", config, out / "recommendation", out / "models", limit, systems)


def test_all_judgements_are_of_the_same_users_and_nothing_is_learnt_from_them(tmp_path: Path) -> None:
    embedded = study(tmp_path, "data=[{source: mini}]", limit=30)
    for data in recommendation.sources(embedded)[:1]:
        source = recommendation.read(data)
        again = recommendation.read(data)
        assert (again.test, again.popular) == (source.test, source.popular), "the same seed, the same pools"
        assert [(p.qid, p.history, p.gains) for p in source.test] == [
            (p.qid, p.history, p.gains) for p in source.popular
        ]
        assert [p.candidates for p in source.test] != [p.candidates for p in source.popular]
        learnt = {problem.group for problem in source.learn}
        assert not learnt & {problem.group for problem in [*source.dev, *source.test]}
        popularity = [sum(p.prior.values()) for p in source.test], [sum(p.prior.values()) for p in source.popular]
        assert sum(popularity[1]) > 1.5 * sum(popularity[0])
        for problem in source.test:
            had = source.had[problem.group]
            assert had[-len(problem.history) :] == problem.history
            (target,) = (problem.candidate(k).text for k in problem.identifiers if problem.is_relevant(k))
            assert target not in had


def test_new_items_are_never_what_the_user_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems show three items of a dozen; all of those that a user had are known to the source."""
    embedded = study(tmp_path, "data=[{source: mini}]")
    (data,) = recommendation.sources(embedded)
    judged = {name: recommendation.Judged() for name in JUDGEMENTS}
    monkeypatch.setattr(recommendation, "FITS", {})
    monkeypatch.setattr(recommendation, "_first_stage", lambda dev, retrieved: ("prior", 0.0))
    short = data.model_copy(update={"options": data.options | {"history": 3}})
    recommendation.judge(embedded, short, judged)
    had = recommendation.read(short).had
    asked = judged[recommendation.NEW].problems
    assert asked and all(len(problem.history) == 3 < len(had[problem.group]) for problem in asked)
    for problem in asked:
        assert not {c.text for c in problem.candidates} & {*had[problem.group]}


def test_data_without_histories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no source holds users' histories"):
        recommendation.sources(study(tmp_path, f"data=[{{source: jsonl, path: {tmp_path}}}]"))


def test_other_experiments_take_no_systems(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["reproduce", "main", "--system", "x=iranker:nano", "--out", str(tmp_path / "o")])
    assert told.exit_code == 1 and "--system is for recommendation and routing" in " ".join(told.output.split())


def test_recommendation_from_end_to_end(tmp_path: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(recommendation, "FITS", {"item-knn": item_knn_scores})
    monkeypatch.setattr(recommendation, "DEPTH", 6)
    model = ModelSystem("model", RankerSpec(design="iranker", model=str(tiny_dir), device="cpu"))
    whole = study(tmp_path, "data=[{source: mini, show: [prior]}]", limit=8, systems=(model,))
    recommendation.recommendation(whole)
    places, everything, differences = json.loads((whole.out / "tables.json").read_text())
    assert places["columns"] == ["system", *JUDGEMENTS]
    systems = ["random", "prior", "bm25", "oracle", "item-knn", "model"]
    assert [row[0] for row in places["rows"]] == systems
    assert [row[:2] for row in everything["rows"]] == [[name, system] for name in JUDGEMENTS for system in systems]
    assert 0 < len(differences["rows"]) < 6, "not all of the pairs of prior, bm25, item-knn and the model"
    assert "uniform 8, popularity 8, whole-catalogue 8" in places["note"] and "first stage" in places["note"]
    for judgement in JUDGEMENTS:
        rows = {(row.system, row.measure): row for row in read_results(whole.out / judgement / "results.json")}
        assert {measure for _, measure in rows} >= {"MRR", "nDCG@10", "hit@10"}
        values = read_per_query(whole.out / judgement)
        kept = {system: of["rec-movie"]["MRR"] for system, of in values.items()}
        assert len({tuple(of) for of in kept.values()}) == 1, "the same users for every system"
        best = rows["oracle", "MRR"].value
        assert best >= rows["model", "MRR"].value
        assert (best == 1.0) == (judgement != "whole-catalogue")
    monkeypatch.setattr(recommendation, "FITS", {"item-knn": None})
    fewer = study(tmp_path, "data=[{source: mini, show: [prior]}]", limit=3)
    recommendation.recommendation(fewer)
    assert "uniform 3" in (whole.out / "tables.json").read_text(), "fitted before, for all test users"


def test_embedded_users_are_files_of_a_source(tmp_path: Path) -> None:
    data = recommendation.write_shop("game", DataConfig(), tmp_path / "game")
    assert (data.source, data.options) == ("csv", {"task": "rec-game"})
    assert len((tmp_path / "game" / "items.csv").read_text().splitlines()) == 193
