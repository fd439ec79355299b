"""Passing a request on. In: bytes for an upstream. Out: its answer as it is: status, headers, bytes, streams too.

    answer = await ask(session, upstream, body, headers, streams=True)
    answer.status, answer.first         # nothing has been sent to the client yet: another upstream may be asked
    async for part in answer.rest():    # from here on, what goes wrong is an UpstreamError
    answer.close()

What comes before the first byte of use is judged here, so that a fallback is still possible: a connection that fails, a
timeout, an error status, an answer that is no JSON, a stream that begins with an error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from r1ranker.serving.route_settings import UpstreamSettings

CONNECT_SECONDS = 5.0
LARGEST = 64 << 20
"""Bytes of an answer that is read whole before it is passed on."""
HOP_BY_HOP = frozenset(("connection", "keep-alive", "te", "trailer", "trailers", "transfer-encoding", "upgrade")).union(
    ("proxy-authenticate", "proxy-authorization", "proxy-connection")
)
CREDENTIALS = ("authorization", "api-key", "x-api-key", "cookie", "openai-organization", "openai-project")
ORIGINS = ("origin", "referer", "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
MADE_ANEW = ("host", "content-length", "content-type", "accept-encoding", "expect", "x-request-id")
NOT_UPSTREAM = HOP_BY_HOP.union(CREDENTIALS, ORIGINS, MADE_ANEW)
"""The client's credentials and where it comes from are nobody else's business; the account there is the server's."""
NOT_DOWNSTREAM = HOP_BY_HOP.union(("content-length", "set-cookie", "server", "date", "x-request-id", "alt-svc"))
OWN_PREFIX = "x-r1ranker-"
FALLS_BACK = frozenset((401, 402, 403, 404, 408, 409, 413, 425, 429))
"""Statuses below 500 that say nothing against the request: another upstream may well take it."""
TOO_LONG = (b"context_length_exceeded", b"exceed_context_size_error", b"maximum context length", b"prompt is too long")
"""In a refusal with status 400: OpenAI's, llama.cpp's, vLLM's and Anthropic's words for a context that is too long."""


class UpstreamError(Exception):
    """Why an upstream gave no answer of use, in words without its address. answer: what it said with that status."""

    def __init__(self, why: str, status: int = 502, answer: Answer | None = None) -> None:
        super().__init__(why)
        self.status, self.answer = status, answer

    @property
    def said(self) -> int | None:
        """The upstream's own status, where it gave one."""
        return self.answer.status if self.answer else None


@dataclass(slots=True)
class Usage:
    """Tokens that an answer says it took; `known` is False where it did not say, and they are estimates."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    known: bool = False


@dataclass
class Answer:
    """An answer that began well. `first` is to be sent first: all of it, unless it is a stream.

    headers: the bytes that came, as an upstream may write them in any encoding.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    first: bytes
    streams: bool
    response: aiohttp.ClientResponse
    watch: Watch

    async def rest(self) -> AsyncIterator[bytes]:
        """The other parts of a stream, whole lines. UpstreamError where it breaks off: what was half a line is dropped,
        so that an error can follow."""
        if not self.streams:
            return
        why = "it ended before it said so"
        try:
            async for part in self.response.content.iter_any():
                if lines := self.watch.see(part):
                    yield lines
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = _why(error)
        tail = self.watch.tail
        self.watch.see(b"\n")
        if not self.watch.ended:
            raise UpstreamError(f"the stream broke off ({why})")
        if tail:
            yield tail

    @property
    def retry_after(self) -> str | None:
        """When the upstream wants to be asked again."""
        wait = dict(self.headers).get(b"retry-after")
        return wait.decode("latin-1") if wait else None

    def close(self) -> None:
        """End the call; a connection that was read to its end is kept for others."""
        self.response.close()


