"""The reference is the definition, and is on trial too: cases computed by hand, and gradients by finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmn import ops
from ssmn.config import Backend, UpdateRule
from ssmn.ops import backend_status, chunked
from ssmn.ops.rotary import rotate
from ssmn.state import WindowState

BACKENDS: tuple[Backend, ...] = ("reference", "chunked", "native")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    reason = backend_status()[request.param]
    if reason:
        pytest.skip(reason)
    return request.param


def steps(*values: Any) -> Tensor:
    """Values per step as [1, T, 1, ..]."""
    return torch.tensor(values, dtype=torch.float32)[None, :, None]


@pytest.mark.parametrize(
    ("rule", "erase", "outputs", "memory"),
    [
        # S0 = (1, 2), halved: (.5, 1); + .5 · 4 (1, 0) = (2.5, 1); + .25 · 8 (.6, .8) = (3.7, 2.6).
        ("hebbian", None, (3.5, 1.1, 7.4), (3.7, 2.6)),
        # (1 − .5 · 1, 2) halved: (.25, 1); + 2 (1, 0) = (2.25, 1); recalled .6 · 2.25 + .8 · 1 = 2.15;
        # + (2 − .25 · 2.15) (.6, .8) = (3.1275, 2.17).
        ("delta", None, (3.25, 0.9575, 6.255), (3.1275, 2.17)),
        # (1 − 1, 2) halved: (0, 1); + 2 (1, 0) = (2, 1); recalled 2; + (2 − .5 · 2) (.6, .8) = (2.6, 1.8).
        ("erase", (1.0, 0.5, 1.0), (3.0, 0.8, 5.2), (2.6, 1.8)),
    ],
)
def test_rules_by_hand(
    backend: Backend,
    rule: UpdateRule,
    erase: tuple[float, ...] | None,
    outputs: tuple[float, ...],
    memory: tuple[float, ...],
) -> None:
    # The third step is closed: it neither decays, erases nor writes, and still reads.
    read, final = ops.synaptic_memory(
        steps((1.0, 1.0), (1.0, -1.0), (2.0, 0.0)),
        steps((1.0, 0.0), (0.6, 0.8), (1.0, 0.0)),
        steps((4.0,), (8.0,), (100.0,)),
        eta=steps(0.5, 0.25, 0.5),
        log_decay=steps(math.log(0.5), 0.0, -1.0),
        erase=None if erase is None else steps(*erase),
        rule=rule,
        mask=torch.tensor([[True, True, False]]),
        initial_state=torch.tensor([[[[1.0], [2.0]]]]),
        output_final_state=True,
        backend=backend,
    )
    assert final is not None
    torch.testing.assert_close(read, steps(*((value,) for value in outputs)))
    torch.testing.assert_close(final, torch.tensor(memory).reshape(1, 1, 2, 1))


def test_a_reset_starts_from_zero(backend: Backend) -> None:
    read, final = ops.synaptic_memory(
        steps((1.0, 0.0), (0.0, 1.0)),
        steps((1.0, 0.0), (0.0, 1.0)),
        steps((3.0,), (5.0,)),
        eta=steps(1.0, 0.5),
        log_decay=steps(0.0, 0.0),
        reset=torch.tensor([[False, True]]),
        initial_state=torch.full((1, 1, 2, 1), 7.0),
        output_final_state=True,
        backend=backend,
    )
    assert final is not None
    assert read.flatten().tolist() == [3.0, 2.5]
    assert final.flatten().tolist() == [0.0, 2.5]


@pytest.mark.parametrize(
    ("sink", "outputs"),
    [
        # Weights e^{qk}: 1, 3, 1, and each step sees itself and the one before.
        (None, (8.0, 5.0, 3.0)),
        # A sink of logit 0 adds 1 to each sum: 8/2, (8 + 12)/5, 12/5.
        (0.0, (4.0, 4.0, 2.4)),
    ],
)
def test_window_by_hand(backend: Backend, sink: float | None, outputs: tuple[float, ...]) -> None:
    read, ring = ops.window_attention(
        steps((1.0,), (1.0,), (1.0,)),
        steps((0.0,), (math.log(3.0),), (0.0,)),
        steps((8.0,), (4.0,), (0.0,)),
        window_size=2,
        sinks=None if sink is None else torch.tensor([sink]),
        output_final_state=True,
        backend=backend,
    )
    assert ring is not None
    torch.testing.assert_close(read.flatten(), torch.tensor(outputs))
    assert (ring.keys.item(), ring.values.item(), ring.position.item()) == (0.0, 0.0, 3)


def test_scores_are_scaled_and_rotated(backend: Backend) -> None:
    # Head width 2 has one frequency, 1: keys one step apart are an angle of 1 apart.
    same = steps((1.0, 0.0), (1.0, 0.0))
    values = steps((1.0, 0.0), (0.0, 1.0))
    read, _ = ops.window_attention(same, same, values, window_size=3, rope_theta=50.0, backend=backend)
    before, here = math.exp(math.cos(1.0) / math.sqrt(2.0)), math.exp(1.0 / math.sqrt(2.0))
    wanted = steps((1.0, 0.0), (before / (before + here), here / (before + here)))
    torch.testing.assert_close(read, wanted)


def test_ring_slots(backend: Backend) -> None:
    # W = 4 has 3 slots; position p lies in slot p mod 3; a closed step takes no slot; a reset empties all.
    numbers = steps(*((float(n),) for n in range(1, 7)))
    mask = torch.tensor([[True, True, False, True, True, True]])
    window = {"window_size": 4, "mask": mask, "output_final_state": True, "backend": backend}
    read, ring = ops.window_attention(numbers, numbers, numbers, **window)
    assert ring is not None
    assert ring.values.flatten().tolist() == [5.0, 6.0, 4.0]
    assert ring.position.tolist() == [5]
    assert read[0, 2].item() == 0.0
    reset = torch.tensor([[False, False, False, False, True, False]])
    _, ring = ops.window_attention(numbers, numbers, numbers, **window, reset=reset)
    assert ring is not None
    assert ring.values.flatten().tolist() == [5.0, 6.0, 0.0]
    assert ring.position.tolist() == [2]


def test_query_heads_share_key_heads(backend: Backend) -> None:
    # With W = 1 every query reads its own step's value: head h reads key head h // 3.
    query, key = torch.randn(2, 5, 6, 4), torch.randn(2, 5, 2, 4)
    value = torch.randn(2, 5, 2, 4)
    read, _ = ops.window_attention(query, key, value, window_size=1, backend=backend)
    torch.testing.assert_close(read, value.repeat_interleave(3, dim=2))


def test_rotation_depends_on_the_distance_alone() -> None:
    query, key = torch.randn(2, 1, 6, dtype=torch.float64)
    near = (rotate(query, torch.tensor(5), 100.0) * rotate(key, torch.tensor(2), 100.0)).sum()
    for start in (0, 7, 1 << 20):
        there = rotate(query, torch.tensor(start + 3), 100.0) * rotate(key, torch.tensor(start), 100.0)
        torch.testing.assert_close(there.sum(), near, rtol=0, atol=1e-9)


def test_rotation_tells_positions_apart_far_into_a_stream() -> None:
    # Beyond 2^24 float32 has no odd numbers; the angles are those of the integers.
    far = torch.tensor([(1 << 40) + 1])
    x = torch.tensor([[[1.0, 0.0]]])
    angle = math.remainder(float((1 << 40) + 1), 2 * math.pi)
    wanted = torch.tensor([[[math.cos(angle), math.sin(angle)]]])
    torch.testing.assert_close(rotate(x, far, 100.0), wanted, rtol=0, atol=1e-3)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that a small case crosses more than once."""
    monkeypatch.setattr(chunked, "MEMORY_CHUNK", 2)
    monkeypatch.setattr(chunked, "ATTENTION_BLOCK", 2)


