"""The numbers of a report: what a state holds, and what a model did while it read a text."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssmn import ops
from ssmn.config import LONG_TERM, SHORT_TERM, Plasticity
from ssmn.errors import RangeError, StateError
from ssmn.layers.attention import SlidingWindowAttention
from ssmn.models.text import TextSSMN
from ssmn.ops.rotary import rotate
from ssmn.probes import StateMap, Trace, Tracer, attribution_matrix, state_map, watch_memories
from ssmn.probes.measures import effective_rank, energy, measure_call, measure_state, spectrum, transition
from ssmn.probes.watch import MemoryCall
from ssmn.state import StreamState, WindowState

if TYPE_CHECKING:
    from ssmn.training import Tokenizer

SHOWN = 1200
"""Tokens of a text that a report shows, its last ones, unless told otherwise."""

MAPPED = 96
"""Tokens of an attention map, the last ones."""

BUDGET = 1 << 24
"""Bytes that are kept of earlier writes to trace reads back to, unless told otherwise."""

_PIECE = 256
_CHUNK = 64
_AROUND = 5


@dataclass(frozen=True, eq=False)
class Head:
    """One head of one synaptic memory. What needs a text to be read is NaN without one."""

    layer: int
    """Number of the layer."""
    head: int
    """Number of the head."""
    memory: np.ndarray
    """S [K, V]."""
    spectrum: np.ndarray
    """[min(K, V)], singular values, falling."""
    energy: float
    """‖S‖²_F."""
    effective_rank: float
    """How many directions are in use."""
    saturation: float
    """Effective rank / K."""
    write_rate: float = float("nan")
    """Share of the shown steps that were written."""
    importance: float = float("nan")
    """Mean importance of the shown steps, in [0, 1]."""
    half_life: float = float("nan")
    """Steps after which half is left by the decay alone."""
    half_life_probed: float = float("nan")
    """Steps after which half is left, erasures included."""

    @property
    def name(self) -> str:
        """Such as "layer 2, head 0"."""
        return f"layer {self.layer}, head {self.head}"


@dataclass(frozen=True, eq=False)
class Part:
    """One head of what a layer without a synaptic memory remembers (`ssmn.probes.state_map`)."""

    layer: int
    """Number of the layer."""
    head: int | None
    """Number of the head; None if there is but one."""
    title: str
    """What it is, such as "stored patterns"."""
    axes: tuple[str, str]
    """What a row and a column are."""
    values: np.ndarray
    """[R, C]."""
    energy: float
    """Sum of the squares."""
    effective_rank: float
    """How many directions are in use; NaN of what is no matrix."""

    @property
    def name(self) -> str:
        """Such as "layer 2, head 0: stored patterns"."""
        head = "" if self.head is None else f", head {self.head}"
        return f"layer {self.layer}{head}: {self.title}"


@dataclass(frozen=True, eq=False)
class Holdings:
    """What the state of one stream holds."""

    position: int
    """Open steps so far."""
    nbytes: int
    """Bytes of the state, the same at every position."""
    heads: tuple[Head, ...]
    """Every head of every synaptic memory."""
    windows: Mapping[int, tuple[float, int]]
    """By the number of the layer, the share of the window's slots in use, and its size W."""
    parts: tuple[Part, ...] = ()
    """What the layers hold that have neither: members of the family."""


