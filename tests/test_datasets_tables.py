"""Files of users and items: columns by name, identifiers as text, nothing twice, nothing that is no number."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from r1ranker.datasets import amazon_windows, lastfm, load, movielens, recbole
from r1ranker.errors import DataError
from r1ranker.problem import Problem, Splits

USERS, FILMS = range(12), range(40)
Loader = Callable[[Path], Splits]


def film(number: int) -> str:
    """Padded with zeros, as IMDb's identifiers are."""
    return f"{number:07}"


def watched(user: int) -> list[int]:
    return [(user + 7 * place) % 40 for place in range(9)]


def all_of(splits: Splits) -> list[Problem]:
    return [problem for problems in splits.values() for problem in problems]


def movies_csv(columns: str = "movieId,title,genres") -> str:
    rows = ({"movieId": film(i), "title": f'"Film {i}, The"', "genres": "Comedy", "": str(i)} for i in FILMS)
    return "\n".join([columns, *(",".join(row[name] for name in columns.split(",")) for row in rows)]) + "\n"


def ratings_csv(columns: str = "userId,movieId,rating,timestamp") -> str:
    rows = (
        {"userId": f"0{user}", "movieId": film(i), "rating": str(1 + place % 5), "timestamp": str(place), "": str(user)}
        for user in USERS
        for place, i in enumerate(watched(user))
    )
    return "\n".join([columns, *(",".join(row[name] for name in columns.split(",")) for row in rows)]) + "\n"


def write_movielens(folder: Path) -> None:
    (folder / "movies.csv").write_text(movies_csv())
    (folder / "ratings.csv").write_text(ratings_csv())


def write_double_colons(folder: Path) -> None:
    movies = "".join(f"{film(i)}::Amélie {i} (2001)::Comedy|Romance\n" for i in FILMS)
    (folder / "movies.dat").write_text(movies, encoding="utf-8")
    rows = (f"{user}::{film(i)}::8::{place}\n" for user in USERS for place, i in enumerate(watched(user)))
    (folder / "ratings.dat").write_text("".join(rows))


def write_recbole(folder: Path) -> None:
    items = "".join(f"{film(i)}\tFilm {i}\tComedy Drama\n" for i in FILMS)
    (folder / "m.item").write_text("item_id:token\ttitle:token_seq\tgenres:token_seq\n" + items)
    rows = (f"{place}\t{user}\t{film(i)}\t{1 + place % 5}\n" for user in USERS for place, i in enumerate(watched(user)))
    (folder / "m.inter").write_text("timestamp:float\tuser_id:token\titem_id:token\trating:float\n" + "".join(rows))


def write_lastfm(folder: Path) -> None:
    artists = "".join(f"Artist {i}\t{film(i)}\n" for i in FILMS)
    (folder / "artists.dat").write_text("name\tid\n" + artists)
    rows = (f"{user}\t{10 + place}\t{film(i)}\n" for user in USERS for place, i in enumerate(watched(user)))
    (folder / "user_artists.dat").write_text("userID\tweight\tartistID\n" + "".join(rows))


def write_amazon(folder: Path) -> None:
    lines = ["history_item_title,history_item_id,history_timestamp,timestamp,item_title,item_id,user_id"]
    for user in USERS:
        items = watched(user)
        for place in range(4, 9):
            before = items[place - 4 : place]
            lines.append(
                f'"{[f"Disc {i}" for i in before]}","{[film(i) for i in before]}",'
                f'"{list(range(place - 4, place))}",{place},Disc {items[place]},{film(items[place])},{user}'
            )
    (folder / "cds.csv").write_text("\n".join(lines) + "\n")


WRITERS: dict[str, Callable[[Path], None]] = {
    "movielens": write_movielens,
    "recbole": write_recbole,
    "lastfm": write_lastfm,
    "amazon-windows": write_amazon,
}


