"""A small real server that speaks /v1/chat/completions, answers by a rule, and fails on purpose.

    python tests/fault_server.py --faults 0.3 --kinds 429,500,cut      # prints its base URL

The rule: the smallest identifier fits least, so the right ranking is the pool in reverse, never the input
order. The probability of removing `[k]` is proportional to 2 ** -k. GET /stats counts what was answered.

Kinds of fault: 429 (with Retry-After), 500, hang, cut (after the headers), empty (no body), garbage (not
JSON), none (no choices), wrong_id (names [999]), drip (a few bytes now and then, longer than any timeout).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from threaded_server import ThreadedServer

KINDS = ("429", "500", "hang", "cut", "empty", "garbage", "none", "wrong_id", "drip")
STOP = "</answer>"
WRONG = 999
FIELDS = {
    "continue": ("continue_final_message", "add_generation_prompt"),
    "structured": ("structured_outputs", "guided_choice", "regex"),
    "logprobs": ("logprobs", "top_logprobs"),
    "stop": ("stop",),
    "max_tokens": ("max_tokens",),
    "salt": ("cache_salt",),
}


@dataclass
class FaultServer(ThreadedServer):
    """A server in a thread of its own: `with FaultServer(rate=0.3) as server: server.base_url`.

    rate, kinds, seed: share of requests that fail and how. first: only these many first requests may fail.
    poison: requests whose text holds this always get 500. refuse: every request gets this status and `message`.
    lacks: features the server does not know. ignores: it does as if fields it lacks were not there, instead of
        answering 400. names: whether that 400 names the fields. bare: answers carry no tags. reasoning: thoughts
        come in a field of their own. key: the API key it wants. hang: seconds a hanging request is held.
    cached: prompt tokens reported as cached.
    """

    rate: float = 0.0
    kinds: tuple[str, ...] = KINDS
    seed: int = 0
    first: int | None = None
    poison: str = ""
    refuse: int = 0
    message: str = "no"
    lacks: frozenset[str] = frozenset()
    ignores: bool = False
    names: bool = True
    bare: bool = False
    reasoning: bool = False
    key: str = ""
    hang: float = 60.0
    retry_after: str = "0"
    delay: float = 0.0
    cached: int = 0
    port: int = 0
    stats: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keep_bodies: bool = True

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        self._random = random.Random(self.seed)
        self._seen = self._in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False when the connection is to be closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        data = await reader.readexactly(int(length[1])) if length else b""
        if head.startswith("GET /stats"):
            return self._send(writer, 200, json.dumps(self.stats))
        self._in_flight += 1
        self.stats["requests"] += 1
        self.stats["most in flight"] = max(self.stats["most in flight"], self._in_flight)
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            return await self._answer(head, json.loads(data), writer)
        finally:
            self._in_flight -= 1

    async def _answer(self, head: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        if self.keep_bodies:
            self.bodies.append(body)
        lacking = [name for feature in self.lacks for name in FIELDS[feature] if name in body]
        refusal = self._refusal(head, [] if self.ignores else lacking)
        if refusal:
            self.stats[str(refusal[0])] += 1
            return self._send(writer, refusal[0], json.dumps({"error": {"message": refusal[1]}}))
        body = {name: value for name, value in body.items() if name not in lacking}
        if self.poison and self.poison in body["messages"][0]["content"]:
            return self._send(writer, 500, "poisoned")
        self._seen += 1
        may_fail = self.first is None or self._seen <= self.first
        kind = self._random.choice(self.kinds) if may_fail and self._random.random() < self.rate else "ok"
        self.stats[kind] += 1
        reply = json.dumps(reply_to(body, kind == "wrong_id", self.bare, self.reasoning, self.cached))
        if kind == "429":
            return self._send(writer, 429, "slow down", f"Retry-After: {self.retry_after}\r\n")
        if kind == "500":
            return self._send(writer, 500, "Internal Server Error")
        if kind == "hang":
            await asyncio.sleep(self.hang)
            return False
        if kind in ("cut", "drip"):
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(reply)}\r\n\r\n".encode())
            for i in range(0, len(reply) // 2, 4) if kind == "drip" else ():
                writer.write(reply[i : i + 4].encode())
                await writer.drain()
                await asyncio.sleep(0.05)
            return False
        return self._send(
            writer, 200, {"empty": "", "garbage": "<html>oops", "none": '{"choices": []}'}.get(kind, reply)
        )

    def _refusal(self, head: str, lacking: list[str]) -> tuple[int, str] | None:
        """(status, message) when the request is not to be answered at all."""
        if self.key and f"Bearer {self.key}" not in head:
            return 401, "Incorrect API key provided"
        if self.refuse:
            return self.refuse, self.message
        if lacking:
            names = f"Unrecognized request arguments supplied: {', '.join(lacking)}"
            return 400, names if self.names else "bad request"
        return None

    def _send(self, writer: asyncio.StreamWriter, status: int, text: str, headers: str = "") -> bool:
        data = text.encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n{headers}\r\n".encode() + data)
        return True


def reply_to(body: dict[str, Any], wrong: bool, bare: bool, reasoning: bool, cached: int) -> dict[str, Any]:
    """What a perfect model would say; `wrong` names an identifier that does not exist."""
    asked = "\n".join(message["content"] for message in body["messages"] if message["role"] == "user")
    last = body["messages"][-1]
    transcript = last["content"] if last["role"] == "assistant" else ""
    continued = body.get("continue_final_message", False)
    earlier = re.search(r"^Removed earlier.*", asked, re.MULTILINE)
    gone = {int(k) for k in re.findall(r"\[(\d+)\]", (earlier[0] if earlier else "") + transcript)}
    left = [int(k) for k in re.findall(r"^\[(\d+)\]", asked, re.MULTILINE) if int(k) not in gone]
    ranks = "Remove the least" not in asked
    names = [f"[{k}]" for k in (sorted(left, reverse=True) if ranks else [min(left)])]
    if wrong:
        names[0] = f"[{WRONG}]"
    answer = " > ".join(names)
    thought = "the smallest fits least, so [999] it is not"
    chosen = "structured_outputs" in body or "guided_choice" in body
    tokens = [] if bare else ["</answer>"] if STOP in body.get("stop", []) else ["</answer>", " and so on"]
    if chosen:
        tokens = list(answer)
    elif continued and transcript.endswith("<answer>"):
        tokens = [*answer, *tokens]
    elif bare:
        tokens = list(answer)
    elif reasoning:
        tokens = ["<answer>", *answer, *tokens]
    else:
        tokens = ["<think>", thought, "</think>", "<answer>", *answer, *tokens]
    limit = body.get("max_tokens", body.get("max_completion_tokens", 10**6))
    cut = len(tokens) > limit
    tokens = tokens[:limit]
    text = "".join(tokens)
    if STOP in body.get("stop", []) and text.endswith(STOP):
        text = text.removesuffix(STOP)
    choice: dict[str, Any] = {
        "message": {"role": "assistant", "content": text} | ({"reasoning_content": thought} if reasoning else {}),
        "finish_reason": "length" if cut else "stop",
    }
    if body.get("logprobs"):
        choice["logprobs"] = {"content": logprobs(tokens, answer, left, body["top_logprobs"])}
    prompt_tokens = cached + len(f"{asked} {transcript}".split())
    return {
        "choices": [choice],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(tokens),
            "prompt_tokens_details": {"cached_tokens": cached} if cached else None,
        },
    }


def logprobs(tokens: list[str], answer: str, left: list[int], top: int) -> list[dict[str, Any]]:
    """Those of each token; inside the answer every character is a token, and noise stands beside it."""
    start = "".join(tokens).rfind(answer)
    position, entries = 0, []
    for token in tokens:
        following = {token: 1.0}
        if start <= position < start + len(answer):
            before = answer[: position - start]
            following = {}
            for name, weight in ((f"[{k}]", 2.0**-k) for k in left):
                if name.startswith(before):
                    following[name[len(before)]] = following.get(name[len(before)], 0.0) + weight
            following |= {"the": 0.01, " ": 0.02}
        known = {name: weight / sum(following.values()) for name, weight in following.items()}
        likeliest = sorted(known, key=lambda name: -known[name])[:top]
        entries.append(
            {
                "token": token,
                "logprob": log(known.get(token, 0.0)),
                "top_logprobs": [{"token": name, "logprob": log(known[name])} for name in likeliest],
            }
        )
        position += len(token)
    return entries


def log(probability: float) -> float:
    """As servers write it: no infinity in JSON."""
    return math.log(probability) if probability > 0 else -9999.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=float, default=0.0, metavar="RATE")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--hang", type=float, default=60.0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    for feature in FIELDS:
        parser.add_argument(f"--no-{feature.replace('_', '-')}", dest="lacks", action="append_const", const=feature)
    given = parser.parse_args()
    server = FaultServer(
        rate=given.faults,
        kinds=tuple(given.kinds.split(",")),
        hang=given.hang,
        delay=given.delay,
        seed=given.seed,
        port=given.port,
        lacks=frozenset(given.lacks or ()),
        keep_bodies=False,
    )
    with server:
        print(server.base_url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
