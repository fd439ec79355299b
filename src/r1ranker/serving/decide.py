"""Which LLM a request goes to. In: a request's body and who asks. Out: the LLMs that can serve it, best first.

    asked = read_ask("auto:cost", body.values, headers, settings)
    pool = pool_of(asked, needs_of(body.values), settings)
    pool.problem                     # for the ranker, as `datasets.llmrouter` writes routing problems
    decision_of(pool, ranking.docids, scores).order[0]

Pure, but for what the ranker says; the command line and the proxy run the same functions.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, ValidationError

from r1ranker.datasets.inline import objective_of
from r1ranker.datasets.llm_outcomes import LLM
from r1ranker.datasets.llmrouter import TASK, describe
from r1ranker.io.strict import Strict
from r1ranker.problem import Candidate, Problem
from r1ranker.serving.body import OWN, REFUSED, BodyError
from r1ranker.serving.needs import Needs, why_not
from r1ranker.serving.route_settings import WISHES, ModelSettings, RouterSettings, RouteSettings, routers_of
from r1ranker.serving.upstreams import OWN_PREFIX

ORDER_CHARS = 4000
"""Of the order in a header; clients take 8 kB in all."""


class Wishes(Strict):
    """The body's `router` key, or headers `x-r1ranker-*` with dashes; the body wins."""

    candidates: tuple[str, ...] | None = None
    cost_quality: Annotated[float, Field(ge=0, le=1)] | None = None
    max_cost: Annotated[float, Field(ge=0)] | None = None
    fallbacks: Annotated[int, Field(ge=0, le=20)] | None = None
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A router and what is wished of it."""

    name: str
    router: RouterSettings
    wishes: Wishes
    objective: str

    @property
    def fallbacks(self) -> int:
        """How many of the next in order may be tried."""
        return self.router.fallbacks if self.wishes.fallbacks is None else self.wishes.fallbacks


@dataclass(frozen=True, slots=True)
class Pool:
    """LLMs that can serve a request, with their estimated costs in dollars, and why others cannot.

    problem: None where fewer than two can, and there is nothing to rank.
    """

    names: tuple[str, ...]
    costs: Mapping[str, float]
    left_out: Mapping[str, str]
    problem: Problem | None


@dataclass(frozen=True, slots=True)
class Decision:
    """LLMs best first. scores: the ranker's, falling, no probabilities; empty where it had nothing to choose."""

    order: tuple[str, ...]
    scores: tuple[float, ...]
    costs: Mapping[str, float]
    left_out: Mapping[str, str]
    notes: tuple[str, ...] = ()
    ranked_by: str = ""

    @property
    def reason(self) -> str:
        """In a line of ASCII."""
        total = len(self.order)
        chosen = f"first of {total} by {self.ranked_by}" if self.ranked_by else f"{total} can serve it"
        whys = list(self.left_out.values())
        out = ", ".join(f"{why} {whys.count(why)}" for why in dict.fromkeys(whys))
        parts = (chosen, f"left out: {out}" if out else "", *self.notes)
        return "; ".join(filter(None, parts)).encode("ascii", "replace").decode()

    def as_json(self) -> dict[str, Any]:
        """For those who asked why."""
        scores = self.scores or (None,) * len(self.order)
        order = [
            {"model": name, "score": score, "cost": self.costs[name]}
            for name, score in zip(self.order, scores, strict=True)
        ]
        return {"order": order, "left_out": dict(self.left_out), "reason": self.reason}

    def header(self) -> str:
        """The same for a header: as many of the order as fit."""
        content = self.as_json()
        while len(text := json.dumps(content)) > ORDER_CHARS and content["order"]:
            content["order"].pop()
            content["cut"] = True
        return text


def read_ask(
    model: str, values: Mapping[str, Any], headers: Mapping[str, str], settings: RouteSettings
) -> Asked | None:
    """The router that `model` names; None where it names an LLM. BodyError: it names neither, or wishes are wrong."""
    if model in settings.models:
        return None
    routers = routers_of(settings)
    name, _, wish = model.partition(":")
    if model in routers:
        name, wish = model, ""
    if name not in routers or (wish and wish not in WISHES):
        known = [*routers, *settings.models]
        near = difflib.get_close_matches(model, known, n=1) or [", ".join(known) or "none: the config has no models"]
        raise BodyError(f"there is no router or model {model!r} here; there is {near[0]}", "model")
    wishes = _wishes(values, headers)
    if wishes.candidates is not None:
        for candidate in wishes.candidates:
            if candidate not in (routers[name].models or settings.models):
                raise BodyError(f"candidates: {candidate!r} is no model of router {name}", f"{OWN}.candidates")
    return Asked(name, routers[name], wishes, _objective(routers[name], wishes, wish))