@pytest.fixture(params=WRITERS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    WRITERS[request.param](tmp_path)
    return request.param, tmp_path


def test_identifiers_are_text_and_columns_are_found_by_name(source: tuple[str, Path]) -> None:
    problems = all_of(load(*source, pool_size=5))
    assert len({problem.group for problem in problems}) == len(USERS)
    known = {film(i) for i in FILMS}
    assert all(candidate.docid in known for problem in problems for candidate in problem.candidates)
    for problem in problems:
        last = watched(int(problem.group[1:]))[-1]
        if problem.qid.endswith(":last") and source[0] != "lastfm":  # whose order is drawn
            assert problem.gains == {film(last): 1}


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_every_file_may_be_compressed_and_hidden_and_backup_files_are_no_data(
    source: tuple[str, Path], compress: Callable[[bytes], bytes]
) -> None:
    name, folder = source
    plain = load(name, folder, pool_size=5)
    end = ".gz" if compress is gzip.compress else ".bz2"
    for file in list(folder.iterdir()):
        content = file.read_bytes()
        (folder / f"{file.name}{end}").write_bytes(compress(b"\xef\xbb\xbf" + content))
        (folder / f"._{file.name}").write_bytes(b"\x00\x05")
        (folder / f"{file.name}~").write_bytes(content[: len(content) // 2])
        (folder / f"{file.name}.bak").write_bytes(content)
        file.unlink()
    assert load(name, folder, pool_size=5) == plain


def test_a_file_that_lies_there_compressed_and_not_is_refused(source: tuple[str, Path]) -> None:
    name, folder = source
    for file in list(folder.iterdir()):
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    with pytest.raises(DataError, match=r"has both (\S+) and \1\.gz; keep|has 2 \.item"):
        load(name, folder)


@pytest.mark.parametrize("end", ["", ",more,fields,than,names\t\t\t\t\t\t\t\t"])
def test_a_row_that_does_not_fit_the_header_is_refused_with_its_line(source: tuple[str, Path], end: str) -> None:
    name, folder = source
    for file in list(folder.iterdir()):
        if file.suffix == ".item" and not end:
            continue  # a line of it may lack its last columns
        content = file.read_text()
        file.write_text(content + (content.splitlines()[-1] + end if end else "1") + "\n")
        number = content.count("\n") + 1
        with pytest.raises(DataError, match=rf"{file.name}:{number}: "):
            load(name, folder)
        file.write_text(content)


def test_a_headerless_file_is_refused_with_the_columns_that_are_missing(source: tuple[str, Path]) -> None:
    name, folder = source
    for file in list(folder.iterdir()):
        content = file.read_text()
        file.write_text(content.split("\n", 1)[1])
        with pytest.raises(DataError, match=rf"{file.name}:1: the header (lacks|must name typed columns)"):
            load(name, folder)
        file.write_text(content)


@pytest.mark.parametrize("columns", ["movieId,genres,title", ",movieId,title,genres", "title,genres,movieId"])
def test_movielens_columns_in_another_order_or_behind_an_index_mean_the_same(tmp_path: Path, columns: str) -> None:
    write_movielens(tmp_path)
    usual = movielens.load(tmp_path, pool_size=5)
    (tmp_path / "movies.csv").write_text(movies_csv(columns))
    (tmp_path / "ratings.csv").write_text(ratings_csv(",timestamp,rating,movieId,userId"))
    assert movielens.load(tmp_path, pool_size=5) == usual
    assert usual["test"][0].history[0].endswith(", The")


def test_movielens_faults_name_file_and_line(tmp_path: Path) -> None:
    write_movielens(tmp_path)
    ratings, movies = tmp_path / "ratings.csv", tmp_path / "movies.csv"
    for more, message in (
        ("0000001,1,5,7", r"ratings\.csv:110: .* rates item '1' 5\.0 here and 4\.0 before"),
        ("1,1,nan,7", r"ratings\.csv:110: rating: 'nan' is not a finite number"),
        ("1,1,4,1e999", r"ratings\.csv:110: timestamp: '1e999' is not a finite"),
        ("1,,4,7", r"ratings\.csv:110: movieId is empty"),
        ('1,"1,4,7', r"ratings\.csv:110: not CSV .* quote not closed"),
        ("1,Film, The,4,7", r"ratings\.csv:110: 5 fields where the header names 4"),
    ):
        ratings.write_text(ratings_csv() + "0000001,1,4,7\n" * more.startswith("0000001") + more + "\n")
        with pytest.raises(DataError, match=message.replace("110", "111" if "0000001" in more else "110")):
            movielens.load(tmp_path)
    ratings.write_text(ratings_csv() + "01,0000001,4,7\n01,0000001,4,7\n01,0000001,2,9\n")  # again, and once more later
    movielens.load(tmp_path)
    movies.write_text(movies_csv() + '0000003,"Film 3, The",Comedy\n')
    movielens.load(tmp_path)
    movies.write_text(movies_csv() + "0000003,Another film,Comedy\n")
    with pytest.raises(DataError, match=r"movies\.csv:42: '0000003' stands twice: 'Another film"):
        movielens.load(tmp_path)
    movies.write_text("movieId,title,genres\n")
    with pytest.raises(DataError, match=r"none of the 40 items.* has a title"):
        movielens.load(tmp_path)
    ratings.write_text("")
    with pytest.raises(DataError, match=r"ratings\.csv: is empty"):
        movielens.load(tmp_path)


def test_double_colons_stay_by_place_keep_zeros_and_are_utf_8_where_they_can_be(tmp_path: Path) -> None:
    write_double_colons(tmp_path)
    problems = all_of(movielens.load(tmp_path, pool_size=5))
    assert len({problem.group for problem in problems}) == len(USERS)
    assert problems[0].candidates[0].text.startswith("Amélie ")
    assert {len(candidate.docid) for problem in problems for candidate in problem.candidates} == {7}
    with (tmp_path / "movies.dat").open("a") as lines:
        lines.write("99::A title::with colons::Comedy\n")
    with pytest.raises(DataError, match=r"movies\.dat:41: 4 fields where a line is movieId::title::genres"):
        movielens.load(tmp_path)


@pytest.mark.parametrize("title", ["", "   "])
def test_an_item_without_a_title_is_dropped_and_never_called_none(
    tmp_path: Path, title: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_movielens(tmp_path)
    (tmp_path / "movies.csv").write_text(movies_csv().replace('"Film 7, The"', title))
    problems = all_of(movielens.load(tmp_path, pool_size=5))
    assert "1 items have no title and are dropped, of 40" in caplog.text
    assert not any(film(7) in {c.docid for c in problem.candidates} for problem in problems)
    assert all(shown.startswith("Film ") for problem in problems for shown in problem.history)


@pytest.mark.parametrize(("name", "loader"), [("movielens", movielens.load), ("recbole", recbole.load)])
def test_the_lowest_rating_that_counts_can_be_set(tmp_path: Path, name: str, loader: Callable[..., Splits]) -> None:
    WRITERS[name](tmp_path)
    problems = all_of(loader(tmp_path, pool_size=5, min_items=3, min_rating=3))
    for problem in problems:
        liked = [i for place, i in enumerate(watched(int(problem.group[1:]))) if 1 + place % 5 >= 3]
        assert len(liked) == 5
        if problem.qid.endswith(":last"):
            assert problem.gains == {film(liked[-1]): 1}
            assert len(problem.history) == 4


def test_a_lowest_rating_needs_ratings(tmp_path: Path) -> None:
    write_recbole(tmp_path)
    (tmp_path / "m.inter").write_text("user_id:token\titem_id:token\n1\t0000001\n")
    with pytest.raises(DataError, match=r"m\.inter:2: min_rating needs a column rating:float"):
        recbole.load(tmp_path, min_rating=3)


@pytest.mark.parametrize("separator", [" ", ",", ", "])
def test_recbole_with_other_separators_than_tabs_is_refused(tmp_path: Path, separator: str) -> None:
    write_recbole(tmp_path)
    for name in ("m.inter", "m.item"):
        content = (tmp_path / name).read_text()
        (tmp_path / name).write_text(content.replace("\t", separator))
        with pytest.raises(DataError, match=rf"{name}:1: the header must name typed columns.* with tabs"):
            recbole.load(tmp_path)
        (tmp_path / name).write_text(content)
    (tmp_path / "m.inter").write_text((tmp_path / "m.inter").read_text() + separator.join(["9", "1", "0000001", "4"]))
    with pytest.raises(DataError, match=r"m\.inter:110: (timestamp: .* is not a finite number|user_id is empty)"):
        recbole.load(tmp_path)


def test_recbole_conflicts_are_refused(tmp_path: Path) -> None:
    write_recbole(tmp_path)
    inter, other = tmp_path / "m.inter", tmp_path / "m.test.inter"
    other.write_text("user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t0000001\t5\t0\n")
    with pytest.raises(DataError, match=r"m\.test\.inter:2: user '1' rates item '0000001' 5\.0 here and 1\.0 before"):
        recbole.load(tmp_path)
    other.write_text("user_id:token\titem_id_list:token_seq\titem_id:token\n1\t0000001 0000002\t0000003\n")
    with pytest.raises(DataError, match=r"m\.inter:2: a single interaction beside histories"):
        recbole.load(tmp_path)
    inter.write_text("user_id:token\titem_id_list:token_seq\titem_id:token\n1\t0000001\t0000004\n")
    with pytest.raises(DataError, match=r"m\.test\.inter:2: two histories of user '1' differ"):
        recbole.load(tmp_path)
    other.rename(tmp_path / "n.inter")
    with pytest.raises(DataError, match=r"n\.inter: is not named after m\.item"):
        recbole.load(tmp_path)


def test_an_artist_played_twice_with_other_counts_is_refused(tmp_path: Path) -> None:
    write_lastfm(tmp_path)
    with (tmp_path / "user_artists.dat").open("a") as lines:
        lines.write("0\t10\t0000000\n0\t11\t0000000\n")
    with pytest.raises(DataError, match=r"user_artists\.dat:111: '0000000' stands twice: 11\.0 here, 10\.0 before"):
        lastfm.load(tmp_path)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ("\"['T', None]\",\"['0000001', '0000002']\",\"[1, 2]\"", ""),
        ('"[\'T\']","[\'0000001\']","[None]"', "history_timestamp: None is not a finite number"),
        ('"[\'T\']","[\'0000001\']","[1e999]"', "history_timestamp: inf is not a finite number"),
        ('"[\'T\']","[None]","[1]"', "history_item_id is None"),
        ('"[\'T\']","[1.5]","[1]"', r"history_item_id is 1\.5"),
        ('"[[1]]","[1]","[1]"', "history_item_title is a list"),
        ("\"'T'\",\"'1'\",\"'1'\"", "not a window of items: not three lists"),
        ("\"['T']\",\"['0000001', '2']\",\"[1]\"", "not a window of items"),
    ],
)
def test_windows_of_items_hold_items_titles_and_times(tmp_path: Path, window: str, message: str) -> None:
    header = "history_item_title,history_item_id,history_timestamp,timestamp,item_title,item_id,user_id\n"
    (tmp_path / "cds.csv").write_text(f"{header}{window},3,Last,0000003,u\n")
    if message:
        with pytest.raises(DataError, match=rf"cds\.csv:2: {message}"):
            amazon_windows.load(tmp_path)
    else:
        assert not all_of(amazon_windows.load(tmp_path))


def test_an_amazon_item_has_one_title(tmp_path: Path) -> None:
    write_amazon(tmp_path)
    with (tmp_path / "cds.csv").open("a") as lines:
        lines.write('"[]","[]","[]",3,Another disc,0000003,u\n')
    with pytest.raises(DataError, match=r"cds\.csv:62: '0000003' stands twice: 'Another disc' here, 'Disc 3' before"):
        amazon_windows.load(tmp_path)
