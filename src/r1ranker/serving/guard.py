"""Who may ask, and how much: before any route is reached."""

from __future__ import annotations

import hashlib
import hmac
import uuid

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from r1ranker.serving.errors import HttpError, error_response
from r1ranker.serving.settings import ServeSettings

OPEN = ("/health", "/ready")
"""Routes that need no key, for load balancers."""


class Guard:
    """ASGI middleware. Sets `request.state.key` (the key's name, "" without keys) and `request.state.request_id`."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            state["key"] = self._key(Headers(scope=scope), scope["path"])
        except HttpError as error:
            await error_response(error)(scope, receive, named)
            return
        await self.app(scope, receive, named)

    def _key(self, headers: Headers, path: str) -> str:
        if not self.settings.keys or path in OPEN:
            return ""
        given = headers.get("authorization", "").removeprefix("Bearer ").strip() or headers.get("x-api-key", "")
        hashed = hashlib.sha256(given.encode()).hexdigest()
        names = [key.name for key in self.settings.keys if hmac.compare_digest(key.sha256, hashed)]
        if not names:
            raise HttpError(401, "give a key: Authorization: Bearer KEY")
        return names[0]
