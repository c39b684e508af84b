"""The container: round trips, damage, kills, full disks, and readers that know nothing of this library."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import ssmn
from ssmn import files
from ssmn.errors import DtypeError, FileError
from ssmn.files import BFLOAT16, atomic_write, digest, load_model_file, read_file, save_model_file, write_file

DOCS = Path(__file__).parents[1] / "docs"


def some_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "layers.0.keys": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "layers.0.count": np.array([3, 5], np.int64),
        "layers.1.half": rng.standard_normal(5).astype(np.float16),
        "layers.1.brain": rng.integers(0, 1 << 16, (3, 2), np.uint16).view(BFLOAT16),
        "double": rng.standard_normal((1, 7)),
        "empty": np.zeros((4, 0, 2), np.float32),
        "scalar": np.array(2.5),
        "truth": np.array([True, False, True]),
        "byte": np.arange(3, dtype=np.uint8),
    }


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(
        first[n].dtype == second[n].dtype
        and first[n].shape == second[n].shape
        and first[n].tobytes() == second[n].tobytes()
        for n in first
    )


def test_round_trip_gives_back_tensors_and_header(tmp_path: Path) -> None:
    path, header = (
        tmp_path / "a.safetensors",
        {"kind": "checkpoint", "step": 3, "nested": {"rate": 0.1, "x": [1, None]}},
    )
    write_file(path, some_tensors(), header)
    tensors, back = read_file(path, kind="checkpoint")
    assert same(tensors, some_tensors())
    assert back == {**header, "format_version": 1, "library_version": ssmn.__version__}
    assert all(array.flags.writeable and array.flags.aligned for array in tensors.values())


def test_same_content_gives_same_bytes(tmp_path: Path) -> None:
    tensors = some_tensors()
    write_file(tmp_path / "a", tensors, {"kind": "model", "config": {"a": 1, "b": 2}})
    write_file(tmp_path / "b", dict(reversed(tensors.items())), {"config": {"b": 2, "a": 1}, "kind": "model"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_strided_and_big_endian_arrays_are_stored_as_their_values(tmp_path: Path) -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4).T[::2]
    write_file(tmp_path / "a", {"x": array}, {"kind": "checkpoint"})
    back = read_file(tmp_path / "a")[0]["x"]
    assert back.dtype == np.dtype("<i4")
    np.testing.assert_array_equal(back, array)


def test_safetensors_library_reads_our_files(tmp_path: Path) -> None:
    tensors = {name: array for name, array in some_tensors().items() if array.dtype != BFLOAT16}
    write_file(tmp_path / "a", tensors, {"kind": "checkpoint"})
    assert same(safetensors.numpy.load_file(tmp_path / "a"), tensors)


def test_foreign_model_loads_with_a_warning_and_is_no_state(tmp_path: Path) -> None:
    path, tensors = tmp_path / "foreign", {"w": np.arange(3.0), "b": np.ones(1, np.float16)}
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    with pytest.warns(UserWarning, match="has no sum: its weights are unchecked"):
        config, back = load_model_file(path)
    assert config is None
    assert same(back, tensors)
    with pytest.raises(FileError, match="has no SSMN header and no sum"):
        read_file(path, kind="state")


def test_model_file_round_trip_and_kinds(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model_file(path, {"hidden_dim": 8}, some_tensors())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config, tensors = load_model_file(path)
    assert config == {"hidden_dim": 8}
    assert same(tensors, some_tensors())
    with pytest.raises(FileError, match="holds a model; wanted a state; pass the state's file"):
        read_file(path, kind="state")
    write_file(path, {}, {"kind": "state"})
    with pytest.raises(FileError, match="holds a state; wanted a model"):
        load_model_file(path)
    write_file(path, {}, {"kind": "model"})
    with pytest.raises(FileError, match="config=None in its header"):
        load_model_file(path)


def test_refusals_of_writing(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="kind='poem'; wanted one of state, model, checkpoint"):
        write_file(tmp_path / "a", {}, {"kind": "poem"})
    with pytest.raises(DtypeError, match="tensor 'x' has dtype complex64; wanted one of F64, F32"):
        write_file(tmp_path / "a", {"x": np.zeros(2, np.complex64)}, {"kind": "state"})
    with pytest.raises(FileError, match="'__metadata__', which the format reserves"):
        write_file(tmp_path / "a", {"__metadata__": np.zeros(2)}, {"kind": "state"})
    with pytest.raises(FileError, match="the header is not JSON"):
        write_file(tmp_path / "a", {}, {"kind": "state", "x": float("nan")})
    with pytest.raises(FileError, match=r"the folder .*nowhere does not exist; make it first \(mkdir -p"):
        write_file(tmp_path / "nowhere" / "a", {}, {"kind": "state"})
    with pytest.raises(FileError, match="is a folder; wanted the name of a file"):
        write_file(tmp_path, {}, {"kind": "state"})
    assert not list(tmp_path.iterdir())


def test_refusals_of_reading(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist; check the name"):
        read_file(tmp_path / "none")
    with pytest.raises(FileError, match="is a folder; wanted a file"):
        read_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="not a regular file"):
        read_file(tmp_path / "pipe")
    for content in (b"", b"short", b"\xff" * 64):
        (tmp_path / "junk").write_bytes(content)
        with pytest.raises(FileError, match="not a safetensors file, or it is cut short"):
            read_file(tmp_path / "junk")


def test_newer_format_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(files, "FORMAT_VERSION", 2)
        write_file(tmp_path / "a", {}, {"kind": "state"})
    with pytest.raises(FileError, match="format version 2, and this library reads up to 1; upgrade it: pip install"):
        read_file(tmp_path / "a")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    atomic_write(tmp_path / "link", b"text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"text"


def test_stale_temporary_files_go_and_young_ones_stay(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in (".a.0123.tmp", ".a.4567.tmp", ".b.89ab.tmp"))
    for path in (old, young, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    atomic_write(tmp_path / "a", b"text")
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)


# Damage. A file whose sum is right again ("resealed") may be refused or read; it must never crash the reader.


def build(entries: dict[str, Any], data: bytes, text: str | None = None) -> bytes:
    encoded = (json.dumps(entries) if text is None else text).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded + data


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


ODD_VALUES: list[Any] = [-1, 0, 1, 2**31, 2**63, 2**64, 10**30, 1.5, True, None, "", "F32", "F8_E4M3", [], {}, [[]],
                         [0, 2**62], [2] * 70, "\ud800", "x" * 1000]  # fmt: skip


def mutate(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """One random injury of a file, aware of its structure."""
    size = struct.unpack("<Q", content[:8])[0]
    entries, data = split(content)
    names = [name for name in entries if name != "__metadata__"]
    name = rng.choice(names)
    area = rng.choice([(0, 8), (8, 8 + size), (8 + size, len(content))])
    match rng.randrange(13):
        case 0:
            spot = rng.randrange(*area)
            return content[:spot] + bytes([content[spot] ^ (1 << rng.randrange(8))]) + content[spot + 1 :]
        case 1:
            spot = rng.randrange(*area)
            return content[:spot] + rng.randbytes(rng.randint(1, 9)) + content[spot + rng.randint(0, 9) :]
        case 2:
            return content[: rng.randrange(len(content))]
        case 3:
            return content + rng.randbytes(rng.randint(1, 100))
        case 4:
            begin, end = sorted(rng.randrange(len(content)) for _ in range(2))
            return content[:begin] + content[end:]
        case 5:
            cut = rng.randrange(min(len(content), len(other)))
            return content[:cut] + other[cut:]
        case 6:
            entries[name][rng.choice(["dtype", "shape", "data_offsets", "more"])] = rng.choice(ODD_VALUES)
        case 7:
            second = rng.choice(names)
            entries[name], entries[second] = entries[second], entries[name]
        case 8:
            entries[rng.choice(["renamed", "", "\ud800", "__metadata__"])] = entries.pop(name)
        case 9:
            key = rng.choice(["ssmn", "digest", "more"])
            entries["__metadata__"][key] = rng.choice([*ODD_VALUES, "0" * 64, "[" * 5000, '{"kind": NaN}'])
        case 10:
            text = entries["__metadata__"]["ssmn"]
            spot = rng.randrange(len(text))
            entries["__metadata__"]["ssmn"] = text[:spot] + chr(rng.randrange(32, 127)) + text[spot + 1 :]
        case 11:
            text = json.dumps(entries)
            twice = f'{{"{name}": {json.dumps(entries[name])}, {text[1:]}'
            return build(
                {}, data, rng.choice([twice, "[" * 100_000, "{}" + text, text.replace("[", "[00", 1), "1" * 9999])
            )
        case _:
            text = json.dumps(entries)
            spot = rng.randrange(len(text))
            return build({}, data, text[:spot] + rng.choice('0123456789{}[]",: ') + text[spot + 1 :])
    return build(entries, data)


def reseal(content: bytes, rng: random.Random) -> bytes:
    """Alters a field or a tensor's entry, and makes the sum right again, as only a forger would."""
    entries, data = split(content)
    metadata = entries["__metadata__"]
    header = json.loads(metadata["ssmn"])
    place: Any = header
    while isinstance(place, (dict, list)) and place:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if rng.random() < 0.5 or not isinstance(place[key], (dict, list)) or not place[key]:
            place[key] = rng.choice(ODD_VALUES[:-2])
            break
        place = place[key]
    metadata["ssmn"] = json.dumps(header)
    names = [name for name in entries if name != "__metadata__"]
    if rng.random() < 0.3:
        entries["renamed"] = entries.pop(names.pop())
    if rng.random() < 0.3:
        raw = bytearray(data)
        raw[rng.randrange(len(raw))] ^= 1  # the low bit, so that a truth value stays one
        data = bytes(raw)
    metadata.pop("digest")
    _, tensors = files._parse(json.dumps(entries).encode(), np.frombuffer(data, np.uint8))
    metadata["digest"] = digest(metadata, tensors)
    return build(entries, data)


