"""What a completion says. In: a completion and the pool it speaks of. Out: an `Answer`.

Next in the data flow: `elimination` removes what was named, `rewards` scores it.

Where the answer is. The last `<answer>` outside any thought decides; tags are lower case, spelled exactly.

| completion                                         | kind                                         |
| -------------------------------------------------- | -------------------------------------------- |
| no `<answer>` outside the thoughts                 | truncated when cut, else missing             |
| last `<answer>` never closed                       | truncated when cut, else malformed           |
| answer empty or only white space                   | missing                                      |
| answer tag in a thought, closed or not             | does not count                               |
| `</think>` with no `<think>` before it             | what stands before it is the thought         |
| `<think>` inside a thought                         | is text: the first `</think>` ends it        |
| closed answer, then cut by the limit               | read as usual                                |

What an identifier is. Bracketed ones win: bare numbers count only in an answer without any.

| text                                               | read as                                      |
| -------------------------------------------------- | -------------------------------------------- |
| `[7]`, `[ 7 ]`, `[Passage 7]`, `[#7]`, `[07]`      | 7                                            |
| `[4, 3]`, `[4 > 3]`                                | 4 and 3                                      |
| `[3-5]`, `[1] to [5]`, `[3.5]`, `[-3]`, `[3`       | the answer is malformed                      |
| `[x]` without a digit                              | text                                         |
| a non-ASCII digit anywhere (`²`, `３`)             | the answer is malformed                      |
| bare `7`, `Passage 7.`, `The worst is 7`           | 7: at most three words before, none behind   |
| other bare digits (`3rd`, `-3`, `3.5`, `2 of 5`)   | the answer is malformed                      |
| a number of any length that is not in the pool     | an unknown identifier                        |

Removal: one identifier is valid (written twice in brackets is still one), two are malformed, one that is
not in the pool is unknown_id without ids. Bare, exactly one number.

Ranking: `>`, `,`, `;` or a line end stands between identifiers; bare ones on a single line may do with
spaces; `1. 4` on every line is a numbered list. `[4] < [3]` and `[4] = [3]` are malformed. The last list that
names the whole pool once decides, be it one row or a run of rows: a draft before it and remarks behind it do
not count. Without such a list all mentions count, each at its first, and the kind is the first that applies
of unknown_id (the known ones stay), duplicate, incomplete.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from r1ranker.problem import Answer
from r1ranker.prompts import Wanted

_THOUGHT = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_OPEN_BRACKET = re.compile(r"\[\s*[0-9]|[0-9]\s*\]")
_NOT_A_LIST = re.compile(r"\][ \t]*(?:[-‐‑–—~…<=]|\.{2,}|to|through)[ \t]*\[")
_ITEM = re.compile(r"[\W_]*(?:[^\W\d_]+[\W_]+){0,3}(?<![-‐‑–—−+./\w\[])([0-9]+)(?![^\W_]|[%\]])[\W_]*")
_PROSE_GAP = re.compile(r"(?<=\])[^\[\]>A-Za-z]*[A-Za-z][^\[\]>]*(?=\[)")
_NUMBERED = re.compile(r"\s*[0-9]+\s*[.):]\s(?=\D*[0-9])")
_MARKED = re.compile(r"\s*(?:[0-9]+\s*[.):]|[-*•]\s)")

_Rows = list[list[str] | None]
"""Identifiers as written, row by row; None ends a run of rows."""


class _Malformed(Exception):
    """The answer is not in the stated form."""


def parse_removal(completion: str, pool: Sequence[int], truncated: bool = False) -> Answer:
    """The candidate to remove, as IRanker asks for it (paper: iterative design). See the tables above."""
    body = _body(completion, truncated)
    if isinstance(body, Answer):
        return body
    try:
        written = set(_bracketed(body)) or {_bare(body)}
    except _Malformed:
        return Answer("malformed")
    if len(written) > 1:
        return Answer("malformed")
    ids = _known(list(written), pool)
    return Answer("valid" if ids else "unknown_id", ids)


def parse_ranking(completion: str, pool: Sequence[int], truncated: bool = False) -> Answer:
    """The whole order, best first, as DRanker asks for it (paper: direct design). See the tables above."""
    body = _body(completion, truncated)
    if isinstance(body, Answer):
        return body
    try:
        rows = _bracketed_rows(body) if _bracketed(body) else _bare_rows(body)
    except _Malformed:
        return Answer("malformed")
    written = _decisive_list(rows, pool)
    ids = _known(written, pool)
    if not written:
        return Answer("malformed")
    if not set(written) <= _spelled(pool).keys():
        return Answer("unknown_id", ids)
    if len(written) > len(ids):
        return Answer("duplicate", ids)
    return Answer("valid" if len(ids) == len(pool) else "incomplete", ids)


def thought_of(completion: str) -> str:
    """What stands inside the think blocks; of one that never closes, all that follows."""
    return "\n".join(thought.strip() for thought in _THOUGHT.findall(_opened(completion)))


def completed_order(answer: Answer, pool: Sequence[int]) -> tuple[int, ...]:
    """The one rule of DRanker: the named identifiers in the order named, then the rest in pool order."""
    known = set(pool)
    named = [k for k in answer.ids if k in known]
    return tuple(dict.fromkeys([*named, *pool]))


def removal_of(answer: Answer, pool: Sequence[int], ask: Wanted = "worst") -> int:
    """The one rule of IRanker: the named identifier when valid, else the last one listed in the pool.

    In a pool in first-stage order the last one listed is the first stage's own worst; where the best is asked for, it
    is the first.
    """
    if answer.kind == "valid" and answer.ids[0] in pool:
        return answer.ids[0]
    return pool[0] if ask == "best" else pool[-1]


def _opened(completion: str) -> str:
    """The completion with its thought opened: some chat templates write `<think>` into the prompt."""
    before, closing, _ = completion.partition("</think>")
    return f"<think>{completion}" if closing and "<think>" not in before else completion


def _body(completion: str, truncated: bool) -> str | Answer:
    """The text inside the deciding answer block, or the Answer where there is none to read."""
    said = _THOUGHT.sub("\n", _opened(completion))
    _, opening, rest = said.rpartition("<answer>")
    body, closing, _ = rest.partition("</answer>")
    if not (opening and closing) and truncated:
        return Answer("truncated")
    if not opening:
        return Answer("missing")
    if not closing or any(c.isdigit() and not c.isascii() for c in body):
        return Answer("malformed")
    return body if body.strip() else Answer("missing")


def _bare(text: str) -> str:
    """The only number of `text`, with at most three words before it and none behind."""
    match = _ITEM.fullmatch(text)
    if match is None:
        raise _Malformed
    return _plain(match[1])


def _plain(digits: str) -> str:
    """Without leading zeros. Never an int: a number may be longer than `int` accepts."""
    return digits.lstrip("0") or "0"


def _bracketed(text: str) -> list[str]:
    """All bracketed identifiers of `text` as written; empty when it has none."""
    groups = [group for group in _BRACKET.findall(text) if re.search("[0-9]", group)]
    if _NOT_A_LIST.search(text) or _OPEN_BRACKET.search(_BRACKET.sub("", text)):
        raise _Malformed
    return [_bare(item) for group in groups for item in re.split("[,;>]", group)]


def _bracketed_rows(text: str) -> _Rows:
    """One row a line; words without a `>` between two identifiers also end a row.

    A run of rows ends at a line that names nothing and where list markers begin or end.
    """
    rows: _Rows = []
    was_marked = None
    for line in _BRACKET.sub(lambda group: " ".join(group[0].split()), text).splitlines():
        marked = bool(_MARKED.match(line))
        if marked != was_marked:
            rows.append(None)
        was_marked = marked
        rows.extend(_bracketed(piece) or None for piece in _PROSE_GAP.split(line))
    return rows


def _bare_rows(text: str) -> _Rows:
    """One row a line of bare numbers; a line without a digit ends a run."""
    lines = text.strip().splitlines()
    numbers = [line for line in lines if re.search("[0-9]", line)]
    if numbers and all(_NUMBERED.match(line) for line in numbers):
        lines = [_NUMBERED.sub("", line, count=1) for line in lines]
    if len(lines) == 1 and re.fullmatch(r"[\s0-9]+", lines[0]):
        return [[_plain(digits) for digits in lines[0].split()]]
    return [_bare_row(line) if re.search("[0-9]", line) else None for line in lines]


def _bare_row(line: str) -> list[str]:
    return [_bare(item) for item in re.split("[,;>]", line) if re.search(r"[^\W_]", item)]


def _decisive_list(rows: _Rows, pool: Sequence[int]) -> list[str]:
    """The last row or run of rows that names the whole pool once; without one, all mentions."""
    lists: list[list[str]] = []
    run: list[str] = []
    for row in [*rows, None]:
        if row is None:
            lists.append(run)
            run = []
        else:
            lists.append(row)
            run.extend(row)
    whole = sorted(_spelled(pool))
    everything = [name for row in rows if row for name in row]
    return next((names for names in reversed(lists) if sorted(names) == whole), everything)


def _spelled(pool: Sequence[int]) -> dict[str, int]:
    return {str(k): k for k in pool}


def _known(written: Sequence[str], pool: Sequence[int]) -> tuple[int, ...]:
    """The identifiers of the pool among `written`, each at its first mention."""
    spelled = _spelled(pool)
    return tuple(dict.fromkeys(spelled[name] for name in written if name in spelled))
