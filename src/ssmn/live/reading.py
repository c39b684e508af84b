"""A stream that is read in bounded pieces while its memory is watched: the live view without threads or clocks."""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmn.config import Plasticity, SSMNConfig
from ssmn.errors import ConfigError, RangeError, ShapeError, StateError
from ssmn.live.feeds import Reader, Steps
from ssmn.live.numbers import Picture, memories_of, picture
from ssmn.models.stack import Stack
from ssmn.probes import effective_rank, energy, spectrum, state_maps, watch_importance, writers
from ssmn.state import StreamState
from ssmn.stream import Stream
from ssmn.streaming import token_bits

if TYPE_CHECKING:
    from ssmn.training import Tokenizer

SHOWN = 64
"""Steps of which a report has the text or the values, the latest ones."""
MOST_PUSHED = 1 << 16
"""Steps that may wait in a session beside those of its source."""
MOST_CHECKPOINTS = 16


@dataclass(frozen=True)
class LayerReport:
    """One memory, now and since the report before."""

    layer: int
    """Number of the layer."""
    title: str
    """What its memory is, such as "synaptic memory"."""
    axes: tuple[str, str]
    """What a row and a column of it are."""
    energy: list[float]
    """Σ S² of each head."""
    update: list[float]
    """‖ΔS‖ of each head since the report before, per step."""
    rank: list[float]
    """Effective rank of each head; as it was if it was not asked for, NaN of what is no matrix."""
    write_rate: list[float]
    """Share of the steps that were written, of each head; empty of a memory that does not choose what it writes."""
    importance: list[float]
    """Mean importance of the steps, of each head; likewise."""
    picture: Picture


@dataclass(frozen=True)
class Piece:
    """One step that was read."""

    text: str
    """The characters that it completed; of rows empty."""
    values: tuple[float, ...]
    """The row; of text empty."""
    expected: tuple[float, ...]
    """What was expected of the row, for each column (NaN: nothing)."""
    importance: float
    """How strongly it was written, from 0 (not at all) to 1; the mean over layers and heads."""
    surprise: float
    """Bits of the token, or the row's error in deviations of its columns; NaN if nothing was expected."""


@dataclass(frozen=True)
class Report:
    """What is to be drawn: the state now, and what was read since the report before."""

    position: int
    """Steps that the state has read."""
    steps: int
    """Steps read since the report before."""
    surprise: float
    """Bits per byte of text, or the mean error of rows in deviations, over these steps; NaN without any."""
    layers: tuple[LayerReport, ...]
    pieces: tuple[Piece, ...]
    """The latest of these steps."""
    left_out: int
    """How many came before them."""


