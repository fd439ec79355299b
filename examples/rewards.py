"""Two rewards of one's own: LLMs by quality less price, and recommendations of more than one kind.

r1ranker train -s model=nano -s 'ppo.scenarios=[routing]' -s ppo.reward=examples.rewards:price_aware \
    -s ppo.answer=expected -s ppo.steps=40 -s ppo.actor_lr=5e-5 -s out=runs/price
r1ranker train -s model=nano -s design=dranker -s 'ppo.scenarios=[recommendation]' \
    -s ppo.reward=examples.rewards:diverse -s ppo.steps=40 -s ppo.actor_lr=5e-5 -s out=runs/diverse

The working directory is where r1ranker looks for the module.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from r1ranker import Answer, Problem
from r1ranker.rewards import ndcg

PRICE = 0.5
"""What the dearest LLM of a pool loses, where the best one gains 1."""
DIVERSITY = 0.5
"""What a list earns beside its nDCG when no two of its first `TOP` are of one kind."""
TOP = 5


def price_aware(problem: Problem, pool: Sequence[int]) -> dict[int, float]:
    """A table: the worth of each LLM is its gain less its price, both as shares of the largest in the pool."""
    prices = {k: price_of(problem.candidate(k).text) for k in pool}
    best, dearest = max(problem.gain(k) for k in pool) or 1, max(prices.values()) or 1.0
    return {k: problem.gain(k) / best - PRICE * prices[k] / dearest for k in pool}


def diverse(answer: Answer, problem: Problem, pool: Sequence[int]) -> float:
    """Of a whole list (a DRanker's): its nDCG, and how many kinds of items stand among the first."""
    quality = ndcg([problem.gain(k) for k in answer.ids], [problem.gain(k) for k in pool])
    kinds = {kind_of(problem.candidate(k).text) for k in answer.ids[:TOP]}
    return quality + DIVERSITY * len(kinds) / min(TOP, len(pool))


def price_of(text: str) -> float:
    """The price that an LLM's text shows: "small, $0.20: quick, ..."."""
    found = re.search(r"\$(\d+(?:\.\d+)?)", text)
    return float(found[1]) if found else 0.0


def kind_of(text: str) -> str:
    """What stands behind a title: "Sky Cello | calm, strings"; without it, the title itself."""
    return text.rpartition(" | ")[2]
