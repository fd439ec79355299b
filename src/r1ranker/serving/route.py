"""The routing proxy over HTTP: `/v1/chat/completions`, what a router would do (`/v1/route`), and feedback.

It reads the conversation, ranks the LLMs that can serve it, changes `model`, and passes every other byte, both ways.
Next LLMs in order are tried only until the first byte has gone out. In: requests. Out: an upstream's answer, with
headers that say whose it is and why.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
from fastapi import APIRouter, FastAPI, Request, Response
from starlette.responses import StreamingResponse

from r1ranker.errors import DataError
from r1ranker.serving.body import Body, BodyError, parse
from r1ranker.serving.decide import Asked, Decision, as_data, decision_of, pool_of, read_ask, refuse_addresses
from r1ranker.serving.errors import HttpError, in_latin, json_response
from r1ranker.serving.needs import Needs, needs_of
from r1ranker.serving.route_settings import routers_of
from r1ranker.serving.service import Service, while_there
from r1ranker.serving.settings import Key, ServeSettings
from r1ranker.serving.store import BudgetError, Call, ScoredError, Store, seconds_left
from r1ranker.serving.upstreams import OWN_PREFIX, Answer, UpstreamError, ask, forwarded

log = logging.getLogger(__name__)
NO_RETRY = {"x-should-retry": "false"}
"""What OpenAI's clients obey: all that could be tried has been."""
OUR_FAULT = frozenset((401, 402, 403, 404))
"""Statuses about the server's account upstream; such answers may quote its key, so they stay here."""
TOO_LARGE = frozenset((400, 413))
Result = TypeVar("Result")


@dataclass
class Proxy:
    """What the routes below share; `app.state.proxy`. `tasks`: what is still being written down."""

    service: Service
    settings: ServeSettings
    session: aiohttp.ClientSession
    store: Store
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def surely(self, work: Coroutine[Any, Any, None]) -> None:
        """Done to its end even where the client has gone and the request is cancelled."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        await asyncio.shield(task)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    settings = service.settings
    if not settings.models:
        app.state.proxy = None
        yield
        return
    connector = aiohttp.TCPConnector(limit=0)
    session = aiohttp.ClientSession(connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())
    async with session:
        store = await asyncio.to_thread(Store, settings.store)
        await asyncio.to_thread(store.describe, as_data(settings))
        proxy = app.state.proxy = Proxy(service, settings, session, store)
        yield
        await asyncio.gather(*proxy.tasks, return_exceptions=True)
        store.close()


router = APIRouter(lifespan=_lifespan, tags=["route"])


@dataclass(frozen=True, slots=True)
class Routed:
    """A request that is understood, and where it is to go: LLMs in the order in which they are tried."""

    id: str
    key: str
    body: Body
    needs: Needs
    asked: Asked | None
    decision: Decision
    seconds: float
    router_cost: float

    @property
    def tried(self) -> tuple[str, ...]:
        """The first, and as many of the next as may be tried."""
        return self.decision.order[: 1 + (self.asked.fallbacks if self.asked else 0)]

    @property
    def streams(self) -> bool:
        """Whether the client wants the answer in parts."""
        return self.body.values.get("stream") is True


@router.post("/v1/chat/completions")
@router.post("/chat/completions")
async def chat(request: Request) -> Response:
    """Answer a conversation by the LLM that suits it; OpenAI's shape, with `model` a router or one of the LLMs."""
    proxy, body = _proxy(request), _parsed(await request.body())
    return await while_there(request, _chat(proxy, request, body))


async def _chat(proxy: Proxy, request: Request, body: Body) -> Response:
    routed = await _route(proxy, request, body)
    first = routed.decision.order[0]
    call = Call(
        routed.id,
        routed.key,
        first,
        routed.decision.costs[first],
        routed.needs.query,
        routed.asked.name if routed.asked else "",
        routed.router_cost,
        routed.seconds,
    )
    key = proxy.settings.key(routed.key)
    begun = asyncio.ensure_future(_kept(proxy.store.begin, call, key.budget_per_day if key else None))
    try:
        await asyncio.shield(begun)
    except BudgetError as error:
        raise _spent(str(error)) from error
    except asyncio.CancelledError:  # the client has gone; what its thread sets aside is free again
        await proxy.surely(_undone(proxy, routed, begun))
        raise
    return await _answered(proxy, request, routed)


