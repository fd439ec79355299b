"""Harder tests and other splits than the sources' own. In: problems, or what users did when. Out: problems.

    hard = matched_negatives(recommendation_problems)                   # popularity says nothing any more
    splits = time_split({"u1": [("i7", 964982703.0), ...]}, {"i7": "Heat (1995)"}, task="rec-movie")

The sources split by user or by query, and draw negatives uniformly or in proportion to popularity (their option
`negatives`). What is here besides:

| function | the pool, or the split |
| --- | --- |
| `matched_negatives` | negatives as popular as the positive |
| `hard_negatives` | negatives that BM25 takes for the best answers |
| `full_catalogue` | everything the user has not had, most popular first: rank it in windows (`rankers.Windows`) |
| `window_of` | what a first stage retrieved of everything, best first; what it did not retrieve cannot be found |
| `new_items` | items that nobody took yet: half of the catalogue, taken away from all that is learnt from |
| `leave_last_out` | each user's last item is test, the one before dev, earlier ones train |
| `time_split` | before a moment is train, after another is test, for all users alike |

Next in the data flow is `prompts`, as for any problem. A negative is never what the user had: of a history that is cut
the older titles are given as `had` (`datasets.interactions.had_by_group`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import TypedDict, Unpack

from r1ranker.baselines.recommenders import title_of
from r1ranker.datasets.common import SPLIT_NAMES
from r1ranker.datasets.first_stage import bm25
from r1ranker.datasets.recommendation import NegativeSampler, Windows
from r1ranker.errors import DataError
from r1ranker.problem import Candidate, Problem, Splits, by_task, part_of, rng_for
from r1ranker.scenarios import SCENARIOS

Events = Mapping[str, Sequence[tuple[str, float]]]
"""What each user had, and when, oldest first."""
MIN_ITEMS = 6
"""Users with fewer items are left out, as by default in the sources."""
Had = Mapping[str, Sequence[str]]
"""Titles that a user had, by group: a problem's history holds the latest alone, and no negative may be an older one."""
NOTHING: Had = {}
MORE = re.compile(r"(?= \| | \()")
"""What follows a title in the text of a candidate, before genres or a year."""
NEW = 0.5
"""Share of the items of a task that `new_items` takes for new."""
SHARES = (0.8, 0.9)
"""Shares of all events before which `time_split` divides train from dev, and dev from test."""


@dataclass(frozen=True)
class Catalogue:
    """All that stood in a pool of a task. `prior` is popularity where the task is a recommendation.

    It is the largest on record: a training user's own choice is not counted in that user's problem. had: see `Had`.
    """

    candidates: Mapping[str, Candidate]
    prior: Mapping[str, float]
    had: Had

    def free(self, problem: Problem) -> list[str]:
        """Docids that could be negatives of a problem: not relevant, not had by the user, no text twice."""
        relevant = {docid for docid, gain in problem.gains.items() if gain > 0}
        taken = {self.candidates[docid].text for docid in relevant if docid in self.candidates}
        had = {*problem.history, *self.had.get(problem.group, ())}
        free: dict[str, str] = {}
        for docid, candidate in self.candidates.items():
            if not (docid in relevant or candidate.text in taken or had.intersection(self.titles[docid])):
                free.setdefault(candidate.text, docid)
        return list(free.values())

    @cached_property
    def titles(self) -> Mapping[str, Sequence[str]]:
        """What the title of each candidate may be: all of its text, or what stands before more."""
        return {
            docid: [text, *(text[: found.start()] for found in MORE.finditer(text))]
            for docid, text in ((docid, candidate.text) for docid, candidate in self.candidates.items())
        }


Order = Callable[[Problem, Catalogue, Random], list[str]]
"""The free docids of a catalogue in the order in which they become negatives."""


def catalogue(problems: Sequence[Problem], had: Had = NOTHING) -> Catalogue:
    """Of all problems given, of one task; take those of every split to have the whole."""
    candidates = {c.docid: c for problem in problems for c in problem.candidates}
    prior: dict[str, float] = {}
    for docid, value in (pair for problem in problems for pair in problem.prior.items()):
        prior[docid] = max(value, prior.get(docid, value))
    return Catalogue(candidates, prior, had)


