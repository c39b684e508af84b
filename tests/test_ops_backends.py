"""Every backend is compared with the reference, in float64: outputs, final states and all gradients."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import ssmn
from laws import CHUNK, MemoryOp, Subject, WindowOp, assert_close, evaluate, random_steps, sample_resets
from ssmn import ops
from ssmn.config import Backend, SSMNConfig, TextSSMNConfig, UpdateRule
from ssmn.errors import BackendError, RangeError
from ssmn.models import SSMN, TextSSMN
from ssmn.native import NativeStatus
from ssmn.ops import backend_status
from ssmn.state import StreamState

needs_native = pytest.mark.skipif(
    backend_status()["native"] is not None, reason=backend_status()["native"] or "native runs"
)
PATHS = [
    pytest.param("chunked", torch.float64, id="chunked-float64"),
    pytest.param("chunked", torch.float32, id="chunked-float32"),
    pytest.param("native", torch.float32, id="native-float32", marks=needs_native),
]
LENGTHS = (0, 1, CHUNK - 1, 0, CHUNK + 1, 2, 0, 3, 0)
"""Of packed segments, around the edges of a chunk."""


def options_of(kind: str, batch: int, time: int, heads: int) -> dict[str, Tensor]:
    """Masks, resets and packing by name."""
    options: dict[str, Tensor] = {}
    if kind in ("masked", "all"):
        options["mask"] = random_steps(batch, time, 0.7, seed=2)
    if kind == "masked-heads":
        options["mask"] = random_steps(batch * heads, time, 0.7, seed=2).reshape(batch, time, heads)
    if kind in ("reset", "all"):
        options["reset"] = sample_resets(batch, time)
    if kind in ("packed", "all"):
        options["cu_seqlens"] = torch.tensor([0, *itertools.accumulate(LENGTHS)])
    return options


Build = Callable[[Backend, torch.dtype], Subject]
KINDS = ("plain", "masked", "reset", "packed", "all")
MEMORY: dict[UpdateRule, Build] = {
    "hebbian": lambda backend, dtype: MemoryOp(backend, dtype, "hebbian"),
    "delta": lambda backend, dtype: MemoryOp(backend, dtype, "delta"),
    "erase": lambda backend, dtype: MemoryOp(backend, dtype, "erase"),
}
WINDOW: dict[str, Build] = {
    "sinks-rope": lambda backend, dtype: WindowOp(backend, dtype, 14, rope_theta=100.0, sinks=True),
    "long": lambda backend, dtype: WindowOp(backend, dtype, 2 * CHUNK + 9),
    "one": lambda backend, dtype: WindowOp(backend, dtype, 1, sinks=True),
}


def compare(build: Build, backend: Backend, dtype: torch.dtype, kind: str, time: int) -> None:
    """A backend in one dtype against the reference in float64, from a state that is not zero."""
    subject, reference = build(backend, dtype), build("reference", torch.float64)
    packed = kind in ("packed", "all")
    batch, time = (1, sum(LENGTHS)) if packed else (2, time)
    options = options_of(kind, batch, time, heads=3)
    inputs = subject.inputs(batch, time)
    state = reference.started(len(LENGTHS) if packed else batch).map(
        lambda x: x.to(dtype) if x.is_floating_point() else x
    )
    got = evaluate(subject, lambda x, s: subject.run(x, s, **options), inputs, state)
    want = evaluate(
        reference,
        lambda x, s: reference.run(x, s, **options),
        {name: x.double() for name, x in inputs.items()},
        state.to(torch.float64),
    )
    assert_close(got, {name: x.to(got[name].dtype) for name, x in want.items()}, subject.tolerance)


@pytest.mark.parametrize(("backend", "dtype"), PATHS)
@pytest.mark.parametrize("kind", [*KINDS, "masked-heads"])
@pytest.mark.parametrize("rule", MEMORY)
def test_memory(rule: UpdateRule, kind: str, backend: Backend, dtype: torch.dtype) -> None:
    compare(MEMORY[rule], backend, dtype, kind, 2 * CHUNK + 3)


@pytest.mark.parametrize(("backend", "dtype"), PATHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", WINDOW)
def test_window(settings: str, kind: str, backend: Backend, dtype: torch.dtype) -> None:
    compare(WINDOW[settings], backend, dtype, kind, 2 * CHUNK + 3)


@pytest.mark.parametrize(("backend", "dtype"), PATHS)
@pytest.mark.parametrize("time", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
@pytest.mark.parametrize("build", [MEMORY["delta"], WINDOW["sinks-rope"]], ids=["memory", "window"])
def test_lengths(build: Build, time: int, backend: Backend, dtype: torch.dtype) -> None:
    compare(build, backend, dtype, "masked", time)


@pytest.mark.parametrize(("backend", "dtype"), PATHS)
@pytest.mark.parametrize("rule", MEMORY)
def test_a_long_gap_does_not_blur_what_follows(rule: UpdateRule, backend: Backend, dtype: torch.dtype) -> None:
    """Some steps forget nearly all or all; the products of decays on either side of them stay exact."""
    subject, reference = MEMORY[rule](backend, dtype), MEMORY[rule]("reference", torch.float64)
    batch, time = 2, CHUNK + 7
    inputs = subject.inputs(batch, time)
    for number, gap in enumerate((-30.0, -1e4, -1e8, -3e38, -3e38)):
        inputs["log_decay"][:, 5 + 9 * number] = gap
    state = reference.started(batch)
    got = evaluate(subject, subject.run, inputs, state.to(dtype))
    want = evaluate(
        reference, reference.run, {name: x.double() for name, x in inputs.items()}, state.to(dtype).to(torch.float64)
    )
    assert_close(got, {name: x.to(dtype) for name, x in want.items()}, subject.tolerance)


@pytest.mark.parametrize(("backend", "dtype"), PATHS)
def test_extreme_scores_and_sinks_do_not_overflow(backend: Backend, dtype: torch.dtype) -> None:
    """The exponential of a score, or of a sink's logit, would be infinite by itself."""

    def build(backend: Backend, dtype: torch.dtype) -> WindowOp:
        subject = WindowOp(backend, dtype, 5)
        subject.sinks = torch.tensor([-1e4, -300.0, -5.0, 0.0, 3.0, 200.0, 800.0, 1e4], dtype=dtype, requires_grad=True)
        return subject

    subject, reference = build(backend, dtype), build("reference", torch.float64)
    inputs = subject.inputs(2, 13)
    inputs["q"][:, :, :4] *= 500
    state = reference.started(2).to(dtype)
    got = evaluate(subject, subject.run, inputs, state)
    wide = {name: x.double() for name, x in inputs.items()}
    want = evaluate(reference, reference.run, wide, state.to(torch.float64))
    assert all(x.isfinite().all() for x in got.values())
    assert (want["output"][:, :, 7] == 0).all()
    # A score of 1,000 carries its rounding of 3e-5 into the weights.
    assert_close(got, {name: x.to(got[name].dtype) for name, x in want.items()}, 100 * subject.tolerance)


