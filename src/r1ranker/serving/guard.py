"""Who may ask, and how much: before any route is reached. In: ASGI requests. Out: the same, or a refusal in words.

First the key; only then anything else. All keys are compared, as hashes and in constant time. Then whom the request
thinks it talks to (`Host`, `Origin`: a page of another site may not use a browser to ask this server), then sizes.
Nothing of a request's text is logged, nor of an exception's, which may quote it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from r1ranker.backends.base import CallError
from r1ranker.serving.errors import HttpError, causes, error_response
from r1ranker.serving.settings import ServeSettings
from r1ranker.serving.upstreams import UpstreamError

log = logging.getLogger(__name__)
access = logging.getLogger("r1ranker.access")
PROBES = ("/health", "/ready")
"""What load balancers ask: with no key, and by an address that no setting knows, or by none."""
OPEN = ("/", *PROBES)
"""Routes that need no key: the page, which holds no data, and those."""
DOUBLED = re.compile("^/v[12](?=/v[12]/)")
"""How a path begins where a client's base URL ends in /v1 and the client writes its own version behind it."""
BODY_SECONDS = 30.0
"""A body that takes longer to come is refused, so that slow clients hold no connection for long."""
GONE = 499
"""In the log: the client has gone before it was answered."""
HERE = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """ASGI middleware. Sets `request.state.key` (the key's name, "" without keys) and `request.state.request_id`."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app, self.settings = app, settings
        self.hosts = {settings.host.lower(), *HERE, *map(_allowed, settings.allowed_hosts)} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            path = DOUBLED.sub("", scope["path"], count=1)
            await _Exchange(self, {**scope, "path": path}, receive, send).run()
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        else:  # no route speaks anything else
            await send({"type": "websocket.close", "code": 1008})

    def check(self, headers: Headers, path: str) -> str:
        """The key's name. HttpError for a request that may not come in."""
        key = self._key(headers, path)
        self._check_hosts(headers, path)
        sizes = (len(name) + len(value) + 4 for name, value in headers.raw)
        if sum(sizes) > self.settings.limits.header_bytes:
            raise HttpError(431, f"headers of more than {self.settings.limits.header_bytes} bytes", code="too_large")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.settings.limits.body_bytes:
            raise self.too_large()
        return key

    def too_large(self) -> HttpError:
        """The refusal of a body."""
        return HttpError(413, f"a body of more than {self.settings.limits.body_bytes} bytes", code="too_large")

    def _key(self, headers: Headers, path: str) -> str:
        if not self.settings.keys or path in OPEN:
            return ""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        hashed = hashlib.sha256(given.encode("latin-1")).hexdigest()
        names = [key.name for key in self.settings.keys if hmac.compare_digest(key.sha256, hashed)]
        if not (names and given):
            message = "give a valid key: Authorization: Bearer KEY"
            raise HttpError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return names[0]

    def _check_hosts(self, headers: Headers, path: str) -> None:
        host = None if path in PROBES else f"//{headers.get('host', '')}"
        for what, given in (("Host", host), ("Origin", headers.get("origin"))):
            if given is not None and "*" not in self.hosts and _host(given) not in self.hosts:
                message = f"{what} is none that this server knows; add it to allowed_hosts if it should be"
                raise HttpError(403, message, code="host_not_allowed")


def _allowed(host: str) -> str:
    """A host as settings name it: with or without a scheme and a port, or `*`."""
    bare = host == "*" or ("//" not in host and "[" not in host and host.count(":") > 1)  # an IPv6 address
    return host.lower() if bare else _host(host if "//" in host else f"//{host}")


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard, self.scope, self._receive, self._send = guard, scope, receive, send
        self.id = uuid.uuid4().hex
        self.state = scope.setdefault("state", {})
        self.state["request_id"] = self.id
        self.status = 0
        self.size = 0
        self.until: float | None = None
        """When the body has to be there; None once it is."""

    async def run(self) -> None:
        began = time.perf_counter()
        try:
            self.state["key"] = self.guard.check(Headers(scope=self.scope), self.scope["path"])
            self.until = time.monotonic() + BODY_SECONDS
            await self.guard.app(self.scope, self.receive, self.send)
        except HttpError as error:
            await self._refuse(error)
        except ClientDisconnect:
            self.status = self.status or GONE
        except Exception as error:
            await self._refuse(internal_error(self.id, error))
        finally:
            self._log(self._line(time.perf_counter() - began))

    async def _refuse(self, error: HttpError) -> None:
        self.state["failure"] = error
        if not self.status:
            await error_response(error, self.state.get("family", ""))(self.scope, self._receive, self.send)

    def _log(self, line: dict[str, object]) -> None:
        """One line. Where the request failed for no fault of its own, an error with what is known of the reason."""
        failure: HttpError | None = self.state.get("failure")
        if max(self.status, failure.status if failure else 0) < 500:
            access.info("request", extra={"request": line})
            return
        why = why_of(failure) if failure else {}
        log.error("request %s failed: %s", self.id, why.get("causes"), extra={"request": line | why})

    def _line(self, seconds: float) -> dict[str, object]:
        told: dict[str, object] = self.state.get("told", {})
        return {
            "request_id": self.id,
            "key": self.state.get("key", ""),
            "method": self.scope["method"],
            "path": self.scope["path"],
            "status": self.status,
            "ms": round(1000 * seconds, 1),
            "bytes": self.size,
        } | told

    async def receive(self) -> Message:
        if self.until is None:
            return await self._receive()
        try:
            async with asyncio.timeout(self.until - time.monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            raise HttpError(408, f"the body did not come within {BODY_SECONDS:g} s", code="timeout") from error
        self.size += len(message.get("body", b""))
        if self.size > self.guard.settings.limits.body_bytes:
            raise self.guard.too_large()
        if not message.get("more_body"):
            self.until = None
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = ((b"x-request-id", self.id.encode()), (b"x-content-type-options", b"nosniff"))
            message["headers"] = [*message["headers"], *own]
        await self._send(message)


def internal_error(request_id: str, cause: Exception) -> HttpError:
    """What a client is told of a fault that is not its own: where to look, and nothing else."""
    message = f"something went wrong here; the log has more under request id {request_id}"
    error = HttpError(500, message, code="internal")
    error.__cause__ = cause
    return error


def why_of(failure: HttpError) -> dict[str, object]:
    """For the log: what was answered, of what causes, and the status of the endpoint where one had answered."""
    known: dict[str, object] = {"answered": failure.message, "causes": causes(failure.__cause__)}
    cause = failure.__cause__
    status = cause.status if isinstance(cause, CallError) else cause.said if isinstance(cause, UpstreamError) else None
    return known if status is None else known | {"endpoint_status": status}
