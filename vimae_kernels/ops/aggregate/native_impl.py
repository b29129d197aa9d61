"""The aggregated posterior's log densities on the C++ core: allocates the outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import _native

CONTIGUOUS = torch.contiguous_format
WEIGHTINGS = "uniform", "mws", "mss"  # in the order of csrc


def log_density(
    z: Tensor, mean: Tensor, log_var: Tensor, weighting: str, dataset_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    joint = z.new_empty(z.shape[:-1], dtype=torch.float64)
    marginal, peak, total = (z.new_empty(z.shape) for _ in range(3))
    outputs = joint, marginal, peak, total
    _run("aggregate", z, mean, log_var, weighting, dataset_size, *outputs)
    return outputs


def log_density_grad(
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    joint: Tensor,
    peak: Tensor,
    total: Tensor,
    g_joint: Tensor,
    g_marginal: Tensor,
    weighting: str,
    dataset_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = z.new_empty(z.shape), z.new_empty(mean.shape), z.new_empty(mean.shape)
    made = (t.contiguous() for t in (joint, peak, total, g_joint, g_marginal))
    _run("aggregate_gradient", z, mean, log_var, weighting, dataset_size, *made, *outputs)
    return outputs


def total_correlation(
    z: Tensor, mean: Tensor, log_var: Tensor, weighting: str, dataset_size: int
) -> Tensor:
    """On the CPU alone, as the next."""
    value = z.new_empty(z.shape[:-2])
    outputs = value, None, None, None
    _run("total_correlation", z, mean, log_var, weighting, dataset_size, *outputs)
    return value


def total_correlation_grad(
    z: Tensor, mean: Tensor, log_var: Tensor, weighting: str, dataset_size: int
) -> tuple[Tensor, ...]:
    """The value and its gradients to z, mean and log_var, in one pass."""
    # In half the time that new_empty takes.
    like = (torch.empty_like(x, memory_format=CONTIGUOUS) for x in (z, mean, log_var))
    outputs = z.new_empty(z.shape[:-2]), *like
    _run("total_correlation", z, mean, log_var, weighting, dataset_size, *outputs)
    return outputs


def _run(
    kernel: str, z: Tensor, mean: Tensor, log_var: Tensor, *arguments: str | int | Tensor | None
) -> None:
    z, mean, log_var = _rows(z), _rows(mean), _rows(log_var)
    (n, d), B = z.shape[-2:], mean.shape[-2]
    batch = math.prod(z.shape[:-2])
    if batch == 0:
        return
    strides = (x.stride(0) if x.ndim == 3 else 0 for x in (z, mean, log_var))
    weighting, *rest = arguments
    config = batch, n, B, d, WEIGHTINGS.index(weighting)
    _native.call(kernel, z, z, mean, log_var, *strides, *config, *rest)


def _rows(x: Tensor) -> Tensor:
    """x (batch, n, d) with contiguous rows; a repeated batch entry stays one."""
    if x.ndim == 2 and x.is_contiguous():
        return x
    x = x.reshape(-1, *x.shape[-2:])
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
