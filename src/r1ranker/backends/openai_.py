"""Models behind OpenAI-compatible endpoints: vLLM, SGLang, hosted ones. In: asks. Out: what they said, or CallError.

    backend = OpenAIBackend("Qwen/Qwen2.5-3B-Instruct", ["http://localhost:8000/v1", "http://other:8000/v1"])
    rankings = DRanker(backend).rank_many(problems)

Servers differ in what they can do beyond chat. The best is asked for first; a feature that a server refuses
or ignores is left out from then on, per base URL, and `capabilities` says what was found:

| feature    | what for                                             | without it                                   |
| ---------- | ---------------------------------------------------- | -------------------------------------------- |
| continue   | the model goes on behind the transcript and prefill  | removals stated as text, no prefill          |
| structured | it can write an identifier of the pool, nothing else | it writes, and the answer is parsed          |
| logprobs   | probabilities over the pool                          | all mass on the identifier that was written  |
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import random
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from r1ranker.answers import parse_removal
from r1ranker.backends.base import STOP, Ask, AsyncBackend, CallError, Choice, Completion
from r1ranker.backends.likeliest import probabilities
from r1ranker.backends.prices import Prices
from r1ranker.errors import ConfigError
from r1ranker.io.extras import library
from r1ranker.prompts import Prompt

if TYPE_CHECKING:
    import aiohttp

FIELDS: Mapping[str, tuple[str, ...]] = {
    "continue": ("continue_final_message", "add_generation_prompt"),
    "structured": ("structured_outputs", "guided_choice", "regex"),
    "logprobs": ("logprobs", "top_logprobs"),
    "stop": ("stop",),
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens",),
    "salt": ("cache_salt",),
}
"""The fields of a request that a server may not know, by feature."""
EXTENSIONS = frozenset({"continue", "structured", "logprobs", "salt"})
"""Doubted when a server does not say what was wrong."""
UNKNOWN_TO_OPENAI = frozenset({"continue", "structured", "salt"})

KEYS = ("R1RANKER_API_KEY", "OPENAI_API_KEY")
"""Where the API key stands in the environment; the first that is set counts."""
IDENTIFIER_TOKENS = 16
TOP_LOGPROBS = 20
BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
CONNECT_SECONDS = 10.0
REST_SECONDS = 10.0  # a base URL that could not be connected to is left alone for so long, while there is another one

REMEDIES = {
    401: "set the API key in R1RANKER_API_KEY",
    403: "check that the API key may use this model",
    404: "check the base URL (it mostly ends in /v1) and the model's name there",
    413: "the prompt is too long for this server; rank in windows",
}


@dataclass
class _Server:
    """One base URL: how busy it is, and what it was found to do or not to do."""

    url: str
    in_flight: int = 0
    sent: int = 0
    rests_until: float = 0.0
    proven: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()

    def capabilities(self) -> dict[str, bool | str]:
        known: dict[str, bool | str] = {}
        if "continue" in self.proven | self.missing:
            known["continue"] = "continue" not in self.missing
        if {"structured", "logprobs"} & (self.proven | self.missing):
            ways = [way for way in ("structured", "logprobs") if way in self.proven - self.missing]
            known["choice"] = "+".join(ways) or "text"
        return known


@dataclass
class OpenAIBackend(AsyncBackend):
    """One model at any number of endpoints; each call goes to the one with the fewest under way.

    model: the name the endpoints know it by. base_urls: such as http://localhost:8000/v1.
    concurrency: calls in flight, all endpoints together. timeout: seconds for one attempt. deadline: seconds
        for a call with all its retries. retries: attempts beyond the first; none where trying again cannot help.
    api_key: from R1RANKER_API_KEY or OPENAI_API_KEY when not given. prices: for `cost`, which is 0 without.
    """

    model: str
    base_urls: Sequence[str]
    _: KW_ONLY
    concurrency: int = 32
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    deadline: float = 600.0
    retries: int = 6
    prices: Prices | None = None
    name: str = field(init=False)

    def __post_init__(self) -> None:
        _aiohttp()  # missing it is said now, not at the first call
        self.name = self.model
        if self.concurrency < 1:
            raise ConfigError(f"concurrency must be at least 1, not {self.concurrency}")
        for url in self.base_urls or [""]:
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise ConfigError(f"base URL {url!r} is not one; give it as http://localhost:8000/v1")
        if self.prices:
            self.prices.cost(self.model, 0, 0, 0)  # better to miss a price now than after the first call
        if self.api_key is None:
            self.api_key = next(filter(None, map(os.environ.get, KEYS)), None)
        self._servers = [
            _Server(url, missing=UNKNOWN_TO_OPENAI if urlsplit(url).hostname == "api.openai.com" else frozenset())
            for url in dict.fromkeys(url.rstrip("/") for url in self.base_urls)
        ]

    @property
    def capabilities(self) -> dict[str, dict[str, bool | str]]:
        """What calls have shown by base URL: {"continue": True, "choice": "structured+logprobs"}, or one, or "text"."""
        return {server.url: server.capabilities() for server in self._servers}

    @asynccontextmanager
    async def session(self) -> AsyncIterator[_Session]:
        """Connections for one run, closed at its end."""
        aiohttp = _aiohttp()
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # the session bounds the calls itself
            timeout=aiohttp.ClientTimeout(total=self.timeout, sock_connect=min(self.timeout, CONNECT_SECONDS)),
            headers={"Authorization": f"Bearer {self.api_key}"} if self.api_key else {},
        ) as client:
            yield _Session(self, client)


class _Failure(Exception):
    """An attempt that failed and may be made again, not before `wait` seconds."""

    def __init__(self, what: str, wait: float = 0.0, status: int | None = None) -> None:
        super().__init__(what)
        self.wait, self.status = wait, status


class _Session:
    def __init__(self, backend: OpenAIBackend, client: aiohttp.ClientSession) -> None:
        self.backend, self.client = backend, client
        self.gate = asyncio.Semaphore(backend.concurrency)

    async def answer(self, ask: Ask) -> Completion | Choice:
        """The reply; what attempts before it cost is in it. Raises CallError when there is none."""
        backend, spent, failures = self.backend, _Spent(), 0
        status: int | None = None
        last = f"no answer from {', '.join(server.url for server in backend._servers)}"
        try:
            async with asyncio.timeout(backend.deadline) as timer:
                while True:
                    try:
                        async with self.gate:
                            return await self._attempt(self._server(), ask, spent)
                    except _Failure as failure:
                        last, status, failures = str(failure), failure.status, failures + 1
                        if failures > backend.retries:
                            why = f"{last}; gave up after {failures} attempts"
                            raise CallError(why, status=status, **vars(spent)) from failure
                        backoff = min(LONGEST_BACKOFF, BACKOFF * 2 ** (failures - 1))
                        delay = failure.wait + random.uniform(0, backoff)  # jitter: not all at once again
                    if delay > (timer.when() or math.inf) - asyncio.get_running_loop().time():
                        raise TimeoutError  # waiting would not help: the time is up before the next attempt
                    await asyncio.sleep(delay)
        except TimeoutError as error:
            when = f"the deadline of {backend.deadline:g} s after {failures} failed attempts"
            raise CallError(f"{last}; gave up at {when}", status=status, **vars(spent)) from error

    def _server(self) -> _Server:
        """The one with the fewest calls in flight among those that can be reached."""
        now = time.monotonic()
        return min(self.backend._servers, key=lambda s: (s.rests_until > now, s.in_flight, s.sent))

    async def _attempt(self, server: _Server, ask: Ask, spent: _Spent) -> Completion | Choice:
        """One attempt; requests refused for a feature are made again without it, as part of it."""
        missing = server.missing
        while True:
            body = request_body(self.backend.model, ask, missing)
            used = frozenset(feature for feature, names in FIELDS.items() if names[0] in body)
            spent.retries += 1
            status, wait, data = await self._post(server, body)
            doubted = _doubted(data, used - server.proven) if status in (400, 422) else frozenset()
            if not doubted:
                break
            missing |= doubted
        said = data[:200].decode(errors="replace").strip()
        if status == 429 or status >= 500:
            raise _Failure(f"{server.url} answered {status}: {said}", _seconds(wait), status)
        if status != 200:
            remedy = REMEDIES.get(status, "the request itself is wrong for this server, so it is not made again")
            if "chat template" in said:  # vLLM's words where the model has none
                remedy = "start the server with the --chat-template that docs/ranking.md shows"
            raise CallError(f"{server.url} answered {status}: {said}; {remedy}", status=status, **vars(spent))
        try:
            reply = json.loads(data)
            choice = reply["choices"][0]
            spent.add(reply.get("usage") or {}, self.backend)
            result = _read(choice, ask, used, server, spent)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            why = f"{server.url} answered 200 with no completion: {said or 'an empty body'}"
            raise _Failure(why, status=status) from error
        server.missing |= missing  # only now: a request wrong in itself proves nothing about features
        server.proven |= used - {"structured", "logprobs"}
        if result is None:
            why = f"{server.url}: the answer names no candidate of the pool: {_content(choice)[-200:]!r}"
            raise _Failure(why, status=status)
        return result

    async def _post(self, server: _Server, body: dict[str, Any]) -> tuple[int, str, bytes]:
        """(status, Retry-After, body)."""
        aiohttp = _aiohttp()
        server.in_flight += 1
        server.sent += 1
        try:
            async with self.client.post(f"{server.url}/chat/completions", json=body) as response:
                return response.status, response.headers.get("Retry-After", ""), await response.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            server.rests_until = time.monotonic() + REST_SECONDS
            raise _Failure(f"cannot connect to {server.url}, is it running? ({error})") from error
        except TimeoutError as error:
            raise _Failure(f"{server.url} gave no answer within {self.backend.timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Failure(f"{server.url} broke the connection ({type(error).__name__}: {error})") from error
        finally:
            server.in_flight -= 1


@dataclass
class _Spent:
    """What one call has cost so far, replies that could not be used included; named as in a Completion."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    retries: int = -1  # the first request is none
    cost: float = 0.0

    def add(self, usage: Mapping[str, Any], backend: OpenAIBackend) -> None:
        """What a server says it used; nothing where it does not say."""
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        prompt, generated = (usage.get("prompt_tokens") or 0) - cached, usage.get("completion_tokens") or 0
        self.prompt_tokens += prompt
        self.generated_tokens += generated
        self.cost += backend.prices.cost(backend.model, prompt, cached, generated) if backend.prices else 0.0


