"""The dtype that results are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype that tensors like x are computed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
