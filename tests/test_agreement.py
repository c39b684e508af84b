"""Agreement with the field: published recurrences, written here from their papers, and the ONNX operator."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from laws import CHUNK, MemoryOp, assert_close
from ssmn import ops
from ssmn.config import Backend, UpdateRule
from ssmn.ops import backend_status, chunked

B, T, H, K, V = 2, CHUNK + 7, 3, 5, 8
WIDE: tuple[Backend, ...] = ("reference", "chunked")
NARROW: tuple[Backend, ...] = ("reference", "chunked", "native")


def skip_without(backend: Backend) -> None:
    if backend_status()[backend]:
        pytest.skip(f"{backend}: {backend_status()[backend]}")


def drawn(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """q, unit k, v, write strengths, decays and an initial state."""
    k = torch.nn.functional.normalize(torch.randn(B, T, H, K, dtype=torch.float64), dim=-1)
    made = {
        "q": torch.randn(B, T, H, K, dtype=torch.float64),
        "k": k,
        "v": torch.randn(B, T, H, V, dtype=torch.float64),
        "eta": torch.rand(B, T, H, dtype=torch.float64),
        "log_decay": -0.2 * torch.rand(B, T, H, dtype=torch.float64),
        "initial_state": torch.randn(B, H, K, V, dtype=torch.float64),
    }
    return {name: x.to(dtype) for name, x in made.items()}


def gated_delta_net(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, log_decay: Tensor, initial_state: Tensor) -> Any:
    """Gated DeltaNet (Yang, Kautz & Hatamizadeh, 2024); their S is [V, K].

    S_t = S_{t−1} (α_t (I − β_t k_t k_tᵀ)) + β_t v_t k_tᵀ,  o_t = S_t q_t.
    """
    alpha, beta = log_decay.exp(), eta
    output, final = torch.empty(B, T, H, V, dtype=q.dtype), torch.empty_like(initial_state)
    for b in range(B):
        for h in range(H):
            state = initial_state[b, h].T
            for t in range(T):
                key, value = k[b, t, h], v[b, t, h]
                erased = torch.eye(K, dtype=q.dtype) - beta[b, t, h] * torch.outer(key, key)
                state = state @ (alpha[b, t, h] * erased) + beta[b, t, h] * torch.outer(value, key)
                output[b, t, h] = state @ q[b, t, h]
            final[b, h] = state.T
    return output, final


def decay_then_correct(q: Tensor, k: Tensor, v: Tensor, eta: Tensor, log_decay: Tensor, initial_state: Tensor) -> Any:
    """The same as an online learner: decay, then S ← S + β k (v − Sᵀ k)ᵀ, then read."""
    outputs, state = [], initial_state
    for t in range(T):
        state = log_decay[:, t].exp()[..., None, None] * state
        error = v[:, t] - (state.mT @ k[:, t, :, :, None])[..., 0]
        state = state + eta[:, t, :, None, None] * k[:, t, :, :, None] * error[:, :, None, :]
        outputs.append((state.mT @ q[:, t, :, :, None])[..., 0])
    return torch.stack(outputs, 1), state


@pytest.mark.parametrize("backend", WIDE)
@pytest.mark.parametrize("published", [gated_delta_net, decay_then_correct])
def test_delta_is_gated_delta_net(published: Any, backend: Backend) -> None:
    inputs = drawn()
    output, final = ops.synaptic_memory(**inputs, rule="delta", output_final_state=True, backend=backend)
    assert final is not None
    wanted_output, wanted_final = published(**inputs)
    assert_close({"o": output, "S": final}, {"o": wanted_output, "S": wanted_final}, 1e-12)


@pytest.mark.parametrize("backend", WIDE)
def test_hebbian_is_retention_in_its_parallel_form(backend: Backend) -> None:
    """Retention (Sun et al., 2023): (Q Kᵀ ∘ D) V, D_nm = γ^(n−m) for n ≥ m; here γ differs by head."""
    inputs = drawn()
    gamma = torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
    n = torch.arange(T, dtype=torch.float64)
    decay = torch.where(n[:, None] >= n, gamma[:, None, None] ** (n[:, None] - n).clamp(min=0), 0.0)
    scores = torch.einsum("bnhk,bmhk->bhnm", inputs["q"], inputs["k"]) * decay
    wanted = torch.einsum("bhnm,bmhv->bnhv", scores, inputs["v"])
    inputs |= {"eta": torch.ones(B, T, H, dtype=torch.float64), "log_decay": gamma.log().expand(B, T, H)}
    del inputs["initial_state"]
    output, final = ops.synaptic_memory(**inputs, rule="hebbian", output_final_state=True, backend=backend)
    assert final is not None
    weighted = inputs["k"] * (gamma ** (T - 1 - n)[:, None])[None, :, :, None]
    wanted_final = torch.einsum("bmhk,bmhv->bhkv", weighted, inputs["v"])
    assert_close({"o": output, "S": final}, {"o": wanted, "S": wanted_final}, 1e-12)


@pytest.mark.parametrize("backend", WIDE)
def test_hebbian_is_scalar_gated_linear_attention(backend: Backend) -> None:
    """Mamba-2's duality (Dao & Gu, 2024) with a decay per step: D_nm = Π_{m < j ≤ n} a_j; and the seed's formula."""
    inputs = drawn()
    keep = inputs["log_decay"].exp()
    ratio = torch.zeros(B, H, T, T, dtype=torch.float64)
    for n in range(T):
        for m in range(n + 1):
            ratio[:, :, n, m] = keep[:, m + 1 : n + 1].prod(1)
    scores = torch.einsum("bnhk,bmhk->bhnm", inputs["q"], inputs["k"]) * ratio
    wanted = torch.einsum("bhnm,bmhv->bnhv", scores, inputs["eta"][..., None] * inputs["v"])
    carried = torch.einsum("bnhk,bhkv->bnhv", inputs["q"], inputs["initial_state"])
    wanted = wanted + keep.cumprod(1)[..., None] * carried
    output, final = ops.synaptic_memory(**inputs, rule="hebbian", output_final_state=True, backend=backend)
    # ΔW_f = η (post ⊗ pre) − λ W_f, with W_f the transpose of S.
    fast = inputs["initial_state"].mT
    for t in range(T):
        post, pre = inputs["v"][:, t], inputs["k"][:, t]
        learnt = inputs["eta"][:, t, :, None, None] * post[..., :, None] * pre[..., None, :]
        fast = fast + learnt - (1 - keep[:, t])[..., None, None] * fast
    assert final is not None
    assert_close({"o": output, "S": final.mT}, {"o": wanted, "S": fast}, 1e-12)


@pytest.mark.parametrize("backend", WIDE)
def test_erase_spans_the_other_two(backend: Backend) -> None:
    inputs = drawn()
    others: tuple[tuple[UpdateRule, Tensor], ...] = (
        ("hebbian", torch.zeros_like(inputs["eta"])),
        ("delta", inputs["eta"]),
    )
    for rule, erase in others:
        one = ops.synaptic_memory(**inputs, rule="erase", erase=erase, output_final_state=True, backend=backend)
        other = ops.synaptic_memory(**inputs, rule=rule, output_final_state=True, backend=backend)
        for got, wanted in zip(one, other, strict=True):
            assert got is not None
            assert wanted is not None
            assert_close({"": got}, {"": wanted}, 1e-12)


def onnx_linear_attention(
    update_rule: str, inputs: dict[str, np.ndarray], state: np.ndarray | None
) -> list[np.ndarray]:
    """Runs the standard's operator; its tensors pack the heads into the last axis."""
    names = ["query", "key", "value", "past_state" if state is not None else "", "decay"]
    feeds = {
        name: inputs[short].reshape(B, -1, H * inputs[short].shape[-1])
        for name, short in zip(names[:3], "qkv", strict=True)
    }
    feeds["decay"] = inputs["log_decay"]
    if state is not None:
        feeds["past_state"] = state
    if update_rule == "gated_delta":
        names.append("beta")
        feeds["beta"] = inputs["eta"]
    node = helper.make_node(
        "LinearAttention", names, ["output", "present_state"],
        q_num_heads=H, kv_num_heads=H, scale=1.0, update_rule=update_rule,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "memory",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(x.shape)) for name, x in feeds.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("output", "present_state")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 27)])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(x) for x in session.run(None, feeds)]


