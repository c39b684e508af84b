"""Checked files: safetensors with a header and a SHA-256 over all of it, written atomically.

One container carries stream states, models and training checkpoints. It is an ordinary safetensors
file, so every reader of that format opens it; `docs/state-format.md` has it byte by byte. Reading
and writing are done here rather than by the `safetensors` package because the file must be the
same bytes for the same content, must be refused for any disorder, and is hashed on the way.

Nothing in a file can run code, and this module loads neither torch nor an extra.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import struct
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import numpy as np
from numpy.typing import NDArray

from ssmn import __version__
from ssmn.errors import DtypeError, FileError, StateError

FileKind = Literal["state", "model", "checkpoint"]
Tensors = dict[str, NDArray[Any]]
PathLike = str | os.PathLike[str]

FORMAT_VERSION = 1
"""The version that is written. A new optional field or tensor raises it; all older ones are read."""

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
"""What a model's folder holds."""

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""Stands for bfloat16, which numpy lacks: `array.view(numpy.uint16)` has the raw bits."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16,
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}  # fmt: skip
_TAGS = {dtype: tag for tag, dtype in _DTYPES.items()}

_HEADER_LIMIT = 100_000_000  # the safetensors format's own limit
_STALE_SECONDS = 3600.0


def write_file(path: PathLike, tensors: Mapping[str, NDArray[Any]], header: Mapping[str, Any]) -> None:
    """Writes tensors and header fields to `path`: the whole new file or, on any failure, the old one.

    The same content gives the same bytes. `format_version` and `library_version` are added to the
    header.

    Args:
        path: The file to write or replace; its folder must exist.
        tensors: Arrays by name, of any shape, in a dtype of the table (`BFLOAT16` for bfloat16).
        header: JSON values by name; `kind` is required: "state", "model" or "checkpoint".

    Raises:
        FileError: The folder is missing, the disk is full, or the header cannot be stored.
        DtypeError: An array has a dtype that the format lacks.

    Example:
        >>> import numpy, tempfile, pathlib
        >>> from ssmn.files import read_file, write_file
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "numbers.safetensors"
        >>> write_file(path, {"x": numpy.arange(3.0)}, {"kind": "checkpoint", "step": 7})
        >>> tensors, header = read_file(path, kind="checkpoint")
        >>> tensors["x"].tolist(), header["step"]
        ([0.0, 1.0, 2.0], 7)
    """
    kind = header.get("kind")
    if kind not in get_args(FileKind):
        raise FileError(f"write_file: header kind={kind!r}; wanted one of {', '.join(get_args(FileKind))}.")
    if "__metadata__" in tensors:
        raise FileError("write_file: a tensor is named '__metadata__', which the format reserves; rename it.")
    fields = {**header, "format_version": FORMAT_VERSION, "library_version": __version__}
    try:
        metadata = {"ssmn": json.dumps(fields, sort_keys=True, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise FileError(f"write_file: the header is not JSON ({error}); use text, numbers, lists and dicts.") from None
    arrays = {name: _portable(name, array) for name, array in tensors.items()}
    metadata["digest"] = digest(metadata, arrays)

    # Wide items first, as safetensors does: every tensor then starts at a multiple of its item size.
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    entries: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name in names:
        array = arrays[name]
        span = [offset, offset + array.nbytes]
        entries[name] = {"dtype": _TAGS[array.dtype], "shape": list(array.shape), "data_offsets": span}
        offset = span[1]
    encoded = json.dumps(entries, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    atomic_write(path, struct.pack("<Q", len(encoded)), encoded, *(_raw(arrays[name]) for name in names))


def read_file(path: PathLike, kind: FileKind | None = None) -> tuple[Tensors, dict[str, Any]]:
    """Reads a file of `write_file`, after checking its structure and its sum.

    Args:
        path: The file.
        kind: The kind that is wanted; None takes any.

    Returns:
        The tensors by name (writable arrays, bfloat16 as `BFLOAT16`) and the header's fields.

    Raises:
        FileError: The file is missing, damaged, foreign, of another kind or of a newer format.
    """
    tensors, header = _read(path)
    if header is None:
        raise FileError(
            f"read_file: {path} has no SSMN header and no sum, so nothing vouches for its content; "
            f"wanted a file that this library saved."
        )
    if kind is not None and header["kind"] != kind:
        raise FileError(f"read_file: {path} holds a {header['kind']}; wanted a {kind}; pass the {kind}'s file.")
    return tensors, header


def save_model_file(path: PathLike, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Writes a model's configuration (`config.to_dict()`) and weights (its `state_dict`) to one file."""
    write_file(path, tensors, {"kind": "model", "config": dict(config)})


def load_model_file(path: PathLike) -> tuple[dict[str, Any] | None, Tensors]:
    """Reads a model's configuration and weights.

    A safetensors file of another library has no sum to check: it loads with a warning, and its
    configuration is None.

    Raises:
        FileError: The file is missing, damaged, of another kind or of a newer format.
    """
    tensors, header = _read(path)
    if header is None:
        warnings.warn(
            f"load_model_file: {path} was not saved by this library and has no sum: its weights are unchecked.",
            stacklevel=2,
        )
        return None, tensors
    if header["kind"] != "model":
        raise FileError(f"load_model_file: {path} holds a {header['kind']}; wanted a model; pass the model's file.")
    config = header.get("config")
    if not isinstance(config, dict):
        raise FileError(f"load_model_file: {path} has config={config!r} in its header; wanted a table of settings.")
    return config, tensors


def model_fingerprint(config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 (hexadecimal) that tells one model's configuration and weights from any other's."""
    portable = {name: _portable(name, array) for name, array in tensors.items()}
    return digest({"config": json.dumps(config, sort_keys=True)}, portable)


def shipped_model() -> Path:
    """Folder of the text model that comes with the library."""
    return Path(str(resources.files("ssmn") / "demo" / "assets" / "model"))


def read_config(folder: PathLike) -> dict[str, Any]:
    """The contents of a model folder's `config.json`.

    Raises:
        FileError: There is none, or it is not a JSON object.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        found = f"no {CONFIG_FILE}" if isinstance(error, FileNotFoundError) else "is a file"
        raise FileError(f"{folder}: {found}; wanted a folder written by save_pretrained or `ssmn train`.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(values, dict):
        raise FileError(f"{path}: holds {type(values).__name__}; wanted a JSON object.")
    return values


def load_weights(folder: PathLike, config: Mapping[str, Any]) -> Tensors:
    """The weights of a model's folder, which must have been saved with this configuration.

    Raises:
        FileError: The file is missing or damaged, or its configuration is another one.
    """
    saved, arrays = load_model_file(Path(folder) / WEIGHTS_FILE)
    if saved is not None and saved != config:
        changed = min(key for key in saved.keys() | config.keys() if saved.get(key) != config.get(key))
        raise FileError(
            f"{Path(folder) / CONFIG_FILE}: {changed} is {config.get(changed)!r}, but the weights were saved "
            f"with {saved.get(changed)!r}; restore it, or build a model of your own and use load_state_dict."
        )
    return arrays


@dataclass(frozen=True)
class Origin:
    """The model that a state comes from, as its file names it."""

    fingerprint: str
    config: dict[str, Any]

    def require(self, owner: str, other: Origin, names: tuple[str, str], way_out: str) -> None:
        """Raises a StateError with the first difference unless both are the same model."""
        if self.fingerprint == other.fingerprint:
            return
        difference = first_difference(self.config, other.config, "config")
        if difference is not None:
            where, mine, theirs = difference
            what = f"{where} is {mine} in {names[0]} but {theirs} in {names[1]}"
        else:
            what = (
                f"the configs are equal but the weights are not: fingerprint {self.fingerprint[:12]}... in {names[0]}, "
                f"{other.fingerprint[:12]}... in {names[1]}"
            )
        raise StateError(f"{owner}: {what}; {way_out}.")


def first_difference(mine: Any, theirs: Any, where: str) -> tuple[str, Any, Any] | None:
    """Path and both values of the first place where two JSON values differ; None if they are equal."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        # The kind first: of two kinds of model it says more than a setting that only one of them has.
        for key in sorted(mine.keys() | theirs.keys(), key=lambda key: (key != "kind", key)):
            if key not in mine or key not in theirs:
                came, wanted = (repr(side[key]) if key in side else "absent" for side in (mine, theirs))
                return f"{where}.{key}", came, wanted
            found = first_difference(mine[key], theirs[key], f"{where}.{key}")
            if found is not None:
                return found
        return None
    if isinstance(mine, list) and isinstance(theirs, list):
        if len(mine) != len(theirs):
            return f"{where} (length)", len(mine), len(theirs)
        for number, pair in enumerate(zip(mine, theirs, strict=True)):
            found = first_difference(*pair, f"{where}.{number}")
            if found is not None:
                return found
        return None
    return None if mine == theirs else (where, repr(mine), repr(theirs))


def write_state_arrays(path: PathLike, tensors: Tensors, layout: Mapping[str, Any], origin: Origin) -> None:
    """Writes a state's tensors, named as in `docs/state-format.md`.

    Raises:
        StateError: A tensor has values that are not finite.
        FileError: The file cannot be written.
    """
    broken = [name for name, array in tensors.items() if not np.isfinite(array).all()]
    if broken:
        raise StateError(
            f"save: {', '.join(broken)} of the state has NaN or infinite values, which would spoil every later step; "
            f"roll back to an earlier state. {path} was not written."
        )
    dtype = next((str(array.dtype) for array in tensors.values() if array.dtype.kind == "f"), "float32")
    header = {
        "kind": "state",
        "layout": layout,
        "position": tensors["position"].tolist(),
        "dtype": dtype,
        "fingerprint": origin.fingerprint,
        "config": origin.config,
    }
    write_file(path, tensors, header)


def digest(metadata: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 (hexadecimal) over metadata pairs and tensors, each sorted by name.

    Every text and every tensor's bytes are preceded by their length, every list by its count, as
    unsigned 64-bit little-endian numbers, so no two contents feed the same bytes to the hash.

    Args:
        metadata: Text by name.
        tensors: C-contiguous little-endian arrays by name.
    """
    sha = hashlib.sha256()

    def feed(text: str) -> None:
        data = text.encode()
        sha.update(struct.pack("<Q", len(data)) + data)

    sha.update(struct.pack("<Q", len(metadata)))
    for key in sorted(metadata):
        feed(key)
        feed(metadata[key])
    sha.update(struct.pack("<Q", len(tensors)))
    for name in sorted(tensors):
        array = tensors[name]
        feed(name)
        feed(_TAGS[array.dtype])
        sha.update(struct.pack(f"<{array.ndim + 2}Q", array.ndim, *array.shape, array.nbytes))
        sha.update(_raw(array))
    return sha.hexdigest()


def atomic_write(path: PathLike, *parts: bytes | memoryview) -> None:
    """Writes the parts, one after the other, as the new content of `path`: all of it or nothing.

    A reader sees the whole old file or the whole new one at any moment, also after a kill or a
    power cut: temporary file in the same folder, fsync, rename, fsync of the folder. A killed
    process may leave its temporary file behind; a later write to the same path removes it once it
    is an hour old.

    Raises:
        FileError: The system refused (missing folder, full disk, no permission); the old file is intact.

    Example:
        >>> import pathlib, tempfile
        >>> from ssmn.files import atomic_write
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "note.txt"
        >>> atomic_write(path, b"whole ", b"or nothing")
        >>> path.read_text()
        'whole or nothing'
    """
    target = Path(os.path.realpath(path))  # through a link, so that the link itself stays
    if not target.parent.is_dir():
        raise FileError(f"write: the folder {target.parent} does not exist; make it first (mkdir -p {target.parent}).")
    if target.is_dir():
        raise FileError(f"write: {path} is a folder; wanted the name of a file.")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
    except OSError as error:
        raise FileError(
            f"write: {path} cannot be written ({error.strerror or error}); the file that was there is unchanged; "
            f"free some space or choose another place."
        ) from error
    _remove_stale(target)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened; the rename is durable on its own terms
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(target: Path) -> None:
    """Removes what killed writers of `target` left; a living writer's file is younger than the limit."""
    prefix, limit = f".{target.name}.", time.time() - _STALE_SECONDS
    try:
        for entry in target.parent.iterdir():
            if entry.name.startswith(prefix) and entry.suffix == ".tmp" and entry.stat().st_mtime < limit:
                entry.unlink()
    except OSError:
        pass  # the write itself succeeded; another process may be sweeping too


def _portable(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """The array as the file holds it: little-endian, C-contiguous, of a dtype of the table."""
    array = np.asarray(array, order="C")
    dtype = array.dtype if array.dtype == BFLOAT16 else array.dtype.newbyteorder("<")
    if dtype not in _TAGS:
        raise DtypeError(f"write_file: tensor {name!r} has dtype {array.dtype}; wanted one of {', '.join(_DTYPES)}.")
    return array.astype(dtype, copy=False)


def _raw(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _read(path: PathLike) -> tuple[Tensors, dict[str, Any] | None]:
    """Tensors and header of a file; the header is None for a sound safetensors file of another library."""
    path = Path(path)
    if path.is_dir():
        raise FileError(f"read: {path} is a folder; wanted a file.")
    if not path.exists():
        raise FileError(f"read: {path} does not exist; check the name and the folder.")
    if not path.is_file():
        raise FileError(f"read: {path} is not a regular file; copy its content to a file first.")
    try:
        with path.open("rb") as file:
            # One open file: a save in between replaces the name, not what is being read here.
            total = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= size <= min(total - 8, _HEADER_LIMIT):
                raise FileError(
                    f"read: {path} is not a safetensors file, or it is cut short (header of {size} bytes, "
                    f"file of {total}); wanted a file that `save` wrote."
                )
            encoded = file.read(size)
            data = np.empty(total - 8 - size, np.uint8)
            received = file.readinto(data.data)
    except OSError as error:
        raise FileError(f"read: {path} cannot be read ({error.strerror or error}).") from error
    if len(encoded) != size or received != data.nbytes:
        _damaged(path, "it ended while being read")
    try:
        metadata, tensors = _parse(encoded, data)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        _damaged(path, str(error) or type(error).__name__)
    if "ssmn" not in metadata and "digest" not in metadata:
        return tensors, None
    return tensors, _checked_header(path, metadata, tensors)


def _checked_header(path: PathLike, metadata: dict[str, str], tensors: Tensors) -> dict[str, Any]:
    claimed = metadata.pop("digest", None)
    try:
        actual = digest(metadata, tensors)
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which is no text
        _damaged(path, "a name is not valid text")
    if claimed != actual:
        _damaged(path, f"its sum is {actual[:12]}..., but the file says {str(claimed)[:12]}...")
    try:
        header = _loads(metadata["ssmn"])
        version, kind = header["format_version"], header["kind"]
    except (ValueError, TypeError, KeyError, RecursionError):
        _damaged(path, "its header lacks the format version or the kind")
    if type(version) is not int or version < 1:
        _damaged(path, f"format_version={version!r}; wanted a number from 1 to {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise FileError(
            f"read: {path} has format version {version}, and this library reads up to {FORMAT_VERSION}; "
            f"upgrade it: pip install --upgrade sparse-stream."
        )
    if kind not in get_args(FileKind):
        raise FileError(f"read: {path} has kind={kind!r}; wanted one of {', '.join(get_args(FileKind))}.")
    return header


def _parse(encoded: bytes, data: NDArray[np.uint8]) -> tuple[dict[str, str], Tensors]:
    """Metadata and tensors (views of `data`); a ValueError, TypeError or OverflowError for any disorder."""
    entries = _loads(encoded.decode())
    if not isinstance(entries, dict):
        raise TypeError("the header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata is not text by name")
    for name, entry in entries.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"the entry of tensor {name!r} is not dtype, shape and data_offsets")
        if not _counts(entry["shape"]) or not _counts(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
            raise ValueError(f"the shape or data_offsets of tensor {name!r} are not counts")
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"tensor {name!r} has dtype {entry['dtype']!r}; known are {', '.join(_DTYPES)}")
    tensors: Tensors = {}
    position = 0
    for name in sorted(entries, key=lambda name: entries[name]["data_offsets"]):
        dtype, shape = _DTYPES[entries[name]["dtype"]], entries[name]["shape"]
        begin, end = entries[name]["data_offsets"]
        if begin != position or end - begin != math.prod(shape) * dtype.itemsize or end > data.nbytes:
            raise ValueError(f"the bytes of tensor {name!r} overlap, leave a gap or do not fit its shape")
        array = data[begin:end].view(dtype).reshape(shape)
        if entries[name]["dtype"] == "BOOL" and data[begin:end].max(initial=0) > 1:
            raise ValueError(f"tensor {name!r} has a truth value that is neither 0 nor 1")
        tensors[name] = array if array.flags.aligned else array.copy()
        position = end
    if position != data.nbytes:
        raise ValueError(f"{data.nbytes - position} bytes belong to no tensor")
    return metadata, tensors


def _counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _loads(text: str) -> Any:
    """JSON without the two liberties that let one text mean two things: repeated names, NaN."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise ValueError("a name occurs twice in the header")
        return values

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} in the header")

    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


def _damaged(path: PathLike, reason: str) -> NoReturn:
    raise FileError(f"read: {path} is damaged: {reason}; restore it from a copy or save it again.")
