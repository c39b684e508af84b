"""The diagonal recurrence: by hand, every backend against the reference, gradients, long streams, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from laws import ScanOp
from ssmn import bench, ops
from ssmn.bench.figures import figures_of
from ssmn.bench.scan import loop
from ssmn.config import Backend
from ssmn.errors import BackendError, DtypeError, RangeError, ShapeError
from test_ops_backends import KINDS, PATHS, compare, needs_native, random_steps, sample_resets

BACKENDS: list[Any] = ["reference", "chunked", pytest.param("native", marks=needs_native)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: Backend) -> None:
    """Two channels: a quarter turn, and a real decay by a half; a closed step, then a reset."""
    a = torch.tensor([[0.0, 0.5], [1.0, 0.0]])
    x = torch.tensor([[[1.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [2.0, 1.0]], [[9.0, 9.0], [9.0, 9.0]],
                      [[0.0, 1.0], [0.0, 0.0]], [[5.0, 6.0], [7.0, 8.0]]]).unsqueeze(0)  # fmt: skip
    mask = torch.tensor([[True, True, False, True, True]])
    reset = torch.tensor([[False, False, False, False, True]])
    start = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])
    options: dict[str, Any] = {"mask": mask, "reset": reset, "initial_state": start, "output_final_state": True}
    h, final = ops.linear_scan(a, x, **options, backend=backend)
    # i · i + 1 = 0 and i · 0 + 2i = 2i; 2 / 2 + 4 = 5 and 5 / 2 + i.
    wanted = [[[0.0, 5.0], [0.0, 0.0]], [[0.0, 2.5], [2.0, 1.0]], [[0.0, 2.5], [2.0, 1.0]],
              [[-2.0, 2.25], [0.0, 0.5]], [[5.0, 6.0], [7.0, 8.0]]]  # fmt: skip
    assert torch.equal(h[0], torch.tensor(wanted))
    assert final is not None and torch.equal(final[0], torch.tensor(wanted[-1]))
    assert ops.linear_scan(a, x, backend=backend)[1] is None


@pytest.mark.parametrize(("backend", "dtype"), PATHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [False, True], ids=["every-step", "shared"])
def test_backends_agree(shared: bool, kind: str, backend: Backend, dtype: torch.dtype) -> None:
    compare(lambda name, number: ScanOp(name, number, shared), backend, dtype, kind, 131)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_gradients(backend: Backend) -> None:
    subject = ScanOp(backend, torch.float64, shared=False)
    inputs, state = subject.inputs(2, 7), subject.started(2)
    mask, reset = random_steps(2, 7, 0.7, seed=2), sample_resets(2, 7)

    def run(a: Tensor, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        h, final = ops.linear_scan(
            a, x, mask=mask, reset=reset, initial_state=start, output_final_state=True, backend=backend
        )
        assert final is not None
        return h, final

    leaves = [x.clone().requires_grad_() for x in (inputs["a"], inputs["x"], *state.named_tensors().values())]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("backend", ["chunked", pytest.param("native", marks=needs_native)])
def test_a_long_stream_of_every_kind_of_decay(backend: Backend) -> None:
    """Nothing is lost to products that vanish, nor to factors of zero or of modulus 1."""
    time, generator = 3_000, torch.Generator().manual_seed(0)
    size = torch.tensor([0.0, 1e-30, 0.3, 0.999, 0.9999, 1.0])
    angle = torch.rand(1, time, 6, generator=generator) * 6
    a = size * torch.stack([angle.cos(), angle.sin()], -2)
    x = torch.randn(1, time, 2, 6, generator=generator)
    h = ops.linear_scan(a, x, backend=backend)[0]
    complex_a, complex_x = (torch.complex(z[:, :, 0].double(), z[:, :, 1].double()) for z in (a, x))
    wanted = torch.view_as_real(loop(complex_a, complex_x)).transpose(-1, -2)
    error = (h.double() - wanted).abs().amax((0, 1, 2)) / wanted.abs().amax((0, 1, 2))
    assert (error < 1e-5).all(), error


@needs_native
def test_threads_change_no_bit() -> None:
    subject = ScanOp("native", torch.float32, shared=True)
    x, before = torch.randn(5, 900, 2, 150), torch.get_num_threads()
    a = (0.6 * torch.randn(2, 150)).requires_grad_()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            h = ops.linear_scan(a / 3, x, backend=subject.backend)[0]
            found.append((h.detach(), torch.autograd.grad(h.sum(), a)[0]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_low_precision_inputs_keep_a_float32_state(backend: Backend) -> None:
    subject = ScanOp(backend, torch.float32, shared=False)
    inputs = {name: x.bfloat16() for name, x in subject.inputs(2, 13).items()}
    h, final = ops.linear_scan(inputs["a"], inputs["x"], output_final_state=True, backend=backend)
    wide, wide_final = ops.linear_scan(
        inputs["a"].float(), inputs["x"].float(), output_final_state=True, backend=backend
    )
    assert h.dtype == torch.bfloat16 and torch.equal(h, wide.bfloat16())
    assert final is not None and wide_final is not None
    assert final.dtype == torch.float32 and torch.equal(final, wide_final)


@pytest.mark.parametrize("backend", ["chunked", pytest.param("native", marks=needs_native)])
def test_compiles_without_graph_breaks(backend: Backend) -> None:
    torch.compiler.reset()
    subject = ScanOp(backend, torch.float32, shared=False)
    inputs = subject.inputs(2, 5)
    inputs["x"].requires_grad_()

    def run(a: Tensor, x: Tensor) -> Tensor:
        return ops.linear_scan(a, x, backend=backend)[0].square()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for function in (run, compiled):
        inputs["x"].grad = None
        function(inputs["a"], inputs["x"]).sum().backward()
        gradient = inputs["x"].grad
        assert gradient is not None
        wanted = torch.autograd.grad(run(inputs["a"], inputs["x"]).sum(), inputs["x"])[0]
        torch.testing.assert_close(gradient, wanted)


def test_what_does_not_fit_is_refused() -> None:
    a, x = torch.zeros(2, 5, 2, 3), torch.zeros(2, 5, 2, 3)
    bounds = torch.tensor([0, 2, 5])
    for call, error, message in (
        (lambda: ops.linear_scan(a, x[..., 0]), ShapeError, r"x has shape \[2, 5, 2\]; wanted 4 axes \[B, T, two, C\]"),
        (lambda: ops.linear_scan(a[..., :2], x), ShapeError, r"a has shape \[2, 5, 2, 2\]; wanted .* C=3"),
        (lambda: ops.linear_scan(a[0, 0, :1], x), ShapeError, r"a has shape \[1, 3\]; wanted \[two, C\] with two=2"),
        (lambda: ops.linear_scan(a, x.long()), DtypeError, "x is torch.int64; wanted a floating dtype"),
        (lambda: ops.linear_scan(a, x, mask=torch.ones(2, 5)), DtypeError, "mask is torch.float32; wanted a bool"),
        (lambda: ops.linear_scan(a, x, cu_seqlens=bounds), ShapeError, "cu_seqlens packs the segments into one row"),
        (lambda: ops.linear_scan(a, x, initial_state=x[0]), ShapeError, r"initial_state .* N=2, two=2, C=3"),
        (
            lambda: ops.linear_scan(a[..., :0], x[..., :0]),
            ShapeError,
            r"x has shape \[2, 5, 2, 0\]; wanted at least one",
        ),
        (lambda: ops.linear_scan(a, x, backend="fast"), RangeError, "backend='fast'; wanted one of"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(error, match=f"linear_scan: {message}"):
            call()


@needs_native
def test_native_refuses_float64() -> None:
    x = torch.zeros(1, 2, 2, 3, dtype=torch.float64)
    with pytest.raises(BackendError, match=r"linear_scan: backend='native' cannot run: .*float64"):
        ops.linear_scan(x, x, backend="native")


def test_the_benchmark_in_a_tiny_size() -> None:
    figures = figures_of({"results": bench.scan([11, 6], batch=2, channels=3, repeats=1)})
    assert {figure.length for figure in figures} == {6, 11}
    loops = [figure for figure in figures if figure.who == "torch loop"]
    assert len(loops) == 4 and all(figure.against == figures[0].who for figure in loops)
    counted = figures_of({"results": bench.scan([6], batch=1, channels=3, repeats=1, processor=True)})
    assert {figure.unit for figure in figures} == {"ms"}
    assert {figure.unit for figure in counted} == {"ms of processor time"}
    with pytest.raises(RangeError, match="scan: lengths, batch, channels and repeats must be 1 or more"):
        bench.scan([])
