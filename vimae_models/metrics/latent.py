"""How the codes of a trained model lie, and how far from the prior.

Of a joint code (z, y) these are figures of z, its continuous part.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import vimae_kernels as vk

from .. import densities, encoding
from ..autoencoder import Autoencoder
from ..data import Images
from ..joint import JointAutoencoder
from ..vae import GaussianAutoencoder


@torch.no_grad()
def mmd(model: Autoencoder, images: Images, seed: int = 0) -> float:
    """Squared MMD between q(z) and p(z), of the images all at once.

    The unbiased estimate, so that it can be negative, with the default kernel of
    `vimae_kernels.mmd`, from one draw of q(z|x) for each of N images and N samples of the prior.

    Args:
        model: any system; of a deterministic encoder the codes are the draws.
        images: (N, C, H, W), N >= 2.
        seed: of the draws and the samples, which are the same at every call.

    Source: InfoVAE, sec. 4.2.1 (1).
    """
    # Even and odd: the draws of one seed are not the samples of another.
    z = encoding.draws(model, images, 2 * seed)
    generator = torch.Generator(z.device).manual_seed(2 * seed + 1)
    prior = model.sample_prior(len(z), generator)[:, : model.latent_dim]
    return float(vk.mmd(z, prior))


@torch.no_grad()
def log_det_covariance(model: Autoencoder, images: Images, seed: int = 0) -> float:
    """log det cov(q(z)) / d, in nats per coordinate: 0 where q(z) has the covariance of the prior.

    cov = sum_i (z_i - zbar)(z_i - zbar)^T / (N - 1), of one draw of q(z|x) per image.

    Args:
        model: any system.
        images: (N, C, H, W).
        seed: of the draws.

    Returns:
        -inf if the covariance is singular: to rounding, or because N <= d.

    Source: InfoVAE, sec. 4.2.1 (1) and figure 3 (B).
    """
    z = encoding.draws(model, images, seed).double()
    n = len(z)
    # The singular values of the draws, not the eigenvalues of their covariance: those are squares,
    # and the small ones are lost.
    s = torch.linalg.svdvals(z - z.mean(0))
    if s[-1] <= n * torch.finfo(s.dtype).eps * s[0]:
        return -math.inf
    return float(2 * s.log().mean()) - math.log(n - 1)


@torch.no_grad()
def rate(model: Autoencoder, images: Images) -> dict[str, float]:
    """The rate, KL(q(z|x) || N(0, I)) in nats, mean over images.

    Of the distortion, -E log p(x|z), `evaluation.reconstruction` has the value at the mean of q(z|x).

    Args:
        model: a system with a posterior; the prior of every such system is N(0, I).
        images: (N, C, H, W).

    Returns:
        "kl_z" and, of a joint model, "kl_y": KL(q(y|x) || uniform), at most log K.

    Raises:
        TypeError: a model with a deterministic encoder, whose rate is infinite.

    Source: VIMAE (ICLR version), sec. 2; VMI-VAE, eqs. 9 and 10.
    """
    gaussian = with_posterior(model)
    totals: dict[str, float] = {}
    for x in encoding.inputs(gaussian, images):
        if isinstance(gaussian, JointAutoencoder):
            mean, log_var, log_p = gaussian.joint_posterior(x)
            kl = {"kl_y": densities.uniform_kl(log_p)}
        else:
            mean, log_var = gaussian.posterior(x)
            kl = {}
        kl["kl_z"] = densities.normal_kl(mean, log_var).sum(1)
        for name, values in kl.items():
            totals[name] = totals.get(name, 0.0) + float(values.double().sum())
    return {name: total / len(images) for name, total in totals.items()}


@torch.no_grad()
def total_correlation(model: Autoencoder, images: Images, seed: int = 0) -> float:
    """KL(q(z) || prod_k q(z_k)) in nats, q(z) being the mean of q(z|x) over all of the images.

    Args:
        model: a system with a posterior.
        images: (N, C, H, W).
        seed: of one draw of q(z|x) per image, at which the densities are taken.

    Raises:
        TypeError: a model with a deterministic encoder: its codes have no density.

    Source: IMAE, eqs. 3 and 34, figure 5 (b).
    """
    return float(vk.total_correlation(*posterior_draws(model, images, seed)))


@torch.no_grad()
def posterior_draws(model: Autoencoder, images: Images, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """One draw of q(z|x) for every image, and its mean and log variance, each (N, d).

    Raises:
        TypeError: a model with a deterministic encoder.
    """
    gaussian = with_posterior(model)
    parts = [gaussian.posterior(x) for x in encoding.inputs(gaussian, images)]
    mean, log_var = (torch.cat(part) for part in zip(*parts, strict=True))
    generator = torch.Generator(mean.device).manual_seed(seed)
    return densities.draw_normal(mean, log_var, generator), mean, log_var


def with_posterior(model: Autoencoder) -> GaussianAutoencoder:
    """The model itself; TypeError if its encoder is deterministic."""
    if not isinstance(model, GaussianAutoencoder):
        raise TypeError(
            f"model is of type {type(model).__name__}, whose encoder is deterministic; it must have "
            "a posterior q(z|x) with a density, as every system but vimae-n and vimae-l has"
        )
    return model
