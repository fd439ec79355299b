"""Recommenders of `implicit` on histories given as numbers. In: a line of JSON on stdin. Out: one on stdout.

    {"model": "bpr", "seed": 0, "items": 3, "train": [[0, 1], [1, 2]], "histories": [[0]], "pools": [[1, 2]]}
    {"version": "0.7.3", "scores": [[0.2, -0.1]]}

`baselines.py` starts this by the Python that has the library (`--peers-python`); it imports nothing of this project.
For `bpr` the test users' histories are rows of the training data, so each has factors; for `cosine` they are not.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
from implicit.cpu.bpr import BayesianPersonalizedRanking
from implicit.nearest_neighbours import CosineRecommender
from scipy.sparse import csr_matrix


def matrix(rows: list[list[int]], items: int) -> Any:
    """Users by items, 1 where chosen."""
    cells = np.array([(row, item) for row, of_user in enumerate(rows) for item in sorted(set(of_user))]).T
    return csr_matrix((np.ones(cells.shape[1], dtype=np.float32), cells), shape=(len(rows), items))


def bpr(asked: dict[str, Any]) -> list[list[float]]:
    """The best on dev of three settings; the library's own (100, 0.01, 0.01) have hardly learnt on so few users."""
    settings = {"iterations": 300, "learning_rate": 0.05, "regularization": 0.05}
    model = BayesianPersonalizedRanking(factors=64, random_state=asked["seed"], num_threads=1, **settings)
    model.fit(matrix([*asked["train"], *asked["histories"]], asked["items"]), show_progress=False)
    users = model.user_factors[len(asked["train"]) :]
    return [(model.item_factors[pool] @ user).tolist() for user, pool in zip(users, asked["pools"], strict=True)]


def cosine(asked: dict[str, Any]) -> list[list[float]]:
    """All neighbours, summed over the history."""
    model = CosineRecommender(K=asked["items"], num_threads=1)
    model.fit(matrix(asked["train"], asked["items"]), show_progress=False)
    found = (matrix(asked["histories"], asked["items"]) @ model.similarity).toarray()
    return [row[pool].tolist() for row, pool in zip(found, asked["pools"], strict=True)]


def main() -> None:
    """Answer one question."""
    asked = json.load(sys.stdin)
    scores = {"bpr": bpr, "cosine": cosine}[asked["model"]](asked)
    json.dump({"version": version("implicit"), "scores": scores}, sys.stdout)


if __name__ == "__main__":
    main()