class Reading:
    """A model that reads a feed piece by piece, with settings that may change between pieces.

    The numbers are those of a plain `Stream` that reads the same steps: watching changes nothing.

    Args:
        model: A text or a Standard model. Its weights are shared, nothing else.
        reader: Where the steps come from.
        tokenizer: Of a text model.
        state: Where to start; None = fresh.

    Raises:
        ConfigError: The model keeps nothing: all its layers are windows of one step.
        RangeError: The model needs inputs that rows do not bring, or a text model has no tokenizer.

    Example:
        >>> import ssmn
        >>> from ssmn.live.feeds import Feed
        >>> from ssmn.live.reading import Reading
        >>> from ssmn.training import Tokenizer
        >>> config = ssmn.TextSSMNConfig(vocab_size=256, hidden_dim=16, num_layers=3, num_heads=2, window_size=8)
        >>> tokenizer = Tokenizer.for_bytes()
        >>> reader = Feed(lambda: iter([tokenizer.encode("what was read")])).reader()
        >>> reading = Reading(ssmn.TextSSMN(config).eval(), reader, tokenizer)
        >>> reader.wait(1.0), reading.read(8), reading.report().position
        (True, 8, 8)
    """

    def __init__(
        self, model: Stack, reader: Reader, tokenizer: Tokenizer | None = None, state: StreamState | None = None
    ) -> None:
        config = model.config
        self._rows = config if isinstance(config, SSMNConfig) else None
        if self._rows is None and tokenizer is None:
            raise RangeError("live: tokenizer=None; wanted the text model's tokenizer.")
        for name in ("static_dim", "future_dim") if self._rows is not None else ():
            if getattr(config, name):
                raise RangeError(
                    f"live: the model has {name}={getattr(config, name)}, which rows do not bring; use ssmn.Stream."
                )
        # Modules of its own over the same weights, so that no other reading is seen by what watches this one.
        shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        self._own = copy.deepcopy(model, shared)
        self.model, self.reader, self.tokenizer = model, reader, tokenizer
        self._writers = writers(self._own)
        self.plasticity = Plasticity()
        """How the memory learns and forgets from the next piece on."""
        self._stream = Stream(self._own, state)
        if self._stream.state.batch_size != 1:
            raise StateError(f"live: the state holds {self._stream.state.batch_size} streams; wanted one.")
        self._expect = _Text(tokenizer) if tokenizer is not None else _Rows(cast("SSMNConfig", self._rows))
        self._marks: dict[str, Any] = {}
        self._pushed: deque[Steps] = deque()
        self._shown = state_maps(self.state)
        if not self._shown:
            raise ConfigError("live: all layers are windows of one step; the model keeps nothing that could be shown.")
        self._ranks = {layer: [0.0] * found.values.shape[1] for layer, found in self._shown.items()}
        self._begin()

    @property
    def state(self) -> StreamState:
        """The present state, a value."""
        return self._stream.state

    @property
    def position(self) -> int:
        """Steps that the state has read."""
        return int(self._stream.position[0])

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Names, oldest first."""
        return self._stream.checkpoints

    @property
    def waiting(self) -> bool:
        """Whether there is something to read."""
        return bool(self._pushed) or self.reader.waiting > 0

    def read(self, most: int) -> int:
        """Reads the next steps that are there, at most so many; what was pushed comes first. Returns how many."""
        steps = self._next(most)
        if steps is None:
            return 0
        with watch_importance(self._own) if self._writers else nullcontext({}) as seen:
            pieces = self._expect.read(self._stream, steps, self.plasticity)
        self._steps += len(steps)
        asked, strengths = self.plasticity.write_threshold, [np.zeros((len(steps), 1))]
        for layer, calls in seen.items():
            importance = (calls[0] if len(calls) == 1 else torch.cat(calls, 1))[0].numpy()  # [T, H]
            limit = self._writers[layer].write_threshold if asked is None else asked
            written = (importance >= limit) & (not self.plasticity.frozen)
            self._written[layer] += written.sum(0)
            self._importance[layer] += importance.sum(0)
            strengths.append(np.where(written, importance, 0.0)[-SHOWN:])
        strength = np.concatenate(strengths[1:] or strengths, 1)[-SHOWN:].mean(1)
        self._seen.extend(zip(pieces[-SHOWN:], strength.tolist(), strict=True))
        return len(steps)

    def report(self, *, ranks: bool = True) -> Report:
        """What is to be drawn; the next report begins here.

        Args:
            ranks: Whether effective ranks are found anew, which costs more than all the rest.
        """
        now, steps = memories_of(self.state), max(1, self._steps)
        layers = []
        for layer, memory in now.items():
            shown = self._shown[layer]
            if ranks:
                sound = shown.is_matrix and bool(memory.isfinite().all())
                self._ranks[layer] = effective_rank(spectrum(memory)).tolist() if sound else [math.nan] * len(memory)
            change = energy(memory - self._before[layer]).sqrt() / steps
            layers.append(
                LayerReport(
                    layer=layer,
                    title=shown.title,
                    axes=(shown.rows, shown.columns),
                    energy=energy(memory).tolist(),
                    update=change.tolist(),
                    rank=self._ranks[layer],
                    write_rate=(self._written[layer] / steps).tolist(),
                    importance=(self._importance[layer] / steps).tolist(),
                    picture=picture(memory),
                )
            )
        pieces = tuple(self._expect.shown(self._seen))
        made = Report(
            self.position, self._steps, self._expect.surprise(), tuple(layers), pieces, self._steps - len(pieces)
        )
        self._begin()
        return made

    def push(self, what: str | Sequence[Sequence[float | None]]) -> int:
        """Puts a text, or rows, before what comes from the source. Returns the number of steps.

        Raises:
            RangeError, ShapeError: It is not what the model reads, or too much is waiting already.
        """
        steps = self._expect.encode(what)
        waiting = sum(map(len, self._pushed))
        if waiting + len(steps) > MOST_PUSHED:
            raise RangeError(
                f"push: {len(steps):,} steps beside {waiting:,} that wait; wanted at most {MOST_PUSHED:,} in all: wait "
                f"until they are read."
            )
        if len(steps):
            self._pushed.append(steps)
        return len(steps)

    def checkpoint(self, name: str | None = None) -> str:
        """Remembers the state under a name (made up if None).

        Raises:
            RangeError: There are `MOST_CHECKPOINTS` already.
        """
        if len(self._marks) >= MOST_CHECKPOINTS and name not in self._marks:
            raise RangeError(f"checkpoint: there are {MOST_CHECKPOINTS} already; use the name of one of them.")
        made = self._stream.checkpoint(name)
        self._marks[made] = self._expect.mark()
        return made

    def rollback(self, name: str | None = None) -> str:
        """Goes back to a checkpoint, the latest if none is named; the source goes on where it is. Returns its name.

        Raises:
            StateError: There is no such checkpoint.
        """
        self._stream.rollback(name)
        chosen = self.checkpoints[-1] if name is None else name
        self._expect.restore(self._marks[chosen])
        return chosen

    def fork(self) -> Reading:
        """A second reading from the same state, at the same place of the source, with the same settings."""
        made = Reading(self.model, self.reader.fork(), self.tokenizer, self.state.clone())
        made.plasticity = self.plasticity
        made._pushed = deque(self._pushed)
        made._expect = self._expect.fork()
        made._ranks = dict(self._ranks)
        return made

    def state_file(self) -> bytes:
        """The present state as the bytes of a state file.

        Raises:
            StateError: The state has values that are not finite.
        """
        with tempfile.TemporaryDirectory(prefix="ssmn-") as folder:
            path = Path(folder) / "state.safetensors"
            self.state.save(path, self.model)
            return path.read_bytes()

    def _next(self, most: int) -> Steps | None:
        if not self._pushed:
            return self.reader.take(most)
        first = self._pushed.popleft()
        if len(first) > most:
            self._pushed.appendleft(first[most:])
        return first[:most]

    def _begin(self) -> None:
        self._before = memories_of(self.state)
        self._steps = 0
        heads = {layer: self._writers[layer].heads if layer in self._writers else 0 for layer in self._before}
        self._written, self._importance = ({layer: np.zeros(n) for layer, n in heads.items()} for _ in range(2))
        self._seen: deque[tuple[Any, float]] = deque(maxlen=SHOWN)
        self._expect.begin()


class _Text:
    """A text model's side: the last token is predicted and not yet read."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: NDArray[Any] = tokenizer.line_end
        self._pending_bits = math.nan
        self._decoder = tokenizer.stream_decoder()
        self._is_first = True
        self.begin()

    def begin(self) -> None:
        self._bits, self._bytes = 0.0, 0

    def surprise(self) -> float:
        return self._bits / self._bytes if self._bytes else math.nan

    def read(self, stream: Stream, steps: Steps, plasticity: Plasticity) -> list[tuple[int | None, float]]:
        tokens = np.concatenate([self._pending, steps])
        bits = token_bits(stream, tokens, plasticity=plasticity)
        self._bits += float(bits.sum())
        self._bytes += int(self._tokenizer.byte_lengths[steps].sum())
        numbers: list[int | None] = tokens[:-1].tolist()
        if self._is_first:
            numbers[0] = None  # stands before the text, and is none of it
        surprises = [self._pending_bits, *bits[:-1].tolist()]
        self._pending, self._pending_bits, self._is_first = tokens[-1:], float(bits[-1]), False
        return list(zip(numbers, surprises, strict=True))

    def shown(self, seen: Sequence[tuple[tuple[int | None, float], float]]) -> list[Piece]:
        return [
            Piece("" if token is None else self._decoder.push(token), (), (), strength, bits)
            for (token, bits), strength in seen
        ]

    def encode(self, what: Any) -> Steps:
        if not isinstance(what, str):
            raise RangeError(f"push: {type(what).__name__}; the model reads text: wanted a string.")
        try:
            what.encode()
        except UnicodeEncodeError:
            raise RangeError("push: the text has half of a surrogate pair; wanted characters of Unicode.") from None
        return self._tokenizer.encode(what)

    def mark(self) -> Any:
        return self._pending, self._pending_bits, self._is_first

    def restore(self, mark: Any) -> None:
        self._pending, self._pending_bits, self._is_first = mark

    def fork(self) -> _Text:
        made = _Text(self._tokenizer)
        made.restore(self.mark())
        return made


