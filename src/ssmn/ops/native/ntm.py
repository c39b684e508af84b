"""The steps of a Neural Turing Machine as a custom op, forward and backward: `ssmn::ntm`."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmn import native
from ssmn.ops.native.calls import dense, empty_like, nothing_watches, only_first_derivatives, run


def turing_machine(
    driven: Tensor,
    recurrent: Tensor,
    emit: Tensor,
    emit_bias: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    state: tuple[Tensor, Tensor, Tensor, Tensor],
    read_heads: int,
    shift_range: int,
    frozen: bool,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The steps of a Neural Turing Machine from the controller's share of the input, in float32.

    Args:
        driven: [B, T, G], G = 4 C with an LSTM as controller, else C; T ≥ 1.
        recurrent: [R M + C, G], or [R M, G] without an LSTM.
        emit: [C, E].
        emit_bias: [E].
        mask: [B, T] or None.
        reset: [B, T] or None.
        state: (memory [B, N, M], weighting [B, H, N], hidden [B, C], cell [B, C]); [B, 0] without an LSTM.
        read_heads: R.
        shift_range: A head moves by at most so many rows.
        frozen: Whether nothing is written.

    Returns:
        (controls [B, T, C], reads [B, T, R M], the state after the last step).
    """
    memory, weighting, hidden, cell = state
    read = torch.bmm(weighting[:, :read_heads], memory).flatten(1)
    tensors = (driven, recurrent, emit, emit_bias, mask, reset, memory.mT, weighting, hidden, cell, read)
    settings = (read_heads, shift_range, frozen)
    if nothing_watches(*tensors):
        results = _ntm_steps(*tensors, *settings, False)
    else:
        results = torch.ops.ssmn.ntm(*tensors, *settings, torch.is_grad_enabled())
    controls, reads, memory, weighting, cell, *_ = results
    hidden = controls[:, -1].contiguous() if hidden.shape[1] else hidden
    return controls, reads, (memory.mT.contiguous(), weighting, hidden, cell)


def _ntm_call(
    driven: Tensor, memory: Tensor, weighting: Tensor, hidden: Tensor, read_heads: int, shift_range: int, frozen: bool
) -> native.NtmCall:
    streams, steps, gates = driven.shape
    (_, width, slots), heads, is_lstm = memory.shape, weighting.shape[1], hidden.shape[1] > 0
    controls = gates // 4 if is_lstm else gates
    sizes = (streams, steps, slots, width, controls, read_heads, heads - read_heads, shift_range)
    return native.NtmCall(*sizes, is_lstm, frozen)


