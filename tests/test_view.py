"""`r1ranker view`: traces of finished rankings as a page."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from r1ranker.cli import app
from r1ranker.errors import ConfigError, DataError
from r1ranker.io.problems import write_jsonl
from r1ranker.io.runs import RANKING
from r1ranker.problem import Answer, Candidate, Problem, Ranking, Step, Usage
from r1ranker.serving import traces as traces_module
from r1ranker.serving.html import build
from r1ranker.serving.traces import read_traces

MakeProblem = Callable[..., Problem]
HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>\u2028 @SCRIPT@ @DATA@"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def ranked(problem: Problem, kind: Any = "valid") -> Ranking:
    """A trace in which the last candidate left first."""
    ids = problem.identifiers
    steps = tuple(
        Step(
            ids[:size],
            Answer(kind, (size,) if kind == "valid" else ()),
            (size,),
            f"[{size}] fits least {HOSTILE}",
            f"<answer>[{size}]</answer>",
            dict.fromkeys(ids[:size], 1 / size),
        )
        for size in range(len(ids), 1, -1)
    )
    docids = tuple(candidate.docid for candidate in problem.candidates)
    scores = tuple(float(len(ids) - place) for place in range(len(ids)))
    return Ranking(problem.qid, docids, scores, steps, Usage(len(steps), 100, 10, 0.5))


def write_traces(path: Path, rankings: list[Ranking]) -> Path:
    path.write_bytes(b"".join(RANKING.dump_json(ranking) + b"\n" for ranking in rankings))
    return path


@pytest.fixture
def given(tmp_path: Path, make_problem: MakeProblem) -> tuple[Path, Path]:
    """Traces and problems; one candidate's text and one query are hostile."""
    texts = (Candidate("d1", HOSTILE), Candidate("d2", "plain"), Candidate("d3", "more"))
    problems = [make_problem(3, qid="q1", candidates=texts, query=f"what {HOSTILE}"), make_problem(2, qid="q2")]
    write_jsonl(problems, tmp_path / "problems.jsonl")
    rankings = [ranked(problems[0]), ranked(problems[1], "truncated")]
    return write_traces(tmp_path / "run.jsonl", rankings), tmp_path / "problems.jsonl"


