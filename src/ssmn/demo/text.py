"""The text demonstration: one long stream through a small model, and what its memory does.

Each function measures one thing and returns plain values; `run` calls them in order. The drawings are
in `ssmn.plots`, the page in `ssmn.demo.text_page`.
"""

from __future__ import annotations

import io
import lzma
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmn.bench import seed_table
from ssmn.config import Plasticity
from ssmn.demo.measuring import ASSETS, Progress, is_same, saved_and_reloaded, silent, torch_threads
from ssmn.errors import FileError
from ssmn.generation import generate
from ssmn.models import TextSSMN
from ssmn.probes import machine, resident_bytes
from ssmn.state import StreamState
from ssmn.stream import Stream
from ssmn.streaming import PIECE, ByteSource, LineSurprise, line_surprise, surprise_bits, token_bits
from ssmn.training.tokenizer import Tokenizer

FROZEN = Plasticity(frozen=True)

PASSAGE_BYTES = 100_000
PASSAGE_AT = 0.6
"""Where in the text the passage of `compare_readings` begins, as a share."""
STORY_BYTES = 2_000
READING_TOKENS = 16_384
"""Tokens per length in `read_twice`, in two passages or more."""
SHORTEST_READING = 256
POINTS = 160
BINS = 40


@dataclass(frozen=True)
class Material:
    """The shipped model, the same with an output memory, its tokenizer, and the text, which stays packed on disk."""

    model: TextSSMN
    corrected: TextSSMN
    tokenizer: Tokenizer
    path: Path
    size: int
    """Bytes of the text that are used."""

    @classmethod
    def shipped(cls, limit: int | None = None) -> Material:
        """What comes with the library.

        Args:
            limit: Uses this many bytes of the text at most.

        Raises:
            FileError: The files are missing from this installation, or `limit` is too small.
        """
        folder = Path(str(ASSETS))
        path = folder / "held-out.txt.xz"
        if not (folder / "model" / "config.json").exists() or not path.exists():
            raise FileError(f"demo: {folder} lacks the shipped model or text; install the package again, whole.")
        model, corrected = (TextSSMN.from_pretrained(folder / "model", output_memory=on).eval() for on in (False, True))
        with lzma.open(path) as file:
            size = file.seek(0, io.SEEK_END)
        if limit is not None and limit < 20_000:
            raise FileError(f"demo: {limit:,} bytes of text are too few to show anything; wanted at least 20,000.")
        tokenizer = Tokenizer.load(folder / "model" / "tokenizer.json")
        return cls(model, corrected, tokenizer, path, min(size, limit or size))

    def line_start(self, offset: int) -> int:
        """Where the first line at or after `offset` begins."""
        with lzma.open(self.path) as file:
            return 0 if offset == 0 else self._to_line(file, offset)

    @contextmanager
    def opened(self, start: int, end: int) -> Iterator[ByteSource]:
        """The text from `start` to `end`, unpacked as it is read."""
        with lzma.open(self.path) as file:
            file.seek(start)
            yield _Limited(file, end - start)

    def passage(self, start: int, length: int) -> bytes:
        """The whole lines of about `length` bytes from `start` on."""
        with lzma.open(self.path) as file:
            begin = self._to_line(file, start) if start else 0
            data = file.read(min(length, self.size - begin))
        return data[: data.rindex(b"\n") + 1]

    @staticmethod
    def _to_line(file: lzma.LZMAFile, offset: int) -> int:
        file.seek(offset - 1)
        file.readline()
        return file.tell()


class _Limited:
    """The next `size` bytes of a file."""

    def __init__(self, file: lzma.LZMAFile, size: int) -> None:
        self._file, self._left = file, size

    def read1(self, size: int, /) -> bytes:
        data = self._file.read1(min(size, self._left)) if self._left else b""
        self._left -= len(data)
        return data


