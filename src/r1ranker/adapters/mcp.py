"""MCP: tools `rank` and `route` for agents, over stdio or streamable HTTP; `r1ranker mcp` runs them.

server("smol").run()
"""

from __future__ import annotations

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel

from r1ranker.adapters.common import order, places, ranker_of
from r1ranker.datasets.inline import llms_of, objective_of
from r1ranker.errors import R1RankerError
from r1ranker.problem import Problem
from r1ranker.ranking.rankers import Ranker
from r1ranker.ranking.spec import RankerSpec


class RankedText(BaseModel):
    """A document by its place among those given, from 0."""

    index: int
    score: float
    text: str


class RankedModel(BaseModel):
    """A model by its name."""

    name: str
    score: float


def server(ranker: Ranker | RankerSpec | str) -> MCPServer:
    """A server around one ranker: ours, its spec, or a model's name, loaded now."""
    loaded = ranker_of(ranker)
    found = MCPServer("r1ranker", instructions="Orders documents for a query, and language models for a prompt.")

    @found.tool()
    def rank(query: str, documents: list[str], top_n: int | None = None) -> list[RankedText]:
        """Order documents by how well they answer a query, best first. Scores compare these documents alone."""
        try:
            placed = order(loaded, query, documents, top_n)
        except R1RankerError as error:
            raise ToolError(str(error)) from error
        return [RankedText(index=at, score=score, text=documents[at]) for at, score in placed]

    @found.tool()
    def route(prompt: str, models: dict[str, str], objective: str = "") -> list[RankedModel]:
        """Order language models for a prompt, best first.

        models: what each is good at and costs, by name. objective: performance, balance (as when none is given) or
        cost, or a sentence of yours.
        """
        try:
            candidates, wish = llms_of(models), objective_of(objective or "balance")
            problem = Problem("prompt", "route", "routing", candidates, prompt, objective=wish)
            placed = places(loaded, [problem])[0]
        except R1RankerError as error:
            raise ToolError(str(error)) from error
        return [RankedModel(name=candidates[at].docid, score=score) for at, score in placed]

    return found
