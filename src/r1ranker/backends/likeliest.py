"""From the likeliest tokens that an endpoint shows to probabilities over identifiers.

In: the tokens of a reply with their log-probabilities. Out: probability by identifier, for `openai_`. The endpoint's
tokenizer is not known here; all that is seen is the text of each token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def probabilities(tokens: Sequence[Mapping[str, Any]], identifier: int, pool: Sequence[int]) -> dict[int, float]:
    """Over the pool, from the likeliest tokens at each place of `[identifier]`, the one that was written.

    Where identifiers part, the mass is shared by the tokens there. Those that part again behind a token which
    was not written cannot be told apart and share its mass; one that is not among the likeliest has none.
    """
    written = "".join(token["token"] for token in tokens)
    start = written.rfind(f"[{identifier}]")
    if start < 0:
        return {k: float(k == identifier) for k in pool}
    result = dict.fromkeys(pool, 0.0)
    alive, mass, position = frozenset(pool), 1.0, 0
    for token in tokens:
        place, position = position, position + len(token["token"])
        if position <= start or len(alive) == 1:
            continue
        lead, before = written[place:start], written[start:place]  # of one of them there is nothing
        shares = _shares(token, lead, before, alive)
        chosen = _meant(token["token"], lead, before, alive)
        for group, share in shares.items():
            for k in group if group != chosen else ():
                result[k] += mass * share / len(group)
        alive, mass = chosen, mass * shares.get(chosen, 0.0)
    result[identifier] += mass
    return result


def _shares(token: Mapping[str, Any], lead: str, before: str, alive: frozenset[int]) -> dict[frozenset[int], float]:
    """How likely each group of identifiers is that one of the likeliest tokens leads to; they sum to 1."""
    logprobs: dict[frozenset[int], list[float]] = {}
    for text, logprob in {t["token"]: t["logprob"] for t in (*(token.get("top_logprobs") or ()), token)}.items():
        if group := _meant(text, lead, before, alive):
            logprobs.setdefault(group, []).append(logprob)
    # Where every identifier has a token of its own, `[` alone is one more spelling that structured output lets
    # through, though the model never saw it: what would follow it says nothing.
    if frozenset().union(*(group for group in logprobs if group != alive)) == alive:
        logprobs.pop(alive, None)
    most = max(max(values) for values in logprobs.values())
    weights = {group: sum(math.exp(value - most) for value in values) for group, values in logprobs.items()}
    return {group: weight / sum(weights.values()) for group, weight in weights.items()}


def _meant(text: str, lead: str, before: str, alive: frozenset[int]) -> frozenset[int]:
    """The identifiers that can still come when `text` stands where `lead` ends and `before` has been written."""
    if not text.startswith(lead) or text == lead:
        return frozenset()
    reached = before + text.removeprefix(lead)
    return frozenset(k for k in alive if f"[{k}]".startswith(reached) or reached.startswith(f"[{k}]"))
