"""Interactions and items of one's own: columns by option, whatever parts the fields; faults name what there is."""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1ranker.datasets import load, movielens
from r1ranker.datasets.interactions import interactions
from r1ranker.errors import ConfigError, DataError
from r1ranker.problem import Problem, Splits

USERS, ITEMS = 9, 30
ORDERS = [
    (f"u{user}", f"b{(user + place) % ITEMS}", 1 + place % 5, 100 + place)
    for user in range(USERS)
    for place in range(8)
]
NAMES = [(f"b{item}", f"Book {item}, The", "Drama") for item in range(ITEMS)]


def table(rows: Sequence[Sequence[object]], header: Sequence[str], mark: str = ",") -> str:
    if len(mark) > 1:
        return "".join(mark.join(map(str, row)) + "\n" for row in [header, *rows])
    text = io.StringIO()
    csv.writer(text, delimiter=mark, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def write(folder: Path, mark: str = ",") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "interactions.csv").write_text(table(ORDERS, ("user", "item", "stars", "at"), mark))
    (folder / "items.csv").write_text(table(NAMES, ("item", "title", "kind"), mark))
    return folder


def all_of(splits: Splits) -> list[Problem]:
    return sorted((problem for problems in splits.values() for problem in problems), key=lambda problem: problem.qid)


def of(folder: Path, **options: Any) -> list[Problem]:
    return all_of(load("csv", folder, **{"pool_size": 5, **options}))


def test_a_problem_is_a_users_next_item(tmp_path: Path) -> None:
    problems = of(write(tmp_path / "shop"), time="at", details=["kind"])
    assert {problem.group for problem in problems} == {f"u{user}" for user, *_ in ORDERS}
    last = next(problem for problem in problems if problem.qid == "rec:uu3:last")
    assert (last.task, last.scenario, last.gains) == ("rec", "recommendation", {"b10": 1})
    assert last.history == tuple(f"Book {k}, The" for k in range(3, 10))
    assert {c.text.rpartition(" | ")[2] for c in last.candidates} == {"Drama"}


@pytest.mark.parametrize("mark", ["\t", ";", "::"])
def test_what_parts_the_fields_makes_no_difference(tmp_path: Path, mark: str) -> None:
    assert of(write(tmp_path / "a", mark), time="at") == of(write(tmp_path / "b"), time="at")


