"""What a routing proxy is told: upstreams, the LLMs behind them, and routers. In: YAML. Out: checked settings.

    upstreams: {openai: {base_url: https://api.openai.com/v1, api_key_env: OPENAI_API_KEY}}
    models:
      gpt-small: {upstream: openai, name: gpt-5-mini, description: Quick., input_price: 0.25, output_price: 2.0}
    routers: {auto: {ranker: smol, cost_quality: 0.5}}

Keys stand in the environment, never in the file: a file says the variable's name.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, NonNegativeFloat, field_validator, model_validator

from r1ranker.errors import ConfigError
from r1ranker.io.strict import Strict

NAME = re.compile(r"[!-~]+")
"""Names stand in HTTP headers, in lists parted by commas."""
WISHES = {"quality": "performance", "balance": "balance", "cost": "cost"}
"""`auto:quality` and the like: the objective of the routing data they stand for."""


class UpstreamSettings(Strict):
    """An OpenAI-compatible server."""

    base_url: str = Field(description="up to and with /v1, as OpenAI clients take it")
    api_key_env: str | None = Field(None, description="environment variable that holds the key; none: no key is sent")
    timeout_s: float = Field(
        120.0,
        gt=0,
        description="seconds for an answer; of one that is streamed, until it begins, and again between any two parts",
    )

    @field_validator("base_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", value):
            raise ValueError(f"{value!r} is no http(s) address such as http://127.0.0.1:8000/v1 (no user, no query)")
        return value.rstrip("/")

    def check(self) -> None:
        """ConfigError where its key is missing, before anything is asked."""
        self.api_key  # noqa: B018 - reading it is the check

    @property
    def api_key(self) -> str | None:
        """The key, read anew: it can be changed without a change of the file. ConfigError where it is not set."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "")
        if not key:
            raise ConfigError(f"the environment variable {self.api_key_env} holds no key; set it before `serve`")
        return key


class ModelSettings(Strict):
    """An LLM that can be routed to. What it cannot do is a hard filter: the ranker is not asked about it."""

    upstream: str
    name: str | None = Field(None, description="its name there; default: the name it has here")
    description: str = Field("", description="what the ranker reads, beside name, size and prices")
    size: str = Field("", description="such as 7B, as the ranker reads it")
    input_price: NonNegativeFloat = Field(description="dollars per million tokens")
    output_price: NonNegativeFloat = Field(description="dollars per million tokens")
    context: int | None = Field(None, ge=1, description="tokens of prompt and answer; none: not checked")
    images: bool = Field(False, description="reads images")
    tools: bool = Field(True, description="calls tools")
    response_format: bool = Field(True, description="answers in a given JSON form")

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Dollars of one call."""
        return (prompt_tokens * self.input_price + completion_tokens * self.output_price) / 1_000_000


class RouterSettings(Strict):
    """A name that clients give as `model`; the ranker orders `models` (all by default) for each prompt."""

    ranker: str | None = Field(None, description="one of `rankers`; default: the default ranker")
    models: tuple[str, ...] = ()
    cost_quality: float | None = Field(
        None, ge=0, le=1, description="weight of quality, said as a number; default: both matter equally, in words"
    )
    objective: str | None = Field(None, description="text in place of that, where a request does not choose")
    prior: Mapping[str, float] = Field({}, description="mean utility by model; its places are shown to the ranker")
    fallbacks: int = Field(2, ge=0, le=20, description="how many of the next in order may be tried")

    @model_validator(mode="after")
    def _one_wish(self) -> Self:
        if self.cost_quality is not None and self.objective is not None:
            raise ValueError("cost_quality and objective say the same thing: give one of them")
        return self


class RouteSettings(Strict):
    """The part of `ServeSettings` that the proxy reads. store: where spend and feedback are kept."""

    upstreams: Mapping[str, UpstreamSettings] = {}
    models: Mapping[str, ModelSettings] = {}
    routers: Mapping[str, RouterSettings] = {}
    store: Path = Path("serve.sqlite")

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for name in (*self.models, *self.routers):
            if not NAME.fullmatch(name) or "," in name:
                raise ValueError(f"{name!r}: names of models and routers are printable ASCII without spaces and commas")
        for name, model in self.models.items():
            need(f"models.{name}.upstream", model.upstream, self.upstreams)
        for name, router in self.routers.items():
            if name in self.models:
                raise ValueError(f"routers.{name}: a model has this name too; rename one of them")
            for which in (*router.models, *router.prior):
                need(f"routers.{name}", which, self.models)
        if self.routers and not self.models:
            raise ValueError("routers: there are no `models` to route to")
        return self


def need(where: str, name: str, known: Collection[str]) -> None:
    """ValueError for a name that nothing has, with the nearest one that something has."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where}: {name!r} is not one of {', '.join(sorted(known)) or '(none are given)'}{meant}")


def routers_of(settings: RouteSettings) -> Mapping[str, RouterSettings]:
    """Those that are set, else `auto` over all LLMs where there are any."""
    return settings.routers or ({"auto": RouterSettings()} if settings.models else {})
