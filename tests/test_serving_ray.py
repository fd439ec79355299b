"""The server on a real cluster on this machine, one of whose replicas is killed under load."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from r1ranker.errors import BackendError
from r1ranker.serving import ray_serve
from r1ranker.serving.settings import ServeSettings
from serving_server import free_port

CLIENTS, REQUESTS = 8, 160


def test_without_ray_serve_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(BackendError, match=r"pip install 'r1-ranker\[ray,serve\]'"),
        ray_serve.serving(ServeSettings(), "local"),
    ):
        pass


def test_replicas_find_the_files_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    given = {"rankers": {"a": {"model": "mine"}}, "catalogues": {"shop": {"items": "items.csv"}}}
    settings = ray_serve.elsewhere(ServeSettings.model_validate(given))
    assert settings.rankers["a"].model == str(tmp_path / "mine")
    assert settings.store == tmp_path / "serve.sqlite"
    assert settings.catalogues["shop"].items == tmp_path / "items.csv"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Two replicas of the embedded model."""
    pytest.importorskip("ray")
    pytest.importorskip("ray.serve")
    limits = {"deadline_s": 120, "queue": 1000}
    settings = ServeSettings.model_validate({"port": free_port(), "rankers": {"nano": {}}, "limits": limits})
    with ray_serve.serving(settings, "local", replicas=2):
        yield f"http://{settings.host}:{settings.port}"


def replicas() -> list[int]:
    """Process ids of those that are alive and of the cluster that this process started."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if "ServeReplica:r1ranker" in " ".join(one.cmdline()):
                found.append(one.pid)
    return found


@pytest.mark.filterwarnings("default")  # Ray's own
def test_a_killed_replica_costs_what_it_was_answering_and_nothing_else(url: str) -> None:
    wrong: list[str] = []
    refused: list[int] = []
    before = replicas()

    async def client(session: aiohttp.ClientSession, numbers: Iterator[int]) -> None:
        for number in numbers:
            documents = [f"{number} place {place}" for place in range(4)]
            body: dict[str, Any] = {"query": f"q {number}", "documents": documents, "return_documents": True}
            for _ in range(5):  # as clients do
                async with session.post(f"{url}/rerank", json=body) as response:
                    if response.status == 200:
                        results = (await response.json())["results"]
                        break
                    refused.append(response.status)
                    await asyncio.sleep(0.2)
            else:
                wrong.append(f"{number} was never answered")
                continue
            if sorted(result["document"]["text"] for result in results) != documents:
                wrong.append(f"{number}: {results}")
            if number == REQUESTS // 4:
                os.kill(before[0], signal.SIGKILL)

    async def load() -> None:
        numbers = iter(range(REQUESTS))
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(client(session, numbers))

    asyncio.run(load())
    assert not wrong
    assert len(refused) <= CLIENTS, f"more than were under way: {refused}"
    assert set(refused) <= {500, 503}
    print(f"{len(refused)} of {REQUESTS} requests had to be sent again: {refused}")
    until = time.monotonic() + 120
    while len(after := replicas()) < 2 or before[0] in after:
        assert time.monotonic() < until, "the replica was not replaced"
        time.sleep(0.5)