def _ntm_like(
    driven: Tensor, emit: Tensor, memory: Tensor, weighting: Tensor, cell: Tensor, read: Tensor, keep_trace: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(controls, reads, memory, weighting and cell at the end; those three after every step, gates, active)."""
    steps = driven.shape[:2]

    def after_all(*tensors: Tensor) -> list[Tensor]:
        return [driven.new_empty((steps[0], steps[1], *x.shape[1:]) if keep_trace else (0,)) for x in tensors]

    controls, reads = driven.new_empty(*steps, emit.shape[0]), driven.new_empty(*steps, read.shape[1])
    last_memory, last_weighting, last_cell = empty_like(memory, weighting, cell)
    memories, weightings, cells, gates, active = after_all(
        memory, weighting, cell, driven[:, 0], emit[:1].expand(steps[0], -1)
    )
    finals = (last_memory, last_weighting, last_cell)
    return controls, reads, *finals, memories, weightings, cells, gates, active


def _ntm_steps(
    driven: Tensor,
    recurrent: Tensor,
    emit: Tensor,
    emit_bias: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    memory: Tensor,
    weighting: Tensor,
    hidden: Tensor,
    cell: Tensor,
    read: Tensor,
    read_heads: int,
    shift_range: int,
    frozen: bool,
    keep_trace: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    results = _ntm_like(driven, emit, memory, weighting, cell, read, keep_trace)
    call = _ntm_call(driven, memory, weighting, hidden, read_heads, shift_range, frozen)
    inputs = dense(driven, recurrent, emit, emit_bias, mask, reset, memory, weighting, hidden, cell, read)
    run("ssmn_ntm", call, *inputs, *(results if keep_trace else (*results[:5], *[None] * 5)))
    return results


_ntm = torch.library.custom_op("ssmn::ntm", _ntm_steps, mutates_args=())


@_ntm.register_fake
def _(driven, recurrent, emit, emit_bias, mask, reset, memory, weighting, hidden, cell, read, *settings):
    return _ntm_like(driven, emit, memory, weighting, cell, read, settings[-1])


@torch.library.custom_op("ssmn::ntm_backward", mutates_args=())
def _ntm_backward(
    recurrent: Tensor,
    emit: Tensor,
    mask: Tensor | None,
    reset: Tensor | None,
    memory: Tensor,
    weighting: Tensor,
    cell: Tensor,
    memories: Tensor,
    weightings: Tensor,
    cells: Tensor,
    gates: Tensor,
    active: Tensor,
    d_controls: Tensor,
    d_reads: Tensor,
    d_memory: Tensor,
    d_weighting: Tensor,
    d_cell: Tensor,
    read_heads: int,
    shift_range: int,
    frozen: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of (driven, what was emitted, memory, weighting, cell, hidden, read)."""
    call = _ntm_call(gates, memory, weighting, cell, read_heads, shift_range, frozen)
    inputs = dense(
        recurrent, emit, mask, reset, memory, weighting, cell, memories, weightings, cells, gates, active, d_controls,
        d_reads,
    )  # fmt: skip
    results = _ntm_gradients_like(gates, active, d_memory, d_weighting, d_cell, d_reads)
    for result, last in zip(results[2:5], (d_memory, d_weighting, d_cell), strict=True):
        result.copy_(last)
    run("ssmn_ntm_backward", call, *inputs, *results)
    return results


def _ntm_gradients_like(
    gates: Tensor, active: Tensor, d_memory: Tensor, d_weighting: Tensor, d_cell: Tensor, d_reads: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_driven, d_emitted = empty_like(gates, active)
    d_hidden, d_read = empty_like(d_cell, d_reads[:, 0])
    d_memory, d_weighting, d_cell = empty_like(d_memory, d_weighting, d_cell)
    return d_driven, d_emitted, d_memory, d_weighting, d_cell, d_hidden, d_read


@_ntm_backward.register_fake
def _(*arguments):
    gates, active, _, d_reads, d_memory, d_weighting, d_cell = arguments[10:17]
    return _ntm_gradients_like(gates, active, d_memory, d_weighting, d_cell, d_reads)


only_first_derivatives(_ntm_backward)


def _save_ntm(ctx, inputs, output):
    _, recurrent, emit, _, *streams = inputs[:11]
    *ctx.settings, _ = inputs[11:]
    controls, reads, *_ = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(recurrent, emit, *streams, controls, reads, *output[5:])


def _ntm_gradients(ctx, d_controls, d_reads, d_memory, d_weighting, d_cell, *_):
    recurrent, emit, mask, reset, memory, weighting, hidden, cell, read, controls, reads, *trace = ctx.saved_tensors
    given = zip(
        (d_controls, d_reads, d_memory, d_weighting, d_cell), (controls, reads, memory, weighting, cell), strict=True
    )
    gradients = [torch.zeros_like(result) if gradient is None else gradient for gradient, result in given]
    d_driven, d_emitted, d_memory, d_weighting, d_cell, d_hidden, d_read = torch.ops.ssmn.ntm_backward(
        recurrent, emit, mask, reset, memory, weighting, cell, *trace, *gradients, *ctx.settings
    )
    # What the controller was told by the step before. Closed steps have no gradient here.
    told = torch.cat((read.unsqueeze(1), reads[:, :-1]), 1)
    if hidden.shape[1]:
        told = torch.cat((told, torch.cat((hidden.unsqueeze(1), controls[:, :-1]), 1)), -1)
    if reset is not None:
        told = torch.where(reset.unsqueeze(-1), 0.0, told)
    d_recurrent = told.flatten(0, 1).mT @ d_driven.flatten(0, 1)
    d_emit = controls.flatten(0, 1).mT @ d_emitted.flatten(0, 1)
    d_weights = (d_driven, d_recurrent, d_emit, d_emitted.sum((0, 1)))
    return *d_weights, None, None, d_memory, d_weighting, d_hidden, d_cell, d_read, *[None] * 4


_ntm.register_autograd(_ntm_gradients, setup_context=_save_ntm)