def matched_negatives(
    problems: Sequence[Problem], known: Sequence[Problem] = (), seed: int = 0, had: Had = NOTHING
) -> list[Problem]:
    """The same recommendations among items whose popularity is nearest to the positive's, in pools of the same size.

    known: more problems of the same tasks, for their items. Popularity can then tell only where the positive is
    among the most popular items of all, which have few neighbours.
    """

    def nearest(problem: Problem, of_task: Catalogue, rng: Random) -> list[str]:
        levels = [problem.prior.get(docid, 0.0) for docid in _relevant(problem, problem.relevant_at)]
        free = rng.sample(found := of_task.free(problem), len(found))  # equals in a random order
        return sorted(free, key=lambda docid: abs(_log(of_task, docid) - math.log1p(max(levels, default=0.0))))

    return _replaced(problems, known, nearest, "matched", seed, had)


def hard_negatives(
    problems: Sequence[Problem], known: Sequence[Problem] = (), seed: int = 0, had: Had = NOTHING
) -> list[Problem]:
    """The same problems among the candidates of the whole task that share most words with the question (BM25).

    Where passages are judged by pool only, one that answers may have been judged for another query alone, and then
    counts as not relevant. The prior of passages, a first stage's score, becomes BM25's.
    """
    scores: dict[str, Mapping[str, float]] = {}
    for task, of_task in _catalogues([*problems, *known]).items():
        texts = {docid: candidate.text for docid, candidate in of_task.candidates.items()}
        scores |= bm25({p.qid: " ".join((p.query, *p.history)) for p in problems if p.task == task}, texts, len(texts))

    def alike(problem: Problem, of_task: Catalogue, rng: Random) -> list[str]:
        free = rng.sample(found := of_task.free(problem), len(found))  # what shares no word, in a random order
        return sorted(free, key=lambda docid: -scores[problem.qid].get(docid, 0.0))

    hard = _replaced(problems, known, alike, "hard", seed, had)
    zero = {c.docid: 0.0 for p in hard for c in p.candidates}
    return [_with_prior(p, {**zero, **scores[p.qid]}) if _is_search(p) else p for p in hard]


def full_catalogue(
    problems: Sequence[Problem], known: Sequence[Problem] = (), seed: int = 0, had: Had = NOTHING
) -> list[Problem]:
    """The same recommendations among all items the user has not had, the most popular first, equals at random."""
    catalogues = _catalogues([*problems, *known], had)
    whole = []
    for problem in problems:
        of_task = catalogues[problem.task]
        docids = [*_relevant(problem), *of_task.free(problem)]
        rng_for(seed, "catalogue", problem.qid).shuffle(docids)
        whole.append(_with_pool(problem, sorted(docids, key=lambda d: -_log(of_task, d)), of_task))
    return whole


def window_of(
    problems: Sequence[Problem], retrieved: Mapping[str, Sequence[str]], known: Sequence[Problem] = ()
) -> list[Problem]:
    """The same recommendations among what a first stage retrieved of the whole catalogue: docids by qid, best first.

    A positive that was not retrieved stays judged, so that its problem counts 0 whatever the order.
    """
    catalogues = _catalogues([*problems, *known])
    windows = []
    for problem in problems:
        of_task = catalogues[problem.task]
        pool = tuple(of_task.candidates[docid] for docid in retrieved[problem.qid])
        windows.append(_with_prior(replace(problem, candidates=pool), {**of_task.prior, **problem.prior}))
    return windows