@dataclass(frozen=True)
class Token:
    """What is known of one token of the vocabulary over a whole reading."""

    text: str
    """In quotes."""
    count: int
    """How often it was read."""
    importance: float
    """Mean over its steps and over all memories, in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What a model did while it read a text; T tokens are shown, the last ones, with L layers and k sources each."""

    tokens: int
    """Tokens read."""
    start: int
    """Position of the first one read: 0 in a fresh stream."""
    bits_per_byte: float
    """Mean surprise; NaN if nothing was predicted."""
    important: tuple[Token, ...]
    """Tokens of the vocabulary by importance, the most important first."""
    importance: np.ndarray
    """[L], mean over all tokens read and over the heads."""
    written: np.ndarray
    """[L], share of steps and heads that were written, over all tokens read."""
    pieces: tuple[str, ...]
    """Text of the T shown tokens; "" for one that completes no character."""
    trace: Trace
    """Of the T shown tokens."""
    energies: Mapping[str, np.ndarray]
    """By the name of the head, ‖S‖²_F after each of the T tokens."""
    snippets: Mapping[int, tuple[str, str, str]]
    """By position, a source before the shown tokens: text before it, its own, text after it."""
    holdings: Holdings
    """What the stream holds at the end."""
    memory_maps: Mapping[int, np.ndarray]
    """By layer, what each of the last tokens' reads of the memory took from each of them, [M, M], signed."""
    window_maps: Mapping[int, np.ndarray]
    """By layer, the attention of the window over the same tokens, mean over the heads, [M, M]."""
    forgetting: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]
    """By the name of the head and the setting, steps since a write and the share that is left."""

    @property
    def first(self) -> int:
        """Position of the first shown token."""
        return self.start + self.tokens - len(self.pieces)

    @property
    def surprise(self) -> np.ndarray:
        """[T] bits; NaN where nothing was predicted."""
        return np.full(len(self.pieces), np.nan) if self.trace.novelty is None else self.trace.novelty.numpy()


def holdings(state: StreamState) -> Holdings:
    """What the state of one stream holds.

    Raises:
        StateError: It has several rows.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.plots.report import holdings
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=12, num_layers=3, num_heads=2, window_size=9)
        >>> _, state = ssmn.TextSSMN(config)(torch.randint(16, (1, 4)))
        >>> held = holdings(state)
        >>> held.position, held.heads[0].name, held.windows[0]
        (4, 'layer 1, head 0', (0.5, 9))
    """
    if state.batch_size != 1:
        raise StateError(f"holdings: the state has {state.batch_size} rows; wanted one: state.select([row]).")
    heads, windows, parts = [], {}, []
    for number, part in enumerate(state.detach().layers):
        (measured,) = measure_state(part)
        values = {name: value[0] for name, value in measured.values.items()}
        if isinstance(part, WindowState):
            windows[number] = (float(values["fill"]), part.keys.shape[1] + 1)
        elif measured.kind == "plastic":
            for head, memory in enumerate(part.memory[0]):  # type: ignore[attr-defined]
                numbers = {name: float(values[name][head]) for name in ("energy", "effective_rank", "saturation")}
                heads.append(Head(number, head, memory.numpy(), values["spectrum"][head].numpy(), **numbers))
        else:
            parts += _parts(number, state_map(part))
    return Holdings(int(state.position[0]), state.nbytes, tuple(heads), windows, tuple(parts))


def _parts(layer: int, shown: StateMap) -> Iterator[Part]:
    for head, values in enumerate(shown.values[0].float()):
        rank = float(effective_rank(spectrum(values))) if shown.is_matrix else float("nan")
        number = head if shown.values.shape[1] > 1 else None
        yield Part(layer, number, shown.title, (shown.rows, shown.columns), values.numpy(), float(energy(values)), rank)


