"""One YAML says what is served; these types say what may stand in it.

    rankers: {smol: {model: smol}}
    keys: [{name: team-a, sha256: ...}]

In: the file, or a model's name. Out: `ServeSettings`. Unknown keys are refused with the nearest name.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from r1ranker.io.strict import Strict, read_keys, valid_as
from r1ranker.ranking.spec import RankerSpec, unknown_setting
from r1ranker.serving.catalogue import CatalogueSettings
from r1ranker.serving.route_settings import RouteSettings, need, routers_of

WAYS = frozenset(
    ("design", "think", "layout", "readout", "ask", "query", "top_k", "drop", "head", "tournament", "max_calls")
)
"""Settings that say how to rank; without any of them it is done in the cheap way: see `RankerSpec.design`."""


class Key(Strict):
    """Who may ask. sha256: of the key, in hex; the key itself stands nowhere.

    models: rankers, routers and LLMs it may name; None: all. budget_per_day: dollars; None: no limit.
    """

    name: str = Field(min_length=1)
    sha256: str
    models: tuple[str, ...] | None = None
    budget_per_day: float | None = Field(None, ge=0)

    @field_validator("sha256")
    @classmethod
    def _is_a_hash(cls, value: str) -> str:
        if not re.fullmatch("[0-9a-fA-F]{64}", value):
            raise ValueError("must be the SHA-256 of the key, 64 hex digits: `printf %s KEY | sha256sum`")
        return value.lower()


class Limits(Strict):
    """What one request may hold. documents: of one request; characters: of one of them, and of the query.

    queue: requests of one key that wait for a ranker. connections: open at a time.
    deadline_s: seconds after which the rest of a list is ordered by what is known; a request may ask for less.
    """

    body_bytes: int = Field(4_000_000, ge=1)
    header_bytes: int = Field(16_384, ge=1024)
    documents: int = Field(1000, ge=1)
    characters: int = Field(20_000, ge=1)
    all_characters: int = Field(2_000_000, ge=1)
    queue: int = Field(256, ge=1)
    connections: int = Field(1024, ge=1)
    deadline_s: float = Field(5.0, gt=0)


class ServeSettings(RouteSettings):
    """All that `serve` is told. rankers: by name, any field of `RankerSpec`; default: that of requests without `model`.

    keys: none is no authentication, and then only this machine may ask. allowed_hosts: names that the headers `Host`
    and `Origin` may have beside `host` and localhost; "*" allows all.
    catalogues: by name, what /v1/recommend draws from.
    """

    host: str = "127.0.0.1"
    port: int = Field(8100, ge=0, le=65535)
    default: str = ""
    rankers: dict[str, RankerSpec] = Field(default_factory=lambda: {"nano": RankerSpec(design=None)}, min_length=1)
    keys: tuple[Key, ...] = ()
    limits: Limits = Limits()
    allowed_hosts: tuple[str, ...] = ()
    catalogues: dict[str, CatalogueSettings] = Field(default_factory=dict)

    @field_validator("rankers", mode="before")
    @classmethod
    def _settings_are_known(cls, rankers: Any) -> Any:
        for name, settings in rankers.items() if isinstance(rankers, dict) else ():
            if wrong := unknown_setting(settings if isinstance(settings, dict) else ()):
                raise ValueError(f"{name}: {wrong}")
        if not isinstance(rankers, dict):
            return rankers
        cheap = {"design": None}
        return {
            name: cheap | settings if isinstance(settings, dict) and not WAYS & settings.keys() else settings
            for name, settings in rankers.items()
        }

    @model_validator(mode="after")
    def _is_sound(self) -> ServeSettings:
        if self.default and self.default not in self.rankers:
            raise ValueError(f"default: {self.default!r} is none of the rankers {', '.join(self.rankers)}")
        for name, router in self.routers.items():
            need(f"routers.{name}.ranker", router.ranker or self.default_ranker, self.rankers)
        for place, key in enumerate(self.keys):
            for name in key.models or ():
                need(f"keys.{place}.models", name, {*self.rankers, *routers_of(self), *self.models})
        if len({key.name for key in self.keys}) < len(self.keys):
            raise ValueError("keys: two have one name; a name says whose a request is")
        if any(not key.name.isprintable() for key in self.keys):
            raise ValueError("keys: a name is one line of printable text")
        if not self.keys and not is_here(self.host):
            raise ValueError(f"host {self.host} is open to others: give `keys`, or host: 127.0.0.1")
        return self

    def key(self, name: str) -> Key | None:
        """The key of this name; None where there is none, as for a request where keys are not asked for."""
        return next((key for key in self.keys if key.name == name), None)

    @property
    def default_ranker(self) -> str:
        """The ranker of a request that names none."""
        return self.default or next(iter(self.rankers))


def is_here(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(path: Path | None, changes: dict[str, Any]) -> ServeSettings:
    """Settings of a YAML file, with changes to them. Raises ConfigError that names the key."""
    raw = {} if path is None else read_keys(path)
    return valid_as(ServeSettings, raw | changes, str(path or "command line"))