def request_body(model: str, ask: Ask, missing: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The request, without the features that the server lacks."""
    prompt, body = ask.prompt, dict[str, Any](model=model)
    begun = prompt.transcript + prompt.prefill
    if begun and "continue" not in missing:
        body["messages"] = [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": begun}]
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    else:
        body["messages"] = [{"role": "user", "content": _stated(prompt)}]
    if ask.pool is not None and "logprobs" not in missing:
        body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    limit = ask.max_new_tokens
    if ask.pool is not None and "structured" not in missing:
        # One for each server: vLLM, vLLM before 0.11, SGLang; each ignores what it does not know. No stop
        # string goes with it: a server that ignores all three then gives itself away by what it writes next.
        names = [f"[{k}]" for k in ask.pool]
        pattern = "|".join(re.escape(name) for name in names)
        body |= {"structured_outputs": {"choice": names}, "guided_choice": names, "regex": f"({pattern})"}
        limit = IDENTIFIER_TOKENS
    elif "stop" not in missing:
        body["stop"] = [STOP]
    if prompt.owner and "salt" not in missing:  # vLLM then keeps this owner's prefixes apart from others'
        body["cache_salt"] = hashlib.sha256(prompt.owner.encode()).hexdigest()
    if "temperature" not in missing:
        body["temperature"] = 0
    body["max_completion_tokens" if "max_tokens" in missing else "max_tokens"] = limit
    return body


def _stated(prompt: Prompt) -> str:
    """The prompt as one message; what the transcript shows as removed is said in words."""
    answers = re.findall(r"<answer>([^<]*)</answer>", re.sub(r"(?s)<think>.*?</think>", "", prompt.transcript))
    gone = [f"[{int(number[0])}]" for answer in answers if (number := re.search("[0-9]+", answer))]
    return f"{prompt.text}\nRemoved earlier, no longer candidates: {', '.join(gone)}." if gone else prompt.text


def _doubted(refusal: bytes, unproven: frozenset[str]) -> frozenset[str]:
    """The features a refused request may be without: those the refusal names, else all extensions."""
    text = refusal.decode(errors="replace")
    named = {f for f in unproven if any(re.search(rf"\b{name}\b", text) for name in FIELDS[f])}
    return frozenset(named or unproven & EXTENSIONS)


def _content(choice: Mapping[str, Any]) -> str:
    return choice["message"].get("content") or ""


def _read(
    choice: Mapping[str, Any], ask: Ask, used: frozenset[str], server: _Server, spent: _Spent
) -> Completion | Choice | None:
    """What the server's first choice says; None when there is nothing of the pool in it."""
    text, truncated = _written(choice, ask.prompt, "continue" in used), choice.get("finish_reason") == "length"
    if ask.pool is None:
        return Completion(text, truncated, **vars(spent))
    tokens = (choice.get("logprobs") or {}).get("content") or []
    names = {f"[{k}]": k for k in ask.pool}
    identifier = names.get(_content(choice).strip())
    for feature, works in (("structured", identifier is not None), ("logprobs", bool(tokens))):
        if feature in used and works:
            server.proven |= {feature}
        elif feature in used:  # accepted, but ignored
            server.missing |= {feature}
    if identifier is None:
        answer = parse_removal(ask.prompt.prefill + text, ask.pool, truncated)
        identifier = answer.ids[0] if answer.kind == "valid" else None
    if identifier is None:
        return None
    return Choice(probabilities(tokens, identifier, ask.pool), **vars(spent))


def _written(choice: Mapping[str, Any], prompt: Prompt, continued: bool) -> str:
    """What the model wrote, so that prefill + text says what it said.

    A model that was not shown the prefill writes its own thought and answer tags behind it; the last answer tag
    is the one that counts, so that the prefill's is without effect. One that writes no tag answers into it.
    """
    message = choice["message"]
    text, thought = _content(choice), message.get("reasoning_content") or message.get("reasoning")
    if thought and not text and continued and prompt.prefill:
        text = thought  # a reasoning parser that waits for the end of a thought which stands in the prefill
    elif thought:
        text = f"<think>{thought}</think>\n{text}"
    _, opening, body = (prompt.prefill + text).rpartition("<answer>")
    if opening and STOP not in body and choice.get("finish_reason") == "stop":
        text += STOP  # servers cut the stop string off
    return text


def _seconds(header: str) -> float:
    """What a Retry-After header asks for: a number of seconds or a date."""
    with suppress(ValueError):
        return max(0.0, float(header))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    return 0.0


def _aiohttp() -> Any:
    return library("aiohttp", "endpoints", "an endpoint")
