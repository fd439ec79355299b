"""Ranking in three lines: what is taken, what comes back, and that it works inside a running event loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

import r1ranker
from fault_server import FaultServer
from r1ranker import arank, aroute, compare, evaluate, rank, recommend, route
from r1ranker.backends.openai_ import KEYS
from r1ranker.datasets.inline import candidates_of, llms_of, objective_of, titles_of
from r1ranker.errors import BackendError, ConfigError, DataError
from r1ranker.problem import Candidate
from r1ranker.ranking.loaded import loaded
from r1ranker.ranking.spec import RankerSpec

TEXTS = ["Barn owls live four years.", "They eat mice.", "Tractors rust."]


def test_importing_the_package_and_its_functions_loads_no_heavy_library() -> None:
    heavy = "{'torch', 'transformers', 'pydantic', 'numpy', 'ir_measures', 'asyncio', 'tqdm'}"
    code = f"import sys; from r1ranker import rank, train, evaluate, compare; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_name_of_the_package_is_there() -> None:
    for name in r1ranker.__all__:
        assert getattr(r1ranker, name) is not None
    assert set(r1ranker.__all__) <= set(dir(r1ranker))
    with pytest.raises(AttributeError, match="no attribute 'ranks'"):
        r1ranker.ranks  # noqa: B018


def test_hits_come_best_first_with_texts_scores_and_places(tiny_dir: Path) -> None:
    ranked = rank("how long do barn owls live", TEXTS, str(tiny_dir))
    assert sorted(ranked.texts) == sorted(TEXTS) and len(ranked) == 3
    assert [hit.rank for hit in ranked] == [1, 2, 3]
    assert all(TEXTS[hit.index] == hit.text and hit.docid == str(hit.index) for hit in ranked)
    assert 1 > ranked[0].score > ranked[1].score > ranked[2].score > 0
    assert ranked.docids == ranked.ranking.docids and ranked[:2] == ranked.hits[:2]
    assert ranked.ranking.usage.calls == 2 and ranked.problem.query == "how long do barn owls live"


def test_a_ranking_prints_as_a_table_and_a_notebook_shows_its_texts_escaped(tiny_dir: Path) -> None:
    ranked = rank("<b>owls</b>", {"d1": "x" * 500, "d2": "<script>"}, str(tiny_dir))
    lines = str(ranked).splitlines()
    assert lines[0].split() == ["rank", "score", "docid", "text"] and len(lines) == 3
    assert max(map(len, lines)) < 130
    page = ranked._repr_html_()
    assert "&lt;script&gt;" in page and "<script" not in page and "<b>" not in page
    assert "x" * 500 in page and f"{ranked[0].score:.3f}" in page


def test_texts_are_taken_as_strings_dicts_mappings_and_titles() -> None:
    dicts = [
        {"docid": 7, "title": "Owl", "text": "Eats  mice.", "year": 1990},
        {"text": "no docid"},
        {"title": "Alien"},
    ]
    assert candidates_of(dicts) == (
        Candidate("7", "Owl Eats mice."),
        Candidate("1", "no docid"),
        Candidate("2", "Alien"),
    )
    assert candidates_of({"a": "one", "b": {"text": "two"}}) == (Candidate("a", "one"), Candidate("b", "two"))
    assert candidates_of(iter(["same", "same"])) == (Candidate("0", "same"), Candidate("1", "same"))


def test_data_frames_are_taken_by_their_columns_or_their_index() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"title": ["Alien", None], "text": ["space", "heist"], "n": [1, 2]}, index=[10, 20])
    assert candidates_of(frame) == (Candidate("10", "Alien space"), Candidate("20", "heist"))
    named = frame.assign(docid=["a", "b"])
    assert [candidate.docid for candidate in candidates_of(named)] == ["a", "b"]
    assert candidates_of(frame["text"]) == (Candidate("10", "space"), Candidate("20", "heist"))
    assert [candidate.docid for candidate in candidates_of(named.assign(docid=[3, 4]))] == ["3", "4"]
    twice = pandas.concat([frame["text"], frame["text"] + "s"])
    assert [candidate.text for candidate in candidates_of(twice)] == ["space", "heist", "spaces", "heists"]
    assert titles_of(twice) == ("space", "heist", "spaces", "heists")
    with pytest.raises(DataError, match="'10' occurs more than once"):
        rank("q", twice, model="nano")


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("one text", "a str holds no candidates"),
        (5, "a int holds no candidates"),
        ([{"txt": "a"}], "entry '0' has no text.*it has txt"),
        (["a", "  "], "entry '1' is '  ', not a text"),
        (["a", None], "entry '1' is None"),
        ([{"docid": "x", "text": "a"}, {"docid": "x", "text": "b"}], "'x' occurs more than once"),
        ([], "has no candidates"),
    ],
    ids=str,
)
def test_what_is_no_text_is_an_error_that_names_it(texts: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        rank("query", texts, "nano")


def test_several_queries_share_one_pool_or_have_one_each(tiny_dir: Path) -> None:
    shared = rank(["owls", "tractors"], TEXTS, str(tiny_dir))
    assert [one.problem.query for one in shared] == ["owls", "tractors"]
    assert all(len(one) == 3 for one in shared)
    each = rank(["owls", "tractors"], [TEXTS[:2], [{"text": "a"}, {"text": "b"}, {"text": "c"}]], str(tiny_dir))
    assert [len(one) for one in each] == [2, 3]
    with pytest.raises(ConfigError, match="3 queries and 2 lists"):
        rank(["a", "b", "c"], [TEXTS, TEXTS], str(tiny_dir))


def test_top_k_returns_the_best_and_asks_no_further_where_the_best_are_selected(tiny_dir: Path) -> None:
    texts = [f"text number {k}" for k in range(8)]
    whole, best = (rank("owls", texts, str(tiny_dir), ask="best", top_k=k) for k in (None, 3))
    assert best.docids == whole.docids[:3] and whole.ranking.usage.calls == 7
    assert best.ranking.usage.calls == 3
    assert rank("owls", texts, str(tiny_dir), ask="worst", top_k=3).ranking.usage.calls == 7
    assert len(rank("owls", texts, str(tiny_dir), ask="best", top_k=20)) == 8
    with pytest.raises(ConfigError, match="top_k must be a whole number of at least 1"):
        rank("owls", texts, str(tiny_dir), top_k=0)


def test_settings_are_those_of_a_ranker_and_others_are_refused(tiny_dir: Path) -> None:
    assert rank("owls", TEXTS, str(tiny_dir), design="dranker").ranking.usage.calls == 1
    with pytest.raises(ConfigError, match="no setting 'layuot'; did you mean 'layout'"):
        rank("owls", TEXTS, str(tiny_dir), layuot="append")
    with pytest.raises(ConfigError, match="design"):
        rank("owls", TEXTS, str(tiny_dir), design="sorter")


def test_an_instruction_is_what_the_model_reads(tiny_dir: Path) -> None:
    ranked = rank("owls", TEXTS, str(tiny_dir), instruction="Which text is the shortest?")
    assert ranked.problem.instruction == "Which text is the shortest?"


def test_a_query_that_fails_is_an_error_alone_and_an_empty_list_among_others(tiny_dir: Path) -> None:
    with pytest.raises(BackendError, match="half a character"):
        rank("owls \ud83d", TEXTS, str(tiny_dir))
    bad, good = rank(["owls \ud83d", "owls"], TEXTS, str(tiny_dir))
    assert len(bad) == 0 and "half a character" in bad.ranking.error and len(good) == 3


def test_recommend_takes_titles_and_items(tiny_dir: Path) -> None:
    ranked = recommend([{"title": "Aliens"}, {"title": "Predator"}], {"i1": "Heat", "i2": "Alien"}, str(tiny_dir))
    assert ranked.problem.scenario == "recommendation" and ranked.problem.history == ("Aliens", "Predator")
    assert sorted(ranked.docids) == ["i1", "i2"]


def test_route_takes_names_descriptions_and_prices(tiny_dir: Path) -> None:
    llms = [{"name": "big", "description": "Strong.", "input_price": 2.5, "output_price": 10}, {"name": "tiny"}]
    ranked = route("Prove it.", llms, str(tiny_dir), cost_quality=0.0)
    assert sorted(ranked.docids) == ["big", "tiny"] and ranked.problem.objective.startswith("Only price")
    assert route("Prove it.", llms, str(tiny_dir)).problem.objective == objective_of("balance")
    assert llms_of(llms)[0].text == "big | $2.50 in, $10.00 out per million tokens | Strong."
    assert llms_of(["gpt", "llama"]) == (Candidate("gpt", "gpt"), Candidate("llama", "llama"))
    assert llms_of({"gpt": "good"}) == (Candidate("gpt", "gpt | good"),)
    with pytest.raises(DataError, match="'big' has one price"):
        llms_of([{"name": "big", "input_price": 1}])


def test_what_matters_in_routing_is_a_number_a_name_or_words() -> None:
    assert objective_of("cost") == "Price matters most."
    assert objective_of(0.37) == "Price matters most: quality 37%, price 63%.", "a number is said as it is"
    assert objective_of("Be quick.") == "Be quick."
    with pytest.raises(DataError, match="from 0"):
        objective_of(3)


def test_inside_a_running_event_loop_all_forms_work(tiny_dir: Path) -> None:
    async def notebook() -> list[tuple[str, ...]]:
        model = str(tiny_dir)
        here = rank("owls", TEXTS, model)
        side_by_side = await asyncio.gather(*(arank("owls", TEXTS, model) for _ in range(3)))
        routed = await aroute("Prove it.", ["gpt", "llama"], model)
        assert len(routed) == 2
        return [here.docids, *(one.docids for one in side_by_side)]

    assert len(set(asyncio.run(notebook()))) == 1


def test_a_model_is_loaded_once_and_anew_when_its_files_change(tmp_path: Path, tiny_dir: Path) -> None:
    copied = tmp_path / "model"
    copied.mkdir()
    for file in tiny_dir.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    spec = RankerSpec(model=str(copied))
    with loaded(spec) as ranker:
        first = ranker.backend
    with loaded(RankerSpec(model=str(copied), design="dranker", shuffles=2)) as ranker:
        assert ranker.backend is first
    os.utime(copied / "model.safetensors", (1, 1))
    with loaded(spec) as ranker:
        assert ranker.backend is not first


def test_evaluate_and_compare_do_what_the_commands_do(tiny_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    for file in tiny_dir.iterdir():
        (run / "model" / file.name).write_bytes(file.read_bytes())
    (run / "log.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.75}\n')
    config = tmp_path / "run.yaml"
    config.write_text("data: [{source: mini, limit: 1}]\n")
    out = tmp_path / "eval"
    found = evaluate(config, [f"trained=dranker:{run / 'model'}"], baselines=["random", "prior"], out=out)
    assert {row.system for row in found.rows} == {"trained", "random", "prior"}
    page = (out / "report.html").read_text()
    assert "mean reward of a step" in page and "<title>trained, 2: 0.75</title>" in page
    tests = compare(out, "random")
    assert {test.baseline for test in tests} == {"random"}
    with pytest.raises(ConfigError, match="holds an evaluation"):
        evaluate(config, out=out)
    with pytest.raises(ConfigError, match="no measure 'MAP'"):
        compare(out, measure="MAP")


def test_an_endpoint_is_asked_with_the_key_that_is_set_now(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    with FaultServer(key="right") as server:
        with pytest.raises(BackendError, match="R1RANKER_API_KEY"):
            rank("q", ["a b", "c d"], "m", base_urls=(server.base_url,))
        monkeypatch.setenv("R1RANKER_API_KEY", "right")
        assert len(rank("q", ["a b", "c d"], "m", base_urls=(server.base_url,))) == 2


def test_a_store_that_nobody_would_write_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rank --store"):
        rank("q", ["a", "b"], str(tiny_dir), store=tmp_path / "kv.safetensors")


def test_a_model_is_loaded_once_though_its_cache_comes_into_being(tiny_dir: Path, tmp_path: Path) -> None:
    spec = RankerSpec(model=str(tiny_dir), design="iranker", cache=tmp_path / "cache")
    backends = []
    for _ in range(3):
        with loaded(spec) as ranker:
            ranker.rank_many([])
            backends.append(ranker.backend)
    assert backends[0] is backends[1] is backends[2]


def test_identifiers_are_taken_from_columns_that_are_called_as_files_call_them() -> None:
    pandas = pytest.importorskip("pandas")
    for name in ("docid", "doc_id", "item", "item_id", "document-id"):
        assert [c.docid for c in candidates_of([{name: "a7", "text": "x"}])] == ["a7"]
        assert [c.docid for c in candidates_of(pandas.DataFrame({name: ["a7", "a8"], "text": ["x", "y"]}))] == [
            "a7",
            "a8",
        ]
    with pytest.raises(DataError, match="row 1 has no identifier, and others have"):
        candidates_of(pandas.DataFrame({"docid": ["a7", None], "text": ["x", "y"]}))
    with pytest.raises(DataError, match="a set holds no candidates"):
        candidates_of({"a", "b"})


def test_pairs_of_docid_and_text_are_no_pools_of_their_own(tiny_dir: Path) -> None:
    with pytest.raises(DataError, match="not a text"):
        rank(["q1", "q2"], [("d1", "text one"), ("d2", "text two")], str(tiny_dir))
    each = rank(["owls", "hay"], (text for text in TEXTS), str(tiny_dir))
    assert [len(one) for one in each] == [3, 3], "what can be gone over once serves every query"


@pytest.mark.parametrize("top_k", [0, 1.5, "1"])
def test_a_head_of_no_whole_number_is_refused_before_anything_is_ranked(top_k: object, tiny_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"top_k must be a whole number of at least 1"):
        rank("owls", TEXTS, str(tiny_dir), top_k=top_k)  # type: ignore[call-overload]


@pytest.mark.parametrize("query", [None, 5, [5, "owls"], ["owls", float("nan")]])
def test_a_query_is_text(query: object, tiny_dir: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=r"give a text|a query is text"):
        rank(query, TEXTS, str(tiny_dir))  # type: ignore[call-overload]


def test_a_model_may_be_given_as_training_returns_it(tiny_dir: Path) -> None:
    assert rank("owls", TEXTS, tiny_dir).docids == rank("owls", TEXTS, str(tiny_dir)).docids  # type: ignore[call-overload]
    assert RankerSpec(model=tiny_dir).model == str(tiny_dir)  # type: ignore[arg-type]


def test_an_order_of_which_no_answer_could_be_read_has_failed(tiny_dir: Path) -> None:
    with pytest.raises(BackendError, match=r"none of \d answers of the model could be read"):
        rank("owls", TEXTS, str(tiny_dir), think=True, max_new_tokens=1, design="iranker")
    for name in ("max_new_tokens", "shuffles"):
        with pytest.raises(ConfigError, match=f"{name}=0 ranks nothing"):
            rank("owls", TEXTS, str(tiny_dir), **{name: 0})


def test_one_wish_is_one_number_or_words(tiny_dir: Path) -> None:
    for wish, said in (
        ({"objective": 0}, "Only price matters"),
        ({"cost_quality": 0}, "Only price matters"),
        ({}, "equal"),
    ):
        assert said in route("Prove it.", ["a", "b"], str(tiny_dir), **wish).problem.objective
    for wrong in ({"cost_quality": 1, "objective": "cost"}, {"cost_quality": "0.5"}, {"cost_quality": 2}):
        with pytest.raises((ConfigError, DataError), match=r"give one of them|a number from 0"):
            route("Prove it.", ["a", "b"], str(tiny_dir), **wrong)
    with pytest.raises(DataError, match="no price is negative"):
        llms_of([{"name": "a", "input_price": -1, "output_price": 1}])


def test_a_near_miss_of_a_known_wish_is_no_sentence(tiny_dir: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'cost'"):
        route("Prove it.", ["a", "b"], str(tiny_dir), objective="costs")
    assert route("Prove it.", ["a", "b"], str(tiny_dir), objective="cheap").problem.objective == "cheap"


def test_scores_of_a_first_stage_are_its_prior(tiny_dir: Path) -> None:
    texts = [{"docid": "a", "text": "owls", "score": 1}, {"docid": "b", "text": "mice", "score": "3.5"}]
    assert rank("owls", texts, str(tiny_dir)).problem.prior == {"a": 1.0, "b": 3.5}
    assert rank("owls", iter(texts), str(tiny_dir), fuse=0.0).docids == ("b", "a")
    assert rank("owls", TEXTS, str(tiny_dir)).problem.prior == {}
    with pytest.raises(DataError, match="entry 'b' has no score, and others have"):
        rank("owls", [texts[0], {"docid": "b", "text": "mice"}], str(tiny_dir))
    with pytest.raises(DataError, match="entry 'a': score"):
        rank("owls", [{"docid": "a", "text": "owls", "score": "high"}], str(tiny_dir))


def test_a_history_is_a_list(tiny_dir: Path) -> None:
    with pytest.raises(DataError, match="the history is the text 'Dune'"):
        recommend("Dune", TEXTS, str(tiny_dir))


def test_rankings_are_short_in_a_list_and_make_a_table(tiny_dir: Path) -> None:
    ranked = rank("owls", {"a": "owls", "b": "mice"}, str(tiny_dir))
    assert repr([ranked]) == f"[<Ranked query-1: {' '.join(ranked.docids)}>]"
    pandas = pytest.importorskip("pandas")
    assert list(pandas.DataFrame(ranked)["docid"]) == list(ranked.docids)
