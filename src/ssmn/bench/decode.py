"""Decoding: tokens per second and resident memory against the position, and the latency of a small controller."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ssmn.bench import peers
from ssmn.bench.figures import Figure, plain, spread
from ssmn.bench.floors import READ_BYTES, Floor, read
from ssmn.bench.footprint import can_measure, in_fresh_process
from ssmn.bench.registry import register
from ssmn.bench.runners import (
    FORMATS,
    SHAPES,
    EagerRunner,
    EngineRunner,
    LlamaRunner,
    Runner,
    build,
    engine_refusal,
    llama_weights,
    placed,
    random_tokens,
)
from ssmn.config import SSMNConfig, TextSSMNConfig
from ssmn.errors import RangeError

EAGER = ("float32", "bfloat16")
SPIN = "arithmetic of that length"
"""What the machine itself does to a step that touches no memory."""
ROOM = 2_048
"""Positions of a rival's context beyond the one that is measured: its pieces are copied whole."""


@register("decode")
def decode(
    depths: Sequence[int] = (128, 4_096, 8_192, 32_768, 1_000_000),
    *,
    shapes: Sequence[str] = ("smollm2-135m", "control"),
    weights: Sequence[str] = FORMATS,
    eager: Sequence[str] = EAGER,
    llama: bool = True,
    llama_to: int = 32_768,
    footprint: bool = True,
    steps: int = 32,
    repeats: int = 7,
    control_steps: int = 1_000,
    read_bytes: int = READ_BYTES,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Decoding token by token: speed and resident memory against the position, and a small controller's latency.

    A text model shaped like SmolLM2-135M with random weights by `ssmn.Engine` in every format of weights, the
    same in torch, and SmolLM2-135M itself by llama.cpp where that is installed. The candidates take turns,
    some tokens at a time; so does a read of more memory than the caches hold. A share of the floor is
    the bytes of the weights per second, divided by that read's. The small controller reads vectors on one
    thread; every step is timed by itself, and beside it arithmetic that takes as long and touches no memory: its
    slowest hundredth is the machine's own.

    Args:
        depths: Positions of the stream.
        shapes: Models out of `SHAPES`.
        weights: Formats of the engine's weights.
        eager: Dtypes of our model in torch.
        llama: Whether to run llama.cpp, if it is installed.
        llama_to: Its last position; its memory grows with it.
        footprint: Whether to measure resident memory, in processes of their own.
        steps: Tokens of a turn.
        repeats: Turns of each.
        control_steps: Steps of the controller in a turn.
        read_bytes: Bytes of the read.
        progress: Called with a line of text before each row.

    Returns:
        `figures`, and `notes` on what was left out and why.

    Example:
        >>> from ssmn.bench import decode
        >>> small = decode([3], shapes=["tiny"], eager=["float32"], weights=(), llama=False, footprint=False, steps=1)
        >>> small["figures"][0]["unit"]
        'tokens/s'
    """
    _check(depths, shapes, weights, eager, min(steps, repeats, control_steps))
    notes: list[str] = []
    refused = engine_refusal()
    if refused and weights:
        notes.append(refused)
        weights = ()
    figures: list[Figure] = []
    threads = torch.get_num_threads()
    for shape in shapes:
        config = SHAPES[shape]
        if isinstance(config, SSMNConfig):
            figures += _controller(shape, depths, weights, eager, control_steps, repeats, progress)
            continue
        assert isinstance(config, TextSSMNConfig)
        with ExitStack() as stack:
            model, runners = build(shape), []
            for name in weights:
                progress(f"{shape}: packing {name}")
                runners.append(EngineRunner(model, name, threads))
            runners += [EagerRunner(model, name) for name in eager]
            file = None
            if llama and shape == "smollm2-135m":
                file = _llama_file(stack, threads, notes)
            floor = read(read_bytes)
            for depth in depths:
                now = list(runners)
                if file is not None and depth <= llama_to:
                    progress(f"{shape}: llama.cpp reads to position {depth:,}")
                    now.append(LlamaRunner(file, depth + ROOM, threads))
                progress(f"{shape}, position {depth:,}")
                figures += _speeds(shape, config.vocab_size, depth, now, floor, steps, repeats, progress)
                for runner in now[len(runners) :]:
                    runner.close()
            if footprint and can_measure():
                notes.append(f"resident memory was not measured: {can_measure()}")
            elif footprint:
                figures += _residents(shape, depths, weights, eager, file, llama_to, threads, progress)
    return {"figures": plain(figures), "notes": list(dict.fromkeys(notes))}


def _check(depths: Sequence[int], shapes: Sequence[str], weights: Sequence[str], eager: Sequence[str], n: int) -> None:
    if not depths or min(depths) < 1 or n < 1:
        raise RangeError(f"decode: depths={list(depths)}; wanted some, and every number 1 or more.")
    for name, values, known in (("shapes", shapes, SHAPES), ("weights", weights, FORMATS), ("eager", eager, EAGER)):
        for value in values:
            if value not in known:
                raise RangeError(f"decode: {name} has {value!r}; wanted some of {', '.join(known)}.")


def _llama_file(stack: ExitStack, threads: int, notes: list[str]) -> Path | None:
    refused = peers.refusal()
    if refused:
        notes.append(refused)
        return None
    file = stack.enter_context(llama_weights(threads))
    notes.append(f"llama.cpp: {peers.shipped_weights().name} quantised by itself to Q4_0")
    return file


def _smallest(weights: Sequence[str]) -> str | None:
    """The candidate of ours that rivals are compared with: that with the smallest weights."""
    return f"ssmn engine, {max(weights, key=FORMATS.index)}" if weights else None


def _speeds(
    shape: str,
    vocab_size: int,
    depth: int,
    runners: Sequence[Runner],
    floor: Floor,
    steps: int,
    repeats: int,
    progress: Callable[[str], None],
) -> Iterator[Figure]:
    tokens = random_tokens(vocab_size, steps)
    rates: dict[str, list[float]] = {runner.who: [] for runner in runners}
    reads: list[float] = []
    for turn in range(repeats + 1):
        progress(f"{shape}, position {depth:,}, turn {turn} of {repeats}")
        start = time.perf_counter()
        floor.call()
        reads.append(floor.rate(time.perf_counter() - start))
        for runner in runners:
            if turn == 0 or not runner.endless:
                runner.place(depth)
            start = time.perf_counter()
            for token in tokens:
                runner.step(token)
            rates[runner.who].append(steps / (time.perf_counter() - start))
    rate = statistics.median(reads[1:])
    smallest = min((runner for runner in runners if isinstance(runner, EngineRunner)),
                   key=lambda runner: runner.weight_bytes, default=None)  # fmt: skip
    for runner in runners:
        ours = isinstance(runner, EngineRunner)
        runs = rates[runner.who][1:]  # the first turn was for warming up
        share = statistics.median(runs) * runner.weight_bytes / 1e9 / rate
        yield Figure(
            panel=f"decoding, {shape}", length=depth, who=runner.who, unit="tokens/s", better="more", ours=ours,
            against=smallest.who if smallest and not ours else None, **spread(runs),
            details={"weights, MiB": runner.weight_bytes / 2**20, "share of read": share},
        )  # fmt: skip


def _controller(
    shape: str,
    depths: Sequence[int],
    weights: Sequence[str],
    eager: Sequence[str],
    steps: int,
    repeats: int,
    progress: Callable[[str], None],
) -> Iterator[Figure]:
    """Microseconds of single steps on one thread, at the first position and the last."""
    config = SHAPES[shape]
    assert isinstance(config, SSMNConfig)
    inputs = np.random.default_rng(0).standard_normal((steps, config.input_dim)).astype(np.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runners: list[Runner] = []
        if "float32" in weights:
            runners.append(EngineRunner(build(shape), "float32", 1))
        if "float32" in eager:
            runners.append(EagerRunner(build(shape), "float32"))
        for depth in sorted({depths[0], depths[-1]}):
            times: dict[str, list[float]] = {runner.who: [] for runner in runners}
            times[SPIN] = []
            spin = None
            for runner in runners:
                runner.place(depth)
            for turn in range(repeats + 1):
                progress(f"{shape}, position {depth:,}, turn {turn} of {repeats}")
                for runner in runners:
                    few = inputs if isinstance(runner, EngineRunner) else inputs[: steps // 10 + 1]
                    found = _step_times(runner.step, few)
                    times[runner.who] += found if turn else []
                    if spin is None:
                        spin = _spin(statistics.median(found))
                times[SPIN] += _step_times(spin, inputs) if spin and turn else []
            engines = [runner.who for runner in runners if isinstance(runner, EngineRunner)]
            for who, runs in times.items() if runners else ():
                rival = who not in (*engines, SPIN)
                yield Figure(
                    panel=f"one step of the small controller, {shape}, 1 thread", length=depth, who=who, unit="µs",
                    ours=who in engines, against=engines[0] if rival and engines else None,
                    **spread(runs), details={"99 % below, µs": float(np.quantile(runs, 0.99))},
                )  # fmt: skip
    finally:
        torch.set_num_threads(threads)


def _spin(wanted: float) -> Callable[[object], object]:
    """Arithmetic that takes about `wanted` microseconds: a power modulo a prime, in numbers of a few words."""
    prime, bits = (1 << 127) - 1, 4_096

    def power(bits: int) -> Callable[[object], object]:
        exponent = (1 << bits) - 1
        return lambda _: pow(3, exponent, prime)

    taken = statistics.median(_step_times(power(bits), np.zeros(64)))
    return power(max(1, round(bits * wanted / taken)))


def _step_times(step: Callable[[Any], object], inputs: np.ndarray) -> list[float]:
    """Microseconds of every step."""
    clock, times = time.perf_counter_ns, []
    for x in inputs:
        start = clock()
        step(x)
        times.append((clock() - start) / 1e3)
    return times


def _residents(
    shape: str,
    depths: Sequence[int],
    weights: Sequence[str],
    eager: Sequence[str],
    llama: Path | None,
    llama_to: int,
    threads: int,
    progress: Callable[[str], None],
) -> Iterator[Figure]:
    """Resident memory of processes that decode at a position and do nothing else."""
    model = build(shape)
    with TemporaryDirectory(prefix="ssmn-bench-") as folder:
        model.save_pretrained(folder)
        for depth in depths:
            state = Path(folder) / "state.safetensors"
            placed(model, depth).save(state, model)
            files = {"folder": folder, "state": str(state)}
            chosen = [("engine", f"ssmn engine, {name}", {"weights": name, "threads": threads}) for name in weights]
            chosen += [("eager", f"torch eager, {name}", {"dtype": name}) for name in eager]
            if llama is not None and depth <= llama_to:
                given = {"weights": str(llama), "depth": depth, "threads": threads}
                chosen.append(("llama", "llama.cpp, Q4_0", given))
            for kind, who, settings in chosen:
                progress(f"{shape}: resident memory of {who}, position {depth:,}")
                settings |= {} if kind == "llama" else files
                found = in_fresh_process(f"ssmn.bench.residents:{kind}", threads, **settings)
                ours = kind == "engine"
                yield Figure(
                    panel=f"resident memory while decoding, {shape}", length=depth, who=who, unit="MiB", ours=ours,
                    against=None if ours else _smallest(weights), **spread([found["resident_bytes"] / 2**20]),
                )  # fmt: skip
