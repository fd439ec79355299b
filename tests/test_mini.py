"""The embedded tasks: sizes, splits, determinism, and how hard they are for simple rankers."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from r1ranker.datasets import load, mini, mini_passage, mini_recommendation, mini_routing
from r1ranker.errors import DataError
from r1ranker.problem import Problem, Splits
from r1ranker.prompts import build_prompt

POOLS = {"passage-5": 5, "passage-7": 7, "passage-9": 9} | dict.fromkeys(mini_routing.TASKS, 10)
PRIOR_RANGE = {"recommendation": (0.32, 0.5), "routing": (0.35, 0.55), "passage": (0.45, 0.65)}
LONGEST_PROMPT = {"recommendation": 220, "routing": 250, "passage": 250}
DRAWS = 20


@pytest.fixture(scope="module")
def splits() -> Splits:
    return mini.load()


def of(splits: Splits, task: str, split: str = "test") -> list[Problem]:
    return [problem for problem in splits[split] if problem.task == task]


def terms(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def mrr(problems: Sequence[Problem], score: Callable[[Problem, int], float], draws: int = DRAWS) -> float:
    """Mean reciprocal rank of the first relevant candidate; ties are broken at random, `draws` times."""
    rng = random.Random(0)
    total = 0.0
    for problem in problems:
        scores = {k: score(problem, k) for k in problem.identifiers}
        for _ in range(draws):
            order = sorted(scores, key=lambda k: (-scores[k], rng.random()))
            total += next(1 / rank for rank, k in enumerate(order, 1) if problem.is_relevant(k))
    return total / (draws * len(problems))


def prior(problem: Problem, k: int) -> float:
    return problem.prior[problem.candidate(k).docid]


def test_sizes_and_pools(splits: Splits) -> None:
    assert len(mini.TASKS) == 9
    for split, size in mini.SIZES.items():
        assert Counter(p.task for p in splits[split]) == dict.fromkeys(mini.TASKS, size)
        assert len({p.qid for p in splits[split]}) == len(splits[split])
        for problem in splits[split]:
            assert len(problem.candidates) == POOLS.get(problem.task, 20)
            assert len({c.text for c in problem.candidates}) == len(problem.candidates)
            assert not any(" " in c.docid for c in problem.candidates)  # run files are split at spaces
            assert set(problem.prior) == {c.docid for c in problem.candidates}
            assert any(problem.is_relevant(k) for k in problem.identifiers)


def test_splits_share_no_group_and_dev_and_test_repeat_none(splits: Splits) -> None:
    groups = {split: {p.group for p in problems} for split, problems in splits.items()}
    assert not groups["train"] & groups["dev"]
    assert not (groups["train"] | groups["dev"]) & groups["test"]
    for task in mini.TASKS:
        for split in ("dev", "test"):
            assert len({p.group for p in of(splits, task, split)}) == mini.SIZES[split]
    for tasks in (mini_routing.TASKS, mini_passage.TASKS):
        assert len({frozenset(p.group for p in of(splits, task)) for task in tasks}) == 1
    asked = {split: {p.query for p in problems if p.query} for split, problems in splits.items()}
    assert not asked["train"] & asked["test"]


def test_limit_is_per_task_and_keeps_problems_as_they_are(splits: Splits) -> None:
    limited = load("mini", limit=3)
    for split, problems in limited.items():
        assert Counter(p.task for p in problems) == dict.fromkeys(mini.TASKS, 3)
        assert all(problem in splits[split] for problem in problems)


def test_same_in_another_process(splits: Splits) -> None:
    code = (
        "import hashlib; from r1ranker.datasets import mini;"
        "print(hashlib.sha256(repr(mini.load()).encode()).hexdigest())"
    )
    salt = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # another than that of this process
    source = str(Path(mini.__file__).parents[2])
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": source, "PYTHONHASHSEED": salt},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == hashlib.sha256(repr(splits).encode()).hexdigest()


def test_another_seed_makes_other_problems_of_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini, "SIZES", {"train": 30, "dev": 0, "test": 10})
    monkeypatch.setattr(mini, "_parts", mini._parts.__wrapped__)  # what other tests read stays remembered
    one, other = (mini.load(seed=seed)["test"] for seed in (0, 1))
    for task in mini.TASKS:
        assert [p for p in one if p.task == task] != [p for p in other if p.task == task]


def test_a_path_is_refused() -> None:
    with pytest.raises(DataError, match="reads no files"):
        mini.load(Path("somewhere"))


def test_gains_are_graded(splits: Splits) -> None:
    for task in mini.TASKS:
        problems = of(splits, task)
        assert len({p.gain(k) for p in problems for k in p.identifiers}) >= 3
        if not task.startswith("route"):
            assert all(sum(p.is_relevant(k) for k in p.identifiers) == 1 for p in problems)
            assert all(any(0 < p.gain(k) < p.relevant_at for k in p.identifiers) for p in problems)


def test_routing_has_ties_and_the_objective_changes_the_best(splits: Splits) -> None:
    best: dict[str, set[frozenset[str]]] = defaultdict(set)
    for task in mini_routing.TASKS:
        problems = of(splits, task)
        assert all(0 < sum(p.is_relevant(k) for k in p.identifiers) < 10 for p in problems)
        for p in problems:
            best[p.group].add(frozenset(p.candidate(k).docid for k in p.identifiers if p.is_relevant(k)))
    tied = [sum(p.is_relevant(k) for k in p.identifiers) > 1 for p in of(splits, "route-performance")]
    assert 0.15 < sum(tied) / len(tied) < 0.7
    assert sum(len(sets) > 1 for sets in best.values()) > 0.5 * len(best)


def test_prior_comes_from_train_only() -> None:
    """Without dev and test users or queries, the priors of train stay what they are."""
    sizes = {"train": 60, "dev": 0, "test": 0}
    more = {"train": 60, "dev": 0, "test": 30}
    few, many = (mini_recommendation.build(0, s)["train"] for s in (sizes, more))
    assert few == many
    routed = mini_routing.build(0, more)
    problem = routed["train"][0]
    queries = mini_routing.queries(0, more)["train"]
    name = problem.candidates[0].docid
    assert problem.prior[name] == pytest.approx(sum(q.scores[name] for q in queries) / len(queries))


def test_test_questions_combine_what_train_shows_apart(splits: Splits) -> None:
    seen = {p.group for p in splits["train"]}
    facts = [fact for fact in mini_passage.facts() if fact.name in seen]
    entities, attributes = {f.entity for f in facts}, {(f.kind, f.attribute) for f in facts}
    for fact in mini_passage.facts():
        assert fact.entity in entities
        assert (fact.kind, fact.attribute) in attributes


@pytest.mark.parametrize("task", mini.TASKS)
def test_the_prior_helps_and_does_not_solve(splits: Splits, task: str) -> None:
    problems = of(splits, task)
    low, high = PRIOR_RANGE[problems[0].scenario]
    chance, simple = mrr(problems, lambda p, k: 0.0), mrr(problems, prior)
    assert low < simple < high
    assert simple > chance + 0.04


@pytest.mark.parametrize("domain", mini_recommendation.DOMAINS)
def test_taste_and_popularity_together_solve_recommendation(splits: Splits, domain: str) -> None:
    items = mini_recommendation.catalogue(domain, 0)
    genre = {item.docid: item.genre for item in items} | {item.title: item.genre for item in items}

    def score(problem: Problem, k: int) -> float:
        recent = Counter(genre[title] for title in problem.history[-4:]).most_common(1)[0][0]
        return (genre[problem.candidate(k).docid] == recent) * 1e6 + prior(problem, k)

    assert mrr(of(splits, f"rec-{domain}"), score) > 0.75


@pytest.mark.parametrize("objective", mini_routing.OBJECTIVES)
def test_knowing_the_category_solves_routing(splits: Splits, objective: str) -> None:
    sides = mini_routing.queries(0, mini.SIZES)
    category = {f"route-{q.name}": q.category for queries in sides.values() for q in queries}
    gained: dict[tuple[str, str], list[int]] = defaultdict(list)
    for problem in of(splits, f"route-{objective}", "train"):
        for docid, gain in problem.gains.items():
            gained[category[problem.group], docid].append(gain)

    def score(problem: Problem, k: int) -> float:
        gains = gained[category[problem.group], problem.candidate(k).docid]
        return sum(gains) / len(gains)

    assert mrr(of(splits, f"route-{objective}"), score) > 0.85


@pytest.mark.parametrize("task", mini_passage.TASKS)
def test_counting_shared_words_is_deceived(splits: Splits, task: str) -> None:
    problems = of(splits, task)
    shared = mrr(problems, lambda p, k: len(terms(p.query) & terms(p.candidate(k).text)))
    assert mrr(problems, lambda p, k: 0.0) < shared < 0.68


@pytest.mark.parametrize("task", mini.TASKS)
def test_no_single_word_of_a_candidate_solves_a_task(splits: Splits, task: str) -> None:
    problems = of(splits, task)
    held = {(p.qid, k): terms(p.candidate(k).text) for p in problems for k in p.identifiers}
    counts = Counter(word for words in held.values() for word in words)
    for word, _ in counts.most_common(60):
        assert mrr(problems, lambda p, k, w=word: float(w in held[p.qid, k]), draws=1) < 0.7, word


def test_texts_are_short_and_words_few(splits: Splits) -> None:
    vocabulary: set[str] = set()
    for problem in splits["train"] + splits["test"]:
        texts = [candidate.text for candidate in problem.candidates]
        prompt = build_prompt(problem, problem.identifiers, "iranker").text
        assert len(prompt.split()) <= LONGEST_PROMPT[problem.scenario]
        if problem.scenario == "recommendation":
            assert 6 <= len(problem.history) <= 8
        if problem.scenario == "passage":
            assert all(12 <= len(text.split()) <= 20 for text in texts)
        vocabulary |= terms(" ".join([problem.query, problem.objective, *problem.history, *texts]))
    assert 800 < len(vocabulary) < 1700


def test_positives_stand_anywhere(splits: Splits) -> None:
    for task in mini.TASKS:
        assert (
            mrr(of(splits, task, "train"), lambda p, k: -k, draws=1)
            < mrr(of(splits, task, "train"), lambda p, k: 0.0, draws=3) + 0.03
        )
