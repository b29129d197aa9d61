"""What the autograd functions and operations of every kernel share."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters


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


def has_tangent(*tensors: Tensor) -> bool:
    """Forward mode differentiates one of them."""
    if torch.autograd.forward_ad._current_level < 0:
        return False
    return any(torch.autograd.forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def refuse_forward_over_forward(operation: str) -> None:
    """torch loses the inner of two forward-mode derivatives of a custom function: 0 without a word."""
    levels = retrieve_all_functorch_interpreters()
    if sum(level.key() == TransformType.Jvp for level in levels) > 1:
        raise RuntimeError(
            f"vimae_kernels.{operation} has no forward-mode derivative inside forward mode: use "
            "forward over reverse (torch.func.hessian), or backend='reference'"
        )


def no_forward_mode(operation: str) -> Callable[..., Any]:
    """What raises in place of a forward-mode derivative: the `jvp` of autograd functions without one."""

    def jvp(*_: Any) -> Any:
        raise RuntimeError(
            f"vimae_kernels.{operation} has no forward-mode derivative: use reverse mode (backward, "
            "torch.func.grad, jacrev), or backend='reference'"
        )

    return jvp


def refuse_tangents(operation: str, *tensors: Tensor) -> None:
    """Operations of ours would drop a forward-mode tangent without a word."""
    if has_tangent(*tensors):
        no_forward_mode(operation)()
