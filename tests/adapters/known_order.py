"""A ranker whose order is known: the text that shares more words with the query is better. No model."""

from __future__ import annotations

import re
from itertools import pairwise

from r1ranker import BackendError, IRanker
from r1ranker.backends.scripted import ScriptedBackend
from r1ranker.prompts import Prompt

QUERY = "how long do barn owls live"
TEXTS = ["tractors need oil", "barn owls live four years", "owls eat mice", "how long barn owls live"]
BEST_FIRST = [3, 1, 2, 0]
"""Places of TEXTS for QUERY: they share 5, 3, 1 and 0 words with it."""


def by_shared_words() -> IRanker:
    """Removes what shares least with the query."""
    return IRanker(ScriptedBackend(weigh=lambda prompt, k: 1 / 10 ** _shared(prompt, k)))


def broken() -> IRanker:
    """Its model fails whatever it is asked."""
    return IRanker(ScriptedBackend(weigh=_fail))


def falls(scores: list[float]) -> bool:
    """Whether scores are in (0, 1] and each is below the one before."""
    return all(0 < score <= 1 for score in scores) and all(one > next_ for one, next_ in pairwise(scores))


def _shared(prompt: Prompt, k: int) -> int:
    query = re.findall(r"^Query: (.*)$", prompt.text, re.M)[0]
    text = re.findall(rf"^\[{k}\] (.*)$", prompt.text, re.M)[0]
    return len(set(re.findall(r"\w+", query.lower())) & set(re.findall(r"\w+", text.lower())))


def _fail(prompt: Prompt, k: int) -> float:
    raise BackendError("the model is gone")
