"""/v1/recommend: the pool that a catalogue draws, and a running server that ranks it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from r1ranker.backends.base import Ask
from r1ranker.backends.transformers_ import TransformersBackend
from r1ranker.errors import ConfigError, DataError
from r1ranker.problem import Candidate, Problem
from r1ranker.ranking.drive import drive
from r1ranker.ranking.fitting import reached
from r1ranker.ranking.plans import Budget
from r1ranker.ranking.rankers import IRanker, Within, reads
from r1ranker.serving.catalogue import Catalogue, CatalogueSettings, read_catalogue, read_catalogues
from r1ranker.serving.settings import load_settings
from serving_server import VALUES, Server, running

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "islet", "jetty", "knoll", "ledge"]
SEA, HILL = [f"s{i}" for i in range(12)], [f"h{i}" for i in range(12)]
TITLES = {
    item: f"The {word} {'sea' if item in SEA else 'hill'}" for item, word in zip(SEA + HILL, WORDS * 2, strict=True)
}
"""Two dozen books; readers take those of the sea or those of the hills."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The books as CSV and as JSON Lines, what 16 readers took, and a catalogue that no context holds."""
    folder = tmp_path_factory.mktemp("catalogues")
    rows = ["sku;name;shelf", *(f'{item};"{title}";{item[0].upper()}' for item, title in TITLES.items())]
    (folder / "books.csv").write_text("\n".join(rows))
    lines = [{"item": item, "title": title, "shelf": ["wet", item[0]]} for item, title in TITLES.items()]
    (folder / "books.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rng = random.Random(0)
    taken = [
        f"r{reader},{item},{rng.choice([3, 5])},{time}"
        for reader in range(16)
        for time, item in enumerate(rng.sample(SEA if reader % 2 else HILL, 6))
    ]
    (folder / "taken.csv").write_text("\n".join(["user,item,rating,time", *taken, "r1,gone,5,9"]))
    many = [
        "item,title",
        *(f"m{i},A book of {WORDS[i % 12]} number {i} and of much else that is long" for i in range(300)),
    ]
    (folder / "many.csv").write_text("\n".join(many))
    return folder


def books(files: Path, **changes: Any) -> Catalogue:
    return read_catalogue(CatalogueSettings(items=files / "books.jsonl", **changes))


def learnt(files: Path, **changes: Any) -> Catalogue:
    return books(files, interactions=files / "taken.csv", time="time", **changes)


def pool(
    catalogue: Catalogue, query: str = "", history: list[str] | None = None, exclude: list[str] | None = None
) -> list[str]:
    problem = catalogue.draw(query, history or [], exclude or []).problem
    assert problem is not None
    return [candidate.docid for candidate in problem.candidates]


# What a catalogue draws


def test_csv_and_json_lines_give_the_same_catalogue(files: Path) -> None:
    table = read_catalogue(CatalogueSettings(items=files / "books.csv", item_id="sku", title="name"))
    lines = books(files)
    assert list(table.ids) == list(lines.ids) == list(TITLES)
    assert list(table.titles) == list(lines.titles) == list(TITLES.values())


def test_details_are_shown_behind_the_title_and_not_in_a_history(files: Path) -> None:
    problem = books(files, details=["shelf"]).draw(history=["s0"]).problem
    assert problem is not None
    assert problem.history == ("The amber sea",)
    assert problem.candidates[0].text.endswith((" sea | wet, s", " hill | wet, h"))


def test_words_find_titles(files: Path) -> None:
    found = pool(books(files, pool=2), "amber")
    assert sorted(found) == ["h0", "s0"]


def test_titles_of_a_history_find_titles_where_there_are_no_interactions(files: Path) -> None:
    found = pool(books(files, pool=11), history=["s3"])
    assert "h3" in found  # the other delta
    assert {item[0] for item in found if item != "h3"} == {"s"}


@pytest.mark.parametrize("stage", ["item-knn", "bpr"])
def test_interactions_find_what_others_of_the_same_taste_took(files: Path, stage: str) -> None:
    pytest.importorskip("cornac" if stage == "bpr" else "sklearn")
    catalogue = learnt(files, first_stage=stage, pool=6)
    assert {item[0] for item in pool(catalogue, history=["s1", "s4"])} == {"s"}
    assert {item[0] for item in pool(catalogue, history=["h1", "h4"])} == {"h"}


def test_item_knn_is_the_default_where_there_are_interactions(files: Path) -> None:
    assert CatalogueSettings(items=files / "books.csv").stage == "bm25"
    assert CatalogueSettings(items=files / "books.csv", interactions=files / "taken.csv").stage == "item-knn"


def test_a_query_and_a_history_have_the_best_of_each_in_turn(files: Path) -> None:
    catalogue = learnt(files, pool=8)
    by_words, by_taste = pool(catalogue, "haven hill"), pool(catalogue, history=["s1"])
    both = pool(catalogue, "haven hill", ["s1"])
    assert both[:4] == [by_words[0], by_taste[0], by_words[1], by_taste[1]]


def test_what_was_taken_or_excluded_is_not_drawn_by_any_name(files: Path) -> None:
    for catalogue in (books(files), learnt(files)):
        found = pool(catalogue, "sea", ["s0", " the AMBER hill "], ["h7", "The ledge sea", "unknown"])
        assert sorted(found) == sorted(TITLES.keys() - {"s0", "h0", "h7", "s11"})


def test_items_of_one_title_are_taken_together(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item,title\na1,Heat\na2,heat\nb,Ice\n")
    catalogue = read_catalogue(CatalogueSettings(items=tmp_path / "items.csv"))
    assert pool(catalogue, history=["a2"]) == pool(catalogue, history=["Heat"]) == ["b"]


def test_unknown_items_of_a_history_are_told_and_the_others_are_read(files: Path) -> None:
    drawn = books(files).draw(history=["s0", "no such", "s1"])
    assert drawn.problem is not None
    assert drawn.problem.history == ("The amber sea", "The birch sea")
    assert drawn.warnings == ("history: 1 not in the catalogue and left aside: 'no such'",)
    assert books(files).draw(history=["no such"]).problem is None


def test_only_the_last_of_a_long_history_are_read_and_all_are_barred(files: Path) -> None:
    problem = books(files, history=2).draw(history=SEA).problem
    assert problem is not None
    assert problem.history == (TITLES["s10"], TITLES["s11"])
    assert sorted(candidate.docid for candidate in problem.candidates) == sorted(HILL)


def test_where_no_word_matches_the_most_popular_stand_in_and_it_is_told(files: Path) -> None:
    catalogue = learnt(files, pool=5)
    drawn = catalogue.draw("zzz")
    assert drawn.warnings == ("bm25 finds no item for the query; the most popular ones stand in for them",)
    taken = dict(zip(catalogue.ids, catalogue.popularity, strict=True))
    assert [taken[item] for item in pool(catalogue, "zzz")] == sorted(taken.values(), reverse=True)[:5]


def test_places_are_shown_as_in_training(files: Path) -> None:
    catalogue = learnt(files, pool=4, show=["prior", "item-knn"])
    problem = catalogue.draw(history=["s1"]).problem
    assert problem is not None
    notes = [candidate.note for candidate in problem.candidates]
    assert [note.partition(" | ")[2] for note in notes] == [f"item-knn {place}" for place in (1, 2, 3, 4)]
    assert sorted(note.partition(" | ")[0] for note in notes) == [f"popularity {place}" for place in (1, 2, 3, 4)]
    only_words = catalogue.draw("amber").problem
    assert only_words is not None
    assert not any("item-knn" in candidate.note for candidate in only_words.candidates)
    by_default = books(files, show=True, pool=3).draw("amber").problem
    assert by_default is not None
    assert [candidate.note for candidate in by_default.candidates] == ["bm25 1", "bm25 2", "bm25 3"]


def test_low_ratings_do_not_count(files: Path) -> None:
    every, liked = learnt(files), learnt(files, rating="rating", min_rating=4)
    assert 0 < liked.popularity.sum() < every.popularity.sum() == 16 * 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_stage": "bpr"}, "bpr learns from interactions: name their file by `interactions`"),
        ({"show": ["prior"]}, "prior learns from interactions"),
        ({"min_rating": 4}, "min_rating 4.0 needs ratings: name their column by `rating`"),
        ({"pool": 1}, "catalogues.books.pool"),
        ({"interaction": "x.csv"}, "did you mean 'catalogues.books.interactions'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(None, {"catalogues": {"books": {"items": "books.csv"} | changes}})


def test_files_that_are_not_as_the_settings_say_are_refused_with_the_catalogue_s_name(files: Path) -> None:
    for settings, message in (
        ({"items": files / "none.csv"}, "catalogues.b: cannot read .*none.csv"),
        ({"items": files / "books.csv"}, "catalogues.b: .*has no column 'item'; there are sku, name, shelf"),
        ({"items": files / "books.jsonl", "title": "name"}, "no line has a field 'name'; there are item, shelf, title"),
        ({"items": files / "many.csv", "interactions": files / "taken.csv"}, "none of its items is in .*many.csv"),
    ):
        with pytest.raises(DataError, match=message):
            read_catalogues({"b": CatalogueSettings.model_validate(settings)})


# Pools that a context does not hold


def test_as_many_of_the_first_are_ranked_as_the_model_can_read(tiny: TransformersBackend) -> None:
    ranker = Within(IRanker(tiny, ask="best"), Budget(calls=1))
    texts = tuple(Candidate(f"d{k}", f"text number {k}") for k in range(400))
    problem = Problem("q", "toy", "passage", texts, "what")

    def fits(ask: Ask, candidates: int) -> bool:
        return reads(tiny, ask, candidates)

    def asked_first(candidates: int) -> Ask:
        return next(ranker.plan(replace(problem, candidates=texts[:candidates])))

    ((_, ranking),) = drive([problem], lambda asked: reached(asked, ranker.plan, fits), tiny, 1)
    read = len(ranking.steps[0].pool)
    assert fits(asked_first(read), read)
    assert not fits(asked_first(read + 1), read + 1)
    assert ranking.docids[read:] == tuple(one.docid for one in texts[read:])
    assert sorted(ranking.docids[:read]) == sorted(one.docid for one in texts[:read])


def test_a_pool_that_fits_is_ranked_whole(tiny: TransformersBackend, make_problem: Any) -> None:
    ranker, problem = IRanker(tiny), make_problem(6)
    ((_, ranking),) = drive([problem], lambda asked: reached(asked, ranker.plan, lambda ask, n: n <= 6), tiny, 1)
    assert ranking.docids == ranker.rank(problem).docids


# Over HTTP


@pytest.fixture(scope="module")
def shop(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with three catalogues and the embedded model, which ranks from either end."""
    taken = {"items": str(files / "books.jsonl"), "interactions": str(files / "taken.csv"), "time": "time"}
    settings = {
        "rankers": {"nano": {"model": "nano"}, "best": {"model": "nano", "ask": "best"}},
        "catalogues": {
            "books": {"items": str(files / "books.csv"), "item_id": "sku", "title": "name", "pool": 6},
            "taken": taken | {"pool": 6, "show": True},
            "many": {"items": str(files / "many.csv"), "pool": 300},
        },
        "limits": {"characters": 1000, "all_characters": 20_000, "deadline_s": 60},
    }
    with running(tmp_path_factory.mktemp("shop"), settings) as server:
        yield server


def recommend(shop: Server, **body: Any) -> dict[str, Any]:
    """The answer to a sound request."""
    status, _, answer = shop.post("/v1/recommend", {"catalogue": "books", "history": ["s0", "s1"]} | body)
    assert status == 200, answer
    return answer  # type: ignore[no-any-return]


def items_of(answer: dict[str, Any]) -> list[str]:
    return [result["id"] for result in answer["results"]]


@pytest.mark.parametrize("body", [{}, {"query": "amber"}, {"history": None, "query": "amber"}, {"catalogue": "taken"}])
def test_a_pool_comes_back_ranked_with_texts_and_falling_scores(shop: Server, body: dict[str, Any]) -> None:
    answer = recommend(shop, **body)
    assert set(answer) == {"id", "object", "model", "catalogue", "results", "usage", "meta"}
    assert (answer["model"], answer["catalogue"]) == ("nano", body.get("catalogue", "books"))
    assert len(set(items_of(answer))) == 6 == answer["meta"]["pool"]
    assert all(result["text"] == TITLES[result["id"]] for result in answer["results"])
    scores = [result["relevance_score"] for result in answer["results"]]
    assert all(0 < score <= 1 for score in scores)
    assert all(one > other for one, other in pairwise(scores))
    assert answer["usage"]["total_tokens"] > 0
    assert "warnings" not in answer["meta"]


def test_what_was_taken_never_comes_back(shop: Server) -> None:
    for catalogue in ("books", "taken"):
        answer = recommend(
            shop, catalogue=catalogue, history=["s0", TITLES["s1"], "s2"], exclude=["h0"], query="amber sea"
        )
        assert not {"s0", "s1", "s2", "h0"} & set(items_of(answer))


def test_top_n_is_the_head_and_a_model_by_name_ranks(shop: Server) -> None:
    whole = items_of(recommend(shop, model="best"))
    few = recommend(shop, model="best", top_n=2)
    assert (items_of(few), few["model"]) == (whole[:2], "best")
    assert (
        items_of(recommend(shop, model="best", top_n=0)) == items_of(recommend(shop, model="best", top_n=99)) == whole
    )


def test_unknown_items_are_warned_of(shop: Server) -> None:
    answer = recommend(shop, history=["s0", "no such book", 17])
    assert answer["meta"]["warnings"] == ["history: 2 not in the catalogue and left aside: 'no such book', '17'"]


def test_nothing_is_left_to_recommend(shop: Server) -> None:
    answer = recommend(shop, history=list(TITLES))
    assert answer["results"] == []
    assert answer["meta"]["warnings"] == ["every item of the catalogue is in the history, or excluded"]


def test_of_a_pool_too_long_the_model_reads_the_first_and_the_rest_follow(shop: Server) -> None:
    answer = recommend(shop, catalogue="many", history=None, query="amber", model="best", top_n=2, explain=True)
    assert len(answer["results"]) == 2
    (warning,) = (one for one in answer["meta"]["warnings"] if "the model read" in one)
    read = len(answer["explain"]["steps"][0]["pool"])
    assert 2 < read < 300
    assert warning == f"the model read {read} of 300 candidates; the others stand as the first stage has them"


def test_explain_holds_the_steps_and_the_pool_in_the_first_stage_s_order(shop: Server) -> None:
    answer = recommend(shop, explain=True)
    assert {one["docid"] for one in answer["explain"]["candidates"]} == set(items_of(answer))
    assert answer["explain"]["steps"]


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"catalogue": "films"}, 404, "catalogue", "there is no catalogue 'films' here; there are books, taken, many"),
        ({"catalogue": None}, 404, "catalogue", "say which catalogue is meant; there are books, taken, many"),
        ({"model": "none"}, 404, "model", "there is no model 'none' here; there are nano, best"),
        ({"history": ["nope"]}, 400, "history", "none of it is in the catalogue"),
        ({"history": [], "query": " "}, 400, "history", "give items that the user took, or a query"),
        ({"history": "s0"}, 422, "history", "list"),
        ({"top_n": -1}, 422, "top_n", "greater than or equal to 0"),
        ({"query": "x" * 1001}, 413, "query", "at most 1000 characters"),
        ({"history": ["x" * 500] * 3}, 413, "history", "at most 1000 characters"),
        ({"history": [""] * 1001}, 413, "history", "1001 of them; at most 1000"),
        ({"exclude": [""] * 1001}, 413, "exclude", "1001 of them; at most 1000"),
        ({"exclude": ["x" * 500] * 50}, 413, "exclude", "at most 20000 characters"),
        ({"base_url": "http://x"}, 400, "base_url", "stands in the server's settings"),
    ],
)
def test_a_bad_request_is_refused_in_words(
    shop: Server, body: dict[str, Any], status: int, param: str, message: str
) -> None:
    given, _, answer = shop.post("/v1/recommend", {"catalogue": "books", "history": ["s0"]} | body)
    assert (given, answer["error"]["param"]) == (status, param)
    assert message in answer["message"]


def test_no_malformed_request_is_a_fault_of_the_server(shop: Server) -> None:
    rng = random.Random(5)
    for _ in range(60):
        body: dict[str, Any] = {"catalogue": "books", "history": ["s0"], "query": "sea", "top_n": 1, "model": "best"}
        for name in rng.sample(
            ["catalogue", "history", "query", "exclude", "top_n", "model", "explain", "deadline_s"], 3
        ):
            body[name] = rng.choice([*VALUES, ["s1", "x"]])
        assert shop.post("/v1/recommend", body)[0] < 500, body


def test_texts_stand_in_no_line_of_the_log(shop: Server) -> None:
    recommend(shop, query="whisper", history=["The fjord sea"])
    log = shop.log.read_text()
    assert "whisper" not in log
    assert "fjord" not in log
    assert any("catalogue taken: 24 items, first stage item-knn" in line.get("message", "") for line in shop.lines())
