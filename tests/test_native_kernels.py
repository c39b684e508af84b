"""The compiled kernels against loops over time in float64, written here from the definitions."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import ssmn
from ssmn import native
from ssmn.config import Backend, UpdateRule
from ssmn.ops import native as kernels

pytestmark = pytest.mark.skipif(not native.status().available, reason=native.status().reason)

B, H, K, V = 2, 3, 12, 20
LENGTHS = (0, 1, 5, native.CHUNK - 1, native.CHUNK, native.CHUNK + 1, 2 * native.CHUNK + 37)


def naive_memory(inputs, reset=None, cu_seqlens=None):
    """S_t = a_t (S_{t−1} − e_t k_t k_tᵀ S_{t−1}) + w_t k_t v_tᵀ; o_t = S_tᵀ q_t."""
    q, k, v, write, erase, log_keep, initial_state = inputs
    steps = k.shape[1]
    bounds = [0, steps] if cu_seqlens is None else cu_seqlens.tolist()
    outputs, finals = [], []
    for n, state in enumerate(initial_state):
        row, first, last = (n, 0, steps) if cu_seqlens is None else (0, *bounds[n : n + 2])
        for t in range(first, last):
            if reset is not None and reset[row, t]:
                state = torch.zeros_like(state)
            key = k[row, t]
            if erase is not None:
                recalled = torch.einsum("hk,hkv->hv", key, state)
                state = state - torch.einsum("h,hk,hv->hkv", erase[row, t], key, recalled)
            state = log_keep[row, t].exp()[:, None, None] * state
            state = state + torch.einsum("h,hk,hv->hkv", write[row, t], key, v[row, t])
            outputs.append(torch.einsum("hk,hkv->hv", q[row, t], state))
        finals.append(state)
    o = torch.stack(outputs).reshape(v.shape) if outputs else v
    return o, torch.stack(finals) if finals else initial_state


def native_memory(inputs, reset=None, cu_seqlens=None):
    """Written by one call, read by another."""
    q, k, v, write, erase, log_keep, initial_state = inputs
    rule = "hebbian" if erase is None else "erase"
    streams = (None, reset, cu_seqlens, initial_state)
    keys, u, final_state = kernels.write(k, v, write, log_keep, erase, rule, *streams)
    return kernels.read(q, keys, u, log_keep, *streams), final_state


def attention_inputs(
    steps: int, streams: int, *, heads: tuple[int, int], width: int, window: int, rows: int = B
) -> tuple[list[Any], dict[str, Any]]:
    """Floating inputs (the carried ring among them), and sinks' place last; and the rest by name."""
    rng = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    ring = (streams, window - 1, heads[1], width)
    shapes = [(rows, steps, heads[0], width), *[(rows, steps, heads[1], width)] * 2, ring, ring, (heads[0],)]
    position = torch.arange(streams) * 7 % (2 * window)
    return [normal(*shape) for shape in shapes], {"position": position}


def attend(inputs, position, backend=None, dtype=None, **options):
    """(o, final keys, final values) of `window_attention`."""
    q, k, v, ring_keys, ring_values, sinks = inputs
    state = ssmn.state.WindowState(ring_keys, ring_values, position)
    o, final = ssmn.ops.window_attention(
        q, k, v, sinks=sinks, initial_state=state, output_final_state=True, backend=backend or "native", **options
    )
    assert final is not None
    return o, final.keys, final.values


