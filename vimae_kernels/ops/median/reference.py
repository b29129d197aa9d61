"""The definition of the median distance, in plain PyTorch: N^2 memory."""

import torch
from torch import Tensor


def median_distance(x: Tensor) -> Tensor:
    """The lower median over pairs i < j of ||x_i - x_j||, for x (..., N, d)."""
    i, j = torch.triu_indices(x.shape[-2], x.shape[-2], 1, device=x.device)
    return (x[..., i, :] - x[..., j, :]).square().sum(-1).sqrt().median(-1).values
