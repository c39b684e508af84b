"""Training whole models: tokens per second and peak memory, against a torch Transformer of the same size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssmn import native
from ssmn.bench.figures import Figure, plain, spread
from ssmn.bench.floors import GEMM_SIZE, gemm
from ssmn.bench.footprint import Peak, can_measure, in_fresh_process
from ssmn.bench.layers import DTYPES
from ssmn.bench.registry import register
from ssmn.bench.rivals import Transformer
from ssmn.bench.timing import time_alternately
from ssmn.config import TextSSMNConfig
from ssmn.errors import RangeError
from ssmn.models import TextSSMN

OURS, RIVAL = "ssmn", "torch Transformer (SDPA, causal)"
HEAD_DIM = 64


@register("train")
def train(
    lengths: Sequence[int] = (8_192, 65_536),
    *,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    width: int = 256,
    layers: int = 5,
    vocab_size: int = 1_024,
    window: int = 512,
    piece: int = 2_048,
    footprint: bool = True,
    rivals_to: int = 65_536,
    repeats: int = 3,
    patience: float = 30.0,
    gemm_size: int = GEMM_SIZE,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Training a whole text model: tokens per second and peak memory, against a torch Transformer of its size.

    Both read one sequence of random tokens. Ours reads it in pieces with carried state (truncated
    back-propagation) and makes a step of AdamW after every piece; the Transformer attends to all of it and
    makes one step. Width, layers, heads, feed-forward, vocabulary, tied embeddings and dtype are the same.
    The two take turns; so does a product of two matrices.

    Args:
        lengths: n, tokens of the sequence.
        dtypes: Of weights, activations and optimiser: `float32`, `bfloat16`.
        width: D, a multiple of 64.
        layers: L.
        vocab_size: Tokens.
        window: w of our window layers.
        piece: Tokens of a piece.
        footprint: Whether to measure peak memory, in processes of their own.
        rivals_to: Longest sequence that the Transformer is trained on.
        repeats: Timed runs of each.
        patience: Seconds; what takes longer runs once.
        gemm_size: Rows of the matrices.
        progress: Called with a line of text before each row.

    Returns:
        `figures`, the `parameters` of both, and `notes`.

    Example:
        >>> from ssmn.bench import train
        >>> small = train([40], dtypes=["float32"], width=64, layers=2, piece=30, footprint=False, gemm_size=64)
        >>> small["figures"][0]["unit"]
        'tokens/s'
    """
    if not lengths or not dtypes or min(*lengths, layers, vocab_size, window, piece, repeats) < 1:
        raise RangeError("train: lengths and dtypes must not be empty, and every number must be 1 or more.")
    if width < HEAD_DIM or width % HEAD_DIM:
        raise RangeError(f"train: width={width}; wanted a multiple of {HEAD_DIM}.")
    for name in dtypes:
        if name not in DTYPES:
            raise RangeError(f"train: dtypes has {name!r}; wanted some of {', '.join(DTYPES)}.")
    sizes = {"width": width, "layers": layers, "vocab_size": vocab_size, "window": window}
    figures: list[Figure] = []
    notes = [] if native.status().available else [f"no native kernels: {native.status().reason}"]
    parameters: dict[str, int] = {}
    for dtype, length in ((dtype, length) for dtype in dtypes for length in lengths):
        progress(f"training, {dtype}, n = {length:,}")
        steps = {OURS: OurTraining(dtype, piece, **sizes), RIVAL: RivalTraining(dtype, **sizes)}
        parameters = {who: step.parameters for who, step in steps.items()}
        if length > rivals_to:
            del steps[RIVAL]
        tokens = torch.randint(vocab_size, (1, length + 1), generator=torch.Generator().manual_seed(0))
        floor = gemm(DTYPES[dtype], gemm_size)
        turns: dict[str, Callable[[], object]] = {
            who: lambda step=step, tokens=tokens: step(tokens) for who, step in steps.items()
        }
        seconds = time_alternately({**turns, floor.name: floor.call}, repeats, patience)
        panel = f"training, {layers} layers of width {width}, {dtype}"
        figures += [
            Figure(
                panel=panel, length=length, who=who, unit="tokens/s", better="more", ours=who == OURS,
                against=OURS if who != OURS else None, **spread([length / run for run in seconds[who]]),
            )
            for who in steps
        ]  # fmt: skip
        if footprint and can_measure():
            notes.append(f"peak memory was not measured: {can_measure()}")
        elif footprint:
            for who in steps:
                progress(f"peak memory of {who}, {dtype}, n = {length:,}")
                settings = {"ours": who == OURS, "dtype": dtype, "length": length, "piece": piece, **sizes}
                found = in_fresh_process("ssmn.bench.train:peak_memory", torch.get_num_threads(), **settings)
                figures.append(
                    Figure(
                        panel=f"peak memory above model and optimiser, {panel}", length=length, who=who, unit="MiB",
                        ours=who == OURS, against=OURS if who != OURS else None,
                        **spread([found["extra_bytes"] / 2**20]),
                        details={"process, MiB": found["total_bytes"] / 2**20},
                    )
                )  # fmt: skip
    return {"figures": plain(figures), "parameters": parameters, "notes": list(dict.fromkeys(notes))}


