"""Routing for real: test questions of a `llmrouter` folder, replayed through `r1ranker serve`.

    python benchmarks/routing_proxy.py DATA --model smol --questions 60

The upstream gives each LLM's recorded score as its answer, so that a choice of the proxy has a quality; its cost is
what the folder knows of it (a share of the dearest LLM's, see `datasets.llm_outcomes`). Three routers, one for each
objective, each shown the mean utility of the LLMs on training questions (`prior`). Beside them: the LLM that is best
on training questions, the cheapest, a kNN router, and the oracle. Also the router's own milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from r1ranker.baselines.routers import knn_router
from r1ranker.datasets import llmrouter
from r1ranker.datasets.llm_outcomes import read_outcomes
from r1ranker.evaluation.routing import Outcome, Point, Weights, first_choices, llm_points, oracle_choices, point
from r1ranker.io.files import write_whole
from r1ranker.io.provenance import provenance
from r1ranker.problem import Problem, Splits

Outcomes = dict[str, dict[str, Outcome]]


def replay(scores: Mapping[str, Mapping[str, float]]) -> type[BaseHTTPRequestHandler]:
    """An upstream that answers a known question by the score that the LLM had on it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            score = scores[body["messages"][-1]["content"]][body["model"]]
            message = {"role": "assistant", "content": str(score)}
            answer = {
                "id": "replayed",
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 100, "total_tokens": 200},
            }
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    return Handler


@contextmanager
def proxy(folder: Path, data: Path, splits: Splits, model: str, upstream: str, spec: dict[str, Any]) -> Iterator[str]:
    """`r1ranker serve` in a process of its own; its base URL."""
    llms, _ = read_outcomes(data)
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    prior = {p.task: dict(p.prior) for p in splits["test"]}
    settings = {
        "port": port,
        "rankers": {"ranker": {"model": model} | spec},
        "limits": {"deadline_s": 600.0},
        "store": str(folder / "serve.sqlite"),
        "upstreams": {"replay": {"base_url": upstream}},
        "models": {
            name: {
                "upstream": "replay",
                "size": llm.size,
                "description": llm.feature,
                "input_price": llm.input_price,
                "output_price": llm.output_price,
            }
            for name, llm in llms.items()
        },
        "routers": {
            name: {"objective": goal.sentence, "prior": prior[f"route-{name}"], "fallbacks": 0}
            for name, goal in llmrouter.OBJECTIVES.items()
        },
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "r1ranker", "serve", "--config", str(folder / "serve.yaml")]
    server = subprocess.Popen(command, env=dict(os.environ))
    try:
        while not answers(f"http://127.0.0.1:{port}/health"):
            if server.poll() is not None:
                raise SystemExit("serve did not start")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url).close()
    except OSError:
        return False
    return True


def chosen_by_proxy(url: str, name: str, questions: Mapping[str, str]) -> tuple[dict[str, str], list[float]]:
    """The LLM of each question, and the router's milliseconds."""
    chosen, spent = {}, []
    for qid, text in questions.items():
        body = {"model": name, "messages": [{"role": "user", "content": text}]}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            chosen[qid] = answer.headers["x-r1ranker-model"]
            spent.append(float(answer.headers["x-r1ranker-router-ms"]))
            json.loads(answer.read())
    return chosen, spent


def compared(
    splits: Splits, outcomes: Outcomes, test: Mapping[str, Sequence[Problem]], train: Outcomes
) -> dict[str, dict[str, Point]]:
    """Of each objective: the points of the baselines on the questions asked."""
    everywhere = llm_points(train)
    best = max(everywhere, key=lambda name: everywhere[name].quality)
    cheapest = min(everywhere, key=lambda name: everywhere[name].cost)
    rows: dict[str, dict[str, Point]] = {}
    for name, problems in test.items():
        task = f"route-{name}"
        goal = llmrouter.OBJECTIVES[name]
        here = {p.qid: outcomes[p.qid] for p in problems}
        knn = first_choices(knn_router([p for p in splits["train"] if p.task == task], problems))
        prior = max(problems[0].prior, key=lambda llm: problems[0].prior[llm])
        rows[name] = {
            f"always the best ({best})": point(dict.fromkeys(here, best), here),
            f"always the cheapest ({cheapest})": point(dict.fromkeys(here, cheapest), here),
            f"always the best of this objective ({prior})": point(dict.fromkeys(here, prior), here),
            "kNN": point(knn, here),
            "oracle": point(oracle_choices(here, Weights(goal.quality, goal.cost)), here),
        }
    return rows


def asked(splits: Splits, count: int) -> dict[str, list[Problem]]:
    """The same test questions for each objective: those that are a problem in all three."""
    by_name = {name: {p.group: p for p in splits["test"] if p.task == f"route-{name}"} for name in llmrouter.OBJECTIVES}
    shared = [group for group in by_name["performance"] if all(group in of for of in by_name.values())][:count]
    return {name: [of[group] for group in shared] for name, of in by_name.items()}


def known(path: Path, problems: Sequence[Problem]) -> Outcomes:
    found = llmrouter.outcomes(path, [p.qid for p in problems])
    return {qid: {name: Outcome(*one) for name, one in of.items()} for qid, of in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="smol")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the ranker, as in YAML")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    splits = llmrouter.load(given.data)
    test = asked(splits, given.questions)
    outcomes = known(given.data, [p for problems in test.values() for p in problems])
    train = known(given.data, [p for p in splits["train"] if p.task == "route-performance"])
    rows = compared(splits, outcomes, test, train)
    scores = {p.query: {llm: one.score for llm, one in outcomes[p.qid].items()} for p in test["performance"]}
    spec = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in given.set)}
    spent: list[float] = []
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), replay(scores))
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{upstream.server_address[1]}/v1"
    with (
        tempfile.TemporaryDirectory() as folder,
        proxy(Path(folder), given.data, splits, given.model, base, spec) as url,
    ):
        for name, problems in test.items():
            chosen, took = chosen_by_proxy(url, name, {p.qid: p.query for p in problems})
            rows[name][f"r1ranker ({given.model})"] = point(chosen, outcomes)
            spent += took
    told(rows, spent, len(test["performance"]), given)


def told(
    rows: Mapping[str, Mapping[str, Point]],
    spent: Sequence[float],
    questions: int,
    given: argparse.Namespace,
) -> None:
    table = Table("objective", "router", "quality", "cost (share of the dearest)", "utility")
    for name, of in rows.items():
        goal = llmrouter.OBJECTIVES[name]
        for router, (cost, quality) in of.items():
            utility = goal.quality * quality - goal.cost * cost
            table.add_row(name, router, f"{quality:.3f}", f"{cost:.4f}", f"{utility:.3f}")
    Console(width=140).print(table)
    p95 = statistics.quantiles(spent, n=20)[-1]
    print(f"{questions} questions; the router's own time: median {statistics.median(spent):.0f} ms, p95 {p95:.0f} ms")
    if given.json:
        result = {"questions": questions, "model": given.model, "set": given.set, "router_ms": spent} | provenance()
        points = [
            {"objective": name, "router": router, **one._asdict()}
            for name, of in rows.items()
            for router, one in of.items()
        ]
        write_whole(given.json, json.dumps(result | {"points": points}, indent=1) + "\n")


if __name__ == "__main__":
    main()
