"""Float64 truth for mmd, and how far a result is from it."""

from __future__ import annotations

import torch
from torch import Tensor

import vimae_kernels as vk


def truth(z: Tensor, p: Tensor, kernel: object, estimator: str) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients of the definition, differentiated by autograd, in float64 on the same numbers."""
    z = z.detach().double().requires_grad_()
    p = p.detach().double().requires_grad_()
    value = vk.mmd(z, p, kernel, estimator=estimator, backend="reference")
    return value.detach(), *torch.autograd.grad(value.sum(), (z, p))


def evaluate(
    z: Tensor, p: Tensor, kernel: object, estimator: str, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    z, p = z.detach().requires_grad_(), p.detach().requires_grad_()
    value = vk.mmd(z, p, kernel, estimator=estimator, backend=backend)
    return value.detach(), *torch.autograd.grad(value.sum(), (z, p))


def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||; NaN never passes a comparison."""
    return float((a.double() - b.double()).norm() / b.double().norm())