def test_the_official_files_of_movielens_mean_the_same_read_by_options(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(table(ORDERS, ("userId", "movieId", "rating", "timestamp")))
    (tmp_path / "movies.csv").write_text(table(NAMES, ("movieId", "title", "genres")))
    named = {"interactions": "ratings.csv", "items": "movies.csv", "user": "userId", "item": "movieId"}
    named |= {"rating": "rating", "time": "timestamp", "task": "rec-movie"}
    ours = of(tmp_path, details=["genres"], **named)
    assert ours == all_of(movielens.load(tmp_path, pool_size=5))


def test_files_may_be_compressed_lie_elsewhere_and_have_columns_of_other_names(tmp_path: Path) -> None:
    usual = of(write(tmp_path / "shop"), time="at")
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "names.tsv.gz"
    moved.write_bytes(gzip.compress(table(NAMES, ("sku", "name", "kind"), "\t").encode()))
    (tmp_path / "shop" / "interactions.csv.gz").write_bytes(
        gzip.compress((tmp_path / "shop" / "interactions.csv").read_bytes())
    )
    (tmp_path / "shop" / "interactions.csv").unlink()
    assert of(tmp_path / "shop", time="at", items=str(moved), item_id="sku", title="name") == usual


def test_without_times_rows_stand_in_their_order_and_dates_are_times(tmp_path: Path) -> None:
    usual = of(write(tmp_path / "shop"), time="at")
    file = tmp_path / "shop" / "interactions.csv"
    assert of(tmp_path / "shop") == usual
    dated = [(user, item, stars, f"2024-05-01T18:{at - 100:02}:00") for user, item, stars, at in reversed(ORDERS)]
    file.write_text(table(dated, ("user", "item", "stars", "at")))
    assert of(tmp_path / "shop", time="at") == usual
    assert of(tmp_path / "shop") != usual
    file.write_text(table([*dated, ("u1", "b1", 1, "yesterday")], ("user", "item", "stars", "at")))
    with pytest.raises(DataError, match=r"interactions\.csv:74: time: 'yesterday' is not a finite number, nor a date"):
        of(tmp_path / "shop", time="at")


def test_an_item_that_comes_again_without_times_counts_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop")
    with (folder / "interactions.csv").open("a") as lines:
        lines.write("u3,b3,1,999\n")
    last = next(problem for problem in of(folder, rating="stars") if problem.qid == "rec:uu3:last")
    assert last.gains == {"b10": 1}


def test_the_lowest_rating_leaves_out_lower_ones(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop")
    problems = of(folder, rating="stars", min_rating=3, min_items=3)
    last = next(problem for problem in problems if problem.qid == "rec:uu0:last")
    liked = [item for user, item, stars, _ in ORDERS if user == "u0" and stars >= 3]
    assert last.gains == {liked[-1]: 1} and len(last.history) == len(liked) - 1
    with pytest.raises(ConfigError, match=r"min_rating=3\.0 needs ratings: name their column by the option rating"):
        of(folder, min_rating=3)


def test_recommenders_learn_from_whole_histories(tmp_path: Path) -> None:
    splits = interactions("csv", write(tmp_path / "shop"), time="at")
    assert {len(problem.history) for problem in splits["train"]} == {7}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"user": "customer"},
            r"interactions\.csv:1: has no column 'customer'; there are user, item, stars, at; .*user",
        ),
        ({"time": "when"}, r"has no column 'when'; there are user, item, stars, at; .*option time"),
        ({"title": "name"}, r"items\.csv:1: has no column 'name'; there are item, title, kind; .*option title"),
        ({"details": ["genre"]}, r"has no column 'genre'; .*option details"),
        ({"items": "books.csv"}, r"has no books\.csv; name the file by the option items"),
        ({"rating": "user"}, r"interactions\.csv:2: rating: 'u0' is not a finite number"),
    ],
)
def test_faults_name_what_there_is_and_the_option(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        of(write(tmp_path / "shop"), **options)


@pytest.mark.parametrize(
    ("file", "more", "message"),
    [
        ("interactions", "a user,b1,1,7", r"interactions\.csv:74: user 'a user' has white space"),
        ("interactions", ",b1,1,7", r"interactions\.csv:74: user is empty"),
        ("interactions", "u1,b1", r"interactions\.csv:74: 2 fields where the header names 4"),
        ("items", "b1,Another,Drama", r"items\.csv:32: 'b1' stands twice"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, file: str, more: str, message: str) -> None:
    folder = write(tmp_path / "shop")
    with (folder / f"{file}.csv").open("a") as lines:
        lines.write(f"{more}\n")
    with pytest.raises(DataError, match=message):
        of(folder)


WORD = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=8)
TITLE = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), mark=st.sampled_from([",", "\t", ";"]))
def test_any_names_and_titles_come_out_as_they_went_in(data: st.DataObject, mark: str) -> None:
    items = data.draw(st.lists(WORD, min_size=8, max_size=8, unique=True))
    titles = [" ".join(title.split()) for title in data.draw(st.lists(TITLE, min_size=8, max_size=8))]
    users = data.draw(st.lists(WORD, min_size=3, max_size=4, unique=True))
    bought = {user: data.draw(st.permutations(items))[:4] for user in users}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        rows = [(user, item) for user, mine in bought.items() for item in mine]
        (path / "interactions.csv").write_bytes(table(rows, ("user", "item"), mark).encode())
        (path / "items.csv").write_bytes(table(list(zip(items, titles, strict=True)), ("item", "title"), mark).encode())
        try:
            splits = load("csv", path, min_items=2, pool_size=2)
        except DataError as error:
            assert "are left to draw" in str(error)  # too few distinct titles
            return
    title_of = dict(zip(items, titles, strict=True))
    lasts = {problem.group[1:]: problem for problem in all_of(splits) if problem.qid.endswith(":last")}
    assert lasts.keys() == bought.keys()
    for user, problem in lasts.items():
        *before, last = bought[user]
        assert problem.gains == {last: 1}
        assert problem.history == tuple(title_of[item] for item in before)
        assert {c.docid: c.text for c in problem.candidates}[last] == title_of[last]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_columns_name_may_hold_what_parts_the_fields(tmp_path: Path, mark: str) -> None:
    folder = write(tmp_path / "shop", mark)
    usual, name = of(folder), f"title{mark} full"
    (folder / "items.csv").write_text(table(NAMES, ("item", name, "kind"), mark))
    assert of(folder, title=name) == usual


@pytest.mark.parametrize(("more", "said"), [("2024-05-01", "date, .* numbers"), ("17", "number, .* dates")])
def test_times_of_two_kinds_are_refused(tmp_path: Path, more: str, said: str) -> None:
    folder = write(tmp_path / "shop")
    at = "2024-05-01" if more == "17" else "17"
    rows = [(user, item, stars, at) for user, item, stars, _ in ORDERS]
    header = ("user", "item", "stars", "at")
    (folder / "interactions.csv").write_text(table([*rows, ("u1", "b29", 1, more)], header))
    with pytest.raises(DataError, match=rf"interactions\.csv:74: time '{more}' is a {said}; write one kind"):
        of(folder, time="at")
