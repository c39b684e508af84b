"""Every public entry refuses bad input in words: the argument, what came, what was wanted, and the way out."""

# What is refused here is refused by the type checker too.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ssmn
from ssmn import ops
from ssmn.config import Backend, Plasticity, SSMNConfig, StackConfig, TextSSMNConfig, config_from_dict
from ssmn.errors import ConfigError, DtypeError, FileError, RangeError, ShapeError, SSMNError, StateError
from ssmn.layers import SemanticEncoder, SlidingWindowAttention, SynapticMemory
from ssmn.models import SSMN, TextSSMN
from ssmn.state import EncoderState, PlasticState, WindowState

B, T, H, K, V = 2, 5, 3, 4, 6


def refused(error: type[SSMNError], words: str, call: Callable[[], Any]) -> None:
    """The call raises exactly this error with exactly these words (`…` stands for anything)."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    pattern = ".*".join(re.escape(part) for part in words.split("…"))
    assert re.fullmatch(pattern, str(caught.value), re.DOTALL), str(caught.value)


def test_every_error_is_also_the_builtin_one() -> None:
    for name in ("ShapeError", "RangeError", "ConfigError", "StateError", "FileError"):
        assert issubclass(getattr(ssmn.errors, name), ValueError)
    assert issubclass(DtypeError, TypeError)
    assert issubclass(ssmn.errors.BackendError, RuntimeError)
    assert issubclass(ssmn.errors.MissingExtraError, ImportError)


def memory_arguments(**changes: Any) -> dict[str, Any]:
    arguments = {
        "q": torch.zeros(B, T, H, K),
        "k": torch.zeros(B, T, H, K),
        "v": torch.zeros(B, T, H, V),
        "eta": torch.zeros(B, T, H),
        "log_decay": torch.zeros(B, T, H),
    }
    return arguments | changes


STEPS: list[tuple[type[SSMNError], dict[str, Any], str]] = [
    (
        DtypeError,
        {"mask": torch.ones(B, T)},
        "mask is torch.float32; wanted a bool tensor [B, T]; convert it with .bool().",
    ),
    (DtypeError, {"mask": [[True] * T] * B}, "mask is list; wanted a bool tensor [B, T]; convert it with .bool()."),
    (
        ShapeError,
        {"mask": torch.ones(B, T + 1).bool()},
        f"mask has shape [{B}, {T + 1}]; wanted [B, T] with B={B}, T={T}.",
    ),
    (
        DtypeError,
        {"reset": torch.ones(B, T)},
        "reset is torch.float32; wanted a bool tensor [B, T]; convert it with .bool().",
    ),
    (ShapeError, {"reset": torch.ones(B, 1).bool()}, f"reset has shape [{B}, 1]; wanted [B, T] with B={B}, T={T}."),
    (
        DtypeError,
        {"cu_seqlens": [0, T]},
        "cu_seqlens is list; wanted an int32 or int64 tensor [N + 1] of segment boundaries.",
    ),
    (
        DtypeError,
        {"cu_seqlens": torch.zeros(2)},
        "cu_seqlens is torch.float32 [2]; wanted an int32 or int64 tensor [N + 1] of…",
    ),
    (
        ShapeError,
        {"cu_seqlens": torch.tensor([0, T])},
        f"cu_seqlens packs the segments into one row, but B={B}; wanted B=1.",
    ),
]
"""What every op, layer and model says of its per-step arguments."""
BOUNDS: list[tuple[list[int], str]] = [
    ([], "cu_seqlens=[]; wanted boundaries that rise from 0 to T=5."),
    ([5], "cu_seqlens=[5]; wanted boundaries that rise from 0 to T=5."),
    ([0, 4], "cu_seqlens=[0, 4]; wanted boundaries that rise from 0 to T=5."),
    ([1, 5], "cu_seqlens=[1, 5]; wanted boundaries that rise from 0 to T=5."),
    ([0, 3, 2, 5], "cu_seqlens=[0, 3, 2, 5]; wanted boundaries that rise from 0 to T=5."),
    ([0, 3, 2, 4, 4, 4, 4, 4, 4, 5], "cu_seqlens=[0, 3, 2, 4, 4, 4, …, 5]; wanted boundaries that rise from 0 to T=5."),
]
"""And of segment boundaries."""


def wrong_dtype(name: str) -> str:
    """What a layer or model in float32 says to float64 input."""
    way_out = f"convert one of them: {name}.to(torch.float32), or the module with .to(torch.float64)."
    return f"{name} is torch.float64 but the weights are torch.float32; {way_out}"


def attention(**changes: Any) -> Any:
    query, key = torch.zeros(B, T, 4, K), torch.zeros(B, T, 2, K)
    return ops.window_attention(**({"q": query, "k": key, "v": key, "window_size": 3} | changes))


def attention_row(**changes: Any) -> Any:
    row = torch.zeros(1, T, 2, K)
    return ops.window_attention(row, row, row, window_size=3, **changes)


def memory_row(**changes: Any) -> Any:
    return ops.synaptic_memory(**{name: x[:1] for name, x in memory_arguments().items()}, **changes)


@pytest.mark.parametrize(("error", "steps", "words"), STEPS)
def test_steps_of_the_operations(error: type[SSMNError], steps: dict[str, Any], words: str) -> None:
    refused(error, f"synaptic_memory: {words}", lambda: ops.synaptic_memory(**memory_arguments(), **steps))
    refused(error, f"window_attention: {words}", lambda: attention(**steps))


@pytest.mark.parametrize(("bounds", "words"), BOUNDS)
def test_boundaries_of_the_operations(bounds: list[int], words: str) -> None:
    cu_seqlens = torch.tensor(bounds, dtype=torch.int64)
    refused(RangeError, f"synaptic_memory: {words}", lambda: memory_row(cu_seqlens=cu_seqlens))
    refused(RangeError, f"window_attention: {words}", lambda: attention_row(cu_seqlens=cu_seqlens))


@pytest.mark.parametrize(
    ("error", "changes", "words"),
    [
        (DtypeError, {"q": [0.0]}, "q is list; wanted a tensor [B, T, H, K]."),
        (
            DtypeError,
            {"k": torch.zeros(B, T, H, K).long()},
            "k is torch.int64; wanted a floating dtype; convert it with .float().",
        ),
        (ShapeError, {"q": torch.zeros(T, H, K)}, "q has shape [5, 3, 4]; wanted 4 axes [B, T, H, K]."),
        (
            ShapeError,
            {"k": torch.zeros(B, T, H, 7)},
            "k has shape [2, 5, 3, 7]; wanted [B, T, H, K] with B=2, T=5, H=3, K=4.",
        ),
        (
            ShapeError,
            {"v": torch.zeros(B, T, 1, V)},
            "v has shape [2, 5, 1, 6]; wanted [B, T, H, V] with B=2, T=5, H=3…",
        ),
        (ShapeError, {"eta": torch.zeros(B, T)}, "eta has shape [2, 5]; wanted 3 axes [B, T, H]."),
        (DtypeError, {"eta": 0.5}, "eta is float; wanted a tensor [B, T, H]."),
        (
            ShapeError,
            {"log_decay": torch.zeros(B, T, 1)},
            "log_decay has shape [2, 5, 1]; wanted [B, T, H] with B=2, T=5, H=3.",
        ),
        (RangeError, {"eta": torch.full((B, T, H), 1.5)}, "eta lies in [1.5, 1.5]; wanted [0, 1]."),
        (
            RangeError,
            {"eta": torch.full((B, T, H), torch.nan)},
            "eta is NaN, as the input or a weight may be; wanted [0, 1].",
        ),
        (
            RangeError,
            {"log_decay": torch.full((B, T, H), 0.1)},
            "log_decay lies in [0.1, 0.1]; wanted [-3.40282e+38, 0].",
        ),
        (RangeError, {"log_decay": torch.full((B, T, H), -torch.inf)}, "log_decay lies in [-inf, -inf]; wanted…"),
        (RangeError, {"rule": "oja"}, "rule='oja'; wanted one of hebbian, delta, erase."),
        (RangeError, {"rule": "erase"}, "rule='erase' with erase missing; pass erase [B, T, H]."),
        (
            RangeError,
            {"erase": torch.zeros(B, T, H)},
            "rule='delta' with erase given; leave erase out, or use rule='erase'.",
        ),
        (
            RangeError,
            {"rule": "erase", "erase": torch.full((B, T, H), -0.5)},
            "erase lies in [-0.5, -0.5]; wanted [0, 1].",
        ),
        (
            ShapeError,
            {"initial_state": torch.zeros(B, H, V, K)},
            "initial_state has shape [2, 3, 6, 4]; wanted [N, H, K, V] with N=2, H=3, K=4, V=6.",
        ),
        (RangeError, {"backend": "cuda"}, "backend='cuda'; wanted one of auto, reference, chunked, native."),
        (ShapeError, {"mask": torch.ones(B, T, 2).bool()}, "mask has shape [2, 5, 2]; wanted [B, T] with B=2, T=5."),
    ],
)
def test_synaptic_memory(error: type[SSMNError], changes: dict[str, Any], words: str) -> None:
    refused(error, f"synaptic_memory: {words}", lambda: ops.synaptic_memory(**memory_arguments(**changes)))


@pytest.mark.parametrize(("keys", "values"), [(0, V), (K, 0)])
def test_synaptic_memory_widths(keys: int, values: int) -> None:
    k, v = torch.zeros(B, T, H, keys), torch.zeros(B, T, H, values)
    words = f"k has shape [2, 5, 3, {keys}] and v [2, 5, 3, {values}]; wanted widths K and V of at least 1."
    arguments = memory_arguments(k=k, v=v)
    del arguments["q"]
    refused(ShapeError, f"synaptic_memory: {words}", lambda: ops.synaptic_memory(q=k, **arguments))
    refused(ShapeError, f"memory_write: {words}", lambda: ops.memory_write(**arguments))


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_memory_read(backend: Backend) -> None:
    arguments = memory_arguments()
    query = arguments.pop("q")
    trace, _ = ops.memory_write(**arguments, backend=backend)
    refused(
        DtypeError,
        "memory_read: trace is Tensor; wanted what memory_write returned first.",
        lambda: ops.memory_read(query, query),
    )
    both = "but the trace was written with keys [2, 5, 3, 4]; both must be [B, T, H, K]."
    refused(ShapeError, f"memory_read: q has shape [2, 4, 3, 4] {both}", lambda: ops.memory_read(query[:, 1:], trace))
    refused(ShapeError, f"memory_read: q has shape [2, 5, 3, 3] {both}", lambda: ops.memory_read(query[..., 1:], trace))
    row = {name: x[:1] for name, x in arguments.items()}
    packed, _ = ops.memory_write(**row, cu_seqlens=torch.tensor([0, 2, T]), backend=backend)
    both = "but the trace was written with keys [1, 5, 3, 4]; both must be [B, T, H, K]."
    refused(ShapeError, f"memory_read: q has shape [1, 4, 3, 4] {both}", lambda: ops.memory_read(query[:1, 1:], packed))
    refused(
        DtypeError,
        "memory_write: k is NoneType; wanted a tensor [B, T, H, K].",
        lambda: ops.memory_write(**arguments | {"k": None}),
    )


RING = torch.zeros(B, 2, 2, K)


@pytest.mark.parametrize(
    ("error", "changes", "words"),
    [
        (RangeError, {"window_size": 0}, "window_size=0; wanted an integer of at least 1."),
        (RangeError, {"window_size": 2.0}, "window_size=2.0; wanted an integer of at least 1."),
        (RangeError, {"window_size": True}, "window_size=True; wanted an integer of at least 1."),
        (DtypeError, {"q": None}, "q is NoneType; wanted a tensor [B, T, Hq, D]."),
        (
            ShapeError,
            {"k": torch.zeros(B, T + 1, 2, K)},
            "k has shape [2, 6, 2, 4]; wanted [B, T, Hkv, D] with B=2, T=5, D=4…",
        ),
        (
            ShapeError,
            {"v": torch.zeros(B, T, 1, K)},
            "v has shape [2, 5, 1, 4]; wanted [B, T, Hkv, D] with B=2, T=5, Hkv=2, D=4.",
        ),
        (ShapeError, {"q": torch.zeros(B, T, 3, K)}, "q has 3 heads and k has 2; k's heads must divide q's."),
        (
            RangeError,
            {"rope_theta": -1.0},
            "rope_theta=-1.0 with head width 4; wanted a positive base and an even width, or rope_theta=None.",
        ),
        (
            RangeError,
            {"rope_theta": "1"},
            "rope_theta='1' with head width 4; wanted a positive base and an even width, or rope_theta=None.",
        ),
        (ShapeError, {"sinks": torch.zeros(2)}, "sinks has shape [2]; wanted [Hq] with Hq=4."),
        (DtypeError, {"initial_state": RING}, "initial_state is Tensor; wanted a WindowState."),
        (
            ShapeError,
            {"initial_state": WindowState(RING[:, 1:], RING, torch.zeros(B).long())},
            "initial_state.keys has shape [2, 1, 2, 4]; wanted [N, W-1, Hkv, D] with N=2, W-1=2, Hkv=2, D=4.",
        ),
        (
            ShapeError,
            {"initial_state": WindowState(RING, RING[:1], torch.zeros(B).long())},
            "initial_state.values has shape [1, 2, 2, 4]; wanted…",
        ),
        (
            ShapeError,
            {"initial_state": WindowState(RING, RING, torch.zeros(1).long())},
            "initial_state.position has shape [1]; wanted [N] with N=2.",
        ),
        (
            RangeError,
            {"initial_state": WindowState(RING, RING, torch.tensor([4, -2]))},
            "initial_state.position lies in [-2, 4]; wanted [0, 4.61169e+18].",
        ),
        (ShapeError, {"mask": torch.ones(B, T, 4).bool()}, "mask has shape [2, 5, 4]; wanted [B, T] with B=2, T=5."),
        (RangeError, {"backend": "flash"}, "backend='flash'; wanted one of auto, reference, chunked, native."),
    ],
)
def test_window_attention(error: type[SSMNError], changes: dict[str, Any], words: str) -> None:
    refused(error, f"window_attention: {words}", lambda: attention(**changes))


def test_window_attention_widths() -> None:
    odd, none = torch.zeros(B, T, 2, 3), torch.zeros(B, T, 2, 0)
    words = "window_attention: rope_theta=10.0 with head width 3; wanted a positive base and an even width, or…"
    refused(RangeError, words, lambda: attention(q=odd, k=odd, v=odd, rope_theta=10.0))
    words = "window_attention: q has shape [2, 5, 2, 0]; wanted a head width D of at least 1."
    refused(ShapeError, words, lambda: attention(q=none, k=none, v=none))


D = 12
LAYERS: dict[str, tuple[Callable[[], torch.nn.Module], Any, str]] = {
    "SynapticMemory": (
        lambda: SynapticMemory(D, 3),
        PlasticState(torch.zeros(B, 3, 4, 5), torch.zeros(B, D)),
        "memory has shape [2, 3, 4, 5]; wanted [2, 3, 4, 4]",
    ),
    "SlidingWindowAttention": (
        lambda: SlidingWindowAttention(D, 3, 6),
        WindowState(*2 * [torch.zeros(B, 4, 3, 4)], torch.zeros(B).long()),
        "keys has shape [2, 4, 3, 4]; wanted [2, 5, 3, 4]",
    ),
    "SemanticEncoder": (
        lambda: SemanticEncoder(D),
        EncoderState(torch.zeros(1, 3, D)),
        "recent has shape [1, 3, 12]; wanted [2, 3, 12]",
    ),
}
OTHER_STATE = ssmn.StreamState(None, (), None, torch.zeros(B).long())


@pytest.mark.parametrize("name", LAYERS)
def test_layers_refuse_bad_calls(name: str) -> None:
    build, wrong_state, shapes = LAYERS[name]
    layer, hidden = build(), torch.zeros(B, T, D)
    for error, steps, words in STEPS:
        refused(error, f"{name}: {words}", lambda steps=steps: layer(hidden, **steps))
    for bounds, words in BOUNDS[:5]:
        cu_seqlens = torch.tensor(bounds, dtype=torch.int64)
        refused(RangeError, f"{name}: {words}", lambda cu_seqlens=cu_seqlens: layer(hidden[:1], cu_seqlens=cu_seqlens))
    refused(DtypeError, f"{name}: input is list; wanted a floating tensor [B, T, D].", lambda: layer([1.0]))
    refused(
        DtypeError, f"{name}: input is torch.int64; wanted a floating tensor [B, T, D].", lambda: layer(hidden.long())
    )
    refused(ShapeError, f"{name}: input has shape [5, 12]; wanted [B, T, D] with D=12.", lambda: layer(hidden[0]))
    refused(
        ShapeError, f"{name}: input has shape [2, 5, 7]; wanted [B, T, D] with D=12.", lambda: layer(hidden[..., :7])
    )
    refused(DtypeError, f"{name}: {wrong_dtype('input')}", lambda: layer(hidden.double()))
    kind = type(wrong_state).__name__
    refused(
        StateError,
        f"{name}: state is StreamState; wanted {kind}, or None for a fresh one.",
        lambda: layer(hidden, OTHER_STATE),
    )
    words = (
        f"{name}: the state's {shapes}; use a state of this model with one row per stream (state.select, init_state)."
    )
    refused(StateError, words, lambda: layer(hidden, wrong_state))


def test_synaptic_memory_refuses_bad_learning() -> None:
    layer, hidden = SynapticMemory(D, 3), torch.zeros(B, T, D)
    check_learning("SynapticMemory", lambda **options: layer(hidden, **options))


def check_learning(owner: str, call: Callable[..., Any]) -> None:
    """`elapsed` and `plasticity`, of a layer or a model."""
    refused(
        ShapeError, f"{owner}: elapsed is [2]; wanted a tensor [B, T] = [2, 5].", lambda: call(elapsed=torch.ones(B))
    )
    refused(ShapeError, f"{owner}: elapsed is float; wanted a tensor [B, T] = [2, 5].", lambda: call(elapsed=1.0))
    for bad in (-1.0, torch.nan, torch.inf):
        words = f"{owner}: elapsed has negative or non-finite times; wanted finite times ≥ 0."
        refused(RangeError, words, lambda bad=bad: call(elapsed=torch.full((B, T), bad)))
    refused(
        DtypeError,
        f"{owner}: plasticity is dict; wanted ssmn.Plasticity(...).",
        lambda: call(plasticity={"eta_scale": 1}),
    )
    words = "Plasticity: eta_scale has shape [3]; wanted a number or one per stream [2]."
    refused(ShapeError, words, lambda: call(plasticity=Plasticity(eta_scale=[1.0, 2.0, 3.0])))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: SynapticMemory(D, 5), "SynapticMemory: heads=5; wanted a divisor of hidden_dim=12."),
        (lambda: SynapticMemory(D, 0), "SynapticMemory: heads=0; wanted a whole number of at least 1."),
        (lambda: SynapticMemory(D, 1.0), "SynapticMemory: heads=1.0; wanted a whole number of at least 1."),
        (
            lambda: SynapticMemory(StackConfig(**STACK)),
            "SynapticMemory: hidden_dim=StackConfig(…); wanted a whole number of at least 1.",
        ),
        (
            lambda: SynapticMemory(D, update_rule="oja"),
            "SynapticMemory: update_rule='oja'; wanted one of hebbian, delta, erase.",
        ),
        (lambda: SynapticMemory(D, pairing="next"), "SynapticMemory: pairing='next'; wanted one of previous, same."),
        (
            lambda: SynapticMemory(D, initialisation="zero"),
            "SynapticMemory: initialisation='zero'; wanted one of associative, standard.",
        ),
        (
            lambda: SynapticMemory(D, plasticity_eta=2.0),
            "SynapticMemory: plasticity_eta=2.0; wanted a number in [0, 1].",
        ),
        (
            lambda: SynapticMemory(D, write_threshold=-1.0),
            "SynapticMemory: write_threshold=-1.0; wanted a number in [0, 1].",
        ),
        (
            lambda: SynapticMemory(D, decay_lambda=(1.0,)),
            "SynapticMemory: decay_lambda=(1.0,); wanted a tuple of heads=1 shares in [0, 1).",
        ),
        (
            lambda: SynapticMemory(D, decay_lambda=0.1),
            "SynapticMemory: decay_lambda=0.1; wanted a tuple of heads=1 shares in [0, 1).",
        ),
        (lambda: SynapticMemory(D, chat_rounds=-1), "SynapticMemory: chat_rounds=-1; wanted 0 or more."),
        (
            lambda: SlidingWindowAttention(D, 5),
            "SlidingWindowAttention: num_heads=5; wanted a divisor of hidden_dim=12.",
        ),
        (
            lambda: SlidingWindowAttention(D, 3, num_kv_heads=2),
            "SlidingWindowAttention: num_kv_heads=2; wanted a divisor of num_heads=3.",
        ),
        (
            lambda: SlidingWindowAttention(D, 3, num_kv_heads=0),
            "SlidingWindowAttention: num_kv_heads=0; wanted a divisor of num_heads=3.",
        ),
        (lambda: SlidingWindowAttention(D, 3, 0), "SlidingWindowAttention: window_size=0; wanted a whole number of…"),
        (
            lambda: SlidingWindowAttention(D, 4),
            "SlidingWindowAttention: rope_theta=10000.0; wanted a positive base with an even head width, or None.",
        ),
        (lambda: SemanticEncoder(0), "SemanticEncoder: hidden_dim=0; wanted at least 1."),
    ],
)
def test_layers_refuse_bad_settings(build: Callable[[], Any], words: str) -> None:
    refused(ConfigError, words, build)


STACK: dict[str, Any] = {"hidden_dim": D, "num_layers": 3, "num_heads": 3, "window_size": 6, "memory_heads": 3}


def standard(**changes: Any) -> SSMN:
    return SSMN(SSMNConfig(input_dim=4, output_dim=2, **STACK | changes))


def text(**changes: Any) -> TextSSMN:
    return TextSSMN(TextSSMNConfig(vocab_size=9, **STACK | changes))


@pytest.mark.parametrize("kind", ["SSMN", "TextSSMN"])
def test_models_refuse_bad_calls(kind: str) -> None:
    build: Callable[..., SSMN | TextSSMN] = standard if kind == "SSMN" else text
    model = build()
    x = torch.zeros(B, T, 4) if kind == "SSMN" else torch.zeros(B, T).long()
    for error, steps, words in STEPS:
        refused(error, f"{kind}: {words}", lambda steps=steps: model(x, **steps))
    for bounds, words in BOUNDS[:5]:
        cu_seqlens = torch.tensor(bounds, dtype=torch.int64)
        refused(RangeError, f"{kind}: {words}", lambda cu_seqlens=cu_seqlens: model(x[:1], cu_seqlens=cu_seqlens))
    refused(
        ShapeError,
        f"{kind}: mask has shape [2, 5, 3]; wanted [B, T] with B=2, T=5.",
        lambda: model(x, mask=torch.ones(B, T, 3).bool()),
    )
    check_learning(kind, lambda **options: model(x, **options))

    refused(StateError, f"{kind}: state is dict; wanted a StreamState, or None for a fresh one.", lambda: model(x, {}))
    words = f"{kind}: the state holds 3 streams but the input 2; use state.select, state.merge or model.init_state."
    refused(StateError, words, lambda: model(x, model.init_state(3)))
    words = f"{kind}: the state has 2 layers, the model 3; use the model that made the state, or model.init_state."
    refused(StateError, words, lambda: model(x, build(num_layers=2).init_state(B)))
    way_out = "use a state of this model with one row per stream (state.select, init_state)."
    words = f"SlidingWindowAttention: the state's keys has shape [2, 7, 3, 4]; wanted [2, 5, 3, 4]; {way_out}"
    refused(StateError, words, lambda: model(x, build(window_size=8).init_state(B)))
    words = f"SynapticMemory: the state's memory has shape [2, 1, 12, 12]; wanted [2, 3, 4, 4]; {way_out}"
    refused(StateError, words, lambda: model(x, build(memory_heads=1).init_state(B)))
    words = "SlidingWindowAttention: state is PlasticState; wanted WindowState, or None for a fresh one."
    refused(StateError, words, lambda: model(x, build(layer_types=("plastic", "static", "static")).init_state(B)))

    refused(DtypeError, f"{kind}.step: x is list; wanted a tensor with axis B first.", lambda: model.step([1]))
    refused(
        DtypeError,
        f"{kind}.step: mask is list; wanted a tensor with axis B first.",
        lambda: model.step(x[:, 0], mask=[True]),
    )
    refused(
        DtypeError,
        f"{kind}.step: x is a tensor without axes; wanted a tensor with axis B first.",
        lambda: model.step(torch.tensor(1)),
    )
    refused(
        ShapeError,
        f"{kind}: mask has shape [3, 1]; wanted [B, T] with B=2, T=1.",
        lambda: model.step(x[:, 0], mask=torch.ones(3).bool()),
    )
    for bad in (0, "2"):
        refused(
            RangeError,
            f"init_state: batch_size={bad!r}; wanted a whole number of at least 1.",
            lambda bad=bad: model.init_state(bad),
        )
    with pytest.raises(TypeError, match="attention_mask"):
        model(x, attention_mask=None)


def test_standard_model() -> None:
    model, x = standard(), torch.zeros(B, T, 4)
    refused(DtypeError, "SSMN: x is list; wanted a floating tensor [B, T, 4].", lambda: model([1.0]))
    refused(DtypeError, "SSMN: x is torch.int64; wanted a floating tensor [B, T, 4].", lambda: model(x.long()))
    refused(ShapeError, "SSMN: x has shape [5, 4]; wanted [B, T, input_dim=4].", lambda: model(x[0]))
    refused(ShapeError, "SSMN: x has shape [2, 5, 3]; wanted [B, T, input_dim=4].", lambda: model(x[..., :3]))
    refused(DtypeError, f"SSMN: {wrong_dtype('x')}", lambda: model(x.double()))
    for bad in (torch.nan, torch.inf):
        spoilt = x.clone()
        spoilt[1, 3, 2] = bad
        words = (
            "SSMN: x is not finite at row 1, step 3; drop the step with mask=, or fill the value in; or make the model…"
        )
        refused(RangeError, words, lambda spoilt=spoilt: model(spoilt))
        mask = torch.ones(B, T).bool()
        mask[1, 3] = False
        assert model(spoilt, mask=mask)[0].isfinite().all()
    refused(ConfigError, "SSMN: config is TextSSMNConfig; wanted SSMNConfig.", lambda: SSMN(text().config))
    refused(ConfigError, "TextSSMN: config is dict; wanted TextSSMNConfig.", lambda: TextSSMN({}))


def test_text_model() -> None:
    model, ids = text(), torch.zeros(B, T).long()
    refused(DtypeError, "TextSSMN: input_ids is list; wanted an int64 or int32 tensor [B, T].", lambda: model([1]))
    refused(
        DtypeError,
        "TextSSMN: input_ids is torch.float32; wanted an int64 or int32 tensor [B, T].",
        lambda: model(ids.float()),
    )
    refused(ShapeError, "TextSSMN: input_ids has shape [5]; wanted [B, T].", lambda: model(ids[0]))
    way_out = "wanted [0, 8] (vocab_size − 1); encode with the tokenizer that was saved with the model."
    refused(RangeError, f"TextSSMN: input_ids lie in [9, 9]; {way_out}", lambda: model(ids + 9))
    refused(RangeError, f"TextSSMN: input_ids lie in [-1, -1]; {way_out}", lambda: model(ids - 1))
    words = "TextSSMN: the state has no part for the semantic encoder; use model.init_state."
    refused(StateError, words, lambda: model(ids, text(semantic_encoder=False).init_state(B)))
    assert model(ids - 1, mask=torch.zeros(B, T).bool())[0].eq(0).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_dim": 0}, "hidden_dim=0; wanted at least 1."),
        ({"hidden_dim": 12.0}, "hidden_dim=12.0; wanted an integer."),
        ({"hidden_dim": True}, "hidden_dim=True; wanted an integer."),
        ({"num_layers": 0}, "num_layers=0; wanted at least 1."),
        ({"num_heads": 5}, "num_heads=5; wanted a divisor of hidden_dim=12."),
        (
            {"num_heads": 4},
            "num_heads=4; wanted even head widths for rotary positions (hidden_dim / num_heads is 3); or pass…",
        ),
        ({"num_kv_heads": 2}, "num_kv_heads=2; wanted a divisor of num_heads=3."),
        ({"num_kv_heads": 0}, "num_kv_heads=0; wanted a divisor of num_heads=3."),
        ({"window_size": 0}, "window_size=0; wanted at least 1."),
        ({"rope_theta": 0.0}, "rope_theta=0.0; wanted a positive number or None."),
        ({"attention_sinks": 1}, "attention_sinks=1; wanted true or false."),
        (
            {"plastic_ratio": 0.0},
            "plastic_ratio=0.0; wanted a share in (0, 1]; for a model without memory pass layer_types=('static',)…",
        ),
        ({"plastic_ratio": float("nan")}, "plastic_ratio=nan; wanted a finite number."),
        ({"layer_types": ("static",)}, "layer_types=('static',); wanted num_layers=3 names."),
        ({"layer_types": ("static", "magic", "static")}, "layer_types='magic'; wanted names out of …plastic…static…."),
        ({"layer_types": "plastic"}, "layer_types='plastic'; wanted a tuple with one name per layer."),
        ({"memory_heads": 5}, "memory_heads=5; wanted a divisor of hidden_dim=12."),
        ({"update_rule": "oja"}, "update_rule='oja'; wanted one of hebbian, delta, erase."),
        ({"pairing": "next"}, "pairing='next'; wanted one of previous, same."),
        ({"initialisation": "zero"}, "initialisation='zero'; wanted one of associative, standard."),
        ({"plasticity_eta": 1.5}, "plasticity_eta=1.5; wanted a number in [0, 1]."),
        ({"plasticity_eta": "high"}, "plasticity_eta='high'; wanted a finite number."),
        ({"decay_lambda": 1.0}, "decay_lambda=1.0; wanted a share in [0, 1) lost per step."),
        ({"decay_lambda": (0.1, 0.2)}, "decay_lambda=(0.1, 0.2); wanted one value, or memory_heads=3."),
        ({"write_threshold": -0.1}, "write_threshold=-0.1; wanted a number in [0, 1]."),
        ({"chat_rounds": -1}, "chat_rounds=-1; wanted 0 or more."),
        ({"ffn_dim": 0}, "ffn_dim=0; wanted at least 1."),
        ({"norm_eps": 0.0}, "norm_eps=0.0; wanted a positive number."),
    ],
)
def test_stack_config(changes: dict[str, Any], words: str) -> None:
    refused(ConfigError, f"StackConfig: {words}", lambda: StackConfig(**STACK | changes))


def test_model_configs() -> None:
    refused(ConfigError, "SSMNConfig: input_dim=0; wanted at least 1.", lambda: SSMNConfig(input_dim=0, output_dim=1))
    refused(
        ConfigError, "SSMNConfig: output_dim=None; wanted an integer.", lambda: SSMNConfig(input_dim=1, output_dim=None)
    )
    refused(ConfigError, "TextSSMNConfig: vocab_size=0; wanted at least 1.", lambda: TextSSMNConfig(vocab_size=0))
    refused(
        ConfigError,
        "TextSSMNConfig: embedding_std=-1.0; wanted a positive number or None.",
        lambda: TextSSMNConfig(vocab_size=2, embedding_std=-1.0),
    )
    words = "TextSSMNConfig: preset='huge'; wanted one of tiny, small, base."
    refused(ConfigError, words, lambda: TextSSMNConfig.preset("huge", vocab_size=2))
    words = "TextSSMNConfig: unknown setting 'window'; did you mean 'window_size'?"
    refused(ConfigError, words, lambda: TextSSMNConfig.from_dict({"vocab_size": 2, "window": 3}))
    words = "TextSSMNConfig: unknown setting 'zzz'; known are …"
    refused(ConfigError, words, lambda: TextSSMNConfig.from_dict({"vocab_size": 2, "zzz": 3}))
    refused(
        ConfigError,
        "SSMNConfig: missing input_dim, output_dim; these have no default, so set them.",
        lambda: SSMNConfig.from_dict({}),
    )
    refused(
        ConfigError,
        "TextSSMNConfig: missing vocab_size; these have no default, so set them.",
        lambda: TextSSMNConfig.preset("tiny"),
    )
    refused(ConfigError, "SSMNConfig: kind='text'; wanted 'standard'.", lambda: SSMNConfig.from_dict({"kind": "text"}))
    refused(ConfigError, "config: kind=None; wanted one of standard, text.", lambda: config_from_dict({}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eta_scale": -1.0}, "eta_scale=-1.0; wanted finite numbers in [0, inf)."),
        ({"eta_scale": None}, "eta_scale=None; wanted finite numbers in [0, inf)."),
        ({"decay_scale": float("inf")}, "decay_scale=inf; wanted finite numbers in [0, inf)."),
        ({"decay_scale": [1.0, float("nan")]}, "decay_scale=[1.0, nan]; wanted finite numbers in [0, inf)."),
        ({"plasticity_eta": 1.5}, "plasticity_eta=1.5; wanted finite numbers in [0, 1]."),
        ({"plasticity_eta": "fast"}, "plasticity_eta='fast'; wanted finite numbers in [0, 1]."),
        ({"decay_lambda": 1.0}, "decay_lambda=1.0; wanted finite numbers in [0, 1)."),
        ({"write_threshold": [0.5, 2]}, "write_threshold=[0.5, 2]; wanted finite numbers in [0, 1]."),
        ({"frozen": 1}, "frozen=1; wanted true or false."),
    ],
)
def test_plasticity(changes: dict[str, Any], words: str) -> None:
    refused(RangeError, f"Plasticity: {words}", lambda: Plasticity(**changes))
    with pytest.raises(TypeError, match="eta"):
        Plasticity(eta=0.5)


def test_model_folders(tmp_path: Path) -> None:
    words = f"{tmp_path}: no config.json; wanted a folder written by save_pretrained or `ssmn train`."
    refused(FileError, words, lambda: ssmn.load_model(tmp_path))
    refused(FileError, words, lambda: SSMN.from_pretrained(tmp_path))
    (tmp_path / "config.json").write_text("{")
    refused(FileError, f"{tmp_path}/config.json: cannot be read as JSON (…).", lambda: ssmn.load_model(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    refused(FileError, f"{tmp_path}/config.json: holds list; wanted a JSON object.", lambda: ssmn.load_model(tmp_path))
    (tmp_path / "config.json").write_text("[" * 200_000)
    refused(FileError, f"{tmp_path}/config.json: cannot be read as JSON (…).", lambda: ssmn.load_model(tmp_path))
    standard().save_pretrained(tmp_path)
    refused(ConfigError, "TextSSMNConfig: kind='standard'; wanted 'text'.", lambda: TextSSMN.from_pretrained(tmp_path))
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**saved, "input_dim": 10**15}))
    # Before a model of that size is made.
    words = f"{tmp_path}/config.json: input_dim is 1000000000000000, but the weights were saved with 4; restore it…"
    refused(FileError, words, lambda: ssmn.load_model(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    refused(
        FileError,
        f"read: {tmp_path}/model.safetensors does not exist; check the name and the folder.",
        lambda: ssmn.load_model(tmp_path),
    )


@pytest.mark.parametrize(
    ("error", "changes", "words"),
    [
        (
            DtypeError,
            {"prompt_ids": "hello"},
            "prompt_ids is str; wanted token numbers: tokenizer.encode(text), or give tokenizer= as well.",
        ),
        (DtypeError, {"prompt_ids": [0.5]}, "prompt_ids has dtype float64; wanted whole token numbers."),
        (
            ShapeError,
            {"prompt_ids": torch.zeros(B, T, 3).long()},
            "prompt_ids has shape [2, 5, 3]; wanted [T], [B, T] or a list of B prompts.",
        ),
        (RangeError, {"prompt_ids": []}, "prompt_ids is empty; wanted at least one token to go on from."),
        (StateError, {"state": {}}, "state is dict; wanted a StreamState, a list of them, or None for a fresh one."),
        (ShapeError, {"state": OTHER_STATE}, "state has batch 2; wanted one stream: state.select([row])."),
        (RangeError, {"max_new_tokens": 0}, "max_new_tokens=0; wanted a whole number of at least 1 …"),
        (RangeError, {"max_new_tokens": 1.5}, "max_new_tokens=1.5; wanted a whole number of at least 1 …"),
        (RangeError, {"temperature": -1.0}, "temperature=-1.0; wanted a number of 0 or more."),
        (RangeError, {"top_k": 0}, "top_k=0; wanted a whole number of at least 1, or None for all tokens."),
        (RangeError, {"top_p": 0.0}, "top_p=0.0; wanted a share in (0, 1], or None for all tokens."),
    ],
)
def test_generate(error: type[SSMNError], changes: dict[str, Any], words: str) -> None:
    # Raised by the call itself, not by the first token.
    arguments: dict[str, Any] = {"prompt_ids": [1, 2], **changes}
    refused(error, f"generate: {words}", lambda: ssmn.generate(text(), **arguments))


def test_generate_refuses_unknown_tokens_and_spoilt_weights() -> None:
    model = text()
    words = "generate: prompt_ids lie in [1, 9]; wanted [0, 8] (vocab_size − 1); encode with the tokenizer…"
    refused(RangeError, words, lambda: ssmn.generate(model, [9, 1]))
    with torch.no_grad():
        model.norm.weight.fill_(torch.nan)
    words = "generate: the model's logits are not finite; its weights or the given state are damaged."
    refused(RangeError, words, lambda: list(ssmn.generate(model, [1])))


def test_stream() -> None:
    model = standard()
    stream = ssmn.Stream(model)
    x = torch.zeros(1, T, 4)
    stream.push(x)
    before = stream.state
    refused(ShapeError, "SSMN: x has shape [1, 5, 3]; wanted [B, T, input_dim=4].", lambda: stream.push(x[..., :3]))
    assert stream.state is before
    refused(
        StateError, "SSMN: the state holds 1 streams but the input 2; use…", lambda: stream.push(x.expand(2, -1, -1))
    )
    refused(StateError, "Stream: …", lambda: ssmn.Stream(model, text(semantic_encoder=True).init_state(1)))
    refused(
        RangeError,
        "init_state: batch_size=0; wanted a whole number of at least 1.",
        lambda: ssmn.Stream(model, batch_size=0),
    )
