"""What a ranker asks next and what it makes of the reply: pure, no model, no I/O.

A plan is a generator for one problem: it yields an `Ask`, is sent the `Reply`, and returns a `Ranking`.
Whoever drives it (see `drive`) decides whether asks are answered in batches or one by one, over there.
Plans are made of plans: a window, a tournament or a repeat is a plan for a part of the pool.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from r1ranker.answers import completed_order, parse_ranking, parse_removal, removal_of, thought_of
from r1ranker.backends.base import Ask, Choice, Completion
from r1ranker.elimination import ranking_from, start
from r1ranker.errors import ConfigError
from r1ranker.problem import Answer, Problem, Ranking, Step, Usage, part_of
from r1ranker.prompts import (
    NO_THOUGHT,
    Layout,
    Prompt,
    QueryPlace,
    Wanted,
    bare_past,
    block_prompt,
    build_prompt,
    list_prompt,
    next_prompt,
    past_entry,
    with_advice,
    written_list,
)
from r1ranker.ranking.fusing import Fusion, check_prior, fuse
from r1ranker.ranking.luce import Chances, Left, course_of, renamed

EMPTY_THOUGHT_TOKENS = 16
"""Room for a ranking without a thought: this many tokens plus TOKENS_PER_CANDIDATE for each candidate."""
TOKENS_PER_CANDIDATE = 6
TINY = 1e-300
"""The least probability whose inverse is a number."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, and how long it took: the query's share of a batch, or the call's own time."""

    said: Completion | Choice
    seconds: float

    @property
    def usage(self) -> Usage:
        """What the call cost."""
        said = self.said
        return Usage(1, said.prompt_tokens, said.generated_tokens, self.seconds, said.retries, said.cost)


class OutOfTime(Exception):
    """Thrown into a plan in place of a reply: it asks no more, and returns the order by what it knows."""


Plan = Generator[Ask, Reply, Ranking]
"""Whoever drives it may throw `OutOfTime`; `Usage.cut_short` of the ranking then says so."""
ENDED = Usage(cut_short=1)
Planner = Callable[[Problem], Plan]
Part = Generator[Ask, Reply, tuple[tuple[int, ...], tuple[Step, ...], Usage]]


@dataclass(frozen=True, slots=True)
class Budget:
    """What one query may cost; None is no limit. A step is taken only while all that is limited is not used up."""

    calls: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            limit = getattr(self, name)
            if limit is not None and limit <= 0:
                raise ConfigError(f"a budget of {limit} {name} asks nothing: give more than 0, or None for no limit")

    def allows(self, spent: Usage) -> bool:
        """Whether there is something left of everything."""
        used = ((self.calls, spent.calls), (self.tokens, spent.tokens), (self.seconds, spent.seconds))
        return all(limit is None or amount < limit for limit, amount in used)


def direct(problem: Problem, *, think: bool, max_new_tokens: int) -> Plan:
    """One completion holds the whole ranking; candidates it does not name follow in pool order."""
    prompt = build_prompt(problem, problem.identifiers, "dranker", think=think)
    try:
        reply = yield Ask(prompt, None, ranking_tokens([problem], think, max_new_tokens))
    except OutOfTime:
        return ranking_from(problem, problem.identifiers, (), ENDED)
    text, truncated = _written(prompt, reply)
    answer = parse_ranking(text, problem.identifiers, truncated)
    step = Step(problem.identifiers, answer, thought=thought_of(text), completion=text)
    return ranking_from(problem, completed_order(answer, problem.identifiers), (step,), reply.usage)


