"""The baselines a second time, apart from the package. In: problems, raw files. Out: scores, an array a problem.

    item_cosines(train, test)[0]     # array([0.31, -inf, ...]): the candidates of test[0], in their order

Nothing here calls `r1ranker.baselines` or `r1ranker.evaluation`; titles, words, counts and measures are read anew.
`baselines.py` sets the two side by side. Candidates that no training user chose score minus infinity, as the
package's rule is.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import warnings
from ast import literal_eval
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from r1ranker.problem import Problem

Scores = list[np.ndarray]
STOP = frozenset(
    re.findall(
        "[a-z]+",
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
        "this to was will with",
    )
)
"""Lucene's English stop words."""
DRAWS = 32
"""Random orders of tied candidates that a measure is the mean of."""
CONTEXT = 20


# Measures


def reciprocal_ranks(scores: Scores, problems: Sequence[Problem], seed: int = 0) -> np.ndarray:
    """Of the first relevant candidate of each problem, the mean over random orders of ties; 0 where none is."""
    rng = np.random.default_rng(seed)
    values = np.zeros(len(problems))
    for row, (problem, of_problem) in enumerate(zip(problems, scores, strict=True)):
        relevant = np.array([problem.gains.get(c.docid, 0) >= problem.relevant_at for c in problem.candidates])
        if relevant.any():
            orders = (np.lexsort((rng.random(len(relevant)), -of_problem)) for _ in range(DRAWS))
            values[row] = np.mean([1 / (1 + np.argmax(relevant[order])) for order in orders])
    return values


def allowed(scores: Scores, problems: Sequence[Problem], rankings: Sequence[Sequence[str]]) -> float:
    """Share of rankings that the scores allow: no candidate stands before one that scores more (to a millionth)."""
    right = 0
    for of_problem, problem, docids in zip(scores, problems, rankings, strict=True):
        score = dict(zip((c.docid for c in problem.candidates), of_problem.tolist(), strict=True))
        right += all(score[a] >= score[b] - 1e-6 * max(1, abs(score[b])) for a, b in pairwise(docids))
    return right / len(problems)


def chance(problem: Problem) -> float:
    """Expected reciprocal rank of a uniformly random order: of one relevant in n, H(n)/n."""
    n = len(problem.candidates)
    m = sum(problem.gains.get(c.docid, 0) >= problem.relevant_at for c in problem.candidates)
    return sum(math.comb(n - r, m - 1) / math.comb(n, m) / r for r in range(1, n - m + 2)) if m else 0.0


# Words and counts


def lucene_bm25(problems: Sequence[Problem], k1: float = 1.5, b: float = 0.75) -> Scores:
    """The formula of Lucene 8 and later, over all distinct candidate texts of these problems."""
    bags = {c.text: Counter(words(c.text)) for p in problems for c in p.candidates}
    found_in = Counter(word for bag in bags.values() for word in bag)
    length = np.mean([bag.total() for bag in bags.values()])

    def weight(word: str, bag: Counter[str]) -> float:
        idf = math.log(1 + (len(bags) - found_in[word] + 0.5) / (found_in[word] + 0.5))
        return idf * bag[word] / (bag[word] + k1 * (1 - b + b * bag.total() / length))

    queries = [words(" ".join([p.query, p.objective, *p.history])) for p in problems]
    return [
        np.array([sum(weight(word, bags[c.text]) for word in query) for c in p.candidates])
        for p, query in zip(problems, queries, strict=True)
    ]


def words(text: str) -> list[str]:
    """Runs of at least two letters or digits, stop words left out."""
    return [word for word in re.findall(r"\w\w+", text.lower()) if word not in STOP]


def counted(source: str, path: Path, users: set[str], test: Sequence[Problem]) -> Scores:
    """How many of `users` (as in the file) chose each candidate, from the raw file."""
    pairs = {"movielens": movielens_pairs, "amazon-windows": window_pairs, "recbole": recbole_pairs}[source](path)
    chosen = Counter(item for user, item in pairs if user in users)
    return [np.array([float(chosen[c.docid]) for c in p.candidates]) for p in test]


def movielens_pairs(path: Path) -> set[tuple[str, str]]:
    """User and movie of each rating."""
    table = np.loadtxt(path / "ratings.csv", delimiter=",", skiprows=1, usecols=(0, 1), dtype=np.int64)
    return {(str(user), str(movie)) for user, movie in table.tolist()}


def window_pairs(path: Path) -> set[tuple[str, str]]:
    """User and item of each row, its previous items included."""
    pairs: set[tuple[str, str]] = set()
    for file in path.glob("*.csv.gz"):
        with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                items = [row["item_id"], *map(str, literal_eval(row["history_item_id"]))]
                pairs.update((row["user_id"], item) for item in items)
    return pairs


def recbole_pairs(path: Path) -> set[tuple[str, str]]:
    """User and item of each line: a user, the items of the history, the item after it."""
    lines = [line.split("\t") for file in path.glob("*.inter") for line in file.read_text().splitlines()[1:]]
    return {(user, item) for user, history, item in lines for item in [*history.split(), item.strip()]}


