"""YAML as typed settings. In: files, and `key.sub=value`. Out: frozen models, or a ConfigError in the user's words.

Unknown keys are refused with the nearest known name. What may stand in a run is in `config`, in a server's file in
`serving.settings`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from r1ranker.errors import ConfigError, DataError
from r1ranker.io.documents import parse_yaml
from r1ranker.io.files import expanded
from r1ranker.io.text import read_text

_LIST = "must be a list: [a, b], or a line that begins with - for each entry"
_KEYS = "must hold keys and values: {key: value}, or a line key: value for each"
FORMS = dict.fromkeys(("tuple_type", "list_type", "sequence_str"), _LIST)
FORMS |= dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), _KEYS)
"""What pydantic calls by Python's names, in those of YAML."""
Config = TypeVar("Config", bound=BaseModel)


class Strict(BaseModel):
    """Unknown keys are refused, numbers are finite, and `~` is the home folder wherever a path may stand."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _paths_from_home(cls, values: Any) -> Any:
        return _from_home(values)


def _from_home(value: Any) -> Any:
    """`~/...` as a path, wherever it stands: in a model's name, a path, or a source's options."""
    if isinstance(value, dict):
        return {key: _from_home(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_from_home(one) for one in value]
    return expanded(str(value)) if isinstance(value, str | Path) else value


def read_keys(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file. Raises ConfigError."""
    try:
        raw = parse_yaml(read_text(path)) or {}
    except DataError as error:
        raise ConfigError(str(error).replace("cannot read", "cannot read the config", 1)) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(raw).__name__}")
    return raw


def valid_as(model: type[Config], raw: dict[str, Any], where: str) -> Config:
    """`raw` as such a model, or a ConfigError that names the key."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {_explain(e, model)}" for e in error.errors())) from error


def override_key(raw: dict[str, Any], override: str) -> None:
    """Set a key of `raw` as `key.sub=value` says; the value is YAML. Raises ConfigError."""
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"{override!r}: settings are given as key=value, such as ppo.steps=100")
    parts = key.split(".")
    last = parts[-1]
    node: Any = raw
    for part, following in pairwise(parts):
        node = _child(node, part, [] if following.isdigit() else {}, key)
    _child(node, last, None, key)
    try:
        node[int(last) if isinstance(node, list) else last] = parse_yaml(value)
    except ValueError as error:
        raise ConfigError(f"{override!r}: {value!r} is not a YAML value: {error}") from error


def _child(node: Any, part: str, fresh: Any, key: str) -> Any:
    """What stands under `part` of a mapping or list; `fresh` is put there when there is nothing yet."""
    if isinstance(node, list) and part.isdigit() and int(part) <= len(node):
        if int(part) == len(node):
            node.append(fresh)
        return node[int(part)]
    if isinstance(node, dict):
        if node.get(part) is None:
            node[part] = fresh
        return node[part]
    raise ConfigError(f"{key}: {part!r} cannot stand there; lists are counted from 0, and a value has no keys")


def _explain(error: Any, model: type[BaseModel]) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] != "extra_forbidden":
        return f"{key}: {in_words(error)}" if key else in_words(error)
    known = sorted(_known_keys(model))
    near = _nearest(path, known)
    hint = f"; did you mean {near!r}?" if near else f"; known keys: {', '.join(known)}"
    return f"unknown key {key!r}{hint}"


def in_words(error: Any) -> str:
    """What is wrong with a value, of pydantic's own account of it."""
    return str(FORMS.get(error["type"], error["msg"].removeprefix("Value error, ")))


def _nearest(path: Sequence[str], known: Sequence[str]) -> str | None:
    """The key that is meant: one that stands beside it, else one of like name anywhere."""
    beside = {k.rsplit(".", 1)[-1]: k for k in known if len(path) > 1 and k.startswith(f"{path[0]}.")}
    for name in difflib.get_close_matches(path[-1], beside, n=1, cutoff=0.5):
        deeper = beside[name].count(".") >= len(path)  # else a list's place, or a name of the user's, is in between
        return beside[name] if deeper else ".".join([*path[:-1], name])
    by_last = {k.rsplit(".", 1)[-1]: k for k in known}
    near = difflib.get_close_matches(".".join(path), known, n=1)
    return next(iter(near or [by_last[name] for name in difflib.get_close_matches(path[-1], by_last, n=1)]), None)


def _known_keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, info in model.model_fields.items():
        keys.add(prefix + name)
        for kind in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys |= _known_keys(kind, f"{prefix}{name}.")
    return keys