def judged(problem: Problem, ask: Wanted | None, top_k: int = 1, query: QueryPlace = "first") -> Plan:
    """Layout `blocks`, read by a judge: one pass says of every candidate how good it is, and so all steps.

    A step's probabilities are those among what is left (Plackett-Luce): of being the best, or, where the worst is
    removed, of being the worst. ask: None makes one list of it (DRanker).
    """
    ids = problem.identifiers
    if len(ids) <= (top_k if ask == "worst" else 1):
        return ranking_from(problem, ids, (), Usage())
    try:
        reply = yield Ask(block_prompt(problem, "judge", ask or "best", query=query), ids, 0)
    except OutOfTime:
        return ranking_from(problem, ids, (), ENDED)
    assert isinstance(reply.said, Choice), "an ask with a pool is answered by a choice"
    best = reply.said.probabilities
    order = tuple(sorted(ids, key=lambda k: -best[k]))
    if ask is None:
        step = Step(ids, Answer("valid", order), completion=written_list(order), probabilities=best)
        return ranking_from(problem, order, (step,), reply.usage)
    head = order[: min(top_k, len(ids) - 1)] if top_k > 1 else order[:-1]  # of the last one left nothing is asked
    named = head if ask == "best" else order[: top_k - 1 : -1]
    strengths = {k: max(best[k], TINY) for k in ids}
    course = course_of(strengths if ask == "best" else {k: 1 / strength for k, strength in strengths.items()}, named)
    views = (Left(course, gone) for gone in range(len(named)))
    steps = [chosen_step(left, (k,), Chances(left)) for left, k in zip(views, named, strict=True)]
    return ranking_from(problem, order, steps, reply.usage)


def listed(problem: Problem, layout: Layout = "relist", query: QueryPlace = "first") -> Plan:
    """The whole ranking as one list without a thought: each identifier is chosen among those not named yet.

    The passes go on where the one before ended, so they cost what writing the list costs, and count as one call. The
    step's probabilities are those with which each was chosen, as shares of what had not gone to those before it.
    """
    prompt = (
        block_prompt(problem, "identifier", "best", query=query)
        if layout == "blocks"
        else build_prompt(problem, problem.identifiers, "dranker", think=False)
    )
    left, named, usage = list(problem.identifiers), list[int](), Usage()
    last: Mapping[int, float] = {}
    shares, rest = dict[int, float](), 1.0
    while len(left) > 1:
        going_on = prompt if prompt.blocks else list_prompt(prompt, named)
        try:
            reply = yield Ask(going_on, tuple(left), TOKENS_PER_CANDIDATE)
        except OutOfTime:
            usage += ENDED
            left.sort(key=lambda k: -last.get(k, 0.0))
            break
        assert isinstance(reply.said, Choice), "an ask with a pool is answered by a choice"
        last = reply.said.probabilities
        named.append(max(left, key=last.__getitem__))
        left.remove(named[-1])
        usage += reply.usage
        shares[named[-1]] = rest * last[named[-1]]
        rest = max(0.0, rest - shares[named[-1]])
    order = (*named, *left)
    shares |= dict.fromkeys(left, rest / len(left))
    said = Answer("incomplete", tuple(named)) if usage.cut_short else Answer("valid", order)
    step = Step(problem.identifiers, said, completion=written_list(said.ids), probabilities=shares)
    steps = (step,) if named else ()  # of a single candidate nothing was asked
    return ranking_from(problem, order, steps, dataclasses.replace(usage, calls=len(steps)))


def ranking_tokens(problems: Sequence[Problem], think: bool, max_new_tokens: int) -> int:
    """How many tokens one completion of a DRanker may have; without a thought, what the longest list needs."""
    if think:
        return max_new_tokens
    longest = max(len(problem.candidates) for problem in problems)
    return min(max_new_tokens, EMPTY_THOUGHT_TOKENS + TOKENS_PER_CANDIDATE * longest)