def mean_utilities(
    path: Path, train: Sequence[Problem], test: Sequence[Problem], quality: float, cost: float
) -> Scores:
    """Mean weighed score less price of each LLM on the training questions, from the raw files. `qNUMBER` is a row."""
    rows = json.loads((path / "train.json").read_text(encoding="utf-8"))
    llms = json.loads((path / "llm_candidates.json").read_text(encoding="utf-8"))
    scores = [rows[number]["scores"] for number in {int(p.qid.partition(":")[0][1:]) for p in train}]
    prices = {name: llms[name]["input_price"] + llms[name]["output_price"] for name in scores[0]}
    most = max(prices.values())
    means = {name: quality * np.mean([s[name] for s in scores]) - cost * prices[name] / most for name in prices}
    return [np.array([means[c.docid] for c in p.candidates]) for p in test]


# Recommenders


def title(text: str, known: Container[str]) -> str:
    """A candidate's text as histories have it: the longest known beginning that ends at a bar, else the shortest."""
    parts = text.split(" | ")
    beginnings = [" | ".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((name for name in beginnings if name in known), parts[0])


def sequences(train: Sequence[Problem]) -> dict[str, list[list[str]]]:
    """By user, what stands in each training problem: the history and then the positive."""
    found: dict[str, list[list[str]]] = {}
    read = {name for p in train for name in p.history}
    for p in train:
        positives = [title(c.text, read) for c in p.candidates if p.gains.get(c.docid, 0) >= p.relevant_at]
        found.setdefault(p.group, []).append([*p.history, *positives])
    return found


def numbered(of_users: Iterable[Iterable[Sequence[str]]]) -> dict[str, int]:
    """A number for each title."""
    names = {name for of_user in of_users for sequence in of_user for name in sequence}
    return {name: number for number, name in enumerate(sorted(names))}


def pools(test: Sequence[Problem], numbers: dict[str, int], value: Any) -> Scores:
    """`value(row of the problem, numbers of the titles)` for the known candidates, else minus infinity."""
    scores = []
    for row, p in enumerate(test):
        found = np.array([numbers.get(title(c.text, numbers), -1) for c in p.candidates])
        of_pool = np.full(len(found), -np.inf)
        of_pool[found >= 0] = value(row, found[found >= 0])
        scores.append(of_pool)
    return scores


def item_cosines(train: Sequence[Problem], test: Sequence[Problem]) -> Scores:
    """Sum over the history of the cosine of two items' users, by a dense matrix of users and items."""
    of_users = sequences(train)
    numbers = numbered(of_users.values())
    chosen = np.zeros((len(of_users), len(numbers)))
    for row, of_user in enumerate(of_users.values()):
        chosen[row, [numbers[name] for sequence in of_user for name in sequence]] = 1
    norms = np.sqrt(chosen.sum(axis=0))

    def value(row: int, pool: np.ndarray) -> np.ndarray:
        old = [numbers[name] for name in test[row].history if name in numbers]
        common = chosen[:, pool].T @ chosen[:, old]
        return (common / np.outer(norms[pool], norms[old])).sum(axis=1)

    return pools(test, numbers, value)


def plain_bpr(train: Sequence[Problem], test: Sequence[Problem], seed: int, epochs: int = 100, k: int = 64) -> Scores:
    """Rendle et al.'s matrix factorisation in torch, by Adam; the test users' histories are in training as rows.

    So each test user has factors of its own, where the package's baseline makes them of the items' factors.
    """
    of_users = sequences(train)
    numbers = numbered(of_users.values())
    rows = [{numbers[name] for sequence in of_user for name in sequence} for of_user in of_users.values()]
    rows += [{numbers[name] for name in p.history if name in numbers} for p in test]
    pairs = torch.tensor([(row, item) for row, items in enumerate(rows) for item in sorted(items)])
    generator = torch.Generator().manual_seed(seed)
    users, items = (torch.randn(n, k, generator=generator).mul_(0.1) for n in (len(rows), len(numbers)))
    weights = [users.requires_grad_(), items.requires_grad_(), torch.zeros(len(numbers), requires_grad=True)]
    optimiser = torch.optim.Adam(weights, lr=0.01)
    for _ in range(epochs):
        for batch in pairs[torch.randperm(len(pairs), generator=generator)].split(2048):
            user, liked = batch.T
            other = torch.randint(len(numbers), liked.shape, generator=generator)
            used = [users[user], items[liked], items[other]]
            gap = (used[0] * (used[1] - used[2])).sum(-1) + weights[2][liked] - weights[2][other]
            loss = -nn.functional.logsigmoid(gap).mean() + 0.01 * sum(w.square().sum(-1).mean() for w in used)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    u, v, bias = (w.detach().numpy() for w in weights)
    first = len(of_users)
    return pools(test, numbers, lambda row, pool: v[pool] @ u[first + row] + bias[pool])


class Attention(nn.Module):
    """Kang and McAuley's network: item and place embeddings, two causal blocks, scores by the item embeddings."""

    def __init__(self, items: int, size: int = 64) -> None:
        super().__init__()
        self.items = nn.Embedding(items + 1, size, padding_idx=0)
        self.places = nn.Embedding(CONTEXT, size)
        layer = nn.TransformerEncoderLayer(size, 1, size, dropout=0.5, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(size), enable_nested_tensor=False)
        for table in (self.items, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, read_B_S: torch.Tensor) -> torch.Tensor:
        """State after each item; items are padded with 0 at the end, where nothing looks back at them."""
        length = read_B_S.shape[1]
        mask = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        return self.blocks(self.items(read_B_S) + self.places.weight[:length], mask=mask)


def plain_sasrec(train: Sequence[Problem], test: Sequence[Problem], seed: int, epochs: int = 60) -> Scores:
    """Trained by cross-entropy over all items. Each problem is a row."""
    of_users = sequences(train)
    numbers = numbered(of_users.values())
    rows = [[numbers[name] + 1 for name in sequence] for of_user in of_users.values() for sequence in of_user]
    parts = [torch.tensor(row[max(0, at - CONTEXT - 1) : at]) for row in rows for at in range(len(row), 1, -CONTEXT)]
    padded = nn.utils.rnn.pad_sequence(parts, batch_first=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Attention(len(numbers))
        optimiser = torch.optim.Adam(model.parameters(), lr=0.001, betas=(0.9, 0.98))
        for _ in range(epochs):
            for batch in padded[torch.randperm(len(padded))].split(32):
                state, after = model(batch[:, :-1]), batch[:, 1:]
                logits = state[after > 0] @ model.items.weight[1:].T
                loss = nn.functional.cross_entropy(logits, after[after > 0] - 1)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    model.eval()

    def value(row: int, pool: np.ndarray) -> np.ndarray:
        read = [numbers[name] + 1 for name in test[row].history if name in numbers][-CONTEXT:]
        with torch.no_grad():
            state = model(torch.tensor([read or [0]]))[0, -1]
            return (model.items.weight[torch.tensor(pool) + 1] @ state).numpy()

    return pools(test, numbers, value)


# Routers


def neighbours(train: Sequence[Problem], test: Sequence[Problem], count: int = 50) -> Scores:
    """Mean gains of the nearest training queries by a plain product of TF-IDF vectors."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neighbors import NearestNeighbors

    vectors = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    near = NearestNeighbors(n_neighbors=count, metric="cosine").fit(vectors.fit_transform([p.query for p in train]))
    found = near.kneighbors(vectors.transform([p.query for p in test]), return_distance=False)
    return [
        np.array([sum(train[k].gains.get(c.docid, 0) for k in of_problem) / count for c in p.candidates])
        for p, of_problem in zip(test, found, strict=True)
    ]


def regressed(train: Sequence[Problem], test: Sequence[Problem], model: Any) -> Scores:
    """Gains by a regression model of scikit-learn on 64 directions of TF-IDF with the library's own settings."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    llms = sorted({c.docid for p in train for c in p.candidates})
    chain = make_pipeline(TfidfVectorizer(), TruncatedSVD(64, random_state=0), StandardScaler(), model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the network has not converged after its default number of steps
        chain.fit([p.query for p in train], np.array([[p.gains.get(llm, 0) for llm in llms] for p in train]))
    found = chain.predict([p.query for p in test])
    return [np.array([row[llms.index(c.docid)] for c in p.candidates]) for p, row in zip(test, found, strict=True)]


# Fusion


def choice_model(train: Sequence[Problem], test: Sequence[Problem]) -> Scores:
    """McFadden's conditional logit: which candidate is best, by weights on the logarithms of its places."""

    def places(problem: Problem) -> np.ndarray:
        read = [[int(digits) for digits in re.findall(r" (\d+)(?= \||$)", c.note)] for c in problem.candidates]
        return np.log(np.array(read, dtype=float))

    given = [places(problem) for problem in train]
    longest, width = max(map(len, given)), given[0].shape[1]
    features, best = torch.zeros(len(train), longest, width), torch.zeros(len(train), longest)
    absent = torch.full((len(train), longest), -1e9)
    for row, (problem, of_problem) in enumerate(zip(train, given, strict=True)):
        gains = np.array([problem.gains.get(c.docid, 0) for c in problem.candidates])
        features[row, : len(gains)] = torch.tensor(of_problem).float()
        best[row, : len(gains)] = torch.tensor(gains == gains.max()).float() / (gains == gains.max()).sum()
        absent[row, : len(gains)] = 0
    weights = torch.zeros(width, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        lost = nn.functional.cross_entropy(features @ weights + absent, best)
        lost.backward()
        return lost

    optimizer.step(loss)
    return [places(problem) @ weights.detach().double().numpy() for problem in test]