@torch.no_grad()
def read(
    model: TextSSMN,
    tokenizer: Tokenizer,
    pieces: Iterable[np.ndarray],
    *,
    state: StreamState | None = None,
    limit: int | None = None,
    shown: int = SHOWN,
    top: int = 6,
    budget: int = BUDGET,
    plasticity: Plasticity | None = None,
) -> Reading:
    """Reads a text and keeps what a report shows of it.

    Args:
        model: A text model with a synaptic memory.
        tokenizer: The one saved with it.
        pieces: Token numbers, such as from `ssmn.streaming.token_pieces`.
        state: Where the stream stands; None = fresh.
        limit: Tokens to read at most.
        shown: Tokens to keep everything of, the last ones; of those before them the sources of a read are kept.
        top: Sources told of each read.
        budget: Bytes for earlier writes.
        plasticity: How strongly to learn and forget.

    Raises:
        RangeError: The text is empty, or `shown` is below 1.
        ConfigError: The model has no synaptic memory.

    Example:
        >>> import ssmn, numpy as np
        >>> from ssmn.plots.report import read
        >>> from ssmn.training import Tokenizer
        >>> config = ssmn.TextSSMNConfig(vocab_size=256, hidden_dim=12, num_layers=3, num_heads=2, window_size=9)
        >>> reading = read(ssmn.TextSSMN(config), Tokenizer.for_bytes(), [np.frombuffer(b"so it is", np.uint8)])
        >>> reading.tokens, "".join(reading.pieces), reading.memory_maps[1].shape
        (8, 'so it is', (8, 8))
    """
    if shown < 1:
        raise RangeError(f"read: shown={shown!r}; wanted at least 1 token.")
    tracer = Tracer(model, state, top=top, budget=budget, plasticity=plasticity)
    start, decoder = int(tracer.state.position[0]), tokenizer.stream_decoder()
    sums = _Sums(tokenizer.vocab_size, len(tracer.layers))
    everything: list[np.ndarray] = []
    kept: deque[tuple[StreamState, np.ndarray, Trace, list[str]]] = deque()
    for tokens in _cut(pieces, limit):
        before = tracer.state
        trace = tracer.push(torch.from_numpy(tokens).unsqueeze(0))
        sums.add(tokens, trace, tokenizer.byte_lengths)
        everything.append(tokens)
        kept.append((before, tokens, trace, [decoder.push(token) for token in tokens.tolist()]))
        while sum(len(entry[1]) for entry in kept) - len(kept[0][1]) >= shown:
            kept.popleft()
    if not kept:
        raise RangeError("read: the text is empty; wanted at least one token.")
    before, tokens = kept[0][0], np.concatenate([entry[1] for entry in kept])
    extra = max(0, len(tokens) - shown)
    trace = _last(Trace.join([entry[2] for entry in kept]), extra)
    texts = [text for entry in kept for text in entry[3]]
    texts[-1] += decoder.finish()
    calls = _calls(model, before, tokens, plasticity)
    first = start + sums.tokens - len(tokens) + extra
    whole = np.concatenate(everything)
    return Reading(
        tokens=sums.tokens,
        start=start,
        bits_per_byte=sums.bits_per_byte,
        important=sums.most_important(tokenizer),
        importance=sums.importance / sums.tokens,
        written=sums.written / sums.tokens,
        pieces=tuple(texts[extra:]),
        trace=trace,
        energies={
            f"layer {layer}, head {head}": row
            for layer, call in calls.items()
            for head, row in enumerate(_energies(call)[:, extra:])
        },
        snippets=_snippets(tokenizer, whole, start, trace.positions.numpy(), first),
        holdings=_with_calls(holdings(tracer.state), calls),
        **_maps(model, before, tokens, min(MAPPED, len(tokens) - extra), plasticity),
        forgetting=_forgetting(model, before, tokens, plasticity),
    )


class _Sums:
    """What is known of a whole text, whatever its length."""

    def __init__(self, vocab_size: int, layers: int) -> None:
        self.tokens, self._bits, self._bytes = 0, 0.0, 0
        self.importance, self.written = np.zeros(layers), np.zeros(layers)
        self._count, self._asked = np.zeros(vocab_size), np.zeros(vocab_size)

    def add(self, tokens: np.ndarray, trace: Trace, lengths: np.ndarray) -> None:
        self.tokens += len(tokens)
        importance = trace.importance.double().numpy()
        self.importance += importance.sum(0)
        self.written += trace.written.double().numpy().sum(0)
        np.add.at(self._count, tokens, 1)
        np.add.at(self._asked, tokens, importance.mean(1))
        if trace.novelty is not None:
            predicted = ~np.isnan(trace.novelty.numpy())
            self._bits += float(trace.novelty.numpy()[predicted].sum())
            self._bytes += int(lengths[tokens[predicted]].sum())

    @property
    def bits_per_byte(self) -> float:
        return self._bits / self._bytes if self._bytes else float("nan")

    def most_important(self, tokenizer: Tokenizer, most: int = 50) -> tuple[Token, ...]:
        """By mean importance; those seen less than three times only if there are too few others."""
        mean = self._asked / np.maximum(self._count, 1)
        order = np.lexsort((-mean, self._count < 3, self._count == 0))[: min(most, int((self._count > 0).sum()))]
        return tuple(Token(quoted(tokenizer, int(n)), int(self._count[n]), float(mean[n])) for n in order)


