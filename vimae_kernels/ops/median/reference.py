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


def median_counts(
    x: Tensor, prefix: Tensor, known: int, digit: int, part: int, parts: int
) -> tuple[Tensor, Tensor]:
    """One step of a radix selection over the squared distances of the pairs i < j of part `part` of `parts`.

    Args:
        x: points (..., N, d), float32 or float64.
        prefix: (...) int64, the leading `known` bits of those that are counted; the sign, 0, is the first.

    Returns:
        (..., 1 << digit), how many there are with each value of the next `digit` bits, and (...), how many pairs of the
        part coincide, which is 0 unless `known` is 1. int64.
    """
    i, j = torch.triu_indices(x.shape[-2], x.shape[-2], 1, device=x.device)[:, part::parts]
    s = (x[..., i, :] - x[..., j, :]).square().sum(-1)
    bits = s.view(torch.int64 if x.dtype == torch.float64 else torch.int32).long()
    shift = torch.finfo(x.dtype).bits - known - digit
    value = (bits >> shift) & ((1 << digit) - 1)
    counted = (bits >> (shift + digit) == prefix[..., None]).long()
    counts = counted.new_zeros(*x.shape[:-2], 1 << digit).scatter_add_(-1, value, counted)
    return counts, (s == 0).sum(-1) * (known == 1)
