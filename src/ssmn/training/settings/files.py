"""Where settings come from and go to: TOML files, shipped configurations, `--set` overrides."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ssmn.errors import ConfigError
from ssmn.training.tasks import TASKS


def shipped_configs() -> list[str]:
    """Names of the configurations that come with the library."""
    folder = resources.files("ssmn.training") / "configs"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_settings(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads settings; `TrainConfig.from_dict` checks them.

    Args:
        source: A TOML file, or the name of a shipped configuration. A file may begin with
            `extends = "name"` and then only holds what differs.

    Returns:
        Nested plain values.

    Raises:
        ConfigError: No such file or name, or not TOML.

    Example:
        >>> from ssmn.training import load_settings
        >>> load_settings("mqar-window-only")["model"]["layer_types"]
        ['static', 'static']
    """
    return _read(os.fspath(source), seen=())


def override(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Settings with changes on top.

    Args:
        values: Nested plain values.
        overrides: `section.setting=value` each; the value is TOML, and a bare word is a string.

    Returns:
        Nested plain values.

    Raises:
        ConfigError: A malformed change.
    """
    for change in overrides:
        path, sign, text = change.partition("=")
        names = path.strip().split(".")
        if not sign or not all(names):
            raise ConfigError(f"--set {change!r}: wanted section.setting=value, such as train.steps=100.")
        nested: Any = _value(text.strip())
        for name in reversed(names):
            nested = {name: nested}
        values = extend(values, nested)
    return dict(values)


def settings_for(
    config: str | os.PathLike[str] | None = None,
    *,
    text: str | os.PathLike[str] | None = None,
    series: str | os.PathLike[str] | None = None,
    task: str | None = None,
    overrides: Iterable[str] = (),
) -> dict[str, Any]:
    """Settings for data or a task, on top of a configuration or of the one that is shipped for it.

    Args:
        config: A TOML file, or the name of a shipped configuration.
        text: A text file, or a folder of them.
        series: A CSV file, or a folder of them.
        task: The name of a task.
        overrides: `section.setting=value` each.

    Returns:
        Nested plain values for `TrainConfig.from_dict`.

    Raises:
        ConfigError: Nothing was named, or more than one of text, series and task.

    Example:
        >>> from ssmn.training import settings_for
        >>> settings_for(task="mqar", overrides=["task.pairs=16"])["task"]
        {'name': 'mqar', 'pairs': 16}
    """
    named = {"text": text, "series": series, "task": task}
    chosen = [name for name, value in named.items() if value is not None]
    if len(chosen) > 1:
        raise ConfigError(f"settings: {' and '.join(chosen)} were given; wanted one of text, series and task.")
    if task is not None and task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"wanted one of {', '.join(TASKS)}."
        raise ConfigError(f"settings: unknown task {task!r}; {hint}")
    if config is None:
        if not chosen:
            raise ConfigError("settings: nothing to train on; give a configuration, or one of text, series and task.")
        config = _CONFIG_OF_TASK[task] if task is not None else chosen[0]
    values = load_settings(config)
    if task is not None:
        is_same = isinstance(values.get("task"), Mapping) and values["task"].get("name") == task
        others = () if is_same else ("data", "evaluate")
        values = extend({name: table for name, table in values.items() if name not in others}, {"task": {"name": task}})
    for kind, path in (("text", text), ("series", series)):
        if path is not None:
            data = {name: value for name, value in values.pop("data", {}).items() if name not in ("text", "series")}
            values = {name: table for name, table in values.items() if name not in ("task", "evaluate")}
            values["data"] = {**data, kind: os.fspath(path)}
    return override(values, overrides)


_CONFIG_OF_TASK = {
    "copy": "copy",
    "mqar": "mqar",
    "mqar-rebound": "rebound",
    "mqar-spread": "mqar-spread",
    "multi-hop": "hop2",
    "distance": "distance",
    "text-recall": "text-recall",
    "drift": "drift",
    "system": "system",
}


def extend(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the settings of `extra` on top, section by section; another task starts from its defaults."""
    merged = dict(base)
    for name, value in extra.items():
        below = merged.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            is_other_task = name == "task" and value.get("name", below.get("name")) != below.get("name")
            value = value if is_other_task else extend(below, value)
        merged[name] = value
    return merged


def differences(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings in which two nested tables differ."""
    names = []
    for name in {**first, **second}:
        one, other = first.get(name), second.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            names += differences(one, other, f"{prefix}{name}.")
        elif one != other:
            names.append(f"{prefix}{name}")
    return names


def to_toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """Writes nested plain values as TOML."""
    lines = [f"{_key(name)} = {_literal(value)}" for name, value in values.items() if not isinstance(value, Mapping)]
    text = "\n".join(lines) + "\n" if lines else ""
    for name, value in values.items():
        if isinstance(value, Mapping):
            body = to_toml(value, f"{prefix}{_key(name)}.")
            header = "" if body.startswith("[") else f"[{prefix}{_key(name)}]\n"
            text += ("\n" if text else "") + header + body
    return text


def _read(source: str, seen: tuple[str, ...]) -> dict[str, Any]:
    path = Path(source)
    if not path.is_file():
        if source not in shipped_configs():
            near = difflib.get_close_matches(source, shipped_configs(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"shipped are {', '.join(shipped_configs())}."
            raise ConfigError(f"settings: {source!r} is neither a file nor a shipped configuration; {hint}")
        path = Path(str(resources.files("ssmn.training") / "configs" / f"{source}.toml"))
    if str(path) in seen:
        raise ConfigError(f"settings: {path} extends itself.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"settings: {path} is not a TOML file ({error}).") from error
    base = values.pop("extends", None)
    if base is None:
        return values
    beside = path.parent / str(base)
    return extend(_read(str(beside) if beside.is_file() else str(base), (*seen, str(path))), values)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _key(name: str) -> str:
    is_bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if is_bare else json.dumps(name, ensure_ascii=False)


def _literal(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_literal(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else repr(value)