def eliminate(
    problem: Problem,
    *,
    think: bool,
    layout: Layout,
    max_new_tokens: int,
    top_k: int = 1,
    drop: int = 1,
    ask: Wanted = "worst",
    query: QueryPlace = "first",
) -> Plan:
    """Each call removes the `drop` worst that are left, until `top_k` are left or time is up.

    Survivors are ordered by the last known probabilities, those least likely to be removed next first. Where the best
    is asked for, each call selects the `drop` best instead, and ends when `top_k` are known (1: all).
    """
    state, usage = start(problem.identifiers), Usage()
    least = max(1, len(problem.candidates) - top_k) if ask == "best" and top_k > 1 else top_k
    steps, past = list[Step](), list[str]()
    prompt: Prompt | None = None
    while not state.done(least):
        pool = state.pool
        if layout == "blocks":
            prompt = prompt or block_prompt(problem, "identifier", ask, query=query)
        elif prompt is not None and prompt.stays:
            prompt = next_prompt(prompt, past if think else bare_past(state.removed), think=think)
        else:
            prompt = build_prompt(problem, pool, "iranker", layout=layout, think=think, ask=ask)
        try:
            reply = yield Ask(prompt, None if think else pool, max_new_tokens)
        except OutOfTime:
            usage += ENDED
            break
        step = _removal(pool, prompt, reply, min(drop, len(pool) - least), ask)
        for k in step.removed:
            state = state.remove(k)
        steps.append(step)
        usage += reply.usage
        past.append(past_entry(step.completion, step.removed[0], step.answer.kind == "valid"))
    last: Mapping[int, float] = steps[-1].probabilities if steps else {}
    survivors = sorted(state.pool, key=lambda k: -last.get(k, 0.0) if ask == "best" else last.get(k, 0.0))
    return ranking_from(problem, state.order(survivors, ask), tuple(steps), usage)


def _removal(pool: tuple[int, ...], prompt: Prompt, reply: Reply, count: int, ask: Wanted) -> Step:
    if isinstance(reply.said, Choice):
        likeliest = sorted(pool, key=lambda k: -reply.said.probabilities[k])  # type: ignore[union-attr]
        return chosen_step(pool, likeliest[:count], reply.said.probabilities)
    text, truncated = _written(prompt, reply)
    answer = parse_removal(text, pool, truncated)
    return Step(pool, answer, (removal_of(answer, pool, ask),), thought_of(text), text)


def chosen_step(pool: Sequence[int], removed: Sequence[int], probabilities: Mapping[int, float]) -> Step:
    """The step in which identifiers were chosen for removal without a thought, the worst first."""
    completion = "\n".join(f"{NO_THOUGHT}[{k}]</answer>" for k in removed)
    return Step(pool, Answer("valid", tuple(removed)), tuple(removed), "", completion, probabilities)


def _written(prompt: Prompt, reply: Reply) -> tuple[str, bool]:
    assert isinstance(reply.said, Completion), "an ask without a pool is answered by a completion"
    return prompt.prefill + reply.said.text, reply.said.truncated


def part_again(problem: Problem, first: Planner, then: Planner, size: int, part: Literal["head", "tail"]) -> Plan:
    """Rank all with `first`, then the best (head) or the worst (tail) `size` of that again with `then`."""
    order, steps, usage = yield from _part(problem, problem.identifiers, first)
    if usage.cut_short:
        return ranking_from(problem, order, steps, usage)
    size = min(size, len(order))
    cut = size if part == "head" else len(order) - size
    again, more, cost = yield from _part(problem, order[:cut] if part == "head" else order[cut:], then)
    order = (*again, *order[cut:]) if part == "head" else (*order[:cut], *again)
    return ranking_from(problem, order, (*steps, *more), usage + cost)


def depth(problem: Problem, inner: Planner, size: int) -> Plan:
    """Rank the first `size` of the pool; the others keep their order behind them."""
    head, tail = problem.identifiers[:size], problem.identifiers[size:]
    order, steps, usage = yield from _part(problem, head, inner)
    return ranking_from(problem, (*order, *tail), steps, usage)


def windows(problem: Problem, inner: Planner, size: int, stride: int) -> Plan:
    """A window slides from the end of the list to its head, and what it holds is ranked (RankGPT, section 3.2)."""
    order, steps, usage = list(problem.identifiers), list[Step](), Usage()
    end = len(order)
    while True:
        low = max(0, end - size)
        order[low:end], more, cost = yield from _part(problem, tuple(order[low:end]), inner)
        steps += more
        usage += cost
        if low == 0 or usage.cut_short:
            return ranking_from(problem, order, steps, usage)
        end -= stride