@pytest.mark.skipif(onnx.defs.onnx_opset_version() < 27, reason="LinearAttention came with opset 27")
@pytest.mark.parametrize("backend", NARROW)
@pytest.mark.parametrize(("rule", "update_rule"), [("hebbian", "gated"), ("delta", "gated_delta")])
def test_onnx_linear_attention(rule: UpdateRule, update_rule: str, backend: Backend) -> None:
    """The operator of opset 27, over two calls: present_state of the first is past_state of the second."""
    skip_without(backend)
    inputs = drawn(torch.float32)
    state = inputs.pop("initial_state")
    if rule == "hebbian":
        inputs["eta"] = torch.ones_like(inputs["eta"])
    arrays = {name: x.numpy() for name, x in inputs.items()}
    past: np.ndarray | None = None
    memory: Tensor | None = None
    for start, stop in ((0, 41), (41, T)):
        piece = {name: x[:, start:stop] for name, x in inputs.items()}
        output, memory = ops.synaptic_memory(
            **piece, rule=rule, initial_state=memory, output_final_state=True, backend=backend
        )
        assert memory is not None
        theirs, past = onnx_linear_attention(update_rule, {name: x[:, start:stop] for name, x in arrays.items()}, past)
        assert_close(
            {"o": output, "S": memory},
            {"o": torch.from_numpy(theirs).reshape(output.shape), "S": torch.from_numpy(past)},
            1e-5,
        )
    theirs, past = onnx_linear_attention(update_rule, arrays, state.numpy())
    output, memory = ops.synaptic_memory(
        **inputs, rule=rule, initial_state=state, output_final_state=True, backend=backend
    )
    assert memory is not None
    wanted = {"o": torch.from_numpy(theirs).reshape(output.shape), "S": torch.from_numpy(past)}
    assert_close({"o": output, "S": memory}, wanted, 1e-5)


