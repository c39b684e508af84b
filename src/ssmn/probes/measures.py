"""What a memory holds and what a piece of a stream did to it, in numbers: per layer and head."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmn import ops
from ssmn.errors import StateError
from ssmn.probes.watch import BlockCall, MemoryCall
from ssmn.state import PlasticState, State, StreamState, WindowState, require_same_layout


def energy(memory: Tensor) -> Tensor:
    """Synaptic energy ‖S‖²_F: [.., K, V] to [..]."""
    return memory.square().sum((-2, -1))


def spectrum(memory: Tensor) -> Tensor:
    """Singular values of a memory, largest first: [.., K, V] to [.., min(K, V)]."""
    return torch.linalg.svdvals(memory)


def effective_rank(singular: Tensor) -> Tensor:
    """How many directions a memory uses: exp(−Σ p ln p) with p = σ / Σσ (Roy and Vetterli, 2007); 0 if it is empty.

    Args:
        singular: [.., N], singular values.

    Returns:
        [..], from 1 (one direction) to N (all alike).

    Example:
        >>> import torch
        >>> from ssmn.probes import effective_rank
        >>> [round(rank, 3) for rank in effective_rank(torch.tensor([[2.0, 2, 2, 0], [5, 0, 0, 0], [0] * 4])).tolist()]
        [3.0, 1.0, 0.0]
    """
    total = singular.sum(-1, keepdim=True)
    share = singular / total.clamp(min=torch.finfo(singular.dtype).tiny)
    return torch.where(total[..., 0] > 0, torch.special.entr(share).sum(-1).exp(), 0.0)


def half_life(decay_lambda: float) -> float:
    """Steps after which half of what was stored is left, by decay alone: ln 2 / −ln(1 − λ); infinite for λ = 0.

    Example:
        >>> from ssmn.probes import half_life
        >>> round(half_life(0.01), 2)
        68.97
    """
    return math.inf if decay_lambda == 0 else math.log(2) / -math.log1p(-decay_lambda)


@torch.no_grad()
def transition(call: MemoryCall) -> Tensor:
    """What a piece does to everything stored before it: P = Π_t a_t (I − e_t k_t k_tᵀ), so that S_T = P S_0 + new.

    Returns:
        [N, H, K, K], in the state dtype.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.probes import spectral_radius, transition, watch_memories
        >>> memory = ssmn.layers.SynapticMemory(8)
        >>> with watch_memories(memory) as seen:
        ...     _ = memory(torch.randn(1, 5, 8))
        >>> kept = transition(seen[0][0])
        >>> kept.shape, bool(spectral_radius(kept) <= 1)
        (torch.Size([1, 1, 8, 8]), True)
    """
    write, erase, log_keep = call.coefficients()
    memory = call.initial_state
    identity = torch.eye(memory.shape[2], dtype=memory.dtype, device=memory.device).expand(*memory.shape[:3], -1)
    keys = call.keys.to(memory.dtype)
    _, kept = ops.memory_write(
        keys, torch.zeros_like(keys), eta=torch.zeros_like(write), log_decay=log_keep, erase=erase, rule="erase",
        reset=call.reset, cu_seqlens=call.cu_seqlens, initial_state=identity,
    )  # fmt: skip
    return kept


def spectral_radius(matrix: Tensor) -> Tensor:
    """Largest |eigenvalue| of [.., K, K], [..]."""
    return torch.linalg.eigvals(matrix).abs().amax(-1)


@dataclass(frozen=True, eq=False)
class Measures:
    """Numbers about one part of a model.

    Attributes:
        name: `layers.N`, `front` or `head`; `state` for a state by itself.
        kind: The kind of its state: `plastic`, `window`, ...
        values: The measures by name; [B] each, per head [B, H], the singular values [B, H, N].
    """

    name: str
    kind: str
    values: dict[str, Tensor]


@torch.no_grad()
def measure_state(state: State, before: State | None = None) -> list[Measures]:
    """What a state holds, and how far it is from another.

    Of a synaptic memory, per head: `energy` ‖S‖²_F, `update` ‖S − S_before‖_F, `spectrum` (singular values),
    `effective_rank`, `saturation` (effective rank / K: 1 = every direction that a key can take is in use). Of a
    window: `fill`, the share of its slots that hold a step. Of every other kind: `norm` and `update`, over all its
    numbers. Of all: `nbytes` of one row.

    Args:
        state: A stream's, or one layer's.
        before: An earlier one of the same stream; without it `update` is NaN.

    Returns:
        One entry for each part of the state.

    Raises:
        StateError: The two states do not fit together.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.probes import measure_state
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=12, num_layers=3, num_heads=2, window_size=9)
        >>> _, state = ssmn.TextSSMN(config)(torch.randint(16, (1, 4)))
        >>> _, window, memory, _ = measure_state(state)
        >>> window.values["fill"].tolist(), memory.name, sorted(memory.values)
        ([0.5], 'layers.1', ['effective_rank', 'energy', 'nbytes', 'saturation', 'spectrum', 'update'])
    """
    if before is not None:
        names = ("the state", "the one before")
        require_same_layout("measure_state", state, before, names=names, device=False, batch=True)
    return [_measure(name, part, earlier) for name, part, earlier in _parts(state, before)]


def _parts(state: State, before: State | None) -> Iterator[tuple[str, State, State | None]]:
    if not isinstance(state, StreamState):
        yield "state", state, before
        return
    earlier = {} if before is None else dict(before.children())  # type: ignore[attr-defined]
    for name, part in state.children():
        yield name, part, earlier.get(name)


def _measure(name: str, state: State, before: State | None) -> Measures:
    values: dict[str, Tensor] = {}
    if isinstance(state, PlasticState):
        memory, singular = state.memory, spectrum(state.memory)
        rank = effective_rank(singular)
        old = torch.full_like(memory, torch.nan) if before is None else before.memory  # type: ignore[attr-defined]
        values = {
            "energy": energy(memory),
            "update": energy(memory - old).sqrt(),
            "effective_rank": rank,
            "saturation": rank / memory.shape[2],
            "spectrum": singular,
        }
    elif isinstance(state, WindowState):
        slots = state.keys.shape[1]
        values = {"fill": (state.position / slots).clamp(max=1.0) if slots else torch.ones_like(state.position).float()}
    else:
        values = {"norm": _norm(state, None), "update": _norm(state, before) if before is not None else _nan(state)}
    values["nbytes"] = torch.full((state.batch_size,), state.nbytes / max(1, state.batch_size))
    return Measures(name, state.kind, values)


def _norm(state: State, before: State | None) -> Tensor:
    """[B]: length of all its floating numbers, or of their difference from another state's."""
    old = {} if before is None else before.named_tensors()
    squares = [
        (value - old[name] if old else value).double().reshape(state.batch_size, -1).square().sum(1)
        for name, value in state.named_tensors().items()
        if value.is_floating_point()
    ]
    return torch.stack(squares).sum(0).sqrt() if squares else torch.zeros(state.batch_size, dtype=torch.float64)