def quoted(tokenizer: Tokenizer, token: int) -> str:
    """A token in quotes: as text, or as bytes if it is only a part of a character."""
    raw = tokenizer.decode_bytes([token])
    try:
        return repr(raw.decode())
    except UnicodeDecodeError:
        return repr(raw)


def _cut(pieces: Iterable[np.ndarray], limit: int | None) -> Iterator[np.ndarray]:
    left = limit
    for piece in pieces:
        tokens = np.asarray(piece[:left], dtype=np.int64)
        yield from (tokens[start : start + _PIECE] for start in range(0, len(tokens), _PIECE))
        left = None if left is None else left - len(tokens)
        if left == 0:
            return


def _last(trace: Trace, extra: int) -> Trace:
    """The trace without its first steps."""
    parts = {field.name: getattr(trace, field.name) for field in dataclasses.fields(trace)}
    return dataclasses.replace(trace, **{name: x[extra:] for name, x in parts.items() if isinstance(x, Tensor)})


def _calls(
    model: TextSSMN, state: StreamState, tokens: np.ndarray, plasticity: Plasticity | None
) -> dict[int, MemoryCall]:
    """What each memory was given while the model read the tokens on from a state."""
    with watch_memories(model) as seen:
        model.hidden(torch.from_numpy(tokens).unsqueeze(0), state, plasticity=plasticity)
    return {layer: calls[-1] for layer, calls in seen.items()}


def _part(call: MemoryCall, start: int, stop: int) -> MemoryCall:
    """The steps from `start` to `stop` of a call."""
    timed = ("keys", "values", "importance", "eta", "log_decay", "erase", "mask", "reset")
    cut = {name: None if (value := getattr(call, name)) is None else value[:, start:stop] for name in timed}
    return dataclasses.replace(call, **cut, queries=[])


def _energies(call: MemoryCall) -> np.ndarray:
    """‖S_t‖²_F, [H, T]: the recurrence step by step, a chunk of states at a time."""
    memory, found = call.initial_state, []
    for start in range(0, call.keys.shape[1], _CHUNK):
        part = _part(call, start, start + _CHUNK)
        trace, memory = ops.memory_write(
            part.keys.to(memory.dtype), part.values.to(memory.dtype), eta=part.eta, log_decay=part.log_decay,
            erase=part.erase, rule=part.rule, mask=part.mask, reset=part.reset, initial_state=memory,
            backend="reference",
        )  # fmt: skip
        assert trace.states is not None
        found.append(energy(trace.states[0]))
    return torch.cat(found).T.numpy()


def _with_calls(held: Holdings, calls: Mapping[int, MemoryCall]) -> Holdings:
    """The holdings with what a text told of each head."""
    told = {layer: measure_call(call) for layer, call in calls.items()}
    names = ("write_rate", "importance", "half_life", "half_life_probed")
    heads = [
        dataclasses.replace(head, **{name: float(told[head.layer][name][0, head.head]) for name in names})
        if head.layer in told
        else head
        for head in held.heads
    ]
    return dataclasses.replace(held, heads=tuple(heads))


def _snippets(
    tokenizer: Tokenizer, tokens: np.ndarray, start: int, positions: np.ndarray, first: int
) -> dict[int, tuple[str, str, str]]:
    """The text around every source that lies before the shown tokens."""
    found = {}
    for position in np.unique(positions[(positions >= start) & (positions < first)]).tolist():
        at = position - start
        parts = (tokens[max(0, at - _AROUND) : at], tokens[at : at + 1], tokens[at + 1 : at + 1 + _AROUND])
        found[position] = tuple(tokenizer.decode_bytes(part.tolist()).decode(errors="replace") for part in parts)
    return found


