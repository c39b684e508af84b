"""What the custom ops share: which tensors the kernels take, and how they are given to the C library."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.autograd import forward_ad

from ssmn import native
from ssmn.errors import BackendError
from ssmn.ops.common import check_bounds

_CONVERTED = (torch.float32, torch.bfloat16, torch.float16)
_PLAIN = (Tensor, torch.nn.Parameter)


def refusal(*tensors: Tensor) -> str | None:
    """Why the kernels cannot take these tensors here, or None if they can."""
    if not torch.compiler.is_compiling() and _is_transformed():
        return "the compiled kernels know no function transforms (torch.func) and no forward-mode derivatives"
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"the compiled kernels run on the CPU, and a tensor is on {tensor.device}"
        if tensor.dtype not in _CONVERTED:
            return f"the compiled kernels compute in float32, and a tensor is {tensor.dtype}"
    return _missing_library()


@torch.compiler.assume_constant_result
def _missing_library() -> str | None:
    status = native.status()
    return None if status.available else status.reason


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor.to(dtype)`, which takes a microsecond even if there is nothing to do."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def nothing_watches(*tensors: Tensor | None) -> bool:
    """Whether a kernel may run without a custom op around it: nothing is traced, and nothing asks for a gradient."""
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack()
    ):
        return False
    tracked = torch.is_grad_enabled()
    return not any(x is not None and (type(x) not in _PLAIN or (tracked and x.requires_grad)) for x in tensors)


def _pointer(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    if not tensor.is_cpu:
        raise BackendError(f"native: a tensor is on {tensor.device}; wanted all on the CPU, or backend='chunked'.")
    return tensor.data_ptr()


def dense(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def run(kernel: str, sizes: ctypes.Structure, *arguments: Tensor | float | None) -> None:
    values = [_pointer(a) if a is None or isinstance(a, Tensor) else a for a in arguments]
    native.call(kernel, ctypes.byref(sizes), *values, torch.get_num_threads())


def empty_like(*tensors: Tensor) -> list[Tensor]:
    return [torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in tensors]


def optional_like(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A custom op returns tensors only: an empty one stands for the gradient of an absent input."""
    return other.new_empty(0) if tensor is None else empty_like(tensor)[0]


def streams_of(rows: int, cu_seqlens: Tensor | None) -> int:
    """N, the number of streams."""
    return rows if cu_seqlens is None else cu_seqlens.shape[0] - 1


def checked_streams(op: str, rows: int, time: int, cu_seqlens: Tensor | None) -> int:
    """N. A kernel goes where the boundaries say, and torch.compile leaves out the checks before it."""
    if cu_seqlens is not None:
        check_bounds(op, cu_seqlens, time)
    return streams_of(rows, cu_seqlens)


def only_first_derivatives(backward: CustomOpDef) -> None:
    """Lets a custom op that computes gradients say so, and the way out, where its own gradient is asked for."""

    def refuse(ctx: object, *_: Tensor) -> None:
        raise BackendError(
            "native: the compiled kernels have first derivatives alone; for second ones compute the first with "
            "backend='chunked', or within ssmn.ops.use_backend('chunked')."
        )

    backward.register_autograd(refuse)