def memory_inputs(steps: int, streams: int, *, erases: bool, seed: int = 0, rows: int = B) -> list[Any]:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    keys = torch.nn.functional.normalize(normal(rows, steps, H, K), dim=-1)
    write, erase = normal(rows, steps, H).sigmoid(), normal(rows, steps, H).sigmoid()
    log_keep = -normal(rows, steps, H).exp() * 0.1
    initial = normal(streams, H, K, V)
    return [
        normal(rows, steps, H, K),
        keys,
        normal(rows, steps, H, V),
        write,
        erase if erases else None,
        log_keep,
        initial,
    ]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.dtype == torch.float32
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()  # conftest poisons torch.empty, so this also finds elements left unwritten
    if expected.numel():
        assert (actual - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


def as_leaves(tensors, dtype) -> list[Any]:
    return [None if x is None else x.to(dtype).requires_grad_() for x in tensors]


def compare(fast, slow, inputs) -> None:
    """Outputs, and gradients of every floating input under random cotangents on every output."""
    fast_inputs, slow_inputs = as_leaves(inputs, torch.float32), as_leaves(inputs, torch.float64)
    fast_outputs, slow_outputs = fast(fast_inputs), slow(slow_inputs)
    rng = torch.Generator().manual_seed(99)
    cotangents = [torch.randn(y.shape, generator=rng, dtype=torch.float64) for y in slow_outputs]
    for actual, expected in zip(fast_outputs, slow_outputs, strict=True):
        close(actual.detach(), expected.detach())
    pairs = [(x, y) for x, y in zip(fast_inputs, slow_inputs, strict=True) if x is not None]
    total = torch.stack([(y * c).sum() for y, c in zip(slow_outputs, cotangents, strict=True)]).sum()
    expected = torch.autograd.grad(total, [y for _, y in pairs], materialize_grads=True)
    total = torch.stack([(y * c.float()).sum() for y, c in zip(fast_outputs, cotangents, strict=True)]).sum()
    actual = torch.autograd.grad(total, [x for x, _ in pairs], materialize_grads=True)
    for one, other in zip(actual, expected, strict=True):
        close(one, other)


def compare_memory(inputs, **streams) -> None:
    compare(lambda x: native_memory(x, **streams), lambda x: naive_memory(x, **streams), inputs)


@pytest.mark.parametrize("erases", [True, False], ids=["erase", "no-erase"])
@pytest.mark.parametrize("steps", LENGTHS)
def test_memory_and_gradients(steps, erases):
    compare_memory(memory_inputs(steps, B, erases=erases))


@pytest.mark.parametrize("erases", [True, False], ids=["erase", "no-erase"])
def test_packing_with_initial_states(erases):
    C = native.CHUNK
    lengths = (0, 1, C - 1, 7, C + 1, 0, C, 30, 0)
    bounds = torch.tensor((0, *lengths)).cumsum(0)
    inputs = memory_inputs(sum(lengths), len(lengths), erases=erases, rows=1)
    reset = torch.arange(sum(lengths))[None] % 50 == 20
    compare_memory(inputs, cu_seqlens=bounds, reset=reset)


def test_resets_inside_a_chunk():
    steps = native.CHUNK + 30
    reset = torch.zeros(B, steps, dtype=torch.bool)
    reset[0, 5] = reset[0, 6] = reset[1, 0] = reset[1, 40] = reset[1, native.CHUNK] = True
    compare_memory(memory_inputs(steps, B, erases=True), reset=reset)


def test_no_rows():
    compare_memory(memory_inputs(9, 0, erases=True, rows=0))


def test_a_stream_of_closed_steps_is_bit_identical():
    q, k, v, *gates, initial = (x.float() for x in memory_inputs(150, B, erases=True))
    closed = [torch.zeros_like(x) for x in gates]
    o, final = native_memory([q, k, v, *closed, initial])
    assert torch.equal(final, initial)
    close(o, torch.einsum("bthk,bhkv->bthv", q.double(), initial.double()))


@pytest.mark.parametrize("steps", [native.CHUNK, 2 * native.CHUNK])
def test_constant_keys_stay_accurate(steps):
    q, k, v, write, _, log_keep, initial = memory_inputs(steps, B, erases=True)
    k = k[:, :1].expand(-1, steps, -1, -1)
    strong = torch.full_like(write, 0.95)
    inputs = [q, k, v, strong, strong, torch.zeros_like(log_keep), initial]
    for one, other in zip(native_memory([x.float() for x in inputs]), naive_memory(inputs), strict=True):
        close(one, other, 1e-4)


def test_strong_decay_neither_overflows_nor_loses_the_near_steps():
    q, k, v, write, erase, log_keep, initial = memory_inputs(100, B, erases=True)
    log_keep[:, 10:40] = -500.0
    log_keep[:, 40:] = -1e-3
    compare_memory([q, k, v, write, erase, log_keep, initial])


@pytest.mark.parametrize("sinks", [True, False], ids=["sinks", "no-sinks"])
@pytest.mark.parametrize("steps", [0, 1, 33, 150])
@pytest.mark.parametrize("heads", [(6, 3), (4, 1), (5, 5)], ids=str)
def test_attention_and_gradients(heads, steps, sinks):
    inputs, ring = attention_inputs(steps, B, heads=heads, width=10, window=70)
    if not sinks:
        inputs[-1] = None
    options = {**ring, "window_size": 70, "rope_theta": 50.0}
    compare(lambda x: attend(x, **options), lambda x: attend(x, backend="reference", **options), inputs)


def test_attention_over_several_slabs():
    inputs, ring = attention_inputs(600, 1, heads=(2, 1), width=6, window=300, rows=1)
    options = {**ring, "window_size": 300, "rope_theta": 1e4}
    compare(lambda x: attend(x, **options), lambda x: attend(x, backend="chunked", **options), inputs)


def bfloat16_errors(heads: int, width: int, steps: int, window: int, rope_theta: float | None) -> dict[str, float]:
    """Root mean square errors of o and the gradients against float64, relative to the exact one's."""
    rng = torch.Generator().manual_seed(4)
    q, k, v, d_o = (torch.randn(1, steps, heads, width, generator=rng).bfloat16() for _ in range(4))

    def results(backend, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        o, _ = ssmn.ops.window_attention(*leaves, window_size=window, rope_theta=rope_theta, backend=backend)
        return [o.detach(), *torch.autograd.grad(o, leaves, d_o.to(dtype))]

    pairs = zip(results("native", torch.bfloat16), results("chunked", torch.float64), strict=True)
    return {
        name: float((fast.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())
        for name, (fast, exact) in zip(("o", "q", "k", "v"), pairs, strict=True)
    }


@pytest.mark.parametrize("rope_theta", [None, 1e4])
def test_bfloat16_attention_is_as_exact_as_its_type(rope_theta):
    errors = bfloat16_errors(2, 64, 1100, 512, rope_theta)
    # Half a unit in the last place is 2^-9 = 0.002, and several roundings come together.
    assert max(errors.values()) < 0.01, errors


def test_a_window_longer_than_any_stream_is_causal_attention():
    q, k, v = (torch.randn(1, 300, 2, 8, requires_grad=True) for _ in range(3))
    o, _ = ssmn.ops.window_attention(q, k, v, window_size=10**12, backend="native")
    query, key, value = (x.transpose(1, 2).double() for x in (q, k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    close(o.detach(), expected.detach())
    cotangent = torch.randn_like(o)
    wanted = torch.autograd.grad(expected, (q, k, v), cotangent.double())
    for one, other in zip(torch.autograd.grad(o, (q, k, v), cotangent), wanted, strict=True):
        close(one, other)


def test_attention_far_into_a_stream():
    """Angles come from the integer position in float64: float32 has lost the unit by position 16,777,216."""
    inputs, _ = attention_inputs(40, 2, heads=(2, 1), width=8, window=20, rows=2)
    options = {"position": torch.tensor([2**40 + 1, 2**24 + 1]), "window_size": 20, "rope_theta": 1e4}
    compare(lambda x: attend(x, **options), lambda x: attend(x, backend="reference", **options), inputs)


@pytest.mark.parametrize("steps", [1, 30])
def test_attention_without_gradients_takes_the_short_way_to_the_same_numbers(steps):
    inputs, ring = attention_inputs(steps, B, heads=(6, 3), width=10, window=20)
    leaves = as_leaves(inputs, torch.float32)
    watched = attend(leaves, **ring, window_size=20)
    assert all(x.requires_grad for x in watched)
    with torch.no_grad():
        plain = attend(leaves, ring["position"].int(), window_size=20)
    assert not any(x.requires_grad for x in plain)
    assert all(map(torch.equal, watched, plain))


def test_tensors_off_the_processor_are_refused():
    q = torch.randn(1, 3, 2, 4)
    with pytest.raises(ssmn.errors.BackendError, match="a tensor is on meta; wanted all on the CPU"):
        ssmn.ops.window_attention(q, q, q, window_size=2, mask=torch.ones(1, 3).bool().to("meta"), backend="native")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_needs_little_memory_above_its_inputs_and_outputs(dtype):
    """In a process of its own, since the peak of resident memory never falls."""
    program = f"""
import resource, torch, ssmn
torch.set_num_threads(2)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def run(steps):
    leaves = [torch.ones(1, steps, 4, 64, dtype=torch.{dtype}, requires_grad=True) for _ in range(3)]
    cotangent = torch.ones(1, steps, 4, 64, dtype=torch.{dtype})
    before = peak()
    o, _ = ssmn.ops.window_attention(*leaves, window_size=512, rope_theta=1e4, backend="native")
    gradients = torch.autograd.grad(o, leaves, cotangent)
    return peak() - before - sum(x.numel() * x.element_size() for x in (o, *gradients)) / 2**20
run(1)
print(run(10240))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 12, done.stdout


def test_large_scores_do_not_overflow():
    q, k, v = torch.full((1, 3, 2, 4), 60.0), torch.full((1, 3, 2, 4), 60.0), torch.randn(1, 3, 2, 4)
    k[:, 1] = -60.0
    o, _ = ssmn.ops.window_attention(q, k, v, window_size=3, backend="native")
    means = [v[:, 0], v[:, 0], torch.stack([v[:, 0], v[:, 2]]).mean(0, dtype=torch.float64)]
    close(o, torch.stack(means, 1))


RULES: tuple[UpdateRule, ...] = ("hebbian", "delta", "erase")


def fused_inputs(rule: UpdateRule, steps: int, rows: int, heads: int, K: int, V: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=rng)

    inputs = {
        "q": torch.nn.functional.normalize(normal(steps, heads, K), dim=-1),
        "k": torch.nn.functional.normalize(normal(steps, heads, K), dim=-1),
        "v": normal(steps, heads, V),
        "eta": normal(steps, heads).sigmoid(),
        "log_decay": -0.1 * normal(steps, heads).exp(),
        "initial_state": normal(heads, K, V),
    }
    return inputs | ({"erase": normal(steps, heads).sigmoid()} if rule == "erase" else {})


def fused_results(inputs: dict[str, Tensor], rule: UpdateRule, backend: Backend, **options: Any) -> dict[str, Tensor]:
    """Outputs and gradients, under the same random cotangents for every dtype."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    o, final = ssmn.ops.synaptic_memory(**leaves, rule=rule, output_final_state=True, backend=backend, **options)
    assert final is not None
    rng = torch.Generator().manual_seed(6)
    cotangents = [torch.randn(x.shape, generator=rng).bfloat16().to(x.dtype) for x in (o, final)]
    gradients = torch.autograd.grad([o, final], list(leaves.values()), cotangents)
    return {"o": o, "S": final} | {f"d_{name}": x for name, x in zip(leaves, gradients, strict=True)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sizes", [(native.MEMORY_WINDOW + 90, 2, 3, 20, 65), (130, 1, 1, 63, 130), (1, 3, 2, 17, 63)])
def test_the_fused_memory_in_bfloat16_against_float64(sizes: tuple[int, ...], rule: UpdateRule) -> None:
    steps, rows, heads, K, V = sizes
    inputs = fused_inputs(rule, steps, rows, heads, K, V)
    mask = torch.rand(rows, steps, heads, generator=torch.Generator().manual_seed(7)) < 0.7
    narrow = {name: x.bfloat16() if name in "qkv" else x for name, x in inputs.items()}
    got = fused_results(narrow, rule, "native", mask=mask)
    want = fused_results({name: x.double() for name, x in narrow.items()}, rule, "chunked", mask=mask)
    for name, exact in want.items():
        assert got[name].dtype == (torch.bfloat16 if name in ("o", "d_q", "d_k", "d_v") else torch.float32)
        difference = (got[name].double() - exact).detach().abs().max()
        assert difference <= 1e-2 * max(1.0, float(exact.detach().abs().max())), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "V"), [(1, 130), (3, 65), (4, 64)])
def test_the_fused_memory_depends_neither_on_the_run_nor_on_the_threads(heads: int, V: int, dtype: torch.dtype) -> None:
    inputs = fused_inputs("delta", native.MEMORY_WINDOW + 70, 1, heads, 24, V)
    inputs |= {name: inputs[name].to(dtype) for name in "qkv"}
    threads = torch.get_num_threads()
    first = fused_results(inputs, "delta", "native")
    try:
        for count in (1, 2, 2, 5):
            torch.set_num_threads(count)
            assert all(torch.equal(x, first[name]) for name, x in fused_results(inputs, "delta", "native").items())
    finally:
        torch.set_num_threads(threads)


def test_closed_steps_of_the_fused_memory_leave_the_state_and_take_no_gradient() -> None:
    for steps in (1, 150):
        inputs = fused_inputs("erase", steps, 2, 3, 12, 20)
        got = fused_results(inputs, "erase", "native", mask=torch.zeros(2, steps, dtype=torch.bool))
        assert torch.equal(got["S"], inputs["initial_state"])
        for name in ("d_k", "d_v", "d_eta", "d_erase", "d_log_decay"):
            assert not got[name].any()


def test_the_fused_memory_keeps_one_state_per_window() -> None:
    x = fused_inputs("delta", 2 * native.MEMORY_WINDOW + 1, 1, 2, 5, 7)
    arguments = (x["q"], x["k"], x["v"], x["eta"], x["log_decay"], None, None, None, None, None, 1, False)
    o, u, states, final = torch.ops.ssmn.memory(*arguments)
    assert o.shape == x["v"].shape
    assert u.numel() == 0
    assert states.shape == (1, 2, 2, 5, 7)
    assert final.numel() == 0
    _, wanted = ssmn.ops.synaptic_memory(
        *(x[name][:, : native.MEMORY_WINDOW] for name in "qkv"),
        eta=x["eta"][:, : native.MEMORY_WINDOW],
        log_decay=x["log_decay"][:, : native.MEMORY_WINDOW],
        output_final_state=True,
    )
    assert wanted is not None
    assert torch.equal(states[:, 0], wanted)


@pytest.mark.parametrize("rule", RULES)
def test_opcheck_fused_memory(rule: UpdateRule) -> None:
    x = {name: y.requires_grad_() for name, y in fused_inputs(rule, 70, 2, 3, 12, 20).items()}
    mask, reset = torch.rand(2, 70, 3) < 0.7, torch.rand(2, 70) < 0.05
    number = RULES.index(rule)
    arguments = (
        *(x["q"], x["k"], x["v"], x["eta"], x["log_decay"], x.get("erase")),
        *(mask, reset, None, x["initial_state"], number, True),
    )
    # Whole, and its two halves.
    writes = (None, *arguments[1:])
    values = torch.ops.ssmn.memory(*writes)[1].detach().requires_grad_()
    reads = (x["q"], x["k"], values, None, x["log_decay"], None, *arguments[6:10], RULES.index("hebbian"), False)
    for given in (arguments, writes, reads):
        torch.library.opcheck(torch.ops.ssmn.memory.default, given)
        o, u, states, final = (y.detach() for y in torch.ops.ssmn.memory(*given))
        inputs = [y.detach() if isinstance(y, Tensor) else y for y in given[:11]]
        on = (None, u) if given[0] is None else (o, None)
        for d_final in (final if given[11] else None, None):
            torch.library.opcheck(torch.ops.ssmn.memory_backward.default, (*inputs, states, *on, d_final))


@pytest.mark.parametrize("rule", RULES)
def test_written_and_read_apart_in_bfloat16_against_float64(rule: UpdateRule) -> None:
    steps, rows, heads, K, V = native.MEMORY_WINDOW + 90, 2, 3, 20, 65
    inputs = fused_inputs(rule, steps, rows, heads, K, V)
    mask = torch.rand(rows, steps, heads, generator=torch.Generator().manual_seed(7)) < 0.7
    narrow = {name: x.bfloat16() if name in "qkv" else x for name, x in inputs.items()}

    def results(inputs: dict[str, Tensor], backend: Backend) -> dict[str, Tensor]:
        """What is read twice, and all gradients."""
        leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
        given = {name: x for name, x in leaves.items() if name != "q"}
        trace, final = ssmn.ops.memory_write(**given, rule=rule, mask=mask, backend=backend)
        first = ssmn.ops.memory_read(leaves["q"], trace)
        second = ssmn.ops.memory_read(leaves["k"], trace)
        rng = torch.Generator().manual_seed(6)
        cotangents = [torch.randn(x.shape, generator=rng).bfloat16().to(x.dtype) for x in (first, second, final)]
        gradients = torch.autograd.grad([first, second, final], list(leaves.values()), cotangents)
        found = {"first": first, "second": second, "S": final}
        return found | {f"d_{name}": x for name, x in zip(leaves, gradients, strict=True)}

    got = results(narrow, "native")
    for name, exact in results({name: x.double() for name, x in narrow.items()}, "chunked").items():
        difference = (got[name].double() - exact).detach().abs().max()
        assert difference <= 2e-2 * max(1.0, float(exact.detach().abs().max())), name


def strided(tensor: Tensor) -> Tensor:
    """The same values in every second element of storage, off any vector's alignment."""
    storage = tensor.new_full((2 * tensor.numel() + 1,), torch.nan)
    view = storage[1::2].view(tensor.shape)
    view.copy_(tensor)
    return view


def test_strided_and_half_precision_inputs():
    inputs = [x.float() for x in memory_inputs(77, B, erases=True)]
    plain = native_memory(inputs)
    apart = native_memory([strided(x) for x in inputs])
    assert all(map(torch.equal, plain, apart))
    rounded = [x.half() for x in inputs]
    assert all(map(torch.equal, native_memory(rounded), native_memory([x.float() for x in rounded])))
    inputs, ring = attention_inputs(50, B, heads=(6, 3), width=8, window=20)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rounded = [*[x.to(dtype) for x in inputs[:3]], *[x.float() for x in inputs[3:]]]
        plain = attend(rounded, **ring, window_size=20)
        apart = attend([strided(x) for x in rounded], **ring, window_size=20)
        assert all(map(torch.equal, plain, apart))


def test_results_depend_neither_on_the_run_nor_on_the_threads():
    def results():
        inputs = as_leaves(memory_inputs(150, B, erases=True), torch.float32)
        o, final = native_memory(inputs)
        attention, ring = attention_inputs(700, B, heads=(4, 2), width=16, window=300)
        attention = as_leaves(attention, torch.float32)
        attended, keys, _ = attend(attention, **ring, window_size=300, rope_theta=1e4)
        narrow = attend([x.bfloat16() for x in attention[:3]] + attention[3:], **ring, window_size=300)[0].float()
        total = torch.stack([(x**2).sum() for x in (o, final, attended, keys, narrow)]).sum()
        return [o, final, attended, keys, narrow, *torch.autograd.grad(total, [*inputs, *attention])]

    threads = torch.get_num_threads()
    first = results()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert all(map(torch.equal, first, results()))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("everything", [True, False], ids=["everything", "bare"])
def test_opcheck_attention(everything, dtype):
    floating, ring = attention_inputs(40, B, heads=(6, 3), width=10, window=8)
    q, k, v, ring_keys, ring_values, sinks = as_leaves(floating, torch.float32)
    q, k, v = as_leaves([q.detach(), k.detach(), v.detach()], dtype)
    steps = torch.arange(2 * 40).reshape(2, 40)
    rest: list[Any] = [None] * 7
    if everything:
        rest = [ring_keys, ring_values, ring["position"], steps % 7 != 3, steps % 11 == 5, None, sinks]
    arguments = (q, k, v, *rest, 8, 100.0, everything)
    torch.library.opcheck(torch.ops.ssmn.window_attention.default, arguments)
    o, lse, keys, values, _ = torch.ops.ssmn.window_attention(*arguments)
    given = tuple(x.detach() if isinstance(x, Tensor) else x for x in (*arguments[:-1], o, lse, o))
    finals = (keys.detach(), values.detach()) if everything else (None, None)
    torch.library.opcheck(torch.ops.ssmn.window_attention_backward.default, (*given, *finals))
    packed = [x.detach()[:1].requires_grad_() for x in (q, k, v)]
    bounds = torch.tensor([0, 13, 13, 40])
    arguments = (*packed, None, None, None, None, None, bounds, None, 8, None, True)
    torch.library.opcheck(torch.ops.ssmn.window_attention.default, arguments)


def test_the_widest_window_sees_everything():
    q, k, v, cotangent = torch.randn(4, 2, 300, 2, 8)
    results = []
    for window in (sys.maxsize, 300):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        o, _ = ssmn.ops.window_attention(*inputs, window_size=window, backend="native")
        results.append((o, *torch.autograd.grad(o, inputs, cotangent)))
    for widest, wide in zip(*results, strict=True):
        torch.testing.assert_close(widest, wide, rtol=0, atol=0)


def test_refusals_name_the_reason(monkeypatch):
    x = torch.zeros(1)
    assert kernels.refusal(x, x.bfloat16()) is None
    assert "float64" in (kernels.refusal(x, x.double()) or "")
    assert "meta" in (kernels.refusal(x.to("meta")) or "")
    monkeypatch.setattr(native, "status", lambda: native.NativeStatus(False, "no compiler"))
    assert kernels.refusal(x) == "no compiler"


def test_a_library_of_another_interface_is_refused(monkeypatch):
    path = native.status().path
    assert path is not None
    monkeypatch.setattr(native, "INTERFACE", native.INTERFACE + 1)
    library, status = native.load([path.parent.parent])
    assert library is None
    assert f"interface {native.INTERFACE - 1}" in status.reason
    assert "pip install" in status.reason


def test_status_without_with_and_with_a_damaged_library(tmp_path):
    status = native.status()
    assert status.path is not None
    assert status.version == ssmn.__version__
    library, missing = native.load([tmp_path])
    assert library is None
    assert not missing.available
    assert "C++17 compiler" in missing.reason
    damaged = tmp_path / "_lib" / status.path.name
    damaged.parent.mkdir()
    damaged.write_bytes(b"not a library")
    library, broken = native.load([tmp_path])
    assert library is None
    assert str(damaged) in broken.reason
    assert "pip install" in broken.reason


def test_without_a_library_calls_say_why(monkeypatch):
    monkeypatch.setattr(native, "_loaded", lambda: (None, native.NativeStatus(False, "no compiler")))
    with pytest.raises(ssmn.SSMNError, match="native: no compiler"):
        native.library()
