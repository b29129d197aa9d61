"""Argument checks shared by every operation: each names the argument, what it was and what it must be."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def samples(name: str, x: object, at_least: int = 1, why: str = "") -> None:
    """`x` must be a floating-point tensor (..., n, d) with n >= `at_least` and d >= 1."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is of type {type(x).__name__}; it must be a torch.Tensor")
    if x.dtype not in FLOATS:
        names = ", ".join(str(f).removeprefix("torch.") for f in FLOATS)
        raise TypeError(f"{name} has dtype {x.dtype}; it must be one of {names}")
    if x.layout != torch.strided or x.is_nested:
        raise TypeError(
            f"{name} has layout {'nested' if x.is_nested else x.layout}; it must be dense"
        )
    if x.ndim < 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (..., n, d)")
    if x.shape[-1] < 1:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; it needs at least one dimension (d >= 1)"
        )
    if x.shape[-2] < at_least:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it needs n >= {at_least}{why}")


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


def generator(value: object, device: torch.device) -> None:
    """`value` must be None or a generator for tensors on `device`."""
    if value is None:
        return
    if not isinstance(value, torch.Generator):
        raise TypeError(
            f"generator is of type {type(value).__name__}; it must be a torch.Generator or None"
        )
    if value.device.type != device.type:
        raise ValueError(
            f"generator is on {value.device}; it must be on {device}, as the samples are"
        )
