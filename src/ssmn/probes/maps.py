"""What of a layer's state is to be looked at as a matrix: one map per head, whatever the kind of layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ssmn.state import State, StreamState


@dataclass(frozen=True, eq=False)
class StateMap:
    """The part of one layer's state that remembers longest, as matrices."""

    title: str
    """What it is, such as "synaptic memory"."""
    rows: str
    """What a row is."""
    columns: str
    """What a column is."""
    values: Tensor
    """[B, H, R, C], one matrix per head; the state's own numbers, which nothing writes into."""
    is_matrix: bool = True
    """Whether its singular values mean something: not of a vector that is only laid out in rows."""


def state_map(state: State) -> StateMap:
    """One layer's state as a map.

    A synaptic memory and the manifold of an `amn` layer are shown as they are, [K, V] per head; a Hopfield memory by
    its stored patterns, slot by component; a Neural Turing Machine by its memory's rows; a linear recurrence by real
    and imaginary part of its channels; a window by its keys. Of a kind that is not known here: its largest tensor.

    Args:
        state: A layer's.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.probes import state_map
        >>> config = ssmn.SSMNConfig(input_dim=1, output_dim=1, hidden_dim=12, num_layers=2, num_heads=2,
        ...                          layer_types=("lru", "hopfield"), memory_slots=9)
        >>> _, state = ssmn.SSMN(config)(torch.randn(1, 5, 1))
        >>> [(found.title, list(found.values.shape)) for found in map(state_map, state.layers)]
        [('linear recurrence', [1, 1, 2, 6]), ('stored patterns', [1, 2, 9, 6])]
    """
    return _KINDS.get(state.kind, _other)(state)


def state_maps(state: StreamState) -> dict[int, StateMap]:
    """The maps of a stream's memories by the number of their layer: windows only if there is nothing else.

    Windows of one step hold nothing and have no map.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.probes import state_maps
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=12, num_layers=3, num_heads=2, window_size=8)
        >>> {layer: found.title for layer, found in state_maps(ssmn.TextSSMN(config).init_state(1)).items()}
        {1: 'synaptic memory'}
    """
    lasting = [number for number, layer in enumerate(state.layers) if layer.kind != "window"]
    found = {number: state_map(state.layers[number]) for number in lasting or range(len(state.layers))}
    return {number: shown for number, shown in found.items() if shown.values.numel()}


def _plastic(state: Any) -> StateMap:
    return StateMap("synaptic memory", "key", "value", state.memory)


def _recurrence(state: Any) -> StateMap:
    return StateMap("linear recurrence", "real, imaginary part", "channel", state.hidden.unsqueeze(1), is_matrix=False)


def _amn(state: Any) -> StateMap:
    if state.memory is None:
        return _recurrence(state)
    return StateMap("associative memory", "key", "value", state.memory)


def _hopfield(state: Any) -> StateMap:
    return StateMap("stored patterns", "slot", "component", state.keys.transpose(1, 2))


def _ntm(state: Any) -> StateMap:
    return StateMap("tape of the Turing machine", "memory row", "component", state.memory.unsqueeze(1))


def _window(state: Any) -> StateMap:
    return StateMap("keys in the window", "slot", "component", state.keys.transpose(1, 2))


def _other(state: State) -> StateMap:
    found = max(
        (value for value in state.named_tensors().values() if value.is_floating_point()),
        key=lambda value: value[0].numel(),
    )
    flat = found.reshape(len(found), 1, -1, found.shape[-1]) if found.dim() > 1 else found.reshape(-1, 1, 1, 1)
    return StateMap(f"state of {state.kind}", "row", "column", flat, is_matrix=found.dim() > 2)


_KINDS: dict[str, Callable[[Any], StateMap]] = {
    "plastic": _plastic,
    "lru": _recurrence,
    "amn": _amn,
    "hopfield": _hopfield,
    "ntm": _ntm,
    "window": _window,
}
