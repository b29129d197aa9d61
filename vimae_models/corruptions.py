"""Noise on images: for training, and for testing how robust a representation is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import densities, distributed


def gaussian(x: Tensor, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    """x + nu with nu ~ N(0, sigma^2) for every pixel, not clipped to the range of x.

    Args:
        x: images of any shape.
        sigma: standard deviation in the units of x.

    Source: VIMAE preprint, sec. 5.2 (sigma 0.2 and 0.4 on MNIST).
    """
    return x + sigma * torch.randn(
        x.shape, dtype=x.dtype, device=x.device, **densities.drawn_from(generator)
    )


def mask(x: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """x with every pixel forced to 0 with probability p, independently of the others.

    Args:
        x: images (..., C, H, W); the channels of a pixel are masked together.
        p: probability of losing a pixel.

    Source: VIMAE preprint, sec. 5.2 (p = 0.2 and 0.5 on MNIST).
    """
    shape = (*x.shape[:-3], 1, *x.shape[-2:])
    keep = torch.rand(shape, dtype=x.dtype, device=x.device, **densities.drawn_from(generator)) >= p
    return x * keep


def truncated_gaussian(x: Tensor, bound: float) -> Tensor:
    """x + nu with nu ~ N(0, bound^2) conditioned on |nu| <= bound, for every pixel.

    The papers say "pixel-wise Gaussian noise truncated at 0.01" and give no deviation: the bound
    here is that of the words, the deviation that of the code their experiments follow (WAE), which
    truncates at two deviations instead of one.

    Args:
        x: images of any shape.
        bound: largest noise, in the units of x.

    Source: VIMAE (ICLR version), appendix "Further details on experiments".
    """
    # By the inverse of the distribution function: u uniform between its values at the bounds.
    edge = math.erf(1 / math.sqrt(2))
    u = distributed.rows(lambda n: x.new_empty(n, *x.shape[1:]).uniform_(-edge, edge), len(x))
    return x + u.erfinv().mul_(bound * math.sqrt(2))
