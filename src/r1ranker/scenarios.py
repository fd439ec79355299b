"""What a prompt says, by scenario: small records of wordings. In: a scenario's name. Out: its `Scenario`.

    Scenario(
        question="Which job suits the applicant best?",
        context="Applicant: {query}\\n{question}",
        candidate="job",
    )

Ours stand in `SCENARIOS`. One of the user's own is a record of the same fields in `scenarios:` of the run's YAML or in
a file of them (`--scenarios`), and goes with each problem (`Problem.wording`). Next in the data flow: `problem`.
"""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from r1ranker.errors import DataError

PLACES = ("query", "history", "objective", "question")
"""What a context may hold in braces."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """The wordings of one scenario. Empty ones are made from the others. Raises DataError for what is no context.

    question: what is wanted; a problem's `instruction` replaces it.
    context: what stands before the candidates, with `{query}` and `{question}`, and perhaps `{history}` (one title a
        line, oldest first) and `{objective}`. With `{history}` a history may stand in for a query; a line that is
        `{query}` alone is then left out.
    candidate: what one candidate is called, for worst, best and list.
    worst, best, list: the sentence that says what to do, before that on the form of an answer, which is ours.
    prior: what the prior is called where its places are shown (`data.show`).
    """

    question: str
    context: str = "Query: {query}\n{question}"
    candidate: str = "candidate"
    worst: str = ""
    best: str = ""
    list: str = ""
    prior: str = "prior"

    def __post_init__(self) -> None:
        for name in ("question", "context", "candidate", "prior"):
            if not getattr(self, name).strip():
                raise DataError(f"{name} is empty; say it in words, or leave it out")
        self._check_context()
        for name in ("question", "worst", "best", "list", "candidate"):
            if found := re.search(r"\{\w+\}", getattr(self, name)):
                raise DataError(f"{name} has {found[0]}, and only a context is filled in: say it without")
        made = {
            "worst": f"Remove the least suitable {self.candidate} that is left.",
            "best": f"Select the most suitable {self.candidate} that is left.",
            "list": f"Rank all {self.candidate}s, best first.",
        }
        for name, sentence in made.items():
            object.__setattr__(self, name, getattr(self, name) or sentence)

    @property
    def places(self) -> tuple[str, ...]:
        """What the context has in braces."""
        return tuple(name for _, name, _, _ in string.Formatter().parse(self.context) if name is not None)

    def _check_context(self) -> None:
        where, twice = f"context {self.context!r}", "a brace that is meant as such is written twice"
        try:
            places = self.places
            self.context.format(**dict.fromkeys(PLACES, ""))
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            allowed = ", ".join(f"{{{place}}}" for place in PLACES)
            raise DataError(
                f"{where} has a place that cannot be filled ({error}); there are {allowed}, and {twice}"
            ) from error
        for needed in ("query", "question"):
            if needed not in places:
                raise DataError(f"{where} has no place {{{needed}}}, and the model would not read it")


SCENARIOS: dict[str, Scenario] = {
    "recommendation": Scenario(
        question="What will the user choose next?",
        context="The user chose, oldest first:\n{history}\n{query}\n{question}",
        prior="popularity",
    ),
    "routing": Scenario(
        question="Which LLM serves it best?",
        context="A prompt goes to one of several LLMs. {objective}\nPrompt: {query}\n{question}",
        prior="average",
    ),
    "passage": Scenario(question="Which passage answers the query?", prior="first stage"),
}
GENERAL = Scenario(question="Which candidate is the most suitable?")
"""Of a scenario without a record: its problems say by `instruction` what is wanted."""


def scenario_of(record: object) -> Scenario:
    """A record as JSON or YAML holds it. Raises DataError, which names the field."""
    known = [field.name for field in fields(Scenario)]
    if not isinstance(record, Mapping):
        raise DataError(f"a scenario is a mapping of {', '.join(known)}; a question at least")
    for name, text in record.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise DataError(f"a scenario has no field {name!r}; {remedy}")
        if not isinstance(text, str):
            raise DataError(f"{name} is {text!r}; write it as text")
    if "question" not in record:
        raise DataError("question is missing: what is wanted of the candidates")
    return Scenario(**record)


def scenarios_of(records: object) -> dict[str, Scenario]:
    """Records by the scenario's name, as YAML holds them. Raises DataError, which names scenario and field."""
    if not isinstance(records, Mapping):
        raise DataError("scenarios are records by name, such as {jobs: {question: Which job suits the applicant?}}")
    known: dict[str, Scenario] = {}
    for name, record in records.items():
        if not (isinstance(name, str) and name.strip()):
            raise DataError(f"scenario {name!r}: a name is text")
        if name in SCENARIOS:
            raise DataError(f"scenario {name!r} is one of ours and stays as it is; give yours another name")
        try:
            known[name] = record if isinstance(record, Scenario) else scenario_of(record)
        except DataError as error:
            raise DataError(f"scenario {name!r}: {error}") from error
    return known


def unknown(name: str, known: Iterable[str] = SCENARIOS) -> str:
    """What is wrong with a name that no record has, and what to do."""
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"scenario {name!r} is not one of {', '.join(known)}; {meant}for another one give the problem an "
        "'instruction', or write a record of this name in scenarios: of the run's YAML, or in a file for --scenarios"
    )
