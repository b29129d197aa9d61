"""Argument checks shared by every operation: each names the argument, what it was and what it must be."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def samples(name: str, x: object, at_least: int = 1, why: str = "") -> None:
    """`x` must be a floating-point tensor (..., n, d) with n >= `at_least` and d >= 1."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} is of type {type(x).__name__}; it must be a torch.Tensor{from_numpy(name, x)}"
        )
    if x.dtype not in FLOATS:
        names = ", ".join(str(f).removeprefix("torch.") for f in FLOATS)
        raise TypeError(f"{name} has dtype {x.dtype}; it must be one of {names}")
    if x.layout != torch.strided or x.is_nested:
        raise TypeError(
            f"{name} has layout {'nested' if x.is_nested else x.layout}; it must be dense"
        )
    if x.ndim < 2:
        hint = f": for n samples in one dimension write {name}[:, None]" if x.ndim else ""
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (..., n, d){hint}")
    if x.shape[-1] < 1:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; it needs at least one dimension (d >= 1)"
        )
    if x.shape[-2] < at_least:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it needs n >= {at_least}{why}")


def from_numpy(name: str, x: object) -> str:
    """What to write for an array of NumPy."""
    return f": write torch.from_numpy({name})" if type(x).__module__ == "numpy" else ""


def is_differentiated(x: Tensor) -> bool:
    """Somebody wants a derivative in x, of this or an outer transform: reading its value would lose it."""
    forward = torch.autograd.forward_ad
    if x.requires_grad:
        return True
    if forward._current_level >= 0 and forward.unpack_dual(x).tangent is not None:
        return True
    return _is_wrapped(x) and is_differentiated(torch._C._functorch.get_unwrapped(x))


def is_mapped(x: Tensor) -> bool:
    """torch.func.vmap runs over x: it has no one value."""
    functorch = torch._C._functorch
    return _is_wrapped(x) and (
        functorch.is_batchedtensor(x) or is_mapped(functorch.get_unwrapped(x))
    )


def _is_wrapped(x: Tensor) -> bool:
    if not torch._C._are_functorch_transforms_active():
        return False
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def same_space(x_name: str, x: Tensor, y_name: str, y: Tensor) -> None:
    """`x` and `y` must be samples in the same dimension, on the same device, with broadcastable batches."""
    if x.device != y.device:
        raise ValueError(
            f"{y_name} is on {y.device} but {x_name} is on {x.device}; they must be on one device"
        )
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"{y_name} has shape {tuple(y.shape)}: its last dimension must be that of {x_name}, "
            f"{tuple(x.shape)}"
        )
    for a, b in zip(reversed(x.shape[:-2]), reversed(y.shape[:-2]), strict=False):
        if a != b and a != 1 and b != 1:
            raise ValueError(
                f"{y_name} has shape {tuple(y.shape)}: its batch dimensions {tuple(y.shape[:-2])} must "
                f"broadcast against those of {x_name}, {tuple(x.shape[:-2])}"
            )


def generator(value: object, device: torch.device | None = None) -> None:
    """`value` must be None or a generator, for tensors on `device` where that is known."""
    if value is None:
        return
    if not isinstance(value, torch.Generator):
        raise TypeError(
            f"generator is of type {type(value).__name__}; it must be a torch.Generator or None"
        )
    if device is not None and value.device.type != device.type:
        raise ValueError(
            f"generator is on {value.device}; it must be on {device}, as the samples are"
        )
