"""The guides' commands, from files to result to service, run as they stand, with the toy model and few tokens.

A guide is read from top to bottom in a folder of its own. A block with a title is a file; `sh` and `python` blocks run.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm_server import LLMServer
from r1ranker.cli import app
from r1ranker.errors import DataError

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUICKER = (
    (r"(?<![\w/.-])(?<!train )(?<!evaluate )smol(?![\w.])", "nano"),
    (r"token_budget=\d+", "token_budget=1500"),
    (r"data\.0\.limit=\d+", "data.0.limit=1"),
    (r"train mini", "train mini -s ppo.batch=4 -s ppo.minibatch=4 -s ppo.validate_problems=1"),
    (r"reproduce main", "reproduce main --scale small --limit 1 -s ppo.token_budget=1000"),
)
NETWORK = ("pip ", "r1ranker model get ")
"""Commands that a test without network leaves out."""
LIBRARIES = ("langchain_core", "openai")
"""What a guide shows and a checkout need not have."""
PATIENCE = 300
"""Seconds for one program on a busy machine; a few on an idle one."""


@pytest.mark.skipif(not GUIDES, reason="needs a checkout")
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_commands_of_a_guide_do_what_it_says(guide: Path, folder: Path, reader: Reader) -> None:
    for language, title, text in BLOCK.findall(guide.read_text()):
        if title:
            reader.give(title, text)
        elif language == "sh":
            for command in re.sub(r"\\\n\s*", " ", text).replace("\n  ", " ").splitlines():
                reader.shell(command)
        elif language == "python":
            reader.python(text)
    assert reader.ran, f"nothing of {guide.name} runs"


class Reader:
    """Somebody who follows a guide in a folder."""

    def __init__(self, folder: Path, llm: LLMServer) -> None:
        self.folder = folder
        self.ran: list[str] = []
        self._llm = llm
        self._server: subprocess.Popen[bytes] | None = None
        self._port = 0

    def give(self, title: str, text: str) -> None:
        """Write a file, unless a larger one of that name is there."""
        path = self.folder / title
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(self._here(text))

    def shell(self, command: str) -> None:
        """Run one command, here or, if it is another program's, in a process of its own."""
        if command.startswith(NETWORK):
            return
        words = shlex.split(self._here(command))
        if words[:2] == ["r1ranker", "serve"]:
            self._serve(words[1:])
        elif words[0] == "r1ranker":
            result = CliRunner().invoke(app, words[1:], env={"COLUMNS": "200"})
            assert result.exit_code == 0, f"{command}\n{result.output}"
        else:
            assert self._port or words[0] != "curl", command
            words = [sys.executable, *words[1:]] if words[0] == "python" else words
            answer = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
            assert answer.returncode == 0, f"{command}\n{answer.stdout}{answer.stderr}"
        self.ran.append(command)

    def python(self, text: str) -> None:
        """Run a block, unless it shows a library that is not installed."""
        if all(library not in text or find_spec(library) for library in LIBRARIES):
            exec(compile(self._here(text), "guide", "exec"), {})
            self.ran.append(text)

    def _here(self, text: str) -> str:
        """A text with small models and budgets, and the ports of this server and this LLM."""
        for pattern, other in (*QUICKER, (r":8000(?=/)", f":{self._llm.port}")):
            text = re.sub(pattern, other, text)
        return text.replace(":8100", f":{self._port}") if self._port else text

    def _serve(self, words: list[str]) -> None:
        """Start the server on a free port and wait until it answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        words = [str(self._port) if word == "8100" else word for word in words]
        self._server = subprocess.Popen([sys.executable, "-m", "r1ranker", *words])
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self._server.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health"):
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise AssertionError("the server did not start")

    def leave(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait(PATIENCE)


@pytest.fixture
def reader(folder: Path) -> Iterator[Reader]:
    with LLMServer() as llm:
        one = Reader(folder, llm)
        yield one
        one.leave()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a guide is followed: small data of each kind, and what a checkout has."""
    pytest.importorskip("peft")
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH")))))
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    _collection(tmp_path / "collection")
    _shop(tmp_path / "shop")
    _calls(tmp_path / "calls.jsonl")
    return tmp_path


def _collection(path: Path) -> None:
    """Twelve passages and as many queries, each of one passage, in three splits."""
    (path / "qrels").mkdir(parents=True)
    words = ["owl", "fox", "hare", "toad", "newt", "swan", "crow", "mole", "bear", "wolf", "lynx", "deer"]
    _lines(path / "corpus.jsonl", ({"_id": f"d{n}", "title": w, "text": f"A {w} eats."} for n, w in enumerate(words)))
    _lines(path / "queries.jsonl", ({"_id": f"q{n}", "text": f"what does a {w} eat"} for n, w in enumerate(words)))
    first_stage = [f"q{q} Q0 d{(q + k) % 12} {k + 1} {9 - k} bm25\n" for q in range(12) for k in range(4)]
    (path / "run.trec").write_text("".join(first_stage))
    for split, queries in {"train": range(6), "dev": range(6, 9), "test": range(9, 12)}.items():
        judged = "".join(f"q{n}\td{(n + 1) % 12}\t1\n" for n in queries)
        (path / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")


def _shop(path: Path) -> None:
    """Forty users of thirty items."""
    path.mkdir()
    drawn = random.Random(0)
    (path / "items.csv").write_text("item,title\n" + "".join(f"b{n},Book {n}\n" for n in range(30)))
    rows = [
        f"u{user},b{item},{drawn.randint(4, 5)},2024-05-{day:02}T10:00:00\n"
        for user in range(40)
        for day, item in enumerate(drawn.sample(range(30), 10), 1)
    ]
    (path / "interactions.csv").write_text("user,item,rating,time\n" + "".join(rows))


def _calls(path: Path) -> None:
    """Thirty prompts asked of two LLMs."""
    drawn = random.Random(0)
    costs = {"small": 4e-5, "large": 3e-3}
    _lines(
        path,
        (
            {"prompt": f"What is {n} + {n}?", "model": name, "score": float(drawn.random() < 0.6), "cost": cost}
            | {"prompt_tokens": 20, "completion_tokens": 90, "time": "2026-05-01T18:02:11"}
            for n in range(30)
            for name, cost in costs.items()
        ),
    )


def _lines(path: Path, records: Iterator[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_command_that_fails_fails_its_guide(folder: Path, reader: Reader) -> None:
    with pytest.raises(AssertionError, match="no such"):
        reader.shell("r1ranker data validate nothing")
    with pytest.raises(DataError):
        reader.python("from r1ranker import DataError\nraise DataError('x')")
    assert not reader.ran
