"""`r1ranker view`: the page on traces of a finished `r1ranker rank`."""

from __future__ import annotations

import signal
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from r1ranker.cli.common import Json, Overwrite, Scenarios, complain, console, errors, write_json


def view(
    traces: Annotated[list[Path], typer.Argument(help="What `r1ranker rank --trace` wrote; several are compared.")],
    problems: Annotated[
        Path | None, typer.Option(help="Problems that were ranked (JSON Lines): traces hold no texts.")
    ] = None,
    scenarios: Scenarios = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Write FOLDER/index.html, which needs no server, instead of opening a browser.")
    ] = None,
    overwrite: Overwrite = False,
    json_: Json = None,
) -> None:
    """Watch finished rankings step by step in a browser; ends at Ctrl-C.

    Example: `r1ranker view run.traces.jsonl --problems problems.jsonl`

    Two settings side by side: `r1ranker view worst.jsonl best.jsonl --problems problems.jsonl`

    To send to others: `r1ranker view run.traces.jsonl --problems problems.jsonl --bundle page`
    """
    from r1ranker.io.config import read_scenarios
    from r1ranker.io.locks import check_folder, check_outputs
    from r1ranker.serving.html import build
    from r1ranker.serving.traces import read_traces
    from r1ranker.serving.view import check_bundle, served, write_bundle

    with errors():
        path = check_bundle(bundle, overwrite) if bundle else None
        if bundle:
            check_folder(bundle, "--bundle")
        read = {f"TRACES {number}": trace for number, trace in enumerate(traces, 1)}
        inputs: dict[str, Path | None] = {**read, "--problems": problems, "--scenarios": scenarios}
        check_outputs({"the page": path, "--json": json_}, inputs)
        data = read_traces(traces, problems, read_scenarios(scenarios) if scenarios else {})
        page = build(data, asks=False)
        queries, result = len(data["queries"]), {"runs": data["runs"], "queries": len(data["queries"])}
        if problems is None:
            complain("note", "traces hold no texts: --problems FILE, the problems that were ranked, adds them")
        if path:
            write_bundle(page, path)
            console.print(f"page {path}   queries {queries}", soft_wrap=True)
            write_json(json_, result | {"page": path})
            return
        with served(page) as server:
            console.print(f"page {server.url}   queries {queries}   Ctrl-C ends it", soft_wrap=True)
            write_json(json_, result | {"url": server.url})
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            webbrowser.open(server.url)
            with suppress(KeyboardInterrupt):
                server.serve_forever()