@pytest.mark.parametrize("backend", ["reference", "chunked", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_keep_a_float32_state(backend: Backend, dtype: torch.dtype) -> None:
    """What comes in and goes out is rounded; what is kept in between is not, and what is computed hardly."""
    memory, window = MemoryOp(backend, torch.float32, "delta"), WindowOp(backend, torch.float32, 11, sinks=True)
    for subject in (memory, window):
        inputs = {name: x.to(dtype) for name, x in subject.inputs(2, CHUNK + 3).items()}
        if "k" in inputs and subject is memory:
            inputs["k"] = nn.functional.normalize(inputs["k"].float(), dim=-1).to(dtype)
        state = subject.started(2)
        output, final = subject.run(inputs, state)
        wide, wide_final = subject.run({name: x.float() for name, x in inputs.items()}, state)
        assert output.dtype == dtype
        # The native kernels multiply pairs of bfloat16 where the processor can: what goes into a product is rounded.
        pairs = (backend, dtype) == ("native", torch.bfloat16)
        assert all(x.dtype == torch.float32 for x in final.named_tensors().values() if x.is_floating_point())
        assert_close(final.named_tensors(), wide_final.named_tensors(), 1e-2 if pairs and subject is memory else 1e-6)
        if pairs:
            assert_close({"output": output.float()}, {"output": wide}, 1e-2)
        else:
            assert torch.equal(output, wide.to(dtype))
        leaf = inputs["v"].requires_grad_()
        (gradient,) = torch.autograd.grad(subject.run({**inputs, "v": leaf}, state)[0].sum(), leaf)
        assert gradient.dtype == dtype


def numbers(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return MemoryOp("auto", dtype, "delta").inputs(1, 4)


def written_by(dtype: torch.dtype = torch.float32, backend: Backend = "auto") -> str:
    """The backend that a memory op chooses."""
    inputs = numbers(dtype)
    del inputs["q"]
    return ops.memory_write(**inputs, backend=backend)[0].backend


@needs_native
def test_native_refuses_float64_and_auto_takes_chunked() -> None:
    inputs = numbers(torch.float64)
    with pytest.raises(
        BackendError, match=r"synaptic_memory: backend='native' cannot run: .*float32.*float64; use backend='chunked'"
    ):
        ops.synaptic_memory(**inputs, backend="native")
    q, k, v = inputs["q"], inputs["k"], inputs["k"]
    with pytest.raises(BackendError, match=r"window_attention: backend='native' cannot run: .*float64"):
        ops.window_attention(q, k, v, window_size=3, backend="native")
    assert written_by(torch.float64) == "chunked"
    assert written_by(torch.float32) == written_by(torch.bfloat16) == "native"


def test_without_the_library_auto_takes_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssmn.native, "status", lambda: NativeStatus(False, "no compiled library"))
    assert backend_status() == {"reference": None, "chunked": None, "native": "no compiled library"}
    assert written_by() == "chunked"
    with pytest.raises(BackendError, match="cannot run: no compiled library; use backend='chunked' or 'auto'"):
        ops.memory_write(
            *[numbers()[name] for name in "kv"],
            eta=numbers()["eta"],
            log_decay=numbers()["log_decay"],
            backend="native",
        )


CALLS: dict[str, Callable[[Tensor, Backend], Tensor]] = {
    "window": lambda q, backend: ops.window_attention(q, q, q, window_size=3, backend=backend)[0],
    "memory": lambda q, backend: ops.synaptic_memory(
        q, q, q, eta=q[..., 0].sigmoid(), log_decay=-q[..., 0].square(), backend=backend
    )[0],
    "scan": lambda q, backend: ops.linear_scan(q.tanh() / 2, q, backend=backend)[0],
}
"""Operations of one input [2, 7, 2, 4]."""


def transformed(call: Callable[[Tensor], Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
    """What torch makes of a function, as functions."""

    def dual(q: Tensor) -> Tensor:
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(call(forward_ad.make_dual(q, q.cos()))).tangent
        assert tangent is not None
        return tangent

    return {
        "vmap": lambda q: torch.func.vmap(call)(torch.stack([q, q.cos()])),
        "grad": torch.func.grad(lambda q: call(q).sin().sum()),
        "jvp": lambda q: torch.func.jvp(call, (q,), (q.cos(),))[1],
        "dual numbers": dual,
    }


@needs_native
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp", "dual numbers"])
@pytest.mark.parametrize("op", CALLS)
def test_function_transforms_take_chunked(op: str, transform: str) -> None:
    q = torch.randn(2, 7, 2, 4, generator=torch.Generator().manual_seed(1))
    got, want = (transformed(lambda q, b=b: CALLS[op](q, b))[transform](q) for b in ("auto", "chunked"))
    torch.testing.assert_close(got, want)
    with pytest.raises(BackendError, match=r"backend='native' cannot run: .* no function transforms .*'chunked'"):
        transformed(lambda q: CALLS[op](q, "native"))[transform](q)


@needs_native
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("op", ["window", "scan"])
def test_a_traced_kernel_reads_its_input(op: str) -> None:
    q = torch.randn(2, 7, 2, 4, generator=torch.Generator().manual_seed(1))
    traced: Any = torch.jit.trace(lambda q: CALLS[op](q, "native"), q, check_trace=False)
    torch.testing.assert_close(traced(q.cos()), CALLS[op](q.cos(), "native"))


@needs_native
def test_a_compiled_kernel_checks_the_boundaries() -> None:
    torch.compiler.reset()
    row, bounds = torch.randn(1, 7, 2, 4), torch.tensor([0, 3, 7])
    calls: dict[str, Callable[[Tensor], Any]] = {
        "synaptic_memory": lambda c: ops.synaptic_memory(
            row, row, row, eta=torch.ones(1, 7, 2), log_decay=torch.zeros(1, 7, 2), cu_seqlens=c, backend="native"
        )[0],
        "window_attention": lambda c: ops.window_attention(
            row, row, row, window_size=3, cu_seqlens=c, backend="native"
        )[0],
        "linear_scan": lambda c: ops.linear_scan(row, row, cu_seqlens=c, backend="native")[0],
    }
    for name, call in calls.items():
        compiled = torch.compile(call, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(bounds), call(bounds))
        with pytest.raises(
            RangeError, match=rf"{name}: cu_seqlens=\[0, 3, 900\]; wanted boundaries that rise from 0 to"
        ):
            compiled(torch.tensor([0, 3, 900]))


def test_the_choice_is_argument_then_block(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = written_by()
    with ops.use_backend("chunked"):
        assert written_by() == "chunked"
        assert written_by(backend="reference") == "reference"
        with ops.use_backend("auto"):
            assert written_by() == auto
        assert written_by() == "chunked"
    assert written_by() == auto
    with pytest.raises(RangeError, match="use_backend: name='fast'; wanted one of auto, reference, chunked, native"):
        ops.use_backend("fast").__enter__()  # pyright: ignore[reportArgumentType]
    with pytest.raises(RangeError, match="memory_write: backend='fast'; wanted one of"):
        written_by(backend="fast")  # pyright: ignore[reportArgumentType]


def test_the_environment_chooses_for_the_whole_process() -> None:
    program = (
        "import torch, ssmn; one = torch.ones(1, 1, 1, 1);"
        "ssmn.ops.memory_write(one, one, eta=one[0], log_decay=0 * one[0])"
    )
    environment = {**os.environ, "SSMN_BACKEND": "fast"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "SSMN_BACKEND='fast'; wanted one of auto, reference, chunked, native" in done.stderr


def test_a_block_restores_the_choice_after_an_error() -> None:
    before = written_by()
    with pytest.raises(ZeroDivisionError), ops.use_backend("reference"):
        raise ZeroDivisionError
    assert written_by() == before


STACK: dict[str, Any] = {
    "hidden_dim": 24, "num_layers": 3, "layer_types": ("static", "plastic", "static"), "num_heads": 4,
    "num_kv_heads": 2, "memory_heads": 3, "window_size": 7, "attention_sinks": True, "chat_rounds": 1,
}  # fmt: skip


def _compilations() -> Iterator[Any]:
    for kind, backend in itertools.product(("standard", "text"), ("chunked", "native")):
        marks = [needs_native] if backend == "native" else []
        yield pytest.param("eager", kind, backend, marks=marks)
        yield pytest.param("aot_eager", kind, backend, marks=[*marks, pytest.mark.slow])
    yield pytest.param("inductor", "text", "native", marks=[needs_native, pytest.mark.slow])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize(("compiler", "kind", "backend"), list(_compilations()))
def test_whole_models_compile_without_graph_breaks(compiler: str, kind: str, backend: Backend) -> None:
    torch.compiler.reset()
    model: SSMN | TextSSMN
    if kind == "standard":
        model, x = SSMN(SSMNConfig(input_dim=5, output_dim=3, **STACK)), torch.randn(2, CHUNK + 3, 5)
    else:
        model = TextSSMN(TextSSMNConfig(vocab_size=19, semantic_encoder=True, **STACK))
        x = torch.randint(19, (2, CHUNK + 3))
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    mask, reset = random_steps(2, CHUNK + 3, 0.8, seed=1), sample_resets(2, CHUNK + 3)
    with ops.use_backend(backend):
        state = model(x)[1].detach()
        for options in ({}, {"mask": mask, "reset": reset}):
            got, got_final = compiled(x, state, **options)
            want, want_final = model(x, state, **options)
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
            assert_close(got_final.named_tensors(), want_final.named_tensors(), 1e-5)
            gradients = torch.autograd.grad(got.square().mean(), list(model.parameters()), allow_unused=True)
            wanted = torch.autograd.grad(want.square().mean(), list(model.parameters()), allow_unused=True)
            for gradient, reference in zip(gradients, wanted, strict=True):
                assert (gradient is None) == (reference is None)
                if reference is not None:
                    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)


@needs_native
@pytest.mark.parametrize("op", CALLS)
def test_second_derivatives_are_refused_with_the_way_out(op: str) -> None:
    q = torch.randn(2, 7, 2, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (first,) = torch.autograd.grad(CALLS[op](q, "native").square().sum(), q, create_graph=True)
    with pytest.raises(BackendError, match=r"first derivatives alone.*use_backend"):
        torch.autograd.grad(first.square().sum(), q)
    (first,) = torch.autograd.grad(CALLS[op](q, "chunked").square().sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), q)
    assert second.isfinite().all() and second.any()


@pytest.mark.parametrize("kind", ["standard", "text"])
def test_whole_models_are_exported_with_a_state_in_and_out(kind: str) -> None:
    model: SSMN | TextSSMN
    if kind == "standard":
        model, x = SSMN(SSMNConfig(input_dim=5, output_dim=3, **STACK)), torch.randn(2, 11, 5)
    else:
        model, x = TextSSMN(TextSSMNConfig(vocab_size=19, semantic_encoder=True, **STACK)), torch.randint(19, (2, 11))
    with torch.no_grad():
        state, (want, want_final) = model(x)[1], model(x, model(x)[1])
    program = torch.export.export(model, (x, state))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for exported in (program, torch.export.load(file)):
        got, final = exported.module()(x, state)
        assert torch.equal(got, want)
        assert isinstance(final, StreamState)
        assert final.diff(want_final).identical


def test_an_exported_model_may_have_a_free_number_of_streams() -> None:
    model, x = SSMN(SSMNConfig(input_dim=5, output_dim=3, **STACK)), torch.randn(3, 4, 5)
    state = model.init_state(3)
    shapes = torch.export.ShapesCollection()
    for tensor in (x, *state.named_tensors().values()):
        shapes[tensor] = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (x, state), dynamic_shapes=shapes)  # pyright: ignore[reportArgumentType]
    for streams in (1, 2, 7):
        x = torch.randn(streams, 4, 5)
        assert torch.equal(program.module()(x, model.init_state(streams))[0], model(x)[0])