class Elements(HTMLParser):
    """Tags with their attributes, and the text of each script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def page_data(html: str) -> Any:
    elements = Elements(html)
    return json.loads(elements.scripts[0])


def view(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["view", *map(str, arguments)], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    return str(result.output)


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["view", *map(str, arguments)], env={"COLUMNS": "300"})
    assert result.exit_code == 1, result.output
    return re.sub(r"\s+", " ", str(result.output))


def test_bundle_holds_queries_texts_and_steps(given: tuple[Path, Path], tmp_path: Path) -> None:
    traces, problems = given
    view(traces, "--problems", problems, "--bundle", tmp_path / "page", "--json", tmp_path / "result.json")
    data = page_data((tmp_path / "page" / "index.html").read_text())
    assert data["runs"] == ["run"]
    first, second = data["queries"]
    assert first["problem"]["candidates"][0]["text"] == HOSTILE
    assert first["rankings"][0]["steps"][0]["removed"] == [3]
    assert second["rankings"][0]["steps"][0]["answer"]["kind"] == "truncated"
    assert json.loads((tmp_path / "result.json").read_text())["queries"] == 2


def test_page_asks_nobody_and_runs_only_its_own_script(given: tuple[Path, Path], tmp_path: Path) -> None:
    traces, problems = given
    view(traces, "--problems", problems, "--bundle", tmp_path / "page")
    html = (tmp_path / "page" / "index.html").read_text()
    elements = Elements(html)
    assert [tag for tag, _ in elements.tags].count("script") == 2  # data, and the script: no text became an element
    assert "img" not in [tag for tag, _ in elements.tags]
    addresses = [a[name] for _, a in elements.tags for name in ("src", "href", "action") if name in a]
    assert all(address and address.startswith(("#", "data:")) for address in addresses)
    without = html.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, which nothing loads
    assert not re.search("https?://|//cdn|@import|url[(]", without)
    assert not any(name.startswith("on") for _, attributes in elements.tags for name in attributes)
    policy = next(a["content"] for _, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and "unsafe" not in policy and "connect-src 'none'" in policy and "default-src 'none'" in policy


def test_scripts_insert_texts_only_as_texts() -> None:
    script = build({"mode": "serve"}, asks=True).html
    assert not re.search("innerHTML|outerHTML|insertAdjacentHTML|document.write|eval[(]|new Function|srcdoc", script)


def test_several_runs_stand_side_by_side(given: tuple[Path, Path], tmp_path: Path, make_problem: MakeProblem) -> None:
    other = write_traces(tmp_path / "other.jsonl", [ranked(make_problem(2, qid="q2"))])
    data = read_traces([given[0], other], given[1])
    assert data["runs"] == ["run", "other"]
    assert [[one is not None for one in query["rankings"]] for query in data["queries"]] == [[True, False], [True] * 2]


def test_traces_without_problems_are_shown_and_what_lacks_is_said(given: tuple[Path, Path], tmp_path: Path) -> None:
    output = view(given[0], "--bundle", tmp_path / "page")
    assert "--problems" in output
    data = page_data((tmp_path / "page" / "index.html").read_text())
    assert [query["problem"] for query in data["queries"]] == [None, None]


def test_other_keys_of_a_trace_are_left_aside(given: tuple[Path, Path], tmp_path: Path) -> None:
    lines = [json.dumps(json.loads(line) | {"reward": 0.5}) for line in given[0].read_text().split("\n") if line]
    more = tmp_path / "rollouts.jsonl"
    more.write_text("\n".join(lines))
    assert read_traces([more])["queries"] == read_traces([given[0]])["queries"]


def test_other_problems_than_those_ranked_are_refused(
    given: tuple[Path, Path], tmp_path: Path, make_problem: MakeProblem
) -> None:
    write_jsonl([make_problem(3, qid="q1"), make_problem(5, qid="q2")], tmp_path / "other.jsonl")
    assert "other candidates" in refused(given[0], "--problems", tmp_path / "other.jsonl", "--bundle", tmp_path / "p")
    write_jsonl([make_problem(3, qid="q9")], tmp_path / "none.jsonl")
    assert "no query 'q1'" in refused(given[0], "--problems", tmp_path / "none.jsonl", "--bundle", tmp_path / "p")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("line", ["{", "[]", '{"qid": "q3"}', '{"qid": "q", "docids": [], "scores": [NaN]}'])
def test_a_line_that_is_no_trace_is_named(given: tuple[Path, Path], line: str) -> None:
    given[0].write_text(given[0].read_text() + line)
    with pytest.raises(DataError, match=r"run.jsonl:3: is no trace .*--trace"):
        read_traces([given[0]])


def test_a_query_or_a_file_named_twice_is_refused(given: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="named twice"):
        read_traces([given[0], given[0]])
    given[0].write_text(given[0].read_text() * 2)
    with pytest.raises(DataError, match="'q1' stands there twice"):
        read_traces([given[0]])


def test_more_than_a_page_holds_is_refused(given: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces_module, "MOST_BYTES", 100)
    with pytest.raises(DataError, match="head -n"):
        read_traces([given[0]])


def test_a_bundle_is_not_written_over(given: tuple[Path, Path], tmp_path: Path) -> None:
    view(given[0], "--bundle", tmp_path / "page")
    assert "--overwrite" in refused(given[0], "--bundle", tmp_path / "page")
    view(given[0], "--bundle", tmp_path / "page", "--overwrite")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_view_serves_this_machine_alone_and_ends(given: tuple[Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "r1ranker", "view", str(given[0]), "--problems", str(given[1])]
    environment = os.environ | {"BROWSER": "true", "COLUMNS": "200"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        try:
            found = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
            assert found
            with urllib.request.urlopen(found[0], timeout=30) as answer:
                html, headers = answer.read().decode(), answer.headers
            assert len(page_data(html)["queries"]) == 2
            assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
            elsewhere = urllib.request.Request(found[0], headers={"Host": "evil.example"})
            with pytest.raises(urllib.error.HTTPError) as refusal:
                urllib.request.urlopen(elsewhere, timeout=30)
            assert refusal.value.code == 421
            refusal.value.close()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


def test_the_page_works_in_a_browser(given: tuple[Path, Path], tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs chromium")
    view(given[0], "--problems", given[1], "--bundle", tmp_path / "page")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'user'}"]
    address = (tmp_path / "page" / "index.html").as_uri()
    command = [browser, *flags, "--virtual-time-budget=2000", "--dump-dom", address]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    tags = Elements(drawn).tags
    assert "img" not in [tag for tag, _ in tags]
    assert len([1 for tag, attributes in tags if tag == "path" and "line" in (attributes.get("class") or "")]) == 3
    assert "Step 1 of 2: [3] removed from 3, at 33.3" in drawn
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in drawn
