"""The experiments `ir` and `specialists`: what they test on, what specialists learn from, and both from end to end."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from r1ranker.baselines import BASELINES
from r1ranker.baselines.recommenders import title_of
from r1ranker.baselines.specialists import SPECIALISTS, Specialist
from r1ranker.datasets import mini
from r1ranker.errors import BackendError, DataError
from r1ranker.evaluation.results import read_results
from r1ranker.evaluation.routing import Outcome
from r1ranker.experiments import ir, specialists
from r1ranker.experiments.study import Study
from r1ranker.io.config import DataConfig, load_config
from r1ranker.problem import Candidate, Problem

TINY = ["ppo.token_budget=600", "ppo.batch=4", "ppo.minibatch=2", "ppo.validate_every=100", "ppo.checkpoint_every=100"]


def study(out: Path, *overrides: str, name: str = "ir", limit: int | None = None) -> Study:
    path = Path(str(files("r1ranker") / "configs" / "reproduce-small.yaml"))
    config = load_config(path, ["warmstart.scratch=null", *TINY, *overrides])
    return Study(name, "small", config, out / name, out / "models", limit)


def parsed(path: Path) -> Any:
    return json.loads(path.read_text())


def column(table: dict[str, Any], name: str) -> dict[str, str]:
    place = table["columns"].index(name)
    return {row[0]: row[place] for row in table["rows"]}


# What is tested on.


def test_the_embedded_collection_judges_every_passage_and_agrees_with_the_problems(tmp_path: Path) -> None:
    embedded = study(tmp_path, "data=[{source: mini, limit: 20}]")
    passages = [problem for problem in embedded.problems("test") if problem.scenario == "passage"]
    problems, note = ir.benchmark(embedded, 20)
    assert note == f"{len(problems)} of {len(problems)} judged queries, 0 are in training or dev"
    assert {p.qid for p in problems} == {p.group for p in passages}
    lines = (embedded.out / "embedded-passages" / "corpus.jsonl").read_text().splitlines()
    text_of = {doc["_id"]: doc["text"] for doc in map(json.loads, lines)}
    assert len(set(text_of.values())) == len(text_of)
    by_qid = {problem.qid: problem for problem in problems}
    for passage in passages:
        judged = by_qid[passage.group]
        gains = {text_of[docid]: gain for docid, gain in judged.gains.items()}
        assert all(gains.get(c.text, 0) == passage.gains[c.docid] for c in passage.candidates)
        assert judged.relevant_at == 3
    retrieved = {p.qid: {c.docid for c in p.candidates} for p in problems}
    assert max(map(len, retrieved.values())) == 20
    assert any(p.gains.keys() - retrieved[p.qid] for p in problems), "judged and not retrieved counts in the ideal"
    deeper, _ = ir.benchmark(embedded, 30)
    assert all(retrieved[p.qid] <= {c.docid for c in p.candidates} for p in deeper)
    assert max(len(p.candidates) for p in deeper) == 30


def test_a_passage_that_tells_nothing_is_told() -> None:
    with pytest.raises(DataError, match="'the weather is fine' tells no fact"):
        ir.told_by("the weather is fine")


def requests(path: Path) -> Path:
    path.mkdir()
    entries = [
        {
            "query": f"query {qid}",
            "hits": [
                {"qid": qid, "docid": f"{qid}-{k}", "rank": k, "score": 30 - k, "content": f"text {k} " + "word " * 200}
                for k in range(25)
            ],
        }
        for qid in range(20)
    ]
    (path / "bm25.json").write_text(json.dumps(entries))
    (path / "qrels.dl99.txt").write_text("".join(f"{qid} 0 {qid}-{k} {3 - k}\n" for qid in range(20) for k in range(3)))
    return path


def test_queries_of_training_are_not_tested_on_and_texts_are_as_long_as_trained(tmp_path: Path) -> None:
    source = {"source": "rankllm", "path": str(requests(tmp_path / "dl")), "show": ["prior"]}
    source["options"] = {"max_chars": 1000, "tasks": ["passage-5"]}
    of_files = study(tmp_path, f"data={json.dumps([source])}")
    problems, note = ir.benchmark(of_files, 20)
    trained = {p.query for split in ("train", "dev") for p in of_files.problems(split)}
    assert note == "4 of 20 judged queries, 16 are in training or dev"
    assert not {p.query for p in problems} & trained
    assert {p.task for p in problems} == {"dl99"}
    longest = max(len(c.text.split(" | ")[0]) for p in problems for c in p.candidates)
    assert 180 < longest <= 200
    assert all(p.candidates[0].note == "first stage 1" for p in problems), "as the model was trained"
    assert len(ir.benchmark(study(tmp_path, f"data={json.dumps([source])}", limit=3), 20)[0]) == 3


def test_data_that_are_all_trained_on_cannot_be_tested_on(tmp_path: Path) -> None:
    path = requests(tmp_path / "dl")
    lines = [
        {"qid": f"t{n}", "task": "t", "scenario": "passage", "query": f"Query  {n}",
         "candidates": [{"docid": "a", "text": "x"}, {"docid": "b", "text": "y"}], "gains": {"a": 1}}
        for n in range(20)
    ]  # fmt: skip
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = [
        {"source": "jsonl", "path": str(tmp_path / "own")},
        {"source": "trec", "path": str(path), "splits": ["test"]},
    ]
    with pytest.raises(DataError, match="every query of the benchmark is a training or dev query"):
        ir.benchmark(study(tmp_path, f"data={json.dumps(sources)}"), 20)


def test_data_without_a_collection_are_tested_by_name(tmp_path: Path) -> None:
    sources = ir._sources(study(tmp_path, "data=[{source: jsonl, path: own}]"), 20)
    assert [source.source for source in sources] == ["trec"]
    assert sources[0].options["datasets"][0] == "msmarco-passage/trec-dl-2019/judged"


@pytest.mark.parametrize("source", ["mini", "csv"])
def test_harder_negatives_are_not_what_the_user_had_long_ago(tmp_path: Path, source: str) -> None:
    items = [f"i{k}" for k in range(60)]
    chosen = {f"u{user}": random.Random(user).sample(items, 25) for user in range(30)}
    (tmp_path / "items.csv").write_text("item,title\n" + "".join(f"{item},Title {item}\n" for item in items))
    rows = [f"{user},{item}\n" for user, mine in chosen.items() for item in mine]
    (tmp_path / "interactions.csv").write_text("".join(["user,item\n", *rows]))
    shop = DataConfig(source="csv", path=tmp_path, options={"history": 3, "pool_size": 10})
    given = shop if source == "csv" else DataConfig(source="mini")
    had = specialists.had_of(given)
    sets = specialists.test_sets(study(tmp_path, f"data=[{given.model_dump_json()}]", limit=10))
    for problem in sets["recommendation"]:
        assert set(problem.history) < set(had[problem.group]), "more than is shown"
    for part in ("matched-popularity", "similar-words", "whole-catalogue"):
        for problem in sets[part]:
            known = had[problem.group]
            assert not {title_of(c.text, known) for c in problem.candidates if not problem.gains.get(c.docid)} & {
                *known
            }


def test_a_source_of_problems_knows_no_more_of_users_than_these_show(tmp_path: Path) -> None:
    assert specialists.had_of(DataConfig(source="jsonl", path=tmp_path)) == {}


def test_recommendations_are_also_tested_against_harder_negatives(tmp_path: Path) -> None:
    embedded = study(tmp_path, "data=[{source: mini, limit: 30, show: [prior]}]", limit=12)
    sets = specialists.test_sets(embedded)
    assert list(sets) == [
        *("recommendation", "routing", "passage"),
        *("matched-popularity", "similar-words", "whole-catalogue"),
    ]
    assert [p.qid for p in sets["matched-popularity"]] == [p.qid for p in sets["recommendation"]]
    assert len(sets["whole-catalogue"]) == 3 * specialists.FEW
    for problem in sets["whole-catalogue"]:
        n = len(problem.candidates)
        assert n > 100
        assert {c.note for c in problem.candidates} == {f"popularity {k}" for k in range(1, n + 1)}, "of this pool"


# What specialists learn from.


def movielens(path: Path) -> Path:
    path.mkdir()
    (path / "movies.csv").write_text("movieId,title,genres\n" + "".join(f"{m},Movie {m},Drama\n" for m in range(90)))
    rows = [f"{user},{(user * 7 + k * 3) % 90},4,{k}\n" for user in range(40) for k in range(12)]
    (path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "".join(rows))
    return path


def test_everything_is_more_than_the_sample_and_holds_no_test_target(tmp_path: Path) -> None:
    source = {"source": "movielens", "path": str(movielens(tmp_path / "ml")), "limit": 5}
    of_files = study(tmp_path, f"data={json.dumps([source])}")
    learn = specialists.everything(of_files)
    assert len({p.group for p in learn}) == 40 > len({p.group for p in of_files.problems("train")})
    for problem in of_files.problems("test"):
        (target,) = (problem.candidate(k).text.split(" | ")[0] for k in problem.identifiers if problem.is_relevant(k))
        (own,) = (p for p in learn if p.group == problem.group)
        assert target not in own.history
        assert not any(own.is_relevant(k) for k in own.identifiers)


def routed(qid: str, task: str, group: str) -> Problem:
    pool = (Candidate("small", "small, cheap"), Candidate("large", "large, dear"))
    gains, prior = {"large" if group == "hard" else "small": 10}, {"small": 1.0, "large": 2.0}
    return Problem(qid, task, "routing", pool, query=group, gains=gains, relevant_at=10, prior=prior, group=group)


def test_the_routing_table_is_of_questions_that_every_objective_has() -> None:
    names = {"performance": ("easy", "hard"), "cost": ("easy", "hard", "only-here")}
    problems = [routed(f"{t}-{group}", f"route-{t}", group) for t, groups in names.items() for group in groups]
    known = {
        p.qid: {"small": Outcome(0.0 if p.group == "hard" else 1.0, 0.2), "large": Outcome(1.0, 1.0)} for p in problems
    }
    ranked = {name: BASELINES[name](problems) for name in ("prior", "oracle")}
    (table,) = specialists.routing_table(known, problems, ranked)
    assert table.columns[:4] == ("router", "performance", "cost", "AIQ")
    rows = {row[0]: row for row in table.rows}
    assert rows["prior"][1:3] == ("1.000 for 1.000", "1.000 for 1.000")
    assert rows["oracle"][1:3] == ("1.000 for 0.600", "1.000 for 0.600")
    # The hull of (0, 0) and (1, 1) from 0.2 to 1; that of (0, 0) and (0.6, 1).
    assert rows["prior"][3] == "0.600"
    assert rows["oracle"][3] == f"{(0.4 * (0.2 / 0.6 + 1) / 2 + 0.4) / 0.8:.3f}"
    # The mixture of both LLMs: (0.2, 0.5) and (1, 1).
    assert rows["all LLMs, mixed"][3] == "0.750"
    # Performance: nothing lost. Cost, easy: 0.2 - 0.16 against 0.2 - 0.8; hard: -0.16 against 0.2 - 0.8.
    assert rows["prior"][-1] == f"{(0 + (0.64 + 0.44) / 2) / 2:.3f}"
    assert "2 questions" in table.note
    assert specialists.routing_table({}, problems, ranked) == []


def test_embedded_outcomes_are_what_gains_are_made_of(tmp_path: Path) -> None:
    embedded = study(tmp_path, "data=[{source: mini, limit: 20}]")
    problems = [p for p in embedded.problems("test") if p.task == "route-performance"]
    known = specialists.outcomes(embedded, problems)
    for problem in problems:
        best = max(outcome.score for outcome in known[problem.qid].values())
        for k in problem.identifiers:
            scored = known[problem.qid][problem.candidate(k).docid]
            assert problem.is_relevant(k) == (scored.score == best)
            assert 0 < scored.cost <= 1


def test_a_specialist_that_cannot_run_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(train: Sequence[Problem], test: Sequence[Problem]) -> Any:
        raise BackendError("needs xyz: pip install xyz")

    found = {"router-knn": absent, "plain": lambda train, test: [len(train)]}
    monkeypatch.setattr(
        specialists, "SPECIALISTS", {name: Specialist(rank, ("routing",)) for name, rank in found.items()}
    )
    test, other = routed("q", "route-cost", "easy"), routed("r", "route-balance", "easy")
    lacking: dict[str, str] = {}
    sets = {"routing": [test]}
    given = specialists.rankings_of_specialists({"": [test], "-all": [test, test, other]}, sets, lacking)
    assert given == {"routing": {"plain": [1], "plain-all": [2]}}
    assert lacking == {"router-knn": "needs xyz: pip install xyz"}
    given = specialists.rankings_of_specialists({"": [test], "-all": [other]}, sets, {})
    assert given["routing"].keys() == {"plain"}, "nothing more to learn from"


def test_a_specialist_is_fitted_once_for_all_test_sets_of_its_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def named(train: Sequence[Problem], test: Sequence[Problem]) -> Any:
        calls.append(len(train))
        return [problem.qid for problem in test]

    monkeypatch.setattr(specialists, "SPECIALISTS", {"plain": Specialist(named, ("routing",))})
    a, b = routed("a", "route-cost", "easy"), routed("b", "route-balance", "easy")
    sets = {"one": [a, b], "two": [b], "three": [a]}
    given = specialists.rankings_of_specialists({"": [a, b], "-all": [a, a]}, sets, {})
    assert calls == [2, 3], "once for each set of training problems; route-balance is learnt from the first"
    assert {part: of["plain"] for part, of in given.items()} == {"one": ["a", "b"], "two": ["b"], "three": ["a"]}
    assert {part: "plain-all" in of for part, of in given.items()} == {"one": True, "two": False, "three": True}


# From end to end, with a model that knows nothing.


def test_ir_from_end_to_end(tmp_path: Path, tiny_dir: Path) -> None:
    whole = study(tmp_path, f"model={tiny_dir}", "data=[{source: mini, limit: 3}]")
    ir.ir(whole)
    (table,) = parsed(whole.out / "tables.json")
    systems = ["random", "first stage", "oracle", "base-iterative", "dranker", "iranker-binary", "iranker-graded"]
    assert [row[0] for row in table["rows"]] == systems
    assert column(table, "top 20: nDCG@10")["oracle"] >= max(column(table, "top 20: nDCG@10").values())
    assert float(column(table, "top 20: calls")["dranker"]) > 1, "a list longer than a window takes several calls"
    assert "windows of 9 by 4; top 20: 9 of 9 judged queries, 0 are in training or dev" in table["note"]
    assert {row.task for row in read_results(whole.out / "top100" / "results.json")} == {"embedded-passages", "average"}
    before = (whole.out / "top20" / "results.json").stat().st_mtime_ns
    ir.ir(whole)
    assert (whole.out / "top20" / "results.json").stat().st_mtime_ns == before, "done is found done"


def test_specialists_from_end_to_end(tmp_path: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cornac", "sklearn", "sentence_transformers"):
        pytest.importorskip(module)
    monkeypatch.setenv("R1RANKER_CACHE", str(tmp_path / "no models"))
    monkeypatch.setattr(mini, "SIZES", {"train": 60, "dev": 20, "test": 20})
    monkeypatch.setattr(specialists, "FEW", 0)
    chosen = ("item-knn", "router-knn", "dense", "lambdamart")
    monkeypatch.setattr(specialists, "SPECIALISTS", {name: SPECIALISTS[name] for name in chosen})
    whole = study(tmp_path, f"model={tiny_dir}", "data=[{source: mini}]", name="specialists", limit=2)
    specialists.specialists(whole)
    summary, routing = parsed(whole.out / "tables.json")
    assert summary["columns"] == [
        "system",
        "recommendation",
        "routing",
        "passage",
        "matched popularity",
        "similar words",
    ]
    assert column(summary, "recommendation")["item-knn"] and not column(summary, "routing")["item-knn"]
    assert column(summary, "routing")["router-knn"] and column(summary, "passage")["iranker"]
    assert "Left out: dense (cannot load the encoder" in summary["note"]
    assert "Left out: lambdamart (lambdamart weighs other rankers' places" in summary["note"]
    assert [row[0] for row in routing["rows"]] == [
        "all LLMs, mixed", "random", "prior", "oracle", "router-knn", "dranker", "iranker",
    ]  # fmt: skip