async def _undone(proxy: Proxy, routed: Routed, begun: asyncio.Future[None]) -> None:
    with suppress(BudgetError):
        await begun
        await _finish(proxy, routed, routed.decision.order[0], None)


@router.post("/v1/route")
async def route(request: Request) -> Response:
    """What `/v1/chat/completions` would do with the same body: order, costs, who is left out. No LLM is asked."""
    proxy, body = _proxy(request), _parsed(await request.body())
    routed = await while_there(request, _route(proxy, request, body))
    return json_response({"object": "route", "model": routed.decision.order[0]} | routed.decision.as_json())


@router.post("/v1/feedback")
async def feedback(request: Request) -> Response:
    """Score an answer between 0 and 1: {"id": the answer's id or `x-r1ranker-id`, "score": 1}."""
    proxy = _proxy(request)
    values = _parsed(await request.body()).values
    call, score = values.get("id"), values.get("score")
    if not isinstance(call, str) or not call:
        raise HttpError(400, "id: give an answer's id, or its header x-r1ranker-id", "id")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise HttpError(422, "score: give a number from 0 (useless) to 1 (right)", "score")
    try:
        await _kept(proxy.store.score, call, float(score), request.state.key)
    except DataError as error:
        raise HttpError(404, str(error), "id", "unknown_id") from error
    except ScoredError as error:
        raise HttpError(409, str(error), "score", "scored", NO_RETRY) from error
    return json_response({"object": "feedback", "id": call, "score": float(score)})


async def _route(proxy: Proxy, request: Request, body: Body) -> Routed:
    """Read a request and decide. HttpError where nothing can serve it, or where its key may not ask."""
    model = body.values.get("model")
    if not isinstance(model, str) or not model:
        raise HttpError(400, "model: name a router, such as auto, or a model", "model")
    try:
        refuse_addresses(body.values)
        asked = read_ask(model, body.values, request.headers, proxy.settings)
    except BodyError as error:
        missing = error.param == "model"
        raise HttpError(
            404 if missing else 400, str(error), error.param, "model_not_found" if missing else None
        ) from error
    key = proxy.settings.key(request.state.key)
    allowed = key.models if key else None
    if allowed is not None and (asked.name if asked else model) not in allowed:
        raise HttpError(403, f"this key may not use {model!r}", "model")
    needs, name, id_ = needs_of(body.values), request.state.key, f"route-{uuid.uuid4().hex}"
    if asked is None:
        cost = proxy.settings.models[model].cost(needs.prompt_tokens, needs.output_tokens)
        decision = Decision((model,), (), {model: cost}, {}, ("named by the client",))
        return Routed(id_, name, body, needs, None, decision, 0.0, 0.0)
    left = await _left(proxy, key)
    began = time.perf_counter()
    decision, cost = await _decided(proxy, asked, needs, id_, name, left, llms_for(proxy.settings, allowed))
    return Routed(id_, name, body, needs, asked, decision, time.perf_counter() - began, cost)


def llms_for(settings: ServeSettings, allowed: tuple[str, ...] | None) -> set[str] | None:
    """The names that routers may choose for a key: those it may name, or all (None) where no LLM is among them."""
    others = {*routers_of(settings), *settings.rankers} - settings.models.keys()
    return None if others.issuperset(allowed or ()) else set(allowed or ())