def _nan(state: State) -> Tensor:
    return torch.full((state.batch_size,), torch.nan, dtype=torch.float64)


@torch.no_grad()
def measure_call(call: MemoryCall) -> dict[str, Tensor]:
    """What a piece of a stream did to a synaptic memory, per head.

    Args:
        call: What was written, as `watch_memories` saw it; not packed.

    Returns:
        [B, H] each. `importance`: mean write strength asked for; `eta`: mean strength that was written (0 where nothing
        was); `write_rate`: share of the steps that were written. `half_life`: steps after which half is left by the
        decay that was applied, ln 2 · T / −Σ log a. `half_life_probed`: the same of what is really left of an arbitrary
        content, erasures included: ln 2 · T / −ln(‖P‖_F / √K), P the piece's `transition`. `spectral_radius`: largest
        |eigenvalue| of P; of the single step a_t (I − e_t k_t k_tᵀ) it is a_t (K > 1), so of a piece it says how much
        is left along the direction that was spared most.

    Raises:
        StateError: The call is packed.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.probes import half_life, measure_call, watch_memories
        >>> memory = ssmn.layers.SynapticMemory(8, update_rule="hebbian", decay_lambda=(0.01,))
        >>> with watch_memories(memory) as seen:
        ...     _ = memory(torch.randn(1, 30, 8))
        >>> measured = measure_call(seen[0][0])
        >>> abs(float(measured["half_life_probed"]) / half_life(0.01) - 1) < 1e-3
        True
    """
    if call.cu_seqlens is not None:
        raise StateError("measure_call: the call is packed; wanted one stream per row.")
    write, _, log_keep = call.coefficients()
    kept, steps = transition(call), call.keys.shape[1]
    left = energy(kept.double()) / kept.shape[-1]  # squared
    return {
        "importance": call.importance.mean(1),
        "eta": write.mean(1),
        "write_rate": (write > 0).to(write.dtype).mean(1),
        "half_life": math.log(2) * steps / log_keep.sum(1).abs(),
        "half_life_probed": (2 * math.log(2) * steps / left.log().clamp(max=0).abs()).to(kept.dtype),
        "spectral_radius": spectral_radius(kept),
    }


@torch.no_grad()
def measure_blocks(calls: dict[int, BlockCall]) -> list[Measures]:
    """What the layers of a model held after a piece, and what the piece did: `measure_state`, `measure_call`, entropy.

    Args:
        calls: What `watch_blocks` saw.

    Returns:
        One entry for each layer. Of window attention there is `entropy` [B, Hq] too, in nats: mean over the last steps
        of the piece, from 0 (one position alone is looked at) to ln W.

    Example:
        >>> import ssmn, torch
        >>> from ssmn.probes import measure_blocks, watch_blocks
        >>> config = ssmn.TextSSMNConfig(vocab_size=16, hidden_dim=12, num_layers=3, num_heads=2, window_size=9)
        >>> model = ssmn.TextSSMN(config)
        >>> with watch_blocks(model) as seen:
        ...     _ = model(torch.randint(16, (1, 30)))
        >>> window, memory, _ = measure_blocks(seen)
        >>> window.values["entropy"].shape, memory.values["write_rate"].tolist()
        (torch.Size([1, 2]), [[1.0]])
    """
    found = []
    for number, call in calls.items():
        values = dict(_measure("", call.after, call.before).values)
        if call.memory is not None:
            values |= measure_call(call.memory)
        if call.entropy is not None:
            values["entropy"] = call.entropy
        found.append(Measures(f"layers.{number}", call.after.kind, values))
    return found
