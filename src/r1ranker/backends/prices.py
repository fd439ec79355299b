"""What tokens cost. In: a price file. Out: the cost of a call, in the file's currency.

    some-model: {input: 0.15, cached_input: 0.075, output: 0.60}     # per million tokens, YAML or JSON

A model of your own costs what its machine costs; a file with two zeros says that it is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, TypeAdapter, ValidationError

from r1ranker.errors import ConfigError, DataError
from r1ranker.io.documents import parse_yaml
from r1ranker.io.text import read_text

MILLION = 1_000_000


class Price(BaseModel):
    """Of one model, per million tokens; cached input costs what other input costs where it has no price."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    input: NonNegativeFloat
    output: NonNegativeFloat
    cached_input: NonNegativeFloat | None = None


@dataclass(frozen=True, slots=True)
class Prices:
    """A price file, read. `source` is its name, for messages."""

    by_model: Mapping[str, Price]
    source: str

    def cost(self, model: str, prompt: int, cached: int, generated: int) -> float:
        """Of one call: `prompt` tokens that were computed, `cached` ones that were not, `generated` ones."""
        price = self.by_model.get(model)
        if price is None:
            held = ", ".join(sorted(self.by_model)) or "none"
            raise ConfigError(f"{self.source} has no price for {model!r}; add one (it has: {held})")
        of_cached = price.input if price.cached_input is None else price.cached_input
        return (prompt * price.input + cached * of_cached + generated * price.output) / MILLION


def read_prices(path: Path) -> Prices:
    """Raises DataError naming the file and the key."""
    try:
        content = parse_yaml(read_text(path))  # YAML holds JSON
        return Prices(TypeAdapter(dict[str, Price]).validate_python(content), str(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise DataError(
            f"{path}: {where}: {first['msg']}; expected model: {{input: 0.15, output: 0.6}}, per million tokens"
        ) from error
    except DataError as error:
        raise DataError(str(error).replace("cannot read", "cannot read the price file", 1)) from error
    except ValueError as error:
        raise DataError(f"{path} is neither YAML nor JSON: {error}") from error
