"""Prefill: tokens per second of reading a prompt, by length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from ssmn.bench import peers
from ssmn.bench.figures import Figure, plain, spread
from ssmn.bench.floors import GEMM_SIZE, gemm
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
    random_tokens,
)
from ssmn.bench.timing import time_alternately
from ssmn.config import TextSSMNConfig
from ssmn.errors import RangeError

EAGER = ("float32", "bfloat16")


@register("prefill")
def prefill(
    lengths: Sequence[int] = (1_024, 4_096, 8_192),
    *,
    shape: str = "smollm2-135m",
    weights: Sequence[str] = FORMATS,
    eager: Sequence[str] = EAGER,
    llama: bool = True,
    repeats: int = 3,
    patience: float = 20.0,
    gemm_size: int = GEMM_SIZE,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Reading a prompt into a fresh stream: tokens per second by length.

    A text model shaped like SmolLM2-135M with random weights by `ssmn.Engine` in every format of weights, the
    same in torch, and SmolLM2-135M itself by llama.cpp where that is installed (batches of 512). The
    candidates take turns. Only the last token's logits are wanted; torch's model computes all.

    Args:
        lengths: n, tokens of the prompt.
        shape: One of `SHAPES`, a text model.
        weights: Formats of the engine's weights.
        eager: Dtypes of our model in torch.
        llama: Whether to run llama.cpp, if it is installed.
        repeats: Timed runs of each.
        patience: Seconds; what takes longer runs once.
        gemm_size: Rows of the matrices of the product that takes turns too.
        progress: Called with a line of text before each row.

    Returns:
        `figures`, and `notes` on what was left out and why.

    Example:
        >>> from ssmn.bench import prefill
        >>> small = prefill([9], shape="tiny", weights=(), eager=["float32"], llama=False, repeats=1, gemm_size=64)
        >>> small["figures"][0]["unit"]
        'tokens/s'
    """
    if not lengths or min(*lengths, repeats) < 1:
        raise RangeError(f"prefill: lengths={list(lengths)}, repeats={repeats}; wanted 1 or more.")
    for name, values, known in (("weights", weights, FORMATS), ("eager", eager, EAGER)):
        for value in values:
            if value not in known:
                raise RangeError(f"prefill: {name} has {value!r}; wanted some of {', '.join(known)}.")
    config = SHAPES.get(shape)
    if not isinstance(config, TextSSMNConfig):
        texts = [name for name, known in SHAPES.items() if isinstance(known, TextSSMNConfig)]
        raise RangeError(f"prefill: shape={shape!r}; wanted one of {', '.join(texts)}.")
    notes: list[str] = []
    refused = engine_refusal()
    if refused and weights:
        notes.append(refused)
        weights = ()
    threads = torch.get_num_threads()
    figures: list[Figure] = []
    with ExitStack() as stack:
        progress(f"{shape}: packing")
        model = build(shape)
        runners: list[Runner] = [
            *(EngineRunner(model, name, threads) for name in weights),
            *(EagerRunner(model, name) for name in eager),
        ]
        if llama and shape == "smollm2-135m":
            refused = peers.refusal()
            if refused:
                notes.append(refused)
            else:
                runners.append(LlamaRunner(stack.enter_context(llama_weights(threads)), max(lengths), threads))
                stack.callback(runners[-1].close)
                notes.append(f"llama.cpp: {peers.shipped_weights().name} quantised by itself to Q4_0")
        smallest = min((runner for runner in runners if isinstance(runner, EngineRunner)),
                       key=lambda runner: runner.weight_bytes, default=None)  # fmt: skip
        floor = gemm(torch.float32, gemm_size)
        for length in lengths:
            progress(f"{shape}, n = {length:,}")
            tokens = random_tokens(config.vocab_size, length)

            def call(runner: Runner, tokens: Sequence[int]) -> Callable[[], object]:
                def read() -> None:
                    runner.place(0)
                    runner.prefill(tokens)

                return read

            turns = {runner.who: call(runner, tokens) for runner in runners}
            seconds = time_alternately({**turns, floor.name: floor.call}, repeats, patience)
            for runner in runners:
                ours = isinstance(runner, EngineRunner)
                figures.append(
                    Figure(
                        panel=f"prefill, {shape}", length=length, who=runner.who, unit="tokens/s", better="more",
                        ours=ours, against=smallest.who if smallest and not ours else None,
                        **spread([length / run for run in seconds[runner.who]]),
                    )
                )  # fmt: skip
    return {"figures": plain(figures), "notes": notes}
