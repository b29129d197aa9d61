"""What the autograd functions and operations of every kernel share."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor


def implementation(package: str | None, backend: str) -> ModuleType:
    """The module of a kernel's folder that runs on `backend`, imported when first needed."""
    return importlib.import_module(f"{package}.{backend}_impl")


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype that tensors like x are computed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def plain(*tensors: Tensor) -> bool:
    """Nothing traces, wraps or watches: then the dispatcher would only cost its 4 microseconds."""
    return (
        not torch.compiler.is_compiling()
        and all(
            type(t) is Tensor
            and not (t.is_neg() or t._is_zerotensor())
            and not torch._C._functorch.is_legacy_batchedtensor(t)
            for t in tensors
        )
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
    )


def lead(x: Tensor, dim: int | None, size: int) -> Tensor:
    """`x` with the dimension vmap runs over in front."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def refuse_tangents(operation: str, *tensors: Tensor) -> None:
    """Operations of ours would drop a forward-mode tangent without a word."""
    if torch.autograd.forward_ad._current_level < 0:
        return
    if any(torch.autograd.forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise RuntimeError(
            f"vimae_kernels.{operation} has no forward-mode derivative: use reverse mode (backward, "
            "torch.func.grad, jacrev), or backend='reference'"
        )