class _Rows:
    """A Standard model's side: each output is held against the row that comes next."""

    def __init__(self, config: SSMNConfig) -> None:
        self._config = config
        speaks = config.targets is not None or config.output_dim == config.input_dim
        targets = config.target_columns if speaks else ()
        self._targets = list(targets)
        self._first = {column: targets.index(column) for column in targets}
        self._expected = np.full(config.input_dim, math.nan)
        self._count, self._mean, self._squares = (np.zeros(config.input_dim) for _ in range(3))
        self.begin()

    def begin(self) -> None:
        self._errors, self._compared = 0.0, 0

    def surprise(self) -> float:
        return self._errors / self._compared if self._compared else math.nan

    def read(self, stream: Stream, steps: Steps, plasticity: Plasticity) -> list[tuple[Any, Any, float]]:
        config, x = self._config, torch.from_numpy(np.ascontiguousarray(steps)).unsqueeze(0)
        x = x.to(next(cast("Stack", stream.model).parameters()).dtype)
        learns = config.readout != "none" and bool(self._targets)
        options: dict[str, Tensor] = {"target": x[..., self._targets]} if learns else {}
        y = stream.push(x, plasticity=plasticity, **options)[0].detach().double().numpy()
        if config.head != "point":
            y = y[..., 0 if config.head == "gaussian" else len(config.quantiles) // 2]
        after = np.full((len(steps), config.input_dim), math.nan)
        for column, output in self._first.items():
            after[:, column] = y[:, output]
        expected = np.concatenate([self._expected[None], after[:-1]])
        self._expected = after[-1]
        self._learn_scale(steps)
        deviation = np.sqrt(self._squares / np.maximum(self._count, 1))
        errors = np.abs(steps - expected) / np.where(deviation > 0, deviation, 1.0)
        found = np.isfinite(errors)
        each = np.where(found, errors, 0.0).sum(1) / np.maximum(found.sum(1), 1)
        compared = found.any(1)
        self._errors += float(each[compared].sum())
        self._compared += int(compared.sum())
        surprises = np.where(compared, each, math.nan).tolist()
        return list(zip(steps.tolist(), expected.tolist(), surprises, strict=True))

    def shown(self, seen: Sequence[tuple[tuple[Any, Any, float], float]]) -> list[Piece]:
        return [
            Piece("", tuple(row), tuple(expected), strength, surprise) for (row, expected, surprise), strength in seen
        ]

    def encode(self, what: Any) -> Steps:
        width = self._config.input_dim
        if isinstance(what, str) or not isinstance(what, Sequence):
            raise RangeError(f"push: {type(what).__name__}; the model reads rows: wanted a list of lists of numbers.")
        for number, row in enumerate(what):
            if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != width:
                raise ShapeError(f"push: rows[{number}] is {str(row)[:40]!r}; wanted a list of {width} numbers.")
            for cell in row:
                gap = cell is None and self._config.missing == "mask"
                sound = isinstance(cell, (int, float)) and not isinstance(cell, bool) and abs(cell) < 1e30
                if not gap and not sound:
                    raise RangeError(f"push: rows[{number}] has {str(cell)[:40]!r}; wanted finite numbers below 1e30.")
        cells = [[math.nan if cell is None else cell for cell in row] for row in what]
        return np.array(cells, np.float32).reshape(len(cells), width)

    def mark(self) -> Any:
        return tuple(part.copy() for part in (self._expected, self._count, self._mean, self._squares))

    def restore(self, mark: Any) -> None:
        self._expected, self._count, self._mean, self._squares = (part.copy() for part in mark)

    def fork(self) -> _Rows:
        made = _Rows(self._config)
        made.restore(self.mark())
        return made

    def _learn_scale(self, steps: Steps) -> None:
        """Welford's sums over all rows so far, a batch at a time."""
        present = np.isfinite(steps)
        count = present.sum(0)
        total = self._count + count
        with np.errstate(invalid="ignore"):
            mean = np.where(present, steps, 0.0).sum(0) / np.maximum(count, 1)
            inner = np.where(present, (steps - mean) ** 2, 0.0).sum(0)
        gap = mean - self._mean
        share = count / np.maximum(total, 1)
        self._squares += inner + np.where(count > 0, gap**2 * self._count * share, 0.0)
        self._mean += np.where(count > 0, gap * share, 0.0)
        self._count = total


def with_settings(plasticity: Plasticity, values: dict[str, Any]) -> Plasticity:
    """The settings with some of them changed: those that a live view has, as single numbers.

    Raises:
        RangeError: A name is none of them, or a value is outside its range.

    Example:
        >>> import ssmn
        >>> from ssmn.live.reading import with_settings
        >>> with_settings(ssmn.Plasticity(), {"eta_scale": 2}).eta_scale
        2
    """
    for name, value in values.items():
        if name not in SETTINGS:
            raise RangeError(f"settings: {name[:40]!r}; wanted some of {', '.join(SETTINGS)}.")
        if name == "frozen":
            continue
        optional = name not in ("eta_scale", "decay_scale")
        if not (value is None and optional) and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise RangeError(f"settings: {name} is {str(value)[:40]!r}; wanted a number{' or null' * optional}.")
        if isinstance(value, (int, float)) and abs(value) > LARGEST_SCALE:
            raise RangeError(f"settings: {name}={value:.3g}; wanted at most {LARGEST_SCALE:g}.")
    return dataclasses.replace(plasticity, **values)


SETTINGS = ("eta_scale", "decay_scale", "plasticity_eta", "decay_lambda", "write_threshold", "frozen")
"""The fields of `ssmn.Plasticity` that a live view has."""
LARGEST_SCALE = 1e6