def leaf(*shape: int, low: float | None = None, high: float = 0.0) -> Tensor:
    """Normal numbers, or uniform ones inside (low, high), that want a gradient."""
    made = torch.randn(shape, dtype=torch.float64)
    if low is not None:
        made = low + (high - low) * torch.rand(shape, dtype=torch.float64)
    return made.requires_grad_()


SHAPES: list[tuple[str, dict[str, Tensor], int, int, int]] = [
    ("plain", {}, 2, 5, 2),
    (
        "masked",
        {
            "mask": torch.tensor([[True, False, True, True, True], [False, True, True, False, True]]),
            "reset": torch.tensor([[False, False, False, True, False], [True, False, False, False, False]]),
        },
        2,
        5,
        2,
    ),
    ("packed", {"cu_seqlens": torch.tensor([0, 1, 1, 4, 6])}, 1, 6, 4),
]
"""(name, options, B, T, streams)."""


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("rule", ["hebbian", "delta", "erase"])
@pytest.mark.parametrize(("options", "batch", "time", "streams"), [x[1:] for x in SHAPES], ids=[x[0] for x in SHAPES])
def test_memory_gradients(
    backend: Backend, rule: UpdateRule, options: dict[str, Any], batch: int, time: int, streams: int
) -> None:
    heads, key, value = 1, 3, 4
    per_step = (batch, time, heads)
    leaves = [leaf(*per_step, key), leaf(*per_step, key), leaf(*per_step, value), leaf(streams, heads, key, value)]
    leaves += [leaf(*per_step, low=0.1, high=0.9), leaf(*per_step, low=-0.9, high=-0.1)]
    if rule == "erase":
        leaves.append(leaf(*per_step, low=0.1, high=0.9))

    def run(q: Tensor, k: Tensor, v: Tensor, state: Tensor, eta: Tensor, log_decay: Tensor, *erase: Tensor) -> Any:
        return ops.synaptic_memory(
            q, k, v, eta=eta, log_decay=log_decay, erase=erase[0] if erase else None, rule=rule,
            initial_state=state, output_final_state=True, backend=backend, **options,
        )  # fmt: skip

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("rope_theta", [None, 10.0])
@pytest.mark.parametrize(("options", "batch", "time", "streams"), [x[1:] for x in SHAPES], ids=[x[0] for x in SHAPES])
def test_window_gradients(
    backend: Backend, rope_theta: float | None, options: dict[str, Any], batch: int, time: int, streams: int
) -> None:
    heads, kv_heads, dim, window = 3, 1, 4, 4
    position = torch.tensor([7, 1, 0, 3])[:streams]
    empty = torch.arange(window - 1) >= position[:, None]
    leaves = [leaf(batch, time, heads, dim), *(leaf(batch, time, kv_heads, dim) for _ in "kv"), leaf(heads)]
    leaves += [leaf(streams, window - 1, kv_heads, dim) for _ in "kv"]

    def run(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        keys, values = (torch.where(empty[..., None, None], 0.0, ring) for ring in (keys, values))
        read, ring = ops.window_attention(
            q, k, v, window_size=window, rope_theta=rope_theta, sinks=sinks,
            initial_state=WindowState(keys, values, position), output_final_state=True, backend=backend, **options,
        )  # fmt: skip
        assert ring is not None
        return read, ring.keys, ring.values

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
