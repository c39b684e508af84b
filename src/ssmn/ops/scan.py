"""The diagonal complex recurrence of linear recurrent units: as a loop, as a parallel scan, and the way to the kernel.

A complex number stands as two rows of reals, [.., 2, C]: real parts, then imaginary ones.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ssmn.config import Backend
from ssmn.errors import ShapeError
from ssmn.ops import native
from ssmn.ops.common import check_steps, check_tensor, shape_text, state_dtype
from ssmn.ops.dispatch import choose_backend
from ssmn.ops.segments import segment_of


def linear_scan(
    a: Tensor,
    x: Tensor,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | None]:
    """h_t = a_t h_{t−1} + x_t, complex and channel by channel.

    The recurrence of the linear recurrent unit (Orvieto et al., 2023) and of diagonal state-space models; as a parallel
    scan (Blelloch, 1990) it takes 2 log₂ T steps (`chunked`). Nothing is divided by products of a, so |a| ≤ 1, which
    is not checked, is all that a long stream needs.

    Args:
        a: [B, T, 2, C], real and imaginary parts of the factors; or [2, C], the same at every step.
        x: [B, T, 2, C], real and imaginary parts of the inputs.
        mask: [B, T] bool, True = open. At a closed step h_t = h_{t−1}.
        reset: [B, T] bool; h_{t−1} is zero at such a step.
        cu_seqlens: [N + 1] integer boundaries of segments packed into one row (B = 1); states then have N rows.
        initial_state: [B, 2, C] (or N rows); None = zeros.
        output_final_state: Whether the second result is h after the last step, or None.
        backend: `auto`, `reference`, `chunked` or `native`.

    Returns:
        (h [B, T, 2, C] in the dtype of x, final state [B, 2, C] or None). The state is float32 (float64 for float64
        inputs).

    Raises:
        ShapeError, DtypeError, RangeError: An argument does not fit; the message names it.
        BackendError: The backend that was asked for cannot take these tensors.

    Example:
        >>> import torch, ssmn
        >>> quarter_turn, x = torch.tensor([[0.0], [1.0]]), torch.zeros(1, 3, 2, 1)
        >>> x[0, 0, 0] = 1.0
        >>> h, state = ssmn.ops.linear_scan(quarter_turn, x, output_final_state=True)
        >>> h[0, :, :, 0].tolist()
        [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
    """
    op = "linear_scan"
    sizes: dict[str, int] = {"two": 2}
    check_tensor(op, "x", x, "B T two C", sizes)
    check_tensor(op, "a", a, "two C" if isinstance(a, Tensor) and a.dim() == 2 else "B T two C", sizes)
    sizes["N"] = check_steps(op, sizes, mask, reset, cu_seqlens)
    if initial_state is not None:
        check_tensor(op, "initial_state", initial_state, "N two C", sizes)
    if sizes["C"] == 0:
        raise ShapeError(f"{op}: x has shape {shape_text(x)}; wanted at least one channel.")
    chosen = choose_backend(op, backend, a, x)
    if chosen == "native":
        h, final = native.scan(a, x, mask, reset, cu_seqlens, initial_state, output_final_state)
        return h.to(x.dtype), final
    compute = state_dtype(x.dtype)
    state = x.new_zeros(sizes["N"], 2, sizes["C"], dtype=compute) if initial_state is None else initial_state
    factors, inputs, state = a.to(compute).expand(x.shape), x.to(compute), state.to(compute)
    run = _reference if chosen == "reference" else _chunked
    h, final = run(factors, inputs, mask, reset, cu_seqlens, state)
    return h.to(x.dtype), final if output_final_state else None


def times(a: Tensor, b: Tensor) -> Tensor:
    """The complex product of [.., 2, C] and [.., 2, C]."""
    (real, imaginary), (other, other_imaginary) = a.unbind(-2), b.unbind(-2)
    return torch.stack([real * other - imaginary * other_imaginary, real * other_imaginary + imaginary * other], dim=-2)


def _reference(
    a: Tensor, x: Tensor, mask: Tensor | None, reset: Tensor | None, cu_seqlens: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition."""
    bounds = [0, x.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    hidden, finals = [], []
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        h = state if cu_seqlens is None else state[number : number + 1]
        for t in range(first, last):
            if reset is not None:
                h = torch.where(_flag(reset[:, t]), 0.0, h)
            after = times(a[:, t], h) + x[:, t]
            h = after if mask is None else torch.where(_flag(mask[:, t]), after, h)
            hidden.append(h)
        finals.append(h)
    return torch.stack(hidden, 1) if hidden else x, torch.cat(finals)


def _chunked(
    a: Tensor, x: Tensor, mask: Tensor | None, reset: Tensor | None, cu_seqlens: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Closed steps multiply by 1, resets by 0, and what a stream brings along is part of its first input."""
    time = x.shape[1]
    if time == 0:
        return x, state.clone()
    if mask is not None:
        one = torch.tensor([[1.0], [0.0]], dtype=a.dtype, device=a.device)
        a, x = torch.where(_flag(mask), a, one), torch.where(_flag(mask), x, 0.0)
    if reset is not None:
        # A closed step that is reset has lost what came before as well.
        a = torch.where(_flag(reset), 0.0, a)
    if cu_seqlens is None:
        carried = times(a[:, :1], state.unsqueeze(1))
        return (h := _scan(a, torch.cat([x[:, :1] + carried, x[:, 1:]], 1))), h[:, -1].clone()
    bounds = cu_seqlens.long()
    segment = segment_of(bounds, time)
    begins = _flag(torch.arange(time, device=x.device) == bounds[segment])
    x = x + torch.where(begins, times(a, state[segment].unsqueeze(0)), 0.0)
    h = _scan(torch.where(begins, 0.0, a), x)
    last = bounds[1:] - 1
    return h, torch.where(_flag(last >= bounds[:-1]), h[0, last.clamp(min=0)], state)


def _scan(a: Tensor, x: Tensor) -> Tensor:
    """From zeros: neighbours become one step each, the half as many are scanned, and the others follow from them."""
    time = x.shape[1]
    if time == 1:
        return x
    pairs = time // 2
    even_a, odd_a = a[:, ::2], a[:, 1::2]
    even_x, odd_x = x[:, ::2], x[:, 1::2]
    odd_h = _scan(times(odd_a, even_a[:, :pairs]), times(odd_a, even_x[:, :pairs]) + odd_x)
    rest = even_x.shape[1] - 1
    even_h = torch.cat([even_x[:, :1], times(even_a[:, 1:], odd_h[:, :rest]) + even_x[:, 1:]], 1)
    both = torch.stack([even_h[:, :pairs], odd_h], 2).flatten(1, 2)
    return both if 2 * pairs == time else torch.cat([both, even_h[:, -1:]], 1)


def _flag(steps: Tensor) -> Tensor:
    return steps.unsqueeze(-1).unsqueeze(-1)