def entries(settings: RouteSettings, allowed: Collection[str] | None) -> list[dict[str, Any]]:
    """Routers and LLMs for `/v1/models`, of those a key may name."""
    kinds = [(name, "r1-ranker", "router") for name in routers_of(settings)]
    kinds += [(name, model.upstream, "llm") for name, model in settings.models.items()]
    return [
        {"id": name, "object": "model", "created": 0, "owned_by": owner, "kind": kind}
        for name, owner, kind in kinds
        if allowed is None or name in allowed
    ]


def as_data(settings: RouteSettings) -> dict[str, dict[str, Any]]:
    """LLMs as a file `llms` of the routing data has them: with it, feedback reads as the proxy's problems do."""
    return {
        name: {
            "size": model.size,
            "feature": model.description,
            "input_price": model.input_price,
            "output_price": model.output_price,
        }
        for name, model in settings.models.items()
    }


def refuse_addresses(values: Mapping[str, Any]) -> None:
    """BodyError for keys that would send the request, or a key, elsewhere."""
    for key in REFUSED:
        if key in values:
            raise BodyError(f"{key} is not taken from a request; upstreams stand in the server's settings", key)


def pool_of(
    asked: Asked,
    needs: Needs,
    settings: RouteSettings,
    *,
    call: str = "route",
    allowed: Collection[str] | None = None,
    left: float | None = None,
) -> Pool:
    """The hard filters, then the problem for the ranker. allowed, left: see `why_not`."""
    models = {name: settings.models[name] for name in asked.router.models or settings.models}
    wishes = asked.wishes
    reasons = {
        name: why_not(
            name, model, needs, candidates=wishes.candidates, allowed=allowed, max_cost=wishes.max_cost, left=left
        )
        for name, model in models.items()
    }
    fit = {name: model for name, model in models.items() if not reasons[name]}
    return Pool(
        names=tuple(fit),
        costs={name: model.cost(needs.prompt_tokens, needs.output_tokens) for name, model in models.items()},
        left_out={name: reason for name, reason in reasons.items() if reason},
        problem=_problem(call, needs.query, asked, fit) if len(fit) > 1 else None,
    )


def decision_of(
    pool: Pool, docids: Iterable[str] = (), scores: Sequence[float] = (), by: str = "", notes: Sequence[str] = ()
) -> Decision:
    """The order of a pool: the ranker's, or the only LLM there is."""
    if pool.problem is None:
        return Decision(pool.names, (), pool.costs, pool.left_out)
    return Decision(tuple(docids), tuple(scores), pool.costs, pool.left_out, tuple(notes), by)


def _problem(call: str, query: str, asked: Asked, models: Mapping[str, ModelSettings]) -> Problem:
    candidates = tuple(
        Candidate(name, describe(name, LLM(model.size, model.description, model.input_price, model.output_price)))
        for name, model in models.items()
    )
    prior = {name: score for name, score in asked.router.prior.items() if name in models}
    problem = Problem(
        qid=call,
        task=f"{TASK}-{asked.name}",
        scenario="routing",
        query=query,
        objective=asked.objective,
        candidates=candidates,
        prior=prior,
    )
    if not prior:
        return problem
    from r1ranker.baselines.notes import noted_by  # here: it imports torch, and most routers have no prior

    return noted_by(["prior"], (), [problem])[0]


def _objective(router: RouterSettings, wishes: Wishes, wish: str) -> str:
    """What the ranker reads of quality and cost: the request's number or name, else the router's text or number."""
    wanted: float | str | None = wishes.cost_quality if wishes.cost_quality is not None else WISHES.get(wish)
    if wanted is None:
        if router.objective is not None:
            return router.objective
        wanted = WISHES["balance"] if router.cost_quality is None else router.cost_quality
    return objective_of(wanted)


def _wishes(values: Mapping[str, Any], headers: Mapping[str, str]) -> Wishes:
    raw: dict[str, Any] = {}
    for name in Wishes.model_fields:
        text = headers.get(OWN_PREFIX + name.replace("_", "-"))
        if text is not None:
            raw[name] = [part.strip() for part in text.split(",")] if name == "candidates" else text
    own = values.get(OWN)
    if own is not None and not isinstance(own, dict):
        raise BodyError(f"{OWN} must be an object with any of {', '.join(Wishes.model_fields)}", OWN)
    raw |= {key: value for key, value in (own or {}).items() if value is not None}
    try:
        return Wishes.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BodyError(f"{OWN}.{where}: {first['msg']}", f"{OWN}.{where}") from error
