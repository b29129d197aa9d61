"""Objectives as pure functions: tensors in, named scalar terms out, all to be minimised."""

from __future__ import annotations

from torch import Tensor

import vimae_kernels as vk
from vimae_kernels.kernels import Kernel
from vimae_kernels.priors import Prior


def squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """mean_i ||x_i - g(z_i)||^2: summed over the pixels of an image, averaged over the images.

    Args:
        x: images (B, ...).
        reconstruction: of the same shape.

    Returns:
        (), in squared pixel units per image.
    """
    return (x - reconstruction).square().sum() / x.shape[0]


def infomax(
    x: Tensor,
    reconstruction: Tensor,
    z: Tensor,
    prior: Prior,
    lam: float,
    kernel: Kernel = "imq",
) -> dict[str, Tensor]:
    """The variational infomax objective, ||x - g(z)||^2 + lam MMD^2(q(z), p(z)).

    MMD^2 is the unbiased estimate with k(x, y) = C / (C + ||x - y||^2), C = 2 d, between the codes
    of the batch and as many fresh samples of the prior.

    Args:
        x: images (B, ...).
        reconstruction: g(z), of the same shape.
        z: codes (B, d).
        prior: anything `vimae_kernels.mmd` takes.
        lam: weight of the divergence, in squared pixel units.
        kernel: anything `vimae_kernels.mmd` takes.

    Returns:
        The scalars "loss", "reconstruction" (squared pixel units per image) and "mmd"
        (dimensionless, without lam; an unbiased estimate, so it can be negative).

    Source: VIMAE preprint, eqs. 9 and 15; ICLR version, eq. 7.
    """
    error = squared_error(x, reconstruction)
    divergence = vk.mmd(z, prior, kernel)
    return {"loss": error + lam * divergence, "reconstruction": error, "mmd": divergence}
