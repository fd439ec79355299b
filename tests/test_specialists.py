"""Specialists: right where an independent computation says so, learning what is there, fair and repeatable."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import save_bert, small_problem
from r1ranker.baselines.encoders import cross_encoder, dense, question
from r1ranker.baselines.recommenders import bpr, item_knn, sasrec
from r1ranker.baselines.routers import cluster_router, encoder_router, factor_router, knn_router, mlp_router
from r1ranker.baselines.specialists import SPECIALISTS
from r1ranker.datasets.interactions import interactions
from r1ranker.datasets.movielens import load as load_movielens
from r1ranker.errors import BackendError, ConfigError, DataError
from r1ranker.io.extras import library
from r1ranker.problem import Candidate, Problem, Ranking, rng_for
from r1ranker.scenarios import SCENARIOS

TITLES = [f"{letter}{number}" for letter in "AB" for number in range(12)]
WORDS = {"sum": "algebra", "verse": "poet", "loop": "coder"}
ROUTERS = {"router-knn": partial(knn_router, neighbours=5), "router-mlp": mlp_router, "router-mf": factor_router}


@pytest.fixture(scope="module")
def cornac() -> Any:
    return pytest.importorskip("cornac")


@pytest.fixture(scope="module")
def sklearn() -> Any:
    return pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def sentence_transformers() -> Any:
    return pytest.importorskip("sentence_transformers")


def choice(user: str, history: Sequence[str], positive: str, others: Sequence[str] = (), task: str = "rec") -> Problem:
    """A recommendation whose docids say nothing of the titles."""
    pool = [positive, *others]
    return Problem(
        qid=f"{task}:{user}:{positive}",
        task=task,
        scenario="recommendation",
        history=tuple(history),
        candidates=tuple(Candidate(f"id-{title}", f"{title} | Drama") for title in pool),
        gains={f"id-{positive}": 1},
        group=user,
    )


def tastes(users: int = 40, task: str = "rec") -> list[Problem]:
    """Half of the users choose from the A titles, half from the B titles."""
    problems = []
    for user in range(users):
        own = TITLES[:12] if user % 2 else TITLES[12:]
        *history, positive = rng_for("tastes", user).sample(own, 7)
        problems.append(choice(f"u{user}", history, positive, task=task))
    return problems


def routed(number: int, **fields: Any) -> Problem:
    """A query whose one telling word says which of three LLMs is best."""
    rng = rng_for("routed", number)
    word = rng.choice(list(WORDS))
    noise = " ".join(rng.choices(["please", "tell", "me", "about", "this", "thing"], k=5))
    values: dict[str, Any] = {
        "scenario": "routing",
        "query": f"{noise} {word}",
        "candidates": tuple(Candidate(name, f"an LLM called {name}") for name in WORDS.values()),
        "gains": {WORDS[word]: 10},
        "relevant_at": 10,
    }
    return small_problem(qid=f"r{number}", task="route", **values | fields)


def order_of(ranking: Ranking) -> list[str]:
    return [docid.removeprefix("id-") for docid in ranking.docids]


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory, sentence_transformers: Any) -> str:
    return save_bert(tmp_path_factory.mktemp("encoders") / "dense")


@pytest.fixture(scope="module")
def cross_dir(tmp_path_factory: pytest.TempPathFactory, sentence_transformers: Any) -> str:
    return save_bert(tmp_path_factory.mktemp("encoders") / "cross", outputs=1)


# The registry and what all share


def test_every_specialist_says_which_scenarios_it_serves() -> None:
    assert {scenario for one in SPECIALISTS.values() for scenario in one.scenarios} == set(SCENARIOS)


def test_libraries_are_imported_only_when_a_specialist_is_called() -> None:
    libraries = {"cornac", "lightgbm", "sentence_transformers"}
    code = f"import sys, r1ranker.baselines.specialists; assert not {libraries} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_library_is_an_error_that_names_the_extra() -> None:
    with pytest.raises(BackendError, match=r"needs nowhere: pip install 'r1-ranker\[specialists\]'"):
        library("nowhere.at.all")


def test_a_problem_of_another_scenario_or_of_an_unseen_task_is_an_error() -> None:
    with pytest.raises(ConfigError, match="item-knn ranks recommendation problems; 'r1' of task 'route' is routing"):
        item_knn(tastes(4), [routed(1)])
    with pytest.raises(DataError, match="router-knn: task 'route' has no training problem"):
        knn_router([], [routed(1)])


@pytest.mark.parametrize("rank", [item_knn, bpr, partial(sasrec, steps=1, epochs=1)])
def test_a_recommender_without_a_choice_to_learn_from_says_so(cornac: Any, sklearn: Any, rank: Any) -> None:
    asked = choice("u", ["A0"], "A1")
    with pytest.raises(DataError, match="task 'rec': no training problem has a history or a positive"):
        rank([replace(asked, history=(), query="a film", gains={})], [asked])


@pytest.mark.parametrize("rank", ROUTERS.values())
def test_routers_learn_from_queries_of_one_word(sklearn: Any, rank: Any) -> None:
    train = [routed(k, query="hello") for k in range(3)]
    best = max(train[0].gains, key=train[0].gains.__getitem__)
    assert rank([replace(problem, gains=train[0].gains) for problem in train], train[:1])[0].docids[0] == best


@pytest.mark.parametrize("rank", [item_knn, bpr, partial(sasrec, steps=1, epochs=1), *ROUTERS.values()])
def test_rankings_are_whole_in_order_repeatable_and_blind_to_places(cornac: Any, sklearn: Any, rank: Any) -> None:
    routing = rank in ROUTERS.values()
    train = [routed(k) for k in range(30)] if routing else tastes(30) + tastes(30, task="other")
    tests = [
        routed(100 + k) if routing else choice(f"t{k}", TITLES[:3], TITLES[5], TITLES[14:18], ["rec", "other"][k % 2])
        for k in range(4)
    ]
    tests = [replace(problem, qid=f"{problem.qid}:{k}") for k, problem in enumerate(tests)]
    state = torch.get_rng_state()
    rankings = rank(train, tests)
    assert torch.equal(state, torch.get_rng_state())
    assert [ranking.qid for ranking in rankings] == [problem.qid for problem in tests]
    for ranking, problem in zip(rankings, tests, strict=True):
        assert sorted(ranking.docids) == sorted(candidate.docid for candidate in problem.candidates)
    turned = [replace(problem, candidates=problem.candidates[::-1]) for problem in tests]
    assert [r.docids for r in rank(train, turned)] == [r.docids for r in rankings]
    assert rank(train, []) == []


# Recommendation


def test_item_knn_sums_the_cosines_to_the_history(sklearn: Any) -> None:
    train = [
        choice(f"u{user}", items[:-1], items[-1])
        for user in range(30)
        for items in [rng_for("mixed", user).sample(TITLES, 6)]
    ]
    history, pool = TITLES[:4], TITLES[4:20]
    (ranking,) = item_knn(train, [choice("new", history, pool[0], pool[1:])])

    chosen = np.zeros((30, len(TITLES)))
    for user, problem in enumerate(train):
        titles = [*problem.history, problem.candidates[0].text.split(" | ")[0]]
        chosen[user, [TITLES.index(title) for title in titles]] = 1

    def cosine(a: str, b: str) -> float:
        left, right = chosen[:, TITLES.index(a)], chosen[:, TITLES.index(b)]
        return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))

    summed = {title: round(sum(cosine(title, old) for old in history), 9) for title in pool}
    assert [summed[title] for title in order_of(ranking)] == sorted(summed.values(), reverse=True)
    assert len(set(summed.values())) > 10


@pytest.mark.parametrize("rank", [item_knn, bpr, partial(sasrec, steps=300)])
def test_recommenders_find_the_taste_and_put_what_nobody_chose_last(cornac: Any, sklearn: Any, rank: Any) -> None:
    tests = [
        choice("new1", TITLES[:3], TITLES[6], [TITLES[7], *TITLES[18:21], "Unknown"]),
        choice("new2", TITLES[12:15], TITLES[18], [*TITLES[6:8], *TITLES[19:21], "Unknown"]),
    ]
    first, second = rank(tastes(60), tests)
    assert {title[0] for title in order_of(first)[:2]} == {"A"}
    assert {title[0] for title in order_of(second)[:3]} == {"B"}
    assert order_of(first)[-1] == order_of(second)[-1] == "Unknown"


def test_bpr_without_a_known_history_ranks_by_popularity(cornac: Any) -> None:
    often = [choice(f"u{k}", ["A0", TITLES[1 + k % 11]], "A1" if k % 11 else "B1") for k in range(60)]
    (ranking,) = bpr(often, [choice("new", ["Unknown"], "A0", TITLES[3:11])])
    assert order_of(ranking)[0] == "A0"


def test_sasrec_learns_what_follows_what() -> None:
    ring = TITLES[:12]
    train = [choice(f"u{k}", [ring[(k + i) % 12] for i in range(5)], ring[(k + 5) % 12]) for k in range(60)]
    tests = [choice(f"t{k}", [ring[(k + i) % 12] for i in range(5)], ring[(k + 5) % 12], []) for k in range(12)]
    pools = [replace(p, candidates=tuple(Candidate(f"id-{title}", title) for title in ring)) for p in tests]
    rankings = sasrec(train, pools, steps=600)
    assert sum(order_of(ranking)[0] == ring[(k + 5) % 12] for k, ranking in enumerate(rankings)) >= 10


def test_sasrec_ranks_though_no_user_chose_two_titles() -> None:
    lone = [choice(f"u{k}", ["A0"], "A0") for k in range(3)]
    (ranking,) = sasrec(lone, [choice("new", ["Unknown"], "A0", TITLES[1:4])])
    assert len(ranking.docids) == 4


@pytest.mark.parametrize("shown", ["Heat", "Heat | Crime, Drama", "Heat (1995)", "Heat (1995) | Crime"])
def test_a_candidate_is_known_by_its_title_whatever_else_it_shows(sklearn: Any, shown: str) -> None:
    train = [choice(f"u{k}", ["Ronin", "Heat"], "Alien") for k in range(3)]
    pool = (Candidate("x", "Rare | Crime"), Candidate("y", shown), Candidate("z", "Heat Wave"))
    problem = replace(choice("new", ["Ronin"], "Heat"), candidates=pool, gains={"y": 1}, prior={"x": 1.0, "y": 2.0})
    assert item_knn(train, [problem])[0].docids[0] == "y"


def test_a_title_with_a_bar_is_one_title(sklearn: Any) -> None:
    train = [choice("u1", ["Love | Hate", "Ronin"], "Alien"), choice("u2", ["Love", "Up"], "Alien")]
    pool = (Candidate("bar", "Love | Hate | Rock"), Candidate("bare", "Love | Rock"))
    problem = replace(choice("new", ["Ronin"], "x"), candidates=pool, gains={})
    assert item_knn(train, [problem])[0].docids == ("bar", "bare")


def test_the_windows_of_one_user_are_one_history(sklearn: Any) -> None:
    train = tastes(20)
    shorter = [replace(p, qid=f"{p.qid}:before", history=p.history[:3], gains={}) for p in train]
    tests = [choice(f"t{k}", TITLES[k : k + 3], TITLES[20], TITLES[5:15]) for k in range(3)]
    joined, alone = item_knn([*shorter, *train], tests), item_knn(train, tests)
    assert [r.docids for r in joined] == [r.docids for r in alone]


def write_movielens(directory: Path) -> Path:
    """30 users with 30 movies each, of 80."""
    movies = [f"{k},Movie {k} (1999),Drama" for k in range(80)]
    ratings = [
        f"{user},{movie},4.0,{time}"
        for user in range(30)
        for time, movie in enumerate(rng_for(user).sample(range(80), 30))
    ]
    (directory / "movies.csv").write_text("\n".join(["movieId,title,genres", *movies]))
    (directory / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *ratings]))
    return directory


def test_all_interactions_are_there_but_the_targets_of_dev_and_test(tmp_path: Path) -> None:
    path = write_movielens(tmp_path)
    ranked, everything = load_movielens(path, seed=3), interactions("movielens", path, seed=3, pool_size=10)
    for split, problems in everything.items():
        assert {p.group for p in problems} == {p.group for p in ranked[split]}
        assert all(len(p.history) == 29 for p in problems)
        assert all(len(p.gains) == (split == "train") for p in problems)
    held_out = {p.group: set(p.gains) for split in ("dev", "test") for p in ranked[split]}
    for problem in everything["dev"] + everything["test"]:
        assert not held_out[problem.group] & {candidate.docid for candidate in problem.candidates}
        titles = {f"Movie {docid} (1999)" for docid in held_out[problem.group]}
        assert not titles & {*problem.history, *(c.text.partition(" | ")[0] for c in problem.candidates)}
    with pytest.raises(ConfigError, match="has no option 'history'"):
        interactions("mini")


# Routing


def test_knn_router_is_the_mean_gain_of_the_nearest_queries(sklearn: Any) -> None:
    words = ["sum", "verse", "loop", "green", "blue", "seven", "owl"]
    llms = ["a", "b", "c", "d"]

    def problem(number: int) -> Problem:
        rng = rng_for("knn", number)
        gains = {llm: rng.randint(0, 10) for llm in llms}
        pool = tuple(Candidate(llm, llm) for llm in llms)
        return routed(number, query=" ".join(rng.sample(words, 3)), candidates=pool, gains=gains)

    train, tests = [problem(k) for k in range(25)], [problem(k) for k in range(100, 110)]
    counts = {word: sum(word in p.query.split() for p in train) for word in words}

    def vector(query: str) -> list[float]:
        raw = [(1 + math.log(26 / (1 + counts[word]))) * (word in query.split()) for word in words]
        return [value / math.hypot(*raw) for value in raw]

    for test, ranking in zip(tests, knn_router(train, tests, neighbours=4), strict=True):
        similar = [sum(map(math.prod, zip(vector(p.query), vector(test.query), strict=True))) for p in train]
        nearest = sorted(range(25), key=lambda k: -similar[k])
        if similar[nearest[3]] - similar[nearest[4]] < 1e-9:
            continue  # which of two equally near queries counts is the library's choice
        mean = {llm: sum(train[k].gains[llm] for k in nearest[:4]) / 4 for llm in llms}
        assert [mean[llm] for llm in ranking.docids] == sorted(mean.values(), reverse=True)


@pytest.mark.parametrize("name", ROUTERS)
def test_routers_learn_which_word_asks_for_which_llm(sklearn: Any, name: str) -> None:
    train, tests = [routed(k) for k in range(120)], [routed(k) for k in range(200, 240)]
    rankings = ROUTERS[name](train, tests)
    right = sum(p.gains.get(r.docids[0]) == 10 for p, r in zip(tests, rankings, strict=True))
    assert right >= 38


@pytest.mark.parametrize("router", [encoder_router, partial(cluster_router, clusters=2)])
def test_routers_over_embeddings_learn_from_those_of_a_local_model(sklearn: Any, encoder_dir: str, router: Any) -> None:
    train = [routed(k, query="zzz", gains={"coder": 10}) for k in range(20)]
    train += [routed(20 + k, query="aaa", gains={"poet": 10}) for k in range(20)]
    rankings = router(train, [train[0], train[-1]], model=encoder_dir)
    assert [ranking.docids[0] for ranking in rankings] == ["coder", "poet"]


def test_an_llm_without_a_gain_counts_as_on_average_and_an_unseen_one_comes_last(sklearn: Any) -> None:
    best = tuple(Candidate(name, name) for name in ("good", "bad", "rare"))
    train = [routed(k, query="sum", candidates=best[:2], gains={"good": 10, "bad": 2}) for k in range(9)]
    train.append(routed(9, query="loop", candidates=best, gains={"good": 10, "rare": 5}))
    pool = (Candidate("unseen", "new"), *best)
    (ranking,) = knn_router(train, [routed(10, query="sum", candidates=pool)], neighbours=5)
    assert ranking.docids == ("good", "rare", "bad", "unseen")


# Encoders


def passage(qid: str = "q1") -> Problem:
    texts = ["a red car", "the blue sea", "ripe bananas and honey", "tall trees", "a question of taste"]
    pool = tuple(Candidate(f"d{k}", text) for k, text in enumerate(texts))
    return small_problem(qid=qid, candidates=pool, query="why is honey sweet", gains={"d2": 1})


def test_dense_is_the_cosine_of_mean_token_vectors(encoder_dir: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    network, tokenizer = AutoModel.from_pretrained(encoder_dir).eval(), AutoTokenizer.from_pretrained(encoder_dir)

    def vector(text: str) -> torch.Tensor:
        with torch.no_grad():
            return network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)

    problem = passage()
    cosine = {
        c.docid: float(torch.cosine_similarity(vector(problem.query), vector(c.text), dim=0))
        for c in problem.candidates
    }
    (ranking,) = dense([], [problem], model=encoder_dir)
    assert list(ranking.docids) == sorted(cosine, key=lambda docid: -cosine[docid])
    assert ranking.usage.seconds > 0


def test_cross_encoder_is_the_raw_output_for_the_pair(cross_dir: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(cross_dir).eval()
    with torch.no_grad():
        network.classifier.weight.mul_(1000)  # far beyond where a sigmoid still tells two outputs apart
        network.classifier.bias.fill_(2000)
    network.save_pretrained(cross_dir)
    tokenizer = AutoTokenizer.from_pretrained(cross_dir)
    problem = passage()
    with torch.no_grad():
        raw = {
            c.docid: float(network(**tokenizer(problem.query, c.text, return_tensors="pt")).logits)
            for c in problem.candidates
        }
    assert min(raw.values()) > 100
    (ranking,) = cross_encoder([], [problem], model=cross_dir)
    assert list(ranking.docids) == sorted(raw, key=lambda docid: -raw[docid])


def test_encoders_serve_every_scenario_whatever_the_other_problems(encoder_dir: str, cross_dir: str) -> None:
    titles = ["Casino", "Jumanji", "Babe", "Clueless"]  # in letters, which are all that these tokenizers know
    problems = [passage(), routed(3), choice("new", ["Alien", "Ronin"], "Heat", titles)]
    for rank in (partial(dense, model=encoder_dir), partial(cross_encoder, model=cross_dir)):
        together = rank([], problems)
        assert [r.docids for r in together] == [rank([], [problem])[0].docids for problem in problems]
        assert rank([], []) == []


def test_a_history_is_asked_newest_first() -> None:
    assert question(choice("u", ["old", "new"], "x")) == "new\nold"
    assert question(routed(1, query="why", objective="cheap")) == "why\ncheap"


def test_a_model_that_cannot_be_loaded_is_an_error_that_names_the_remedy(
    sentence_transformers: Any, tmp_path: Path
) -> None:
    for rank in (dense, cross_encoder):
        with pytest.raises(BackendError, match=r"cannot load the encoder .*MiniLM.* give its directory"):
            rank([], [passage()])
    with pytest.raises(BackendError, match="check that it holds a whole model"):
        dense([], [passage()], model=str(tmp_path))
    with pytest.raises(BackendError, match="has 3 outputs"):
        cross_encoder([], [passage()], model=save_bert(tmp_path / "three", outputs=3))
