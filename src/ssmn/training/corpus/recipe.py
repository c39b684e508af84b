"""The recipe of a corpus: which packages, which parts of them, read how, under which licence."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from ssmn.errors import ConfigError

Genre = Literal["prose", "documentation", "code"]
Client = Literal["apt", "pip"]


@dataclass(frozen=True)
class Source:
    """One package and what is taken from it.

    Attributes:
        name: Name of the source, and of its folder in the corpus.
        title: What it is, for a reader.
        genre: `prose`, `documentation` or `code`.
        client: The package client that fetches it.
        package: Name of the package.
        version: The version that the recipe was written for.
        file: File name of that version.
        sha256: Its SHA-256.
        licence: SPDX identifier, `BSD` for several of its kind, or `public domain`.
        attribution: The copyright line or credit to hand on.
        licence_files: Patterns of the files in the package that hold the licence.
        reader: How its files become documents: a name of `ssmn.training.corpus.readers.READERS`.
        include: Patterns of the files that are taken.
        exclude: Patterns of files that are left out of these.
        without: Patterns of names of documents that are left out.
        limit: At most this many bytes of documents are taken, chosen by the seed (0: all).
        options: Settings of the reader.
    """

    name: str
    title: str
    genre: Genre
    client: Client
    package: str
    version: str
    file: str
    sha256: str
    licence: str
    attribution: str
    reader: str
    include: tuple[str, ...]
    licence_files: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    limit: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses settings that cannot be meant."""
        for name, choices in (("genre", get_args(Genre)), ("client", get_args(Client))):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"corpus: source {self.name!r} has {name}={getattr(self, name)!r}; wanted {', '.join(choices)}."
                )
        if not self.include or self.limit < 0:
            raise ConfigError(f"corpus: source {self.name!r} needs include patterns and a limit that is not negative.")


def load_recipe(path: str | os.PathLike[str] | None = None) -> list[Source]:
    """Reads a recipe.

    Args:
        path: A TOML file of `[[source]]` tables; None is the recipe that comes with the library.

    Raises:
        ConfigError: The file cannot be read, or a source is incomplete or impossible.

    Example:
        >>> from ssmn.training.corpus import load_recipe
        >>> {source.genre for source in load_recipe()} == {"prose", "documentation", "code"}
        True
    """
    place = resources.files("ssmn.training.corpus") / "sources.toml" if path is None else Path(path)
    try:
        tables = tomllib.loads(place.read_text(encoding="utf-8")).get("source", [])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"corpus: {place} is not a recipe ({error}); wanted TOML with [[source]] tables.") from error
    sources = [_source(table) for table in tables]
    if not sources or len({source.name for source in sources}) < len(sources):
        raise ConfigError(f"corpus: {place} has {len(sources)} sources; wanted one or more, each with its own name.")
    return sources


def _source(table: Mapping[str, Any]) -> Source:
    known = {setting.name: setting for setting in dataclasses.fields(Source)}
    name = table.get("name", "?")
    unknown = sorted(set(table) - set(known))
    needed = [key for key, setting in known.items() if _is_needed(setting) and key not in table]
    if unknown or needed:
        raise ConfigError(f"corpus: source {name!r}: unknown settings {unknown}, missing settings {needed}.")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return Source(**values)


def _is_needed(setting: dataclasses.Field[Any]) -> bool:
    return setting.default is dataclasses.MISSING and setting.default_factory is dataclasses.MISSING