def new_items(
    problems: Sequence[Problem],
    known: Sequence[Problem],
    learn: Sequence[Problem],
    seed: int = 0,
    had: Had = NOTHING,
) -> tuple[list[Problem], list[Problem]]:
    """Recommendations among items that nobody took yet, and what may then be learnt: `learn` without these items.

    Half of the items of each task, drawn by the seed, are new. Kept are the problems whose positive is one of them;
    their negatives are drawn uniformly from the others, and all have popularity 0. Histories of `problems` stay whole.
    """
    of_tasks = _catalogues([*problems, *known])
    new = {
        task: {docid for docid in of_task.candidates if rng_for(seed, "new", task, docid).random() < NEW}
        for task, of_task in of_tasks.items()
    }

    def drawn(problem: Problem, of_task: Catalogue, rng: Random) -> list[str]:
        free = [docid for docid in of_task.free(problem) if docid in new[problem.task]]
        return rng.sample(free, len(free))

    asked = [problem for problem in problems if new[problem.task].issuperset(_relevant(problem))]
    found = _replaced(asked, known, drawn, "new", seed, had)
    untaken = [replace(p, prior=dict.fromkeys((c.docid for c in p.candidates), 0.0)) for p in found]
    return untaken, _without(learn, new, of_tasks)


def _without(learn: Sequence[Problem], new: Mapping[str, set[str]], of_tasks: Mapping[str, Catalogue]) -> list[Problem]:
    """Training problems without some items, in histories as in pools; those of which nothing is left are dropped."""
    kept = []
    for task, of_task in by_task(learn).items():
        named = {title for problem in of_task for title in problem.history}
        titles = {title_of(of_tasks[task].candidates[docid].text, named) for docid in new[task]}
        for problem in of_task:
            history = tuple(title for title in problem.history if title not in titles)
            pool = [k for k in problem.identifiers if problem.candidate(k).docid not in new[task]]
            if history and pool:
                kept.append(replace(part_of(problem, pool), history=history))
    return kept


def _catalogues(problems: Sequence[Problem], had: Had = NOTHING) -> dict[str, Catalogue]:
    return {task: catalogue(of_task, had) for task, of_task in by_task(problems).items()}


def _relevant(problem: Problem, least: int = 1) -> list[str]:
    """Docids of the pool with a gain of at least `least`."""
    return [c.docid for c in problem.candidates if problem.gains.get(c.docid, 0) >= least]


def _log(of_task: Catalogue, docid: str) -> float:
    return math.log1p(of_task.prior.get(docid, 0.0))


def _replaced(
    problems: Sequence[Problem], known: Sequence[Problem], order: Order, name: str, seed: int, had: Had
) -> list[Problem]:
    """Each pool with other negatives: its relevant candidates and the first of `order`, in a random order."""
    catalogues = _catalogues([*problems, *known], had)
    replaced = []
    for problem in problems:
        of_task, rng = catalogues[problem.task], rng_for(seed, name, problem.qid)
        kept = _relevant(problem)
        pool = [*kept, *order(problem, of_task, rng)[: len(problem.candidates) - len(kept)]]
        rng.shuffle(pool)
        replaced.append(_with_pool(problem, pool, of_task))
    return replaced


def _with_pool(problem: Problem, docids: Sequence[str], of_task: Catalogue) -> Problem:
    """A problem with other candidates; judgements of those that left the pool would not fit it."""
    gains = {docid: problem.gains[docid] for docid in docids if docid in problem.gains}
    candidates = tuple(of_task.candidates[docid] for docid in docids)
    return _with_prior(replace(problem, candidates=candidates, gains=gains), {**of_task.prior, **problem.prior})


def _is_search(problem: Problem) -> bool:
    """Whether its prior is a first stage's score: in ours that of passages, else of what has no history."""
    return problem.scenario == "passage" or (problem.scenario not in SCENARIOS and not problem.history)


def _with_prior(problem: Problem, prior: Mapping[str, float]) -> Problem:
    return replace(problem, prior={c.docid: prior[c.docid] for c in problem.candidates if c.docid in prior})


def leave_last_out(
    events: Events, titles: Mapping[str, str], *, task: str, seed: int = 0, **options: Unpack[SplitOptions]
) -> Splits:
    """The last item of each user is a test positive, the one before it a dev positive, earlier ones train.

    By its definition a user stands on all sides; a test item never occurs in training, as a positive, in a history
    or as a negative, since all that a user ever had is barred from that user's negatives.
    """

    def side(user: str, place: int) -> str:
        return {1: "test", 2: "dev"}.get(len(known.histories[user]) - place, "train")

    known = _Log.read(events, titles, task, seed, options)
    return known.splits(side)


