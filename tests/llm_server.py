"""An OpenAI-compatible upstream for tests: it answers, streams, calls tools, counts usage, and fails in eight ways.

    with LLMServer() as server:
        server.base_url                 # http://127.0.0.1:PORT/v1
        server.asked                    # bodies (bytes) and headers of what it was sent

What it does is said by the model's name: `good` answers; `429`, `500`, `503`, `400` are statuses; `cut` closes the
connection, `timeout` says nothing, `malformed` is no JSON, `midway` cuts a stream after two parts, `openly` ends one
without its last line, `error-first` begins a stream with an error; `REFUSALS` are errors in words. A ninth failure is a
port where nobody listens.
"""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from threaded_server import ThreadedServer

FAILING = ("429", "500", "503", "cut", "timeout", "malformed", "error-first")
ANSWER = "Owls live long é."
VLLM = "This model's maximum context length is 8192 tokens. However, your request has 9000 input tokens."
REFUSALS = {
    "too-long": (400, {"message": "x", "code": "context_length_exceeded"}),
    "vllm-too-long": (400, {"message": VLLM, "type": "BadRequestError", "code": 400}),
    "refused": (200, {"message": "overloaded"}),
}


@dataclass(frozen=True)
class Asked:
    body: bytes
    headers: dict[str, str]

    @property
    def values(self) -> dict[str, Any]:
        return json.loads(self.body)  # type: ignore[no-any-return]


class LLMServer(ThreadedServer):
    """The upstream: `with LLMServer() as server`."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.closed = threading.Event()
        """Set when a client left before a late answer, or in the middle of a slow stream."""

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        ready.set()
        await stop.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(await request.read(), dict(request.headers))
        self.asked.append(asked)
        body = asked.values
        model = str(body["model"]).rsplit("/", 1)[-1]
        if model.isdigit():
            wait = {"Retry-After": "7"} if model == "429" else {}
            return web.json_response({"error": {"message": f"told to say {model}"}}, status=int(model), headers=wait)
        if model in REFUSALS:
            status, error = REFUSALS[model]
            return web.json_response({"error": error}, status=status)
        if model == "moved":
            return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})
        if model in ("timeout", "long"):
            await self._think()
        if model == "cut":
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if model == "malformed":
            return web.Response(text='{"id": "chatcmpl-1", "choices": [', content_type="application/json")
        if body.get("stream"):
            return await self._stream(request, body, model)
        return web.json_response(whole(body), headers={"X-Upstream": "yes", "Set-Cookie": "a=b"})

    async def _think(self) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.closed.set()
            raise

    async def _stream(self, request: web.Request, body: dict[str, Any], model: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if model == "error-first":
            await response.write(b'data: {"error": {"message": "overloaded"}}\n\n')
            return response
        parts = events(body)
        if model == "slow":
            await response.write(parts[0])
            try:
                for part in [parts[1]] * 1000:
                    await asyncio.sleep(0.02)
                    await response.write(part)
            except (asyncio.CancelledError, ConnectionError):
                self.closed.set()
                raise
        for number, part in enumerate(parts):
            if model in ("midway", "openly") and number == 2:
                await response.write(part[: len(part) // 2])
                if model == "midway":
                    assert request.transport is not None
                    await asyncio.sleep(0.2)  # what was sent before has arrived; a reader drops what it holds at a cut
                    request.transport.close()
                return response
            for half in (part[:9], part[9:]):  # an event may come in any number of pieces
                await response.write(half)
                await asyncio.sleep(0)
        await response.write_eof()
        return response


def whole(body: dict[str, Any]) -> dict[str, Any]:
    """An answer that is not streamed."""
    message: dict[str, Any] = {"role": "assistant", "content": ANSWER}
    if body.get("tools"):
        call = {"name": body["tools"][0]["function"]["name"], "arguments": '{"bird": "owl"}'}
        message = {"role": "assistant", "content": None}
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": call}]
    finish = "tool_calls" if body.get("tools") else "stop"
    return {
        "id": "chatcmpl-whole",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }


def events(body: dict[str, Any]) -> list[bytes]:
    """The parts of a stream, its usage where it is asked for."""

    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        chunk = {"id": "chatcmpl-stream", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
        return f"data: {json.dumps(chunk | {'choices': choices} | more, ensure_ascii=False)}\n\n".encode()

    words = [event([{"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}]) for word in ANSWER.split()]
    parts = [event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]), *words]
    parts.append(event([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    if (body.get("stream_options") or {}).get("include_usage"):
        parts.append(event([], usage={"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}))
    return [*parts, b"data: [DONE]\n\n"]