class _Meter:
    """Takes the lines of a stream and notes, every so many bytes, how far it is, how fast, and what it holds."""

    def __init__(self, stream: Stream, size: int, progress: Progress) -> None:
        self._stream, self._size, self._progress = stream, size, progress
        self._due = self._stride = max(1, size // POINTS)
        self._last = (time.perf_counter(), 0, 0, 0.0)
        self.bytes, self.bits = 0, 0.0
        self.points: list[dict[str, float]] = []

    def add(self, line: LineSurprise) -> None:
        self.bytes += line.bytes
        self.bits += line.bits
        now = (time.perf_counter(), int(self._stream.position), self.bytes, self.bits)
        seconds, tokens, read, bits = (new - old for new, old in zip(now, self._last, strict=True))
        # Lines come in batches, after the model has read them all; only the first of a batch finds new tokens.
        if self.bytes < self._due or not tokens:
            return
        point = {
            "bytes": self.bytes,
            "tokens": now[1],
            "resident_bytes": resident_bytes(),
            "tokens_per_second": tokens / seconds,
            "bits_per_byte": bits / read,
        }
        self.points.append(point)
        self._last = now
        self._due = self.bytes + self._stride
        self._progress(
            "read",
            self.bytes,
            self._size,
            f"{point['tokens_per_second']:,.0f} tokens/s   {point['resident_bytes'] / 2**20:,.1f} MiB   "
            f"{point['bits_per_byte']:.2f} bits/byte",
        )


def read_through(material: Material, progress: Progress = silent) -> tuple[dict[str, Any], StreamState]:
    """Streams the whole text once, line by line as `ssmn stream` does, and watches memory and speed.

    Returns:
        The measurement: `points` along the text (bytes, tokens, resident_bytes, tokens_per_second,
        bits_per_byte) and totals; and the stream's state where `compare_readings` begins.
    """
    stream = Stream(material.model)
    meter = _Meter(stream, material.size, progress)
    middle = material.line_start(int(PASSAGE_AT * material.size))
    start = time.perf_counter()
    for begin, end in ((0, middle), (middle, material.size)):
        state_at_middle = stream.state
        with material.opened(begin, end) as source:
            for line in line_surprise(stream, material.tokenizer, source):
                meter.add(line)
    seconds = time.perf_counter() - start
    progress("read", material.size, material.size)

    points, config = meter.points, material.model.config
    tenth = max(1, len(points) // 10)
    early, late = points[tenth : 2 * tenth] or points, points[-tenth:]

    def median(name: str, stretch: list[dict[str, float]]) -> float:
        return statistics.median(point[name] for point in stretch)

    return {
        "points": points,
        "bytes": meter.bytes,
        "tokens": int(stream.position),
        "seconds": seconds,
        "bits_per_byte": meter.bits / meter.bytes,
        "state_bytes": stream.state.nbytes,
        "resident_bytes_growth": median("resident_bytes", late) - median("resident_bytes", early),
        "last_to_second_tenth": median("tokens_per_second", late) / median("tokens_per_second", early),
        "cache_bytes_per_token": 2 * 4 * config.num_layers * config.hidden_dim,
    }, state_at_middle


def compare_readings(material: Material, state: StreamState, progress: Progress = silent) -> dict[str, Any]:
    """Reads one passage from the same state in four ways: memory on, emptied first, frozen, and empty and frozen.

    Args:
        material: Model and text.
        state: Where the stream stands before the passage, from `read_through`.
        progress: Told after each way.

    Returns:
        `bytes`; `kilobytes` and `bits_per_byte` (by way, in bins along the passage); `mean` by way.
    """
    passage = material.passage(int(PASSAGE_AT * material.size), PASSAGE_BYTES)
    ways: dict[str, tuple[StreamState, Plasticity | None]] = {
        "on": (state, None),
        "reset": (state.reset_memory(), None),
        "frozen": (state, FROZEN),
        "off": (state.reset_memory(), FROZEN),
    }
    tokens = material.tokenizer.encode(b"\n" + passage)
    lengths = material.tokenizer.byte_lengths[tokens[1:]]
    edges = np.searchsorted(np.cumsum(lengths), np.linspace(0, lengths.sum(), BINS + 1)[1:-1])
    curves, means = {}, {}
    for index, (name, (start, plasticity)) in enumerate(ways.items()):
        progress("compare", index, len(ways), name)
        bits = token_bits(Stream(material.model, start), tokens, plasticity=plasticity)
        curves[name] = [
            float(part.sum() / size.sum())
            for part, size in zip(np.split(bits, edges), np.split(lengths, edges), strict=True)
        ]
        means[name] = float(bits.sum() / lengths.sum())
    progress("compare", len(ways), len(ways))
    ends = np.cumsum([size.sum() for size in np.split(lengths, edges)])
    return {"bytes": len(passage), "kilobytes": (ends / 1e3).tolist(), "bits_per_byte": curves, "mean": means}


def read_twice(material: Material, progress: Progress = silent) -> dict[str, Any]:
    """Reads passages of doubling lengths twice in a row from a fresh state: with the memory on, off, and on with the
    output memory, which learns from the error of every prediction.

    Every length gets the same number of tokens, cut into passages from all over the text.

    Returns:
        `rows`: per length the number of passages, bits per byte of the first and second reading in each way (`_off`,
        `_output`), and the gains (share of the first reading's surprise that the second one of the same way lacks)
        with a standard error over passages.
    """
    text = material.passage(0, material.size)
    tokens = torch.from_numpy(material.tokenizer.encode(text).astype(np.int64))
    budget = min(READING_TOKENS, len(tokens) // 4)
    lengths = [SHORTEST_READING << n for n in range(20) if SHORTEST_READING << n <= budget // 2]
    rows = []
    for index, length in enumerate(lengths):
        progress("twice", index, len(lengths), f"{length:,} tokens")
        count = budget // length
        starts = [(len(tokens) - length) * i // (count - 1) for i in range(count)]
        batch = torch.stack([tokens[start : start + length] for start in starts])
        sizes = torch.from_numpy(material.tokenizer.byte_lengths)[batch[:, 1:]].sum(1).double()
        # The first token of a reading has nothing of the passage before it, so neither reading counts it.
        row: dict[str, float] = {"length": length, "passages": count}
        for way, model, plasticity in (
            ("", material.model, None),
            ("_off", material.model, FROZEN),
            ("_output", material.corrected, None),
        ):
            first, second = (bits / sizes for bits in _read_batch_twice(model, batch, plasticity))
            gains = 1 - second / first
            row |= {
                f"first{way}": float(first.mean()),
                f"second{way}": float(second.mean()),
                f"gain{way}": float(gains.mean()),
                f"gain{way}_standard_error": float(gains.std() / count**0.5),
            }
        rows.append(row)
    progress("twice", len(lengths), len(lengths))
    return {"rows": rows}


def _read_batch_twice(model: TextSSMN, batch: Tensor, plasticity: Plasticity | None) -> tuple[Tensor, Tensor]:
    """Bits of each row's tokens but the first, in a first and a second reading: [B] each."""
    stream = Stream(model, batch_size=len(batch))
    piece = max(32, 4 * PIECE // len(batch))

    def read() -> Tensor:
        total = torch.zeros(len(batch), dtype=torch.float64)
        for start in range(0, batch.shape[1], piece):
            targets = batch[:, start + 1 : start + piece + 1]
            logits = stream.push(batch[:, start : start + piece], plasticity=plasticity)
            total += surprise_bits(logits[:, : targets.shape[1]], targets).double().sum(1)
        return total

    return read(), read()


def tell_story(material: Material, state: StreamState, progress: Progress = silent) -> dict[str, Any]:
    """Saves a state, reloads it, forks it, lets the forks read different passages, and goes on with all of them.

    Returns:
        File size and times, whether the reloaded state and its future are bit-identical, whether the
        parent stayed as it was, the surprise of all four over one passage, and what the forks write.
    """
    model, tokenizer = material.model, material.tokenizer
    size = min(STORY_BYTES, material.size // 8)
    passage = material.passage(int(0.8 * material.size), size)
    other = material.passage(int(0.9 * material.size), size)
    before = state.clone()

    reloaded, file = saved_and_reloaded(state, model)

    left, right = (Stream(model, fork) for fork in state.fork(2))
    token_bits(left, tokenizer.encode(b"\n" + passage))
    token_bits(right, tokenizer.encode(b"\n" + other))
    tokens = tokenizer.encode(b"\n" + passage)
    progress("story", 1, 3, "saved, reloaded, forked")
    streams = {"original": Stream(model, state), "reloaded": Stream(model, reloaded), "left": left, "right": right}
    bits = {name: token_bits(stream, tokens) for name, stream in streams.items()}
    progress("story", 2, 3, "continued")
    written = {}
    prompt = passage.splitlines(keepends=True)[0]
    for name in ("left", "right"):
        fork = streams[name].state
        made = generate(model, tokenizer.encode(prompt), state=fork, max_new_tokens=60, temperature=0.6, seed=0)
        written[name] = tokenizer.decode([token for token, _ in made])
    progress("story", 3, 3, "written on")

    lengths = tokenizer.byte_lengths[tokens[1:]]
    total = np.cumsum(lengths)
    shown = np.unique(np.searchsorted(total, np.linspace(total[-1] / 20, total[-1], 120)).clip(max=len(total) - 1))
    curves = {name: (np.cumsum(values) / total)[shown].tolist() for name, values in bits.items()}
    return {
        **file,
        "future_identical": bool(np.array_equal(bits["original"], bits["reloaded"])),
        "parent_unchanged": is_same(state, before),
        "position": int(state.position),
        "kilobytes": (total[shown] / 1e3).tolist(),
        **curves,
        "prompt": prompt.decode("utf-8", "replace"),
        "written": written,
    }


def run(
    *,
    limit: int | None = None,
    lengths: tuple[int, ...] = (1_000, 10_000),
    repeats: int = 3,
    threads: int = 1,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The whole demonstration as numbers.

    Args:
        limit: Uses this many bytes of the text at most (20,000 or more).
        lengths: Sequence lengths of the seed's table.
        repeats: Timed runs in the seed's table, which takes torch's number of threads.
        threads: For the small model. More gain little at its size, and cost much on a busy machine.
        progress: Told where each measurement stands.

    Returns:
        `machine`, `model` and one entry per measurement.

    Raises:
        FileError: The shipped model or text is missing, or `limit` is too small.
    """
    started = time.perf_counter()
    material = Material.shipped(limit)
    with torch_threads(threads):
        reading, state = read_through(material, progress)
        results: dict[str, Any] = {
            "reading": reading,
            "passage": compare_readings(material, state, progress),
            "twice": read_twice(material, progress),
            "story": tell_story(material, state, progress),
        }
    count = 0

    def table_progress(remark: str) -> None:
        nonlocal count
        progress("table", count, len(lengths), remark)
        count += 1

    results["table"] = seed_table(lengths, repeats=repeats, progress=table_progress)
    progress("table", len(lengths), len(lengths))
    return {
        "machine": machine(),
        "model": {
            "parameters": material.model.num_parameters(),
            "config": material.model.config.to_dict(),
            "threads": threads,
        },
        "seconds": time.perf_counter() - started,
        **results,
    }