class _Training:
    """A model with its optimiser."""

    def __init__(self, model: nn.Module, dtype: str) -> None:
        self.model = model.to(DTYPES[dtype])
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

    @property
    def parameters(self) -> int:
        """Number of weights; shared ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def _step(self, logits: Tensor, targets: Tensor) -> None:
        functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()).backward()
        self.optimiser.step()
        self.optimiser.zero_grad()


class OurTraining(_Training):
    """Truncated back-propagation with carried state, a step of the optimiser after every piece."""

    def __init__(self, dtype: str, piece: int, *, width: int, layers: int, vocab_size: int, window: int) -> None:
        config = TextSSMNConfig(
            vocab_size=vocab_size,
            hidden_dim=width,
            num_layers=layers,
            num_heads=width // HEAD_DIM,
            window_size=window,
            semantic_encoder=False,
        )
        super().__init__(TextSSMN(config), dtype)
        self.piece = piece

    @torch.enable_grad()
    def __call__(self, tokens: Tensor) -> None:
        """Trains on tokens [1, n + 1] once."""
        state = None
        inputs, targets = tokens[:, :-1].split(self.piece, 1), tokens[:, 1:].split(self.piece, 1)
        for piece, target in zip(inputs, targets, strict=True):
            logits, state = self.model(piece, state)
            self._step(logits, target)
            state = state.detach()


class RivalTraining(_Training):
    """The whole sequence at once."""

    def __init__(self, dtype: str, *, width: int, layers: int, vocab_size: int, window: int) -> None:
        config = TextSSMNConfig(vocab_size=1, hidden_dim=width, num_layers=layers, num_heads=width // HEAD_DIM)
        assert config.ffn_dim is not None
        super().__init__(Transformer(vocab_size, width, layers, config.num_heads, config.ffn_dim), dtype)

    @torch.enable_grad()
    def __call__(self, tokens: Tensor) -> None:
        """Trains on tokens [1, n + 1] once."""
        self._step(self.model(tokens[:, :-1]), tokens[:, 1:])


def peak_memory(ours: bool, dtype: str, length: int, piece: int, **sizes: int) -> dict[str, int]:
    """The peak of resident memory while training on one sequence, in all and above what model and optimiser take.

    Meant for a process of its own. A short sequence is trained on first, so that the optimiser has its state.
    """
    step = OurTraining(dtype, piece, **sizes) if ours else RivalTraining(dtype, **sizes)
    tokens = torch.randint(sizes["vocab_size"], (1, length + 1), generator=torch.Generator().manual_seed(0))
    step(tokens[:, :65])
    peak = Peak()
    step(tokens)
    return {"extra_bytes": peak.above, "total_bytes": peak.total}
