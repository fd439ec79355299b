"""Specialists by name: trained for one scenario, where the paper's ranker is one model for all. Registry only.

    rankings = SPECIALISTS["bpr"](splits["train"], splits["test"])     # problems of the scenarios in SERVES["bpr"]

Each takes training and test problems and returns a ranking for each test problem; further keywords (seed, model)
are the functions' own. To add one, write a function of this form and name it in `SPECIALISTS` and in `SERVES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from r1ranker.baselines.common import fits
from r1ranker.baselines.encoders import cross_encoder, dense
from r1ranker.baselines.fusion import lambdamart
from r1ranker.baselines.recommenders import bpr, item_knn, sasrec
from r1ranker.baselines.routers import cluster_router, encoder_router, factor_router, knn_router, mlp_router
from r1ranker.problem import Problem, Ranking
from r1ranker.scenarios import SCENARIOS

Specialist = Callable[[Sequence[Problem], Sequence[Problem]], list[Ranking]]

SPECIALISTS: dict[str, Specialist] = {
    "item-knn": item_knn,
    "bpr": bpr,
    "sasrec": sasrec,
    "router-knn": knn_router,
    "router-mlp": mlp_router,
    "router-mf": factor_router,
    "router-encoder": encoder_router,
    "router-kmeans": cluster_router,
    "dense": dense,
    "cross-encoder": cross_encoder,
    "lambdamart": lambdamart,
}

ALL = tuple(SCENARIOS)
SERVES: dict[str, tuple[str, ...]] = {
    "item-knn": ("recommendation",),
    "bpr": ("recommendation",),
    "sasrec": ("recommendation",),
    "router-knn": ("routing",),
    "router-mlp": ("routing",),
    "router-mf": ("routing",),
    "router-encoder": ("routing",),
    "router-kmeans": ("routing",),
    "dense": ALL,
    "cross-encoder": ALL,
    "lambdamart": ALL,
}
"""Scenarios of ours that each ranks; encoders read any texts, though they were made for passages, and a fusion any
notes."""


def serves(name: str, problem: Problem) -> bool:
    """Whether a specialist ranks a problem, of a scenario of ours or of the user's."""
    return SERVES[name] == ALL or any(fits(scenario, problem) for scenario in SERVES[name])