async def _decided(
    proxy: Proxy, asked: Asked, needs: Needs, call: str, key: str, left: float | None, allowed: set[str] | None
) -> tuple[Decision, float]:
    """The order, and what the ranker itself cost."""
    pool = pool_of(asked, needs, proxy.settings, call=call, left=left, allowed=allowed)
    if not pool.names:
        if "budget" in pool.left_out.values():
            raise _spent(f"{left:.4f} dollars of today's budget are left, and no model is that cheap")
        whys = ", ".join(f"{name}: {why}" for name, why in pool.left_out.items())
        raise HttpError(400, f"no model can serve this request; what each lacks: {whys}", code="no_model_fits")
    if pool.problem is None:
        return decision_of(pool), 0.0
    served = await proxy.service.rank(pool.problem, ranker=asked.router.ranker, key=key, trusted=True)
    decision = decision_of(pool, served.ranking.docids, served.scores, served.ranker, served.warnings)
    return decision, served.ranking.usage.cost


async def _answered(proxy: Proxy, request: Request, routed: Routed) -> Response:
    """The first answer that begins well, of the LLMs in order."""
    failed: dict[str, UpstreamError] = {}
    for name in routed.tried:
        model = proxy.settings.models[name]
        upstream = proxy.settings.upstreams[model.upstream]
        metrics, began = proxy.service.metrics, time.perf_counter()
        try:
            answer = await ask(
                proxy.session,
                upstream,
                routed.body.with_model(model.name or name),
                forwarded(request.headers, upstream),
                streams=routed.streams,
            )
        except UpstreamError as error:
            log.warning("call %s: %s failed: %s", routed.id, name, error)
            metrics.upstream_failure.labels(name, str(error.status)).inc()
            failed[name] = error
            continue
        except BaseException:  # the client has gone, and what was asked may be billed: its estimate stands
            await proxy.surely(_finish(proxy, routed, name, None, asked=True))
            raise
        metrics.upstream_success.labels(name).inc()
        metrics.upstream_seconds.labels(name).observe(time.perf_counter() - began)
        return await _passed(proxy, request, routed, name, answer, failed)
    await proxy.surely(_finish(proxy, routed, routed.tried[0], None))
    return _failed(request, routed, failed)


async def _passed(
    proxy: Proxy, request: Request, routed: Routed, name: str, answer: Answer, failed: Mapping[str, UpstreamError]
) -> Response:
    headers = _headers(proxy, routed, name, failed, answer)
    request.state.told = {"model": name, "fallbacks": len(failed), "router_ms": round(1000 * routed.seconds, 1)}
    if not answer.streams:
        answer.close()
        await proxy.surely(_finish(proxy, routed, name, answer))
        return _with(Response(answer.first, answer.status), answer.headers, headers)

    async def parts() -> AsyncIterator[bytes]:
        try:
            yield answer.first
            async for part in answer.rest():
                yield part
        except UpstreamError as error:
            log.warning("call %s: %s failed midway: %s", routed.id, name, error)
            proxy.service.metrics.upstream_failure.labels(name, "broken off").inc()
            what = {"message": f"{name}: {error}", "type": "server_error", "param": None, "code": "upstream_failed"}
            yield b"\n\ndata: " + json.dumps({"error": what}).encode() + b"\n\n"
        finally:
            answer.close()
            await proxy.surely(_finish(proxy, routed, name, answer))

    return _with(StreamingResponse(parts(), answer.status), answer.headers, headers)


def _with(response: Response, passed: list[tuple[bytes, bytes]], own: Mapping[str, str]) -> Response:
    response.raw_headers.extend(passed)
    response.headers.update(in_latin(own))
    return response


def _headers(
    proxy: Proxy, routed: Routed, name: str, failed: Mapping[str, UpstreamError], answer: Answer | None = None
) -> dict[str, str]:
    """Whose answer it is and why. The cost of a stream is an estimate: it is known when all has gone out."""
    decision = routed.decision
    place = decision.order.index(name) + 1
    reason = decision.reason if place == 1 else f"place {place} of {len(decision.order)}; {_whys(failed)}"
    known = answer is not None and not answer.streams
    cost = _cost(proxy, routed, name, answer)[0] if known else decision.costs[name]
    values = {
        "id": routed.id,
        "model": name,
        "rank": str(place),
        "reason": reason,
        "fallbacks": str(len(failed)),
        "cost": f"{cost:.8f}",
        "router-ms": f"{1000 * routed.seconds:.1f}",
    }
    if routed.asked and routed.asked.wishes.explain:
        values["order"] = decision.header()
    return {OWN_PREFIX + key: value for key, value in values.items()}