def survive(
    path: Path, other: Path, runs: int, seed: int, load: Callable[[Path], object], equal: Callable[[Any], bool]
) -> int:
    """Loads `runs` injured copies: each must be refused with a FileError or have the very content of the original.

    Every tenth is resealed, and then only has to be read or refused. Returns how many were refused.
    """
    content, foreign = path.read_bytes(), other.read_bytes()
    rng, injured, refused = random.Random(seed), path.with_name("injured"), 0
    for run in range(runs):
        resealed = run % 10 == 9
        damaged = reseal(content, rng) if resealed else mutate(content, foreign, rng)
        if damaged == foreign:
            continue  # a splice before the first difference is no injury but the other file
        injured.write_bytes(damaged)
        try:
            loaded = load(injured)
        except FileError:
            refused += 1
            continue
        assert resealed or equal(loaded), f"run {run} of seed {seed} was accepted with other content"
    return refused


def check_containers(folder: Path, runs: int) -> None:
    header = {"kind": "state", "position": [1, 2], "layout": {"layers": ["window"]}}
    write_file(folder / "state", some_tensors(), header)
    write_file(folder / "other", some_tensors(1), header)
    original = read_file(folder / "state")
    refused = survive(
        folder / "state", folder / "other", runs // 2, 1, read_file,
        lambda loaded: same(loaded[0], original[0]) and loaded[1] == original[1],
    )  # fmt: skip
    assert refused > 0.4 * runs

    save_model_file(folder / "model", {"width": 3}, some_tensors())
    save_model_file(folder / "other", {"width": 4}, some_tensors(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a file that passes for a foreign one is not accepted in silence
        refused = survive(
            folder / "model", folder / "other", runs // 2, 2, load_model_file,
            lambda loaded: loaded[0] == {"width": 3} and same(loaded[1], some_tensors()),
        )  # fmt: skip
    assert refused > 0.4 * runs


def test_no_altered_content_is_accepted(tmp_path: Path) -> None:
    check_containers(tmp_path, 2_000)


@pytest.mark.slow
def test_no_altered_content_is_accepted_in_fifty_thousand(tmp_path: Path) -> None:
    check_containers(tmp_path, 50_000)


# Kills, full disks, readers at work.

SAVER = """
import os, sys
import numpy
from ssmn.files import write_file

path, versions = sys.argv[1], [numpy.full((64, 2048), float(value)) for value in (1, 2)]
write_file(path, {"x": versions[0]}, {"kind": "state", "version": 1})
print("ready", flush=True)
for _ in sys.stdin:
    child = os.fork()
    if not child:
        while True:
            for number, version in enumerate(versions, 1):
                write_file(path, {"x": version}, {"kind": "state", "version": number})
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that, per line of input, forks a child which saves without end, and prints its number."""
    source = str(Path(files.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(tmp_path / "state")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": source},
    )  # fmt: skip
    yield process
    process.communicate()


def kill_savers(saver: subprocess.Popen[str], path: Path, kills: int) -> None:
    assert saver.stdin is not None
    assert saver.stdout is not None
    assert saver.stdout.readline() == "ready\n"
    rng = random.Random(0)
    for _ in range(kills):
        before = path.stat().st_ino
        saver.stdin.write("\n")
        saver.stdin.flush()
        child = int(saver.stdout.readline())
        deadline = time.monotonic() + 60
        while path.stat().st_ino == before and time.monotonic() < deadline:
            time.sleep(0.001)
        assert path.stat().st_ino != before, "the child does not save"
        time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert int(saver.stdout.readline()) == signal.SIGKILL
        tensors, header = read_file(path, kind="state")
        assert (tensors["x"] == header["version"]).all()
        assert tensors["x"].shape == (64, 2048)
    assert all(re.fullmatch(r"state|\.state\.[0-9a-f]{12}\.tmp", left.name) for left in path.parent.iterdir())


def test_a_kill_leaves_the_whole_old_or_new_file(saver: subprocess.Popen[str], tmp_path: Path) -> None:
    kill_savers(saver, tmp_path / "state", 20)


@pytest.mark.slow
def test_a_thousand_kills_leave_the_whole_old_or_new_file(saver: subprocess.Popen[str], tmp_path: Path) -> None:
    kill_savers(saver, tmp_path / "state", 1_000)


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_file(path, {"x": np.zeros(3)}, {"kind": "state"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))  # Python ignores the signal: write() fails
    try:
        with pytest.raises(FileError, match=r"state cannot be written \(File too large\); .* is unchanged; free some"):
            write_file(path, {"x": np.zeros(1 << 16)}, {"kind": "state"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_file(path)[0]["x"].shape == (3,)
    assert [left.name for left in tmp_path.iterdir()] == ["state"]


def test_reading_while_another_saves(tmp_path: Path) -> None:
    path, stop = tmp_path / "state", threading.Event()
    versions = [np.full(1 << 14, float(value)) for value in range(2)]
    write_file(path, {"x": versions[0]}, {"kind": "state", "version": 0})

    def save() -> None:
        while not stop.is_set():
            for number, version in enumerate(versions):
                write_file(path, {"x": version}, {"kind": "state", "version": number})

    thread = threading.Thread(target=save)
    thread.start()
    try:
        for _ in range(200):
            tensors, header = read_file(path)
            assert (tensors["x"] == header["version"]).all()
    finally:
        stop.set()
        thread.join()


# The documented scripts, run without this library.


def documented_script(marker: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "state-format.md").read_text(), re.DOTALL)
    return next(block for block in blocks if marker in block)


def run_script(script: str, path: Path) -> str:
    assert "ssmn" not in re.sub(r'\["ssmn"\]', "", script)
    return subprocess.run(
        [sys.executable, "-I", "-c", script, str(path)], capture_output=True, text=True, check=True
    ).stdout


def test_documented_check_agrees(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_file(path, some_tensors(), {"kind": "state", "note": "größer"})
    assert run_script(documented_script("hashlib"), path) == "sound\n"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert run_script(documented_script("hashlib"), path) == "damaged\n"


def test_documented_reader_needs_numpy_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_file(path, {"b": np.full((2, 3), 0.5, np.float32), "a": np.arange(4)}, {"kind": "state"})
    assert run_script(documented_script("frombuffer"), path) == "a (4,) 6.0\nb (2, 3) 3.0\n"
