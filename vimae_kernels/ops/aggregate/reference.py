"""The definition of the aggregated posterior's log densities, in plain PyTorch: slow, n x B x d memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_density(
    z: Tensor, mean: Tensor, log_var: Tensor, weighting: str, dataset_size: int
) -> tuple[Tensor, Tensor]:
    """log sum_j w_ij prod_k N(z_ik; mean_jk, var_jk), of shape (..., n), and log sum_j w_ij N(z_ik; mean_jk, var_jk),
    of shape (..., n, d), for z (..., n, d) and mean, log_var (..., B, d) (IMAE, eq. 34)."""
    # An infinite number is as undefined as NaN: x - x is NaN for both, and 0 for all others.
    z, mean, log_var = z + (z - z), mean + (mean - mean), log_var + (log_var - log_var)
    squared = (z[..., :, None, :] - mean[..., None, :, :]).square()
    log_var = log_var[..., None, :, :]
    log_normal = -0.5 * (math.log(2 * math.pi) + log_var + squared * torch.exp(-log_var))
    log_weight = weights(z, mean.shape[-2], weighting, dataset_size).log()
    joint = torch.logsumexp(log_normal.sum(-1) + log_weight, -1)
    return joint, torch.logsumexp(log_normal + log_weight[..., None], -2)


def weights(z: Tensor, columns: int, weighting: str, dataset_size: int) -> Tensor:
    """w_ij, of shape (n, B), in the dtype and on the device of z (..., n, d).

    Stratified, for a data set of N: of the B points, row i has seen its own, whose posterior stands for itself
    alone and has 1/N; the M = B - 1 others stand for the rest of the data set with 1/M each, less at one
    of them what makes a row sum to one. Chen et al. 2018, App. C.2.
    """
    n = z.shape[-2]
    if weighting == "uniform":
        return z.new_full((n, columns), 1 / columns)
    if weighting == "mws":
        return z.new_full((n, columns), 1 / (columns * dataset_size))
    others = columns - 1
    own = torch.eye(n, columns, dtype=z.dtype, device=z.device)
    neighbour = own.roll(1, -1)  # row i has its 1 at column i + 1, row B - 1 at column 0
    return (
        (1 - own - neighbour) / others
        + own / dataset_size
        + neighbour * ((dataset_size - others) / (dataset_size * others))
    )
