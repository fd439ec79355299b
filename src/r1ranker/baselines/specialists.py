"""Specialists by name: trained for one scenario, where the paper's ranker is one model for all. Registry only.

    rankings = SPECIALISTS["bpr"].rank(splits["train"], splits["test"])     # problems of its scenarios

Each takes training and test problems and returns a ranking for each test problem; further keywords (seed, model)
are the functions' own. To add one, write a function of this form and name it in `SPECIALISTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from r1ranker.baselines.common import fits
from r1ranker.baselines.encoders import cross_encoder, dense
from r1ranker.baselines.fusion import lambdamart
from r1ranker.baselines.recommenders import bpr, item_knn, sasrec
from r1ranker.baselines.routers import cluster_router, encoder_router, factor_router, knn_router, mlp_router
from r1ranker.problem import Problem, Ranking
from r1ranker.scenarios import SCENARIOS

ALL = tuple(SCENARIOS)


class Specialist(NamedTuple):
    """What ranks, given training and test problems and keywords of its own; and the scenarios of ours that it serves.

    Encoders read any texts, though they were made for passages, and a fusion any notes.
    """

    rank: Callable[..., list[Ranking]]
    scenarios: tuple[str, ...] = ALL


SPECIALISTS: dict[str, Specialist] = {
    "item-knn": Specialist(item_knn, ("recommendation",)),
    "bpr": Specialist(bpr, ("recommendation",)),
    "sasrec": Specialist(sasrec, ("recommendation",)),
    "router-knn": Specialist(knn_router, ("routing",)),
    "router-mlp": Specialist(mlp_router, ("routing",)),
    "router-mf": Specialist(factor_router, ("routing",)),
    "router-encoder": Specialist(encoder_router, ("routing",)),
    "router-kmeans": Specialist(cluster_router, ("routing",)),
    "dense": Specialist(dense),
    "cross-encoder": Specialist(cross_encoder),
    "lambdamart": Specialist(lambdamart),
}


def serves(name: str, problem: Problem) -> bool:
    """Whether a specialist ranks a problem, of a scenario of ours or of the user's."""
    served = SPECIALISTS[name].scenarios
    return served == ALL or any(fits(scenario, problem) for scenario in served)
