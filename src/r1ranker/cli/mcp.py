"""`r1ranker mcp`: a ranker as tools for agents."""

from __future__ import annotations

from typing import Annotated

import typer

from r1ranker.cli.common import errors
from r1ranker.io.extras import library


def mcp(
    model: Annotated[str, typer.Option(help="Directory, hub name, nano or smol.")] = "nano",
    http: Annotated[bool, typer.Option("--http", help="Streamable HTTP at 127.0.0.1 instead of stdio.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of --http; the path is /mcp.")] = 8101,
) -> None:
    """Give agents two tools over MCP: `rank` documents for a query, `route` a prompt to a language model.

    Example: `r1ranker mcp --model smol`, as an agent starts it

    Over HTTP: `r1ranker mcp --model smol --http --port 8101`
    """
    with errors():
        library("mcp", "mcp")
        from r1ranker.adapters.mcp import server

        tools = server(model)
        if http:
            tools.run("streamable-http", host="127.0.0.1", port=port)
        else:
            tools.run()
