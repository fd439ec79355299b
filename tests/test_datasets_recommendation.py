"""Histories become problems without leaks; the four recommendation sources read their official layouts."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1ranker.datasets import amazon_windows, lastfm, movielens, recbole
from r1ranker.datasets.common import check_disjoint, split_groups
from r1ranker.datasets.recommendation import NegativeSampler, recommendation_problems
from r1ranker.errors import ConfigError, DataError
from r1ranker.problem import Problem, Splits, rng_for

ITEMS = [str(number) for number in range(60)]
TITLES = {item: f"Title {item}" for item in ITEMS}
histories_of = st.dictionaries(
    st.text(alphabet="abcdef", min_size=1, max_size=3),
    st.lists(st.sampled_from(ITEMS), unique=True, min_size=3, max_size=15),
    max_size=20,
)


def histories(users: int = 40, length: int = 12) -> dict[str, list[str]]:
    """Tastes with a head: low numbers are popular."""
    made = {}
    for user in range(users):
        rng = rng_for("fixture", user)
        made[str(user)] = sorted(ITEMS, key=lambda item: int(item) * rng.random() ** 2)[:length]
    return made


def all_of(splits: Splits) -> list[Problem]:
    return [problem for problems in splits.values() for problem in problems]


@settings(max_examples=40, deadline=None)
@given(histories_of, st.integers(0, 3))
def test_users_stay_apart_and_negatives_are_never_consumed(made: dict[str, list[str]], seed: int) -> None:
    splits = recommendation_problems(made, TITLES, task="t", seed=seed, pool_size=8)
    check_disjoint(splits)
    for problem in all_of(splits):
        consumed = set(made[problem.group[1:]])
        pool = [candidate.docid for candidate in problem.candidates]
        assert len(pool) == 8
        assert set(pool) & consumed == set(problem.gains)
        assert list(problem.gains.values()) == [1]
    assert {p.group for p in all_of(splits)} == {f"u{user}" for user, items in made.items() if len(items) >= 6}


def test_problems_do_not_depend_on_the_order_of_users() -> None:
    made = histories()
    backwards = dict(reversed(made.items()))
    first, second = (recommendation_problems(h, TITLES, task="t", seed=3) for h in (made, backwards))
    for split in first:
        assert sorted(first[split], key=lambda p: p.qid) == sorted(second[split], key=lambda p: p.qid)
    assert first != recommendation_problems(made, TITLES, task="t", seed=4)


def test_the_last_item_is_the_positive_and_the_items_before_it_the_context() -> None:
    made = histories(length=30)
    splits = recommendation_problems(made, TITLES, task="t", history=20)
    for problem in splits["dev"] + splits["test"]:
        items = made[problem.group[1:]]
        assert problem.qid == f"{problem.task}:{problem.group}:last"
        assert problem.gains == {items[-1]: 1}
        assert problem.history == tuple(TITLES[item] for item in items[-21:-1])
    assert len({p.group for p in splits["test"]}) == len(splits["test"])


def test_training_users_give_several_targets_with_the_last_among_them() -> None:
    made = histories()
    splits = recommendation_problems(made, TITLES, task="t", windows_per_user=3)
    by_user = Counter(problem.group for problem in splits["train"])
    assert set(by_user.values()) == {3}
    assert sum(problem.qid.endswith(":last") for problem in splits["train"]) == len(by_user)
    for problem in splits["train"]:
        items, place = made[problem.group[1:]], problem.qid.rsplit(":", 1)[1]
        target = len(items) - 1 if place == "last" else int(place)
        assert problem.gains == {items[target]: 1}
        assert problem.history == tuple(TITLES[item] for item in items[:target])
        assert target >= 5


def test_the_prior_counts_other_training_users_only() -> None:
    made = histories()
    side = split_groups(made, 0)
    trained = Counter(item for user, items in made.items() if side[user] == "train" for item in items)
    for problem in all_of(recommendation_problems(made, TITLES, task="t")):
        own = problem.gains if side[problem.group.removeprefix("u")] == "train" else {}
        assert problem.prior == {c.docid: trained[c.docid] - own.get(c.docid, 0) for c in problem.candidates}

    # What test users consume must not move a single prior or popularity draw of the other problems.
    test_users = {user for user in made if side[user] == "test"}
    changed = {user: items[:6] if user in test_users else items for user, items in made.items()}
    first, second = (
        recommendation_problems(h, TITLES, task="t", negatives="popularity", pool_size=10) for h in (made, changed)
    )
    assert first["train"] == second["train"]
    assert first["dev"] == second["dev"]
    assert first["test"] != second["test"]


def test_popularity_negatives_are_more_popular_than_uniform_ones() -> None:
    made = histories()

    def average(negatives: str) -> float:
        splits = recommendation_problems(made, TITLES, task="t", pool_size=6, negatives=negatives)  # type: ignore[arg-type]
        problems = all_of(splits)
        return mean(p.prior[c.docid] for p in problems for c in p.candidates if c.docid not in p.gains)

    assert average("popularity") > 1.25 * average("uniform")


@pytest.mark.parametrize("split", ["train", "test"])
def test_negatives_by_popularity_do_not_give_the_positive_away_by_a_popularity_of_0(split: str) -> None:
    """A long tail: every user takes an item that nobody else takes, and nine of the thirty that all take."""
    titles = {f"p{k}": f"P{k}" for k in range(30)} | {f"t{k}": f"T{k}" for k in range(600)}
    titles |= {f"unknown{k}": f"U{k}" for k in range(600)}
    made = {}
    for user in range(300):
        items = [*rng_for("popular", user).sample([f"p{k}" for k in range(30)], 9), f"t{user}"]
        made[str(user)] = rng_for("order", user).sample(items, len(items))
    problems = recommendation_problems(made, titles, task="t", negatives="popularity", pool_size=10)[split]
    untaken = [(k in p.gains) for p in problems for k, count in p.prior.items() if count == 0]
    assert 0.05 < mean(untaken) < 0.25, "one of ten is the positive, of those that no other took as of all"
    assert not any(c.docid.startswith("unknown") for p in problems for c in p.candidates), "nobody has them"


def test_positives_have_no_fixed_place() -> None:
    train = recommendation_problems(histories(), TITLES, task="t", pool_size=5)["train"]
    assert {next(i for i in p.identifiers if p.is_relevant(i)) for p in train} == {1, 2, 3, 4, 5}


def test_limit_takes_some_of_the_same_problems() -> None:
    full = recommendation_problems(histories(), TITLES, task="t")
    some = recommendation_problems(histories(), TITLES, task="t", limit=4)
    assert {split: len(problems) for split, problems in some.items()} == {"train": 4, "dev": 4, "test": 4}
    assert all(problem in full[split] for split, problems in some.items() for problem in problems)


def test_items_with_the_same_text_never_meet_in_a_pool() -> None:
    titles = {item: f"Title {int(item) // 2}" for item in ITEMS}
    for problem in all_of(recommendation_problems(histories(length=6), titles, task="t", pool_size=15)):
        assert len({candidate.text for candidate in problem.candidates}) == 15


def test_impossible_options_and_small_catalogues_are_named() -> None:
    with pytest.raises(ConfigError, match="pool_size"):
        recommendation_problems({}, TITLES, task="t", pool_size=1)
    with pytest.raises(ConfigError, match="'hard' is not one of uniform, popularity"):
        recommendation_problems({}, TITLES, task="t", negatives="hard")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"only 48 items .* lower pool_size"):
        recommendation_problems(histories(), TITLES, task="t", pool_size=61)


def test_popularity_draws_follow_the_weights_and_skip_unseen_items() -> None:
    sampler = NegativeSampler({"a": "A", "b": "B", "c": "C", "d": "D"}, {"a": 8, "b": 1, "c": 1})
    first = Counter(sampler.draw(rng_for(n), set(), 1)[0] for n in range(500))
    assert first["a"] > 350
    assert "d" not in first
    assert sorted(sampler.draw(rng_for(0), {"A"}, 2)) == ["b", "c"]


def test_popularity_draws_are_in_proportion_without_replacement() -> None:
    sampler = NegativeSampler({"a": "A", "b": "B", "c": "C"}, {"a": 5, "b": 3, "c": 2})
    draws = [tuple(sampler.draw(rng_for("law", n), set(), 2)) for n in range(4000)]
    assert draws == [tuple(sampler.draw(rng_for("law", n), set(), 2)) for n in range(4000)]
    shares = {pair: count / len(draws) for pair, count in Counter(draws).items()}
    # First by weight, then by weight among the two left: 0.5 * 3/5, 0.5 * 2/5, 0.3 * 5/7, 0.3 * 2/7, and so on.
    expected = {"ab": 0.3, "ac": 0.2, "ba": 3 / 14, "bc": 3 / 35, "ca": 0.125, "cb": 0.075}
    assert {"".join(pair): share for pair, share in shares.items()} == pytest.approx(expected, abs=0.025)


def movielens_csv(path: Path) -> None:
    movies = [f"{i},{name},{genres}\r\n" for i, name, genres in MOVIES]
    (path / "movies.csv").write_text("movieId,title,genres\r\n" + "".join(movies), encoding="utf-8", newline="")
    rows = [f"{u},{m},3.5,{t}\n" for u, m, t in RATINGS]
    (path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "".join(rows), encoding="utf-8")


MOVIES = [(i, f'"Film {i}, The (1999)"', "(no genres listed)" if i == 9 else "Comedy|Drama") for i in range(40)]
# Newest first, and two movies a second, so that neither the order of the file nor time alone is enough.
RATINGS = [(user, (user + 7 * i) % 40, 1000 + i // 2) for user in range(12) for i in reversed(range(9))]


def movie_order(user: int) -> list[int]:
    return [movie for _, movie in sorted((t, m) for u, m, t in RATINGS if u == user)]


def test_movielens_csv_is_ordered_by_time_then_movie(tmp_path: Path) -> None:
    movielens_csv(tmp_path)
    splits = movielens.load(tmp_path, pool_size=5)
    for problem in splits["test"]:
        order = movie_order(int(problem.group[1:]))
        assert problem.task == "rec-movie"
        assert problem.gains == {str(order[-1]): 1}
        assert problem.history == tuple(f"Film {movie}, The (1999)" for movie in order[:-1])
    texts = {c.docid: c.text for p in all_of(splits) for c in p.candidates}
    assert texts["9"] == "Film 9, The (1999)"
    assert texts["10"] == "Film 10, The (1999) | Comedy, Drama"


def test_movielens_1m_layout_is_latin_1_with_double_colons(tmp_path: Path) -> None:
    movies = "".join(f"{i}::Café: {i} (1995)::Animation|Children's\n" for i, *_ in MOVIES)
    (tmp_path / "movies.dat").write_bytes(movies.encode("latin-1"))
    (tmp_path / "ratings.dat").write_text("".join(f"{u}::{m}::5::{t}\n" for u, m, t in RATINGS))
    problem = movielens.load(tmp_path, pool_size=5)["test"][0]
    assert problem.candidates[0].text == f"Café: {problem.candidates[0].docid} (1995) | Animation, Children's"
    assert problem.gains == {str(movie_order(int(problem.group[1:]))[-1]): 1}


def test_movielens_faults_name_the_file_and_line(tmp_path: Path) -> None:
    movielens_csv(tmp_path)
    with (tmp_path / "ratings.csv").open("a") as lines:
        lines.write("1,2,3.0,yesterday\n")
    with pytest.raises(DataError, match=r"ratings\.csv:110: timestamp: 'yesterday' is not a finite number"):
        movielens.load(tmp_path)
    (tmp_path / "ratings.csv").unlink()
    with pytest.raises(DataError, match=r"neither ratings\.csv nor ratings\.dat"):
        movielens.load(tmp_path)


def write_items(path: Path, header: str = "item_id:token\ttitle:token_seq") -> None:
    rows = [f"{item}\tGame &amp; {item}" for item in ITEMS if item != "3"]
    (path / "g.item").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def test_recbole_sequences(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_items(tmp_path)
    lines = ["user_id:token\titem_id_list:token_seq\titem_id:token"]
    for user, items in histories(20, 9).items():
        lines.append(f"{user}\t{' '.join(items[:-2])}\t{items[-2]}")
        lines.append(f"{user}\t{' '.join(items[:-1])}\t{items[-1]}")
    (tmp_path / "g.valid.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    splits = recbole.load(tmp_path, pool_size=5)
    assert "1 items have no title" in caplog.text
    for problem in splits["test"]:
        items = [item for item in histories(20, 9)[problem.group[1:]] if item != "3"]
        assert problem.task == "rec-game"
        assert problem.history == tuple(f"Game & {item}" for item in items[:-1])
        assert problem.gains == {items[-1]: 1}


@pytest.mark.parametrize("timed", [True, False])
def test_recbole_interactions_with_and_without_timestamps(tmp_path: Path, timed: bool) -> None:
    write_items(tmp_path, "item_id:token\tmovie_title:token_seq")
    lines = ["user_id:token\titem_id:token" + "\ttimestamp:float" * timed]
    for user, items in histories(20, 9).items():
        rows = [f"{user}\t{item}" + f"\t{place}.5" * timed for place, item in enumerate(items)]
        lines += reversed(rows) if timed else rows
    (tmp_path / "g.inter").write_text("\n".join(lines), encoding="utf-8")
    for problem in recbole.load(tmp_path, pool_size=5, task="rec-shop")["test"]:
        items = [item for item in histories(20, 9)[problem.group[1:]] if item != "3"]
        assert (problem.task, problem.gains) == ("rec-shop", {items[-1]: 1})


def test_recbole_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 0 \.item and 0 \.inter files"):
        recbole.load(tmp_path)
    write_items(tmp_path)
    (tmp_path / "g.inter").write_text("user_id\titem_id\n1\t2\n")
    with pytest.raises(DataError, match=r"g\.inter:1: the header must name typed columns"):
        recbole.load(tmp_path)
    (tmp_path / "g.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n1\t2\tnoon\n")
    with pytest.raises(DataError, match=r"g\.inter:2: timestamp: 'noon'"):
        recbole.load(tmp_path)


AMAZON_COLUMNS = [*amazon_windows.COLUMNS, *amazon_windows.WINDOW_COLUMNS]


def amazon_row(user: str, items: list[str], place: int) -> list[object]:
    def title(item: str) -> str:
        return '<span class="a-size">' if item == "7" else f"Disc &amp; '{item}'"

    window = range(max(0, place - 4), place)
    return [
        user, items[place], title(items[place]), 100 + place // 2,
        [int(items[i]) for i in window], [title(items[i]) for i in window], [100 + i // 2 for i in window],
    ]  # fmt: skip


def test_amazon_windows_are_joined_and_scraped_titles_dropped(tmp_path: Path) -> None:
    made = histories(20, 11)
    rows = [amazon_row(user, items, place) for user, items in made.items() for place in range(3, len(items))]
    for name, opener, part in (("a.csv.gz", gzip.open, rows[::2]), ("b.csv", open, rows[1::2])):
        with opener(tmp_path / name, "wt", encoding="utf-8", newline="") as lines:
            csv.writer(lines).writerows([AMAZON_COLUMNS, *part])
    splits = amazon_windows.load(tmp_path, pool_size=5)
    assert len(all_of(splits)) > 20
    for problem in splits["test"]:
        items = [item for item in made[problem.group[1:]] if item != "7"]
        consumed = [*problem.history, *(c.text for c in problem.candidates if c.docid in problem.gains)]
        assert problem.task == "rec-music"
        assert sorted(consumed) == sorted(f"Disc & '{item}'" for item in items)
    assert not any("<" in candidate.text for p in all_of(splits) for candidate in p.candidates)


def test_amazon_faults(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.csv or \.csv\.gz"):
        amazon_windows.load(tmp_path)
    with (tmp_path / "a.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([AMAZON_COLUMNS, ["u", "1", "T", "5", "[1, 2", "[]", "[]"]])
    with pytest.raises(DataError, match=r"a\.csv:2: not a window"):
        amazon_windows.load(tmp_path)
    (tmp_path / "a.csv").write_text("user_id,item_id\n")
    with pytest.raises(DataError, match="header lacks history_item_id"):
        amazon_windows.load(tmp_path)


def test_lastfm_artists_stand_in_a_seeded_order_not_by_plays(tmp_path: Path) -> None:
    names = "".join(f"{item}\tArtist {item}\thttp://x\thttp://y\r\n" for item in ITEMS)
    (tmp_path / "artists.dat").write_text("id\tname\turl\tpictureURL\r\n" + names, encoding="utf-8", newline="")
    plays = "".join(
        f"{user}\t{item}\t{900 - place}\r\n" for user, items in histories().items() for place, item in enumerate(items)
    )
    (tmp_path / "user_artists.dat").write_text("userID\tartistID\tweight\r\n" + plays, newline="")
    splits = lastfm.load(tmp_path, pool_size=5)
    assert splits == lastfm.load(tmp_path, pool_size=5)
    places = [histories()[p.group[1:]].index(next(iter(p.gains))) for p in all_of(splits) if p.qid.endswith(":last")]
    assert len(set(places)) > 5
    assert splits["test"][0].task == "rec-artist"
    assert splits["test"][0].history[0].startswith("Artist ")


def write_parts(path: Path, *names: str) -> None:
    """Histories of 9 items cut into files of 7, 1 and 1, without times."""
    write_items(path)
    parts = {name: ["user_id:token\titem_id:token"] for name in names}
    for user, items in histories(20, 9).items():
        for place, item in enumerate(items):
            parts[names[max(0, place - 6)]].append(f"{user}\t{item}")
    for name, lines in parts.items():
        (path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_parts_of_a_recbole_benchmark_without_times_follow_each_other(tmp_path: Path) -> None:
    write_parts(tmp_path, "g.train.inter", "g.valid.inter", "g.test.inter")
    for problem in recbole.load(tmp_path, pool_size=5)["test"]:
        items = [item for item in histories(20, 9)[problem.group[1:]] if item != "3"]
        assert problem.gains == {items[-1]: 1}
        assert problem.history == tuple(f"Game & {item}" for item in items[:-1])


def test_recbole_files_whose_order_nobody_knows_are_refused(tmp_path: Path) -> None:
    write_parts(tmp_path, "g.part1.inter", "g.part2.inter", "g.part3.inter")
    with pytest.raises(DataError, match=r"g\.part1\.inter: which of several files is older\?.*NAME\.train\.inter"):
        recbole.load(tmp_path)
    (tmp_path / "g.part1.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n1\t2\t5\n")
    with pytest.raises(DataError, match=r"g\.part2\.inter: has no timestamp, which other files of the folder have"):
        recbole.load(tmp_path)


def test_a_lowest_rating_is_not_for_histories(tmp_path: Path) -> None:
    write_items(tmp_path)
    header = "user_id:token\titem_id_list:token_seq\titem_id:token\trating:float\n"
    (tmp_path / "g.inter").write_text(f"{header}1\t1 2 4\t5\t1\n")
    with pytest.raises(ConfigError, match=r"min_rating=3 is for single interactions, and .* holds histories"):
        recbole.load(tmp_path, min_rating=3)


@pytest.mark.parametrize(("user", "item"), [("a user", "1"), ("u", "an item")])
def test_recbole_names_that_a_run_file_cannot_hold_are_refused(tmp_path: Path, user: str, item: str) -> None:
    write_items(tmp_path)
    (tmp_path / "g.inter").write_text(f"user_id:token\titem_id:token\n{user}\t{item}\n")
    with pytest.raises(DataError, match=r"g\.inter:2: (user|item)_id 'an? (user|item)' has white space"):
        recbole.load(tmp_path)