def _failed(request: Request, routed: Routed, failed: Mapping[str, UpstreamError]) -> Response:
    """Nobody answered. The answer of an upstream stands where it is the only one, or where the request is too large."""
    last = list(failed.values())[-1]
    statuses = {error.status for error in failed.values()}
    own = {OWN_PREFIX + "id": routed.id, OWN_PREFIX + "fallbacks": str(len(failed) - 1)}
    own |= NO_RETRY if routed.asked else {}
    alone = routed.asked is None and last.status not in OUR_FAULT
    if last.answer is not None and last.status >= 400 and (alone or statuses <= TOO_LARGE):
        last.answer.close()
        request.state.failure = HttpError(last.status, "what the upstream answered")
        request.state.failure.__cause__ = last
        return _with(Response(last.answer.first, last.status), last.answer.headers, own)
    status = 429 if statuses == {429} else 504 if statuses == {504} else 502
    waits = [error.answer.retry_after for error in failed.values() if error.answer and error.answer.retry_after]
    own |= {"retry-after": waits[0]} if status == 429 and waits else {}
    raise HttpError(status, f"no model answered: {_whys(failed)}", code="upstreams_failed", headers=own) from last


def _whys(failed: Mapping[str, UpstreamError]) -> str:
    return "; ".join(f"{name}: {error}" for name, error in failed.items())


async def _finish(proxy: Proxy, routed: Routed, name: str, answer: Answer | None, *, asked: bool = False) -> None:
    """Write down what it cost; of an LLM that was asked and not waited for, the estimate."""
    cost, prompt, completion = _cost(proxy, routed, name, answer)
    if asked:
        cost, prompt, completion = routed.decision.costs[name], routed.needs.prompt_tokens, routed.needs.output_tokens
    proxy.service.metrics.upstream_spent(name, prompt, completion, cost)
    await _kept(
        proxy.store.finish,
        routed.id,
        name,
        cost=cost,
        prompt_tokens=prompt,
        completion_tokens=completion,
        answer=answer.watch.id if answer else "",
        failed=answer is None or answer.status >= 400,
    )


def _cost(proxy: Proxy, routed: Routed, name: str, answer: Answer | None) -> tuple[float, int, int]:
    """Dollars and tokens: as the answer says, else estimated from what was read and written."""
    if answer is None or answer.status >= 400:
        return 0.0, 0, 0
    usage = answer.watch.usage
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if not usage.known:
        prompt, completion = routed.needs.prompt_tokens, answer.watch.written // 4 or routed.needs.output_tokens
    return proxy.settings.models[name].cost(prompt, completion), prompt, completion


async def _left(proxy: Proxy, key: Key | None) -> float | None:
    """Dollars of the key's budget of today. HttpError where there are none."""
    if key is None or key.budget_per_day is None:
        return None
    left = key.budget_per_day - await _kept(proxy.store.spent_today, key.name)
    if left <= 0:
        raise _spent(f"the budget of {key.budget_per_day:g} dollars a day is spent")
    return left


def _spent(message: str) -> HttpError:
    headers = {"retry-after": str(seconds_left())} | NO_RETRY
    return HttpError(429, message, code="insufficient_quota", headers=headers)


async def _kept(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Off the event loop: another process may hold the file."""
    return await asyncio.to_thread(function, *args, **kwargs)


def _parsed(data: bytes) -> Body:
    try:
        return parse(data)
    except BodyError as error:
        raise HttpError(400, str(error), error.param) from error


def _proxy(request: Request) -> Proxy:
    proxy: Proxy | None = request.app.state.proxy
    if proxy is None:
        raise HttpError(404, "this server routes to no models: set `models` and `upstreams`", code="no_models")
    return proxy
