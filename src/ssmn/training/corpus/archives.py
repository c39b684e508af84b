"""The files inside a package: Debian's `.deb`, Python's wheel."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from ssmn.errors import FileError
from ssmn.training.corpus.documents import Member

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
_UNPACK = {".xz": lzma.decompress, ".gz": gzip.decompress, ".bz2": bz2.decompress, "": bytes}


def members(path: Path, include: tuple[str, ...], exclude: tuple[str, ...] = ()) -> list[Member]:
    """The regular files of a package that fit a pattern, in sorted order; those that end in `.gz` are unpacked.

    Args:
        path: A `.deb` or `.whl` file, or a single file.
        include: Patterns of paths in the package; `*` also spans folders.
        exclude: Patterns of what to leave out of these.

    Raises:
        FileError: The package is damaged, or of another kind.
    """
    try:
        found = [
            Member(name.removesuffix(".gz"), gzip.decompress(data) if name.endswith(".gz") else data)
            for name, data in _files(path)
            if _fits(name, include) and not _fits(name, exclude)
        ]
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, ValueError) as error:
        raise FileError(
            f"corpus: {path} cannot be unpacked ({error}); delete it and run again to fetch it anew."
        ) from error
    return sorted(found)


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as package:
            for entry in package.infolist():
                if not entry.is_dir():
                    yield entry.filename, package.read(entry)
    elif path.suffix == ".deb":
        yield from _tar_files(_deb_data(path.read_bytes()))
    else:
        yield path.name, path.read_bytes()


def _tar_files(packed: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as package:
        contents: dict[str, bytes] = {}
        for entry in package:
            if entry.isreg() or entry.islnk():
                name = entry.name.removeprefix("./")
                file = None if entry.islnk() else package.extractfile(entry)
                # A hard link is one more name of a file that came before.
                contents[name] = contents[entry.linkname.removeprefix("./")] if file is None else file.read()
                yield name, contents[name]


def _deb_data(package: bytes) -> bytes:
    """The tar archive of files, unpacked, out of a Debian package (an `ar` archive of two tar archives)."""
    if not package.startswith(_AR_MAGIC):
        raise ValueError("not a Debian package")
    position = len(_AR_MAGIC)
    while position + _AR_HEADER <= len(package):
        header = package[position : position + _AR_HEADER].decode("ascii", "replace")
        name, size = header[:16].strip().rstrip("/"), int(header[48:58])
        position += _AR_HEADER
        if name.startswith("data.tar"):
            suffix = name.removeprefix("data.tar")
            if suffix not in _UNPACK:
                raise ValueError(f"its files are packed as {suffix}")
            return _UNPACK[suffix](package[position : position + size])
        position += size + size % 2
    raise ValueError("it holds no files")
