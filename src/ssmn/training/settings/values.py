"""Plain values, as TOML has them, as the types of a settings class; a bad one is named."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from ssmn.errors import ConfigError

T = TypeVar("T")


def section(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"settings: {name}={value!r}; wanted a section [{name}].")
    return dict(value)


def refuse_unknown(where: str, values: Mapping[str, Any], known: list[str]) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
            raise ConfigError(f"{where}: unknown setting {key!r}; {hint}")


def build(cls: type[T], where: str, values: Mapping[str, Any]) -> T:
    hints = typing.get_type_hints(cls)
    known = [setting.name for setting in dataclasses.fields(cls)]  # type: ignore[arg-type]
    refuse_unknown(where, values, known)
    return cls(**{name: convert(f"{where}: {name}", value, hints[name]) for name, value in values.items()})


def convert(where: str, value: Any, hint: Any) -> Any:
    """The value as the annotated type; integers serve as numbers, arrays as tuples, and "none" as None."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value == "none":
            return None
        return convert(where, value, next(kind for kind in arguments if kind is not types.NoneType))
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where}={value!r}; wanted one of {', '.join(map(str, arguments))}.")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(arguments):
            raise ConfigError(f"{where}={value!r}; wanted {len(arguments)} values in [ ].")
        return tuple(convert(where, item, kind) for item, kind in zip(value, arguments, strict=True))
    if origin is not None:
        return section(where, value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and is_number and math.isfinite(value):
        return float(value)
    wanted = {int: "an integer", float: "a finite number", bool: "true or false", str: "a string"}[hint]
    if hint is float or not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}={value!r}; wanted {wanted}.")
    return value
