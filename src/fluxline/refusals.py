"""What is refused of options, profiles and presets, in the words of who wrote them."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fluxline.errors import ConfigError

Made = TypeVar("Made", bound=BaseModel)


def made(kind: type[Made], where: str, values: Mapping[str, Any]) -> Made:
    """Make a value of a table that stands somewhere. Raises ConfigError naming what is wrong."""
    # Any: TOML; what it means is checked here
    try:
        return kind(**values)
    except ValidationError as exc:
        raise ConfigError(in_words(exc, kind, where)) from exc


def in_words(exc: ValidationError, kind: type[BaseModel], where: str = "") -> str:
    """Say what pydantic found wrong with a value of that kind, each option by its name."""
    return "; ".join(_of(error, kind, where) for error in exc.errors())


def meant(name: str, known: Iterable[str]) -> str:
    """Ask whether one of those that are known was meant, if one is near; else say nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _of(error: Any, kind: type[BaseModel], where: str) -> str:
    # Any: pydantic's ErrorDetails, whose input is anything
    name = ".".join(str(part) for part in (*filter(None, [where]), *error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown option {name}{meant(str(error['loc'][-1]), kind.model_fields)}"
    if error["type"] == "value_error":
        return f"option {name}: {error['ctx']['error']}"
    return f"option {name}: {error['msg']}; got {error['input']!r}"
