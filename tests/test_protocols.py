"""Other test pools and other splits: popularity silenced, words shared, the whole catalogue, time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import pytest

from r1ranker.baselines import BASELINES
from r1ranker.datasets.common import check_disjoint
from r1ranker.datasets.recommendation import recommendation_problems
from r1ranker.errors import DataError
from r1ranker.evaluation.measures import evaluate
from r1ranker.evaluation.protocols import (
    full_catalogue,
    hard_negatives,
    leave_last_out,
    matched_negatives,
    new_items,
    time_split,
)
from r1ranker.problem import Candidate, Problem, Splits

ITEMS = [f"i{k}" for k in range(120)]
TITLES = {item: f"Title {item}" for item in ITEMS}
TEXTS = {item: f"{title} | Drama" for item, title in TITLES.items()}
EVENTS = {
    f"u{user}": [(item, float(10 * place + user)) for place, item in enumerate(chosen)]
    for user in range(150)
    for chosen in [
        sorted(
            set(random.Random(user).choices(ITEMS, [1 / (k + 1) for k in range(120)], k=25)),
            key=lambda item: random.Random(item).random(),
        )
    ]
    if len(chosen) >= 6
}
"""Users that choose by popularity alone, at times of their own."""


@pytest.fixture(scope="module")
def splits() -> Splits:
    histories = {user: [item for item, _ in events] for user, events in EVENTS.items()}
    return recommendation_problems(histories, TITLES, texts=TEXTS, task="rec", pool_size=10, history=30)


def everything(splits: Splits) -> list[Problem]:
    return [problem for problems in splits.values() for problem in problems]


def mrr(problems: Sequence[Problem], system: str) -> float:
    return fmean(evaluate(BASELINES[system](problems), problems)["MRR"].values())


def history_of(problem: Problem) -> set[str]:
    return {item for item, title in TITLES.items() if title in problem.history}


def test_matched_negatives_silence_popularity(splits: Splits) -> None:
    problems = everything(splits)
    matched = matched_negatives(problems)
    assert mrr(problems, "prior") > 0.5
    assert mrr(matched, "prior") == pytest.approx(mrr(matched, "random"), abs=0.12)
    assert [p.qid for p in matched] == [p.qid for p in problems]
    for before, after in zip(problems, matched, strict=True):
        assert after.gains == before.gains
        assert len(after.candidates) == 10
        assert not history_of(after) & {c.docid for c in after.candidates}
    assert matched_negatives(problems) == matched != matched_negatives(problems, seed=1)


def test_hard_negatives_share_words_with_the_question() -> None:
    fruit = ("red apples and pears", "green apples", "apples in a pie", "cars", "boats", "planes", "trains", "bikes")
    known = [
        Problem(
            f"q{n}", "t", "passage", (Candidate(f"d{n}", text), Candidate(f"x{n}", f"stone {n}")), query=f"about {n}"
        )
        for n, text in enumerate(fruit)
    ]
    pool = (Candidate("good", "an answer"), Candidate("a", "moon"), Candidate("b", "sun"), Candidate("c", "stars"))
    problem = Problem("q", "t", "passage", pool, query="where do apples grow", gains={"good": 1, "a": 0})
    (hard,) = hard_negatives([problem], known)
    assert {c.docid for c in hard.candidates} == {"good", "d0", "d1", "d2"}
    assert hard.prior.keys() == {"good", "d0", "d1", "d2"}
    assert hard.prior["good"] == 0.0 < hard.prior["d1"]
    assert hard.gains == {"good": 1}


def test_pools_are_filled_where_too_few_share_a_word(splits: Splits) -> None:
    problems = everything(splits)
    hard = hard_negatives(splits["test"], problems)
    for problem in hard:
        assert len({c.text for c in problem.candidates}) == 10
        assert sum(map(problem.is_relevant, problem.identifiers)) == 1
        assert not history_of(problem) & {c.docid for c in problem.candidates}
        assert problem.prior, "popularity stays the prior of recommendations"


def test_the_whole_catalogue_is_all_that_the_user_has_not_had_most_popular_first(splits: Splits) -> None:
    problems = everything(splits)
    offered = {c.docid for problem in problems for c in problem.candidates}
    for before, after in zip(splits["test"], full_catalogue(splits["test"], problems), strict=True):
        assert {c.docid for c in after.candidates} == offered - history_of(before)
        assert after.gains == before.gains
        values = [after.prior[c.docid] for c in after.candidates]
        assert values == sorted(values, reverse=True)


def test_what_a_user_had_before_the_history_that_is_shown_is_no_negative() -> None:
    histories = {user: [item for item, _ in events] for user, events in EVENTS.items()}
    splits = recommendation_problems(histories, TITLES, texts=TEXTS, task="rec", pool_size=10, history=3)
    known, test = everything(splits), splits["test"]
    had = {problem.group: [TITLES[item] for item in histories[problem.group[1:]][:-1]] for problem in test}

    def again(problems: Sequence[Problem]) -> int:
        return sum(TITLES[c.docid] in had[problem.group] for problem in problems for c in problem.candidates)

    made = {
        "matched": (matched_negatives(test, known), matched_negatives(test, known, had=had)),
        "hard": (hard_negatives(test, known), hard_negatives(test, known, had=had)),
        "whole": (full_catalogue(test, known), full_catalogue(test, known, had=had)),
        "new": (new_items(test, known, [])[0], new_items(test, known, [], had=had)[0]),
    }
    assert {name: again(without) > 0 for name, (without, _) in made.items()} == dict.fromkeys(made, True)
    assert {name: again(with_had) for name, (_, with_had) in made.items()} == dict.fromkeys(made, 0)


def test_leave_last_out_tests_the_last_item_and_keeps_it_out_of_training() -> None:
    splits = leave_last_out(EVENTS, TITLES, texts=TEXTS, task="rec", pool_size=10)
    check_disjoint(splits)
    assert len(splits["test"]) == len(splits["dev"]) == len(EVENTS)
    for problem in splits["test"]:
        user = problem.qid.split(":")[1].removeprefix("u")
        items = [item for item, _ in EVENTS[user]]
        assert problem.gains == {items[-1]: 1}
        assert problem.history == tuple(TITLES[item] for item in items[-21:-1])
        mine = [p for p in splits["train"] if p.qid.startswith(f"rec:u{user}:")]
        assert 0 < len(mine) <= 4
        for train in mine:
            assert items[-1] not in {c.docid for c in train.candidates}
            assert TITLES[items[-1]] not in train.history
    counts = Counter(item for events in EVENTS.values() for item, _ in events[:-2])
    assert all(value == counts[item] for p in splits["test"] for item, value in p.prior.items())
    for problem in splits["train"]:  # as of a new user's, its own choice is not in the count
        assert problem.prior == {c.docid: counts[c.docid] - problem.gains.get(c.docid, 0) for c in problem.candidates}


def test_windows_of_one_user_are_one_group_so_that_places_are_learnt_without_any_of_them() -> None:
    splits = leave_last_out(EVENTS, TITLES, texts=TEXTS, task="rec", pool_size=10)
    users = {problem.group: problem.qid.rpartition(":")[0] for problem in splits["train"]}
    assert len(users) == len(set(users.values())) < len(splits["train"])
    assert not {p.group for p in splits["train"]} & {p.group for split in ("dev", "test") for p in splits[split]}


def test_a_time_split_knows_nothing_of_what_came_later() -> None:
    splits = time_split(EVENTS, TITLES, task="rec", pool_size=10)
    check_disjoint(splits)
    assert all(splits.values())
    moments = sorted(time for events in EVENTS.values() for _, time in events)
    cut = moments[int(0.8 * len(moments))]
    when = {(user, item): time for user, events in EVENTS.items() for item, time in events}

    def at(problem: Problem) -> float:
        return when[problem.qid.split(":")[1].removeprefix("u"), next(iter(problem.gains))]

    assert max(map(at, splits["train"])) < cut <= min(map(at, splits["dev"]))
    assert max(map(at, splits["dev"])) < min(map(at, splits["test"]))
    counts = Counter(item for events in EVENTS.values() for item, time in events if time < cut)
    for split, problems in splits.items():
        for problem in problems:
            own = problem.gains if split == "train" else {}
            assert problem.prior == {c.docid: counts[c.docid] - own.get(c.docid, 0) for c in problem.candidates}
    assert max(Counter(problem.qid.split(":")[1] for problem in splits["test"]).values()) == 1


def test_users_with_few_titled_items_are_left_out() -> None:
    with pytest.raises(DataError, match="task 'rec': no user has 6 items with a title"):
        time_split({"u": [(item, 1.0) for item in ITEMS[:9]]}, dict.fromkeys(ITEMS[:5], "x"), task="rec")


def test_an_item_had_twice_counts_when_it_was_had_first() -> None:
    events = {"u": [(item, float(place)) for place, item in enumerate([*ITEMS[:8], ITEMS[0]])]}
    splits = leave_last_out(events, TITLES, task="rec", pool_size=5)
    assert splits["test"][0].gains == {ITEMS[7]: 1}