@dataclass
class Watch:
    """Reads along: usage, the answer's id, how much was written, whether a stream came to its end."""

    usage: Usage = field(default_factory=Usage)
    id: str = ""
    ended: bool = False
    failed: bool = False
    begun: bool = False
    written: int = 0
    """UTF-8 bytes of the answers' texts."""
    tail: bytes = b""
    """Of a line that is not whole yet."""

    def see(self, part: bytes) -> bytes:
        """The whole lines that a stream has come to with this part."""
        whole, newline, self.tail = (self.tail + part).rpartition(b"\n")
        for line in whole.split(b"\n"):
            if line.startswith(b"data:"):
                self._event(line[5:].strip())
        return whole + newline

    def read(self, data: bytes) -> bool:
        """A whole answer; False where it is no JSON object."""
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            return False
        if not isinstance(content, dict):
            return False
        self.failed = bool(content.get("error"))
        self._count(content)
        return True

    def _event(self, data: bytes) -> None:
        self.begun = True
        if data == b"[DONE]":
            self.ended = True
            return
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(content, dict):
            self.failed |= bool(content.get("error"))
            self.ended |= self.failed or any(one.get("finish_reason") for one in _objects(content.get("choices")))
            self._count(content)

    def _count(self, content: Mapping[str, Any]) -> None:
        self.id = self.id or str(content.get("id") or "")
        for choice in _objects(content.get("choices")):
            for said in _objects([choice.get("delta"), choice.get("message")]):
                texts = (said.get(key) for key in ("content", "reasoning", "reasoning_content", "refusal"))
                self.written += sum(len(text.encode(errors="replace")) for text in texts if isinstance(text, str))
                if said.get("tool_calls"):
                    self.written += len(json.dumps(said["tool_calls"]))
        usage = content.get("usage")
        if isinstance(usage, dict):
            counts: list[Any] = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")]
            if all(isinstance(count, int) and count >= 0 for count in counts):
                self.usage = Usage(counts[0], counts[1], known=True)


async def ask(
    session: aiohttp.ClientSession,
    upstream: UpstreamSettings,
    body: bytes,
    headers: Mapping[str, str],
    *,
    streams: bool,
) -> Answer:
    """The upstream's answer to `body`, to be closed. UpstreamError where another upstream may do better.

    Redirects are not followed: they would carry the key to another place.
    """
    url, timeout = (
        f"{upstream.base_url}/chat/completions",
        aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=upstream.timeout_s),
    )
    response: aiohttp.ClientResponse | None = None
    try:
        async with asyncio.timeout(upstream.timeout_s):
            response = await session.post(url, data=body, headers=headers, timeout=timeout, allow_redirects=False)
            return await _begun(response, streams)
    except BaseException as error:
        if response is not None:
            response.close()
        if isinstance(error, aiohttp.ClientError | TimeoutError | OSError):
            raise UpstreamError(_why(error), 504 if isinstance(error, TimeoutError) else 502) from error
        raise


def forwarded(headers: Mapping[str, str], upstream: UpstreamSettings) -> dict[str, str]:
    """The client's headers as the upstream gets them, with the server's own key."""
    named = {name.strip().lower() for name in headers.get("connection", "").split(",")}
    kept = {
        name: value
        for name, value in headers.items()
        if name.lower() not in NOT_UPSTREAM | named and not name.lower().startswith(OWN_PREFIX)
    }
    key = upstream.api_key
    return (
        kept
        | {"content-type": "application/json", "accept-encoding": "identity"}
        | ({"authorization": f"Bearer {key}"} if key else {})
    )


async def _begun(response: aiohttp.ClientResponse, streams: bool) -> Answer:
    """The answer once it is known that it begins well."""
    watch = Watch()
    if response.status >= 400 or response.status in range(300, 400):
        answer = Answer(response.status, _headers(response), await _whole(response), False, response, watch)
        _refuse(answer)
        return answer
    if not streams or response.content_type != "text/event-stream":
        first = await _whole(response)
        if not watch.read(first) and "content-encoding" not in response.headers:
            raise UpstreamError("the answer is not a JSON object")
        if watch.failed:
            raise UpstreamError("the answer is an error")
        return Answer(response.status, _headers(response), first, False, response, watch)
    first = b""
    async for part in response.content.iter_any():
        first += watch.see(part)
        if watch.begun or len(first) + len(watch.tail) > LARGEST:
            break
    if not watch.begun:
        raise UpstreamError("the stream ended before it began")
    if watch.failed:
        raise UpstreamError("the stream began with an error")
    return Answer(response.status, _headers(response), first, True, response, watch)


def _refuse(answer: Answer) -> None:
    """UpstreamError for a status that another upstream may not give; others are the answer."""
    status = answer.status
    too_long = status == 400 and any(words in answer.first for words in TOO_LONG)
    if status < 400 or status >= 500 or status in FALLS_BACK or too_long:
        raise UpstreamError(f"status {status}", status, answer)


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for part in response.content.iter_any():
        data += part
        if len(data) > LARGEST:
            raise UpstreamError(f"the answer has more than {LARGEST >> 20} MB")
    return bytes(data)


def _headers(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    named = {name.strip().lower() for name in response.headers.get("connection", "").split(",")}
    raw = [(name.lower(), value) for name, value in response.raw_headers]
    return [
        (name, value)
        for name, value in raw
        if (text := name.decode("latin-1")) not in NOT_DOWNSTREAM | named and not text.startswith(OWN_PREFIX)
    ]


def _objects(values: Any) -> list[dict[str, Any]]:
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []


def _why(error: BaseException) -> str:
    """In words that name no address: they reach clients."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "cannot be reached"
    return "the connection broke off"
