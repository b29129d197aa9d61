"""The definition of the median distance, in plain PyTorch: N^2 memory."""

import torch
from torch import Tensor


def median_distance(x: Tensor) -> Tensor:
    """The lower median over pairs i < j of the ||x_i - x_j|| that are not 0, for x (..., N, d); 0 if all are."""
    i, j = torch.triu_indices(x.shape[-2], x.shape[-2], 1, device=x.device)
    s = (x[..., i, :] - x[..., j, :]).square().sum(-1).sqrt()
    median = s.where(s > 0, torch.nan).nanmedian(-1).values.nan_to_num(0.0, torch.inf)
    # NaN where a coordinate is not finite.
    return median + (x - x).sum((-1, -2))
