"""The loss without logits: against the plain formula, its gradients, its memory, refusals, and training with it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ssmn import TextSSMNConfig, bench, ops
from ssmn.bench.figures import figures_of
from ssmn.config import Backend
from ssmn.errors import BackendError, DtypeError, RangeError, ShapeError
from ssmn.training.loop import build_model
from ssmn.training.settings import OptimisationConfig
from ssmn.training.tasks import Batch
from ssmn.training.trainer import Trainer
from test_ops_backends import needs_native

BACKENDS: list[Any] = ["reference", "chunked", pytest.param("native", marks=needs_native)]
SIZES = [(1, 1, 3), (7, 65, 8), (300, 9_001, 5), (130, 40_000, 3)]
"""Positions, vocabulary, width; the last two are several pieces, and the last of these is not whole."""


def example(count: int, classes: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(count)
    sizes = ((count, width), (classes, width), (classes,))
    floats = (torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in sizes)
    return (*floats, torch.randint(classes, (count,), generator=generator))


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    bias = None if bias is None else bias.double()
    return functional.cross_entropy(functional.linear(hidden.double(), weight.double(), bias), targets)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_loss_and_its_gradients(sizes: tuple[int, int, int], with_bias: bool, backend: Backend) -> None:
    hidden, weight, bias, targets = example(*sizes)
    leaves = [hidden, weight, *([bias] if with_bias else [])]
    shift = bias if with_bias else None
    loss = ops.linear_cross_entropy(hidden, weight, targets, bias=shift, backend=backend)
    wanted = plain(hidden, weight, shift, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(3.0 * loss, leaves)
    for one, other in zip(found, torch.autograd.grad(3.0 * wanted, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_native
def test_bfloat16_products_are_rounded_and_the_softmax_is_not() -> None:
    hidden, weight, bias, targets = example(300, 9_001, 16, torch.bfloat16)
    loss = ops.linear_cross_entropy(hidden, weight, targets, bias=bias, backend="native")
    wanted = plain(hidden, weight, bias, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted.item(), abs=2e-3)
    found = torch.autograd.grad(loss, [hidden, weight, bias])
    for one, other in zip(found, torch.autograd.grad(wanted, [hidden, weight, bias]), strict=True):
        assert one.dtype == torch.bfloat16
        assert ((one - other).norm() / other.norm()).item() < 0.01


@needs_native
def test_shapes_dtypes_and_what_needs_no_gradient() -> None:
    hidden, weight, _, targets = example(12, 30, 4)
    whole = ops.linear_cross_entropy(hidden, weight, targets)
    pieces = ops.linear_cross_entropy(hidden.reshape(3, 4, 4), weight, targets.reshape(3, 4).int())
    assert torch.equal(whole, pieces)
    with torch.no_grad():
        silent = ops.linear_cross_entropy(hidden, weight, targets)
    assert torch.equal(whole, silent)
    assert not silent.requires_grad
    [d_hidden] = torch.autograd.grad(ops.linear_cross_entropy(hidden, weight.detach(), targets), [hidden])
    torch.testing.assert_close(d_hidden, torch.autograd.grad(whole, [hidden])[0])
    exact = ops.linear_cross_entropy(hidden.double(), weight.double(), targets)  # which no kernel takes
    assert exact.dtype == torch.float64
    mixed = ops.linear_cross_entropy(hidden.bfloat16(), weight, targets, backend="native")
    assert mixed.item() == pytest.approx(whole.item(), abs=0.05)


@needs_native
def test_extreme_logits() -> None:
    """Each row of logits stands for itself, however large; what is no number stays none."""
    for logits, target, wanted in (
        ([400.0, 0.0, -1e30], 0, 0.0),
        ([0.0, -400.0, 0.0], 1, 400.0 + math.log(2)),
        ([3e38, -3e38, 0.0], 2, 3e38),
        ([-math.inf, 0.0, 0.0], 1, math.log(2)),
        ([math.inf, 0.0, 0.0], 1, math.nan),
        ([math.nan, 0.0, 0.0], 1, math.nan),
    ):
        loss = ops.linear_cross_entropy(torch.ones(1, 1), torch.tensor(logits).unsqueeze(1), torch.tensor([target]))
        assert loss.item() == pytest.approx(wanted, rel=1e-6, nan_ok=True), logits


@needs_native
def test_torch_opcheck_and_compile() -> None:
    hidden, weight, bias, targets = example(5, 11, 4)
    torch.library.opcheck(torch.ops.ssmn.linear_cross_entropy.default, (hidden, weight, bias, targets, True))
    compiled = torch.compile(ops.linear_cross_entropy, fullgraph=True, backend="aot_eager")
    loss = compiled(hidden, weight, targets, backend="native")
    torch.testing.assert_close(loss, ops.linear_cross_entropy(hidden, weight, targets))
    with pytest.raises(RangeError, match="targets has 11"):
        compiled(hidden, weight, targets + 11 - targets.max(), backend="native")


def test_derivatives_of_all_orders() -> None:
    hidden, weight, bias, targets = (x.double() if x.is_floating_point() else x for x in example(3, 5, 4))

    def run(*leaves: Tensor) -> Tensor:
        return ops.linear_cross_entropy(leaves[0], leaves[1], targets, bias=leaves[2])

    leaves = [x.detach().requires_grad_() for x in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)
    found = torch.func.grad(lambda x: run(x, *leaves[1:]))(leaves[0])
    torch.testing.assert_close(found, torch.autograd.grad(run(*leaves), leaves[0])[0])


@needs_native
def test_second_derivatives_are_refused_with_the_way_out() -> None:
    hidden, weight, _, targets = example(3, 5, 4)
    loss = ops.linear_cross_entropy(hidden, weight, targets, backend="native")
    [first] = torch.autograd.grad(loss, [hidden], create_graph=True)
    with pytest.raises(BackendError, match="backend='chunked'"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(3, 5)}, ShapeError, r"hidden has shape \[3, 5\]; wanted \[\.\., 4\]"),
        ({"targets": torch.zeros(2, dtype=torch.long)}, ShapeError, r"targets has shape \[2\]; wanted \[3\]"),
        ({"targets": torch.zeros(3)}, DtypeError, "targets is torch.float32; wanted an int64"),
        ({"targets": torch.tensor([0, 7, 1])}, RangeError, r"targets has 7; wanted integers in \[0, 7\)"),
        ({"targets": torch.tensor([0, -100, 1])}, RangeError, "targets has -100"),
        ({"bias": torch.zeros(6)}, ShapeError, r"bias has shape \[6\]"),
        ({"hidden": torch.zeros(0, 4), "targets": torch.zeros(0, dtype=torch.long)}, ShapeError, "at least one"),
        ({"weight": torch.zeros(7, 4, dtype=torch.int64)}, DtypeError, "weight"),
        ({"backend": "fast"}, RangeError, "backend"),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {
        "hidden": torch.zeros(3, 4), "weight": torch.zeros(7, 4), "targets": torch.tensor([0, 6, 1])
    }  # fmt: skip
    with pytest.raises(error, match=message):
        ops.linear_cross_entropy(**{**arguments, **change})


@needs_native
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_training_on_text_takes_the_same_step_without_logits(tie_embeddings: bool) -> None:
    settings = {"vocab_size": 50, "hidden_dim": 16, "num_layers": 2, "num_heads": 2, "window_size": 4}
    stream = torch.randint(50, (2, 13), generator=torch.Generator().manual_seed(1))
    batch = Batch(stream[:, :-1], stream[:, 1:], mask=None, source="here")
    steps = []
    for backend in ("native", "chunked"):
        torch.manual_seed(0)
        model = build_model(TextSSMNConfig(**settings, tie_embeddings=tie_embeddings))  # type: ignore[arg-type]
        trainer = Trainer(model, OptimisationConfig())
        with ops.use_backend(backend):
            output, loss, norm, _ = trainer.advance(batch)
        assert output is None
        steps.append((loss.item(), norm))
    assert steps[0] == pytest.approx(steps[1], rel=1e-4)


def test_the_benchmark_in_a_tiny_size() -> None:
    record = bench.loss([9, 5], dtypes=["float32"], width=4, vocab_size=30, repeats=1, processor=True)
    figures = figures_of({"results": record})
    assert {figure.length for figure in figures} == {5, 9}
    assert {figure.unit for figure in figures} == {"ms of processor time"}
    assert [figure.ours for figure in figures[:2]] == [True, False]