def time_split(
    events: Events, titles: Mapping[str, str], *, task: str, seed: int = 0, **options: Unpack[SplitOptions]
) -> Splits:
    """The first 80 % of all events are train, the next 10 % dev and the last test: one moment divides all users.

    A user's first item with a past in dev, and in test, is a positive there. Histories hold all that came before, and
    popularity what came before dev: nothing is known that was not known then.
    """
    known = _Log.read(events, titles, task, seed, options)
    moments = sorted(time for times in known.times.values() for time in times)
    first, second = (moments[int(share * len(moments))] for share in SHARES)

    def side(user: str, place: int) -> str:
        time = known.times[user][place]
        return "train" if time < first else "dev" if time < second else "test"

    return known.splits(side)


class SplitOptions(TypedDict, total=False):
    """As in `datasets.recommendation`: texts are what candidates show, where it is more than the title."""

    texts: Mapping[str, str]
    history: int
    pool_size: int
    windows_per_user: int


@dataclass(frozen=True, slots=True)
class _Log:
    """Distinct titled items of each user, oldest first, and when; users with fewer than `MIN_ITEMS` left out."""

    histories: Mapping[str, Sequence[str]]
    times: Mapping[str, Sequence[float]]
    titles: Mapping[str, str]
    task: str
    seed: int
    options: SplitOptions

    @classmethod
    def read(cls, events: Events, titles: Mapping[str, str], task: str, seed: int, options: SplitOptions) -> _Log:
        first: dict[str, dict[str, float]] = {user: {} for user in events}
        for user, of_user in events.items():
            for item, time in sorted(of_user, key=lambda event: event[1]):
                if item in titles:
                    first[user].setdefault(item, time)
        kept = {user: times for user, times in first.items() if len(times) >= MIN_ITEMS}
        if not kept:
            raise DataError(f"task {task!r}: no user has {MIN_ITEMS} items with a title")
        histories = {user: list(times) for user, times in kept.items()}
        return cls(histories, {user: list(times.values()) for user, times in kept.items()}, titles, task, seed, options)

    def splits(self, side: Callable[[str, int], str]) -> Splits:
        """Problems by the side on which each event falls: of train a few per user, of dev and test the first."""
        places = {user: [side(user, place) for place in range(len(items))] for user, items in self.histories.items()}
        popularity = Counter(
            item
            for user, items in self.histories.items()
            for item, on in zip(items, places[user], strict=True)
            if on == "train"
        )
        windows = self._windows(popularity)
        splits: Splits = {split: [] for split in SPLIT_NAMES}
        for user, sides in places.items():
            with_past = {on: [place for place in range(1, len(sides)) if sides[place] == on] for on in SPLIT_NAMES}
            train = with_past["train"]
            count = min(self.options.get("windows_per_user", 4), len(train))
            chosen = sorted(rng_for(self.seed, "windows", user).sample(train, count))
            for place in (*chosen, *with_past["dev"][:1], *with_past["test"][:1]):
                name, on = f"u{user}:{place}", sides[place]
                # A user stands on all sides. What learns from some of training must not meet the others of that user.
                group, rng = f"{self.task}:u{user}:{on}", rng_for(self.seed, f"{self.task}:{name}")
                items, counted = self.histories[user], on == "train"
                splits[on].append(windows.problem(items, place, name=name, group=group, counted=counted, rng=rng))
        return splits

    def _windows(self, popularity: Mapping[str, int]) -> Windows:
        texts = self.options.get("texts", self.titles)
        candidates = {item: Candidate(item, text) for item, text in texts.items()}
        sizes = self.options.get("history", 20), self.options.get("pool_size", 20)
        return Windows(self.task, self.titles, candidates, popularity, NegativeSampler(texts), *sizes)