@pytest.mark.parametrize(("backend", "chunk"), [("chunked", 64), ("chunked", 128), ("native", 64)])
@pytest.mark.parametrize("wobble", [0.0, 0.03])
def test_constant_keys_stay_accurate_in_float32(
    wobble: float, backend: Backend, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parallel keys with η .95 make the stiffest system a chunk can have: its powers would lose everything."""
    skip_without(backend)
    monkeypatch.setattr(chunked, "MEMORY_CHUNK", chunk)
    time = 2 * chunk + 5
    key = torch.randn(1, 1, 2, 9) + wobble * torch.randn(1, time, 2, 9)
    inputs = dict[str, Any](
        q=torch.randn(1, time, 2, 9),
        k=torch.nn.functional.normalize(key, dim=-1),
        v=torch.randn(1, time, 2, 6),
        eta=torch.full((1, time, 2), 0.95),
        log_decay=torch.zeros(1, time, 2),
    )
    got = ops.synaptic_memory(**inputs, output_final_state=True, backend=backend)
    wide = {name: x.double() for name, x in inputs.items()}
    wanted = ops.synaptic_memory(**wide, output_final_state=True, backend="reference")
    for narrow, exact in zip(got, wanted, strict=True):
        assert narrow is not None
        assert exact is not None
        assert_close({"": narrow}, {"": exact.float()}, 1e-4)


@pytest.mark.parametrize("backend", ["chunked", "native"])
@pytest.mark.parametrize("rule", ["delta", "hebbian"])
def test_ten_thousand_steps(rule: UpdateRule, backend: Backend) -> None:
    """Without decay the error-correcting memory stays bounded, the Hebbian one grows, and float32 does not drift."""
    skip_without(backend)
    subject = MemoryOp(backend, torch.float32, rule)
    narrow: Tensor | None = None
    wide: Tensor | None = None
    norms = []
    for piece in range(20):
        inputs = cast("dict[str, Any]", subject.inputs(1, 500, seed=100 + piece))
        inputs["log_decay"].zero_()
        _, narrow = ops.synaptic_memory(
            **inputs, rule=rule, initial_state=narrow, output_final_state=True, backend=backend
        )
        doubled = {name: x.double() for name, x in inputs.items()}
        _, wide = ops.synaptic_memory(
            **doubled, rule=rule, initial_state=wide, output_final_state=True, backend="chunked"
        )
        assert narrow is not None
        assert wide is not None
        norms.append(float(narrow.norm()))
    assert narrow is not None
    assert wide is not None
    assert_close({"S": narrow}, {"S": wide.float()}, 1e-4)
    if rule == "delta":
        assert max(norms) < 2 * norms[0]
        assert max(norms[10:]) < 1.5 * max(norms[:10])
    else:
        assert norms[-1] > 3 * norms[0]