def tournament(problem: Problem, inner: Planner, size: int) -> Plan:
    """Groups of at most `size` are ranked and the better half of each goes on, until one group is left."""
    pool, losers = problem.identifiers, list[int]()
    steps, usage = list[Step](), Usage()
    while True:
        count = -(-len(pool) // size)
        groups: list[tuple[int, ...]] = []
        for group in (pool[i::count] for i in range(count)):
            if usage.cut_short:
                groups.append(group)
                continue
            order, more, cost = yield from _part(problem, group, inner)
            groups.append(order)
            steps += more
            usage += cost
        if count == 1:
            return ranking_from(problem, (*groups[0], *losers), steps, usage)
        places = [(place, k) for group in groups for place, k in enumerate(group)]
        places.sort(key=lambda entry: entry[0])
        through = {k for group in groups for k in group[: -(-len(group) // 2)]}
        pool = tuple(k for _, k in places if k in through)
        losers = [k for _, k in places if k not in through] + losers


def shuffled(problem: Problem, inner: Planner, repeats: int, seed: int) -> Plan:
    """Rank the pool in `repeats` random orders and merge by mean place, which takes out what the place in it did."""
    rng = random.Random(f"{seed}:{problem.qid}")
    places = dict.fromkeys(problem.identifiers, 0)
    steps, usage = list[Step](), Usage()
    for _ in range(repeats):
        pool = rng.sample(problem.identifiers, len(problem.identifiers))
        order, more, cost = yield from _part(problem, tuple(pool), inner)
        usage += cost
        if cost.cut_short and (steps or not more):  # a random order that was hardly ranked says nothing
            break
        for place, k in enumerate(order):
            places[k] += place
        steps += more
        if cost.cut_short:
            break
    return ranking_from(problem, sorted(places, key=lambda k: places[k]), steps, usage)


def within(problem: Problem, inner: Planner, budget: Budget) -> Plan:
    """What `inner` asks while the whole query's budget holds; then it ends by what it knows, as when time is up."""
    plan, spent, over, late = inner(problem), Usage(), False, False
    try:
        ask = next(plan)
        while True:
            if over := over or not budget.allows(spent):
                ask = plan.throw(OutOfTime())
                continue
            try:
                reply = yield ask
            except OutOfTime as ended:
                late = True
                ask = plan.throw(ended)
            else:
                spent += reply.usage
                ask = plan.send(reply)
    except StopIteration as done:
        ranking: Ranking = done.value
        if late or not over:
            return ranking
        return dataclasses.replace(ranking, usage=dataclasses.replace(ranking.usage, cut_short=0))


def advised(problem: Problem, inner: Planner, thoughts: Sequence[str]) -> Plan:
    """What `inner` asks, each prompt behind the same recorded thoughts."""
    plan = inner(problem)
    try:
        ask = next(plan)
        while True:
            try:
                reply = yield dataclasses.replace(ask, prompt=with_advice(ask.prompt, thoughts))
            except OutOfTime as over:
                ask = plan.throw(over)
            else:
                ask = plan.send(reply)
    except StopIteration as done:
        ranking: Ranking = done.value
        return ranking


def fused(problem: Problem, inner: Planner, how: Fusion) -> Plan:
    """What `inner` makes of the pool, fused with the first stage's order."""
    check_prior(problem, how)  # before the model is asked
    ranking = yield from inner(problem)
    return fuse(problem, ranking, how)


def _part(problem: Problem, pool: Sequence[int], inner: Planner) -> Part:
    """Rank a part of the pool as a problem of its own; what comes back names the whole problem's identifiers."""
    ranking = yield from inner(part_of(problem, pool))
    named = {problem.candidate(k).docid: k for k in pool}
    whole = dict(enumerate(pool, start=1))
    return tuple(named[docid] for docid in ranking.docids), renamed(ranking.steps, whole), ranking.usage