def _maps(
    model: TextSSMN, state: StreamState, tokens: np.ndarray, mapped: int, plasticity: Plasticity | None
) -> dict[str, dict[int, np.ndarray]]:
    """What the last tokens read of each other, through the memory and through the window, by layer."""
    row = torch.from_numpy(tokens).unsqueeze(0)
    split = len(tokens) - mapped
    if split:
        _, state = model.hidden(row[:, :split], state, plasticity=plasticity)
    last, windows = row[:, split:], {}

    def keep(number: int) -> Any:
        def hook(attention: Any, given: Any) -> None:
            windows[number] = window_weights(attention, given[0], given[1]).mean(0).float().numpy()

        return hook

    handles = [
        block.mixer.register_forward_pre_hook(keep(number))
        for number, block in enumerate(model.blocks)
        if isinstance(block.mixer, SlidingWindowAttention)
    ]
    try:
        memories = dict.fromkeys(_calls(model, state, last.numpy()[0], plasticity))
    finally:
        for handle in handles:
            handle.remove()
    for layer in memories:
        found = attribution_matrix(model, last, layer=layer, state=state, plasticity=plasticity)
        memories[layer] = found.contributions().numpy()
    return {"memory_maps": memories, "window_maps": windows}  # type: ignore[dict-item]


@torch.no_grad()
def window_weights(attention: SlidingWindowAttention, hidden: Tensor, state: WindowState) -> Tensor:
    """The attention of a window layer over the steps of a piece.

    Args:
        attention: The layer.
        hidden: [1, T, D], what it reads.
        state: Its state before the piece.

    Returns:
        [Hq, T, T], reader by source. Rows sum to 1 less what went to steps before the piece and to the sink.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.plots.report import window_weights
        >>> layer = ssmn.layers.SlidingWindowAttention(8, 2, window_size=3)
        >>> weights = window_weights(layer, torch.randn(1, 5, 8), layer.init_state(1))
        >>> [round(total, 5) for total in weights[0].sum(-1).tolist()], weights[0, 4, :2].tolist()
        ([1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0])
    """
    time, slots, before = hidden.shape[1], attention.window_size - 1, int(state.position[0])
    held = min(before, slots)
    ring = torch.arange(before - held, before)
    place = before + torch.arange(time)
    query = rotate(attention.query(hidden[0]).unflatten(-1, (attention.num_heads, -1)), place, attention.rope_theta)
    key = rotate(attention.key(hidden[0]).unflatten(-1, (attention.num_kv_heads, -1)), place, attention.rope_theta)
    if held:
        key = torch.cat([state.keys[0, ring % slots].to(key.dtype), key])
    key = key.repeat_interleave(attention.num_heads // attention.num_kv_heads, 1)
    distance = place.unsqueeze(1) - torch.cat([ring, place])
    scores = torch.einsum("thd,shd->hts", query, key) * attention.head_dim**-0.5
    scores = scores.masked_fill((distance < 0) | (distance > slots), -torch.inf)
    if attention.sinks is not None:
        sinks = attention.sinks.to(scores.dtype)[:, None, None].expand(-1, time, 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., held : held + time]
    return scores.softmax(-1)[..., held:]


def _forgetting(
    model: TextSSMN, state: StreamState, tokens: np.ndarray, plasticity: Plasticity | None
) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """What each head has left of an arbitrary content after n more steps of this text, as read and by other settings.

    ‖P_n‖_F / √K, P_n what n steps do to everything that was stored before them.
    """
    base = plasticity or Plasticity()
    settings = {
        "as read": plasticity,
        "η × ¼": dataclasses.replace(base, eta_scale=base.eta_scale / 4),
        "λ × 10": dataclasses.replace(base, decay_scale=base.decay_scale * 10),
        "long-term preset": LONG_TERM,
        "short-term preset": SHORT_TERM,
    }
    steps = np.unique(np.geomspace(1, len(tokens), 18).round().astype(int))
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for name, setting in settings.items():
        for layer, call in _calls(model, state, tokens, setting).items():
            left = torch.stack([energy(transition(_part(call, 0, int(n)))[0]) for n in steps], 1)
            left = (left / call.keys.shape[-1]).sqrt().numpy()
            for head, row in enumerate(left):
                found.setdefault(f"layer {layer}, head {head}", {})[name] = (steps, row)
    return found
