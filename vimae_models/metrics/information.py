"""What codes know of images, and of the factors that images were made from; in nats.

q(z) is the mean of q(z|x) over the images given. All of these need a posterior q(z|x): the
information in a deterministic code is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import vimae_kernels as vk

from .. import checks, densities, encoding
from ..autoencoder import Autoencoder
from ..data import Images, Split
from ..joint import JointAutoencoder
from .latent import posterior_draws


@torch.no_grad()
def mutual_information(model: Autoencoder, images: Images, seed: int = 0) -> dict[str, float]:
    """I(x; z) of M images: mean_i log(q(z_i|x_i) / (1/M sum_j q(z_i|x_j))), z_i ~ q(z|x_i).

    Args:
        model: a system with a posterior; of a joint code this is the information in z.
        images: (M, C, H, W).
        seed: of the draws.

    Returns:
        "information" and "bound", log M. The estimate never exceeds the bound; one near it says
        only that there is at least that much.

    Raises:
        TypeError: a model with a deterministic encoder.

    Source: InfoVAE, app. B.2.
    """
    z, mean, log_var = posterior_draws(model, images, seed)
    own: Tensor = densities.normal_log_density(z, mean, log_var)
    of_all = vk.aggregate_log_density(z, mean, log_var).joint
    return {"information": float((own - of_all).mean()), "bound": math.log(len(z))}


@torch.no_grad()
def coordinates(model: Autoencoder, images: Images, seed: int = 0) -> dict[str, list[float]]:
    """What every coordinate z_k knows of the images, and what Proposition 1 of IMAE says of it.

        information  I(x; z_k), as `mutual_information` estimates it, at most log M
        kl           E KL(q(z_k|x) || N(0, 1))
        upper        (log(E sigma_k^2 + Var mu_k) - E log sigma_k^2) / 2, eq. 4
        lower        log(1 + Var mu_k / E sigma_k^2) / 2, eq. 5

    with q(z_k|x) = N(mu_k(x), sigma_k^2(x)), E and Var over the images, Var divided by M. I(x; z_k) is
    at most `upper`, with equality where q(z_k) is Gaussian, and only there is it sure to be at least
    `lower`: in general it can fall below.

    Args:
        model: a system with a posterior; of a joint code these are figures of z.
        images: (M, C, H, W).
        seed: of the draws.

    Returns:
        The lists named above, with d numbers each in nats, and the two lists that figure 2 (a) shows
        beside the information: "mean_spread", Var mu_k, and "mean_variance", E sigma_k^2.

    Raises:
        TypeError: a model with a deterministic encoder.

    Source: IMAE, proposition 1, app. A and figure 2 (a).
    """
    z, mean, log_var = posterior_draws(model, images, seed)
    # The density of one coordinate is that of a vector of one.
    own = densities.normal_log_density(z[..., None], mean[..., None], log_var[..., None])
    of_all = vk.aggregate_log_density(z, mean, log_var).marginal
    mean, log_var = mean.double(), log_var.double()
    spread = mean.var(0, correction=0)
    variance = log_var.exp().mean(0)
    found = {
        "information": (own - of_all).mean(0),
        "kl": densities.normal_kl(mean, log_var).mean(0),
        "upper": 0.5 * ((variance + spread).log() - log_var.mean(0)),
        "lower": 0.5 * torch.log1p(spread / variance),
        "mean_spread": spread,
        "mean_variance": variance,
    }
    return {name: values.tolist() for name, values in found.items()}


@torch.no_grad()
def mutual_information_gap(
    model: Autoencoder,
    split: Split,
    *,
    n: int = 10_000,
    factors: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The mutual information gap (MIG): whether every factor of the images has one latent of its own.

    Of a factor v, gap = [I(z_k; v) - max_{j != k} I(z_j; v)] / H(v), k being the latent that knows most
    of it. With q(z_k|v) the mean of q(z_k|x) over the images of value v, one z_i ~ q(z|x_i) per image,

        I(z_k; v) = mean_i log(q(z_ik|v_i) / q(z_ik)), at most H(v)

    and H(v) that of the values' frequencies. Few images of a value make the estimate too high.

    Args:
        model: a system with a posterior.
        split: images with known factors (`Split.latents`: dSprites).
        n: images this is estimated on, drawn at random; fewer if there are fewer.
        factors: columns of `Split.latents`; None is all. Those with one value are left out. Chen et al.
            leave out the shape: 2, 3, 4, 5 of dSprites.
        seed: of the choice of images and of the draws.

    Returns:
        "images", their number; "factors", the columns used; "entropy", H(v) of each; "information",
        per factor the list of I(z_k; v), estimates below 0 being 0; "gap" of each factor; "mig",
        their mean; "weighted", their mean with weights H(v): the sum of the unscaled gaps over that of
        the entropies. IMAE's score is "the weighted average of the gaps" with no weights printed: the
        metric of Chen et al., which it names, is "mig", a mean of unscaled gaps with weights 1 / H(v).
        Of a joint model also "with_y", where y is one latent more, the last, and
        I(y; v) = H(q(y)) - E_v H(q(y|v)): "information", "gap", "mig" and "weighted" once more.

    Raises:
        TypeError: a model with a deterministic encoder; `n` not an integer.
        ValueError: a split without factors, n < 2, a factor that is not a column, no factor that varies.

    Source: Chen et al., Isolating Sources of Disentanglement in VAEs (2018), sec. 4; IMAE,
    sec. 4.2.2, figures 5 and 7.
    """
    checks.integer(2, n=n)
    if split.latents is None:
        raise ValueError(
            "split.latents is None; it must hold the factors the images were made from"
        )
    known = split.latents.shape[1]
    factors = range(known) if factors is None else factors
    for factor in factors:
        if not 0 <= factor < known:
            raise ValueError(f"factors has {factor}; it must be of 0 to {known - 1}")
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:n]
    images, latents = split.images[chosen], split.latents[chosen]
    factors = [factor for factor in factors if len(latents[:, factor].unique()) > 1]
    if not factors:
        raise ValueError(f"none of the factors varies over the {len(chosen)} images")

    z, mean, log_var = posterior_draws(model, images, seed)
    of_all = vk.aggregate_log_density(z, mean, log_var).marginal
    p = None
    if isinstance(model, JointAutoencoder):
        p = torch.cat([model.classify(x) for x in encoding.inputs(model, images)]).double()
    entropies, of_z, of_y = [], [], []
    for factor in factors:
        groups = [
            (latents[:, factor] == value).nonzero()[:, 0].to(z.device)
            for value in latents[:, factor].unique()
        ]
        share = torch.tensor([len(at) for at in groups], dtype=torch.float64) / len(z)
        entropies.append(torch.special.entr(share).sum())
        of_value = torch.empty_like(of_all)
        for at in groups:
            of_value[at] = vk.aggregate_log_density(z[at], mean[at], log_var[at]).marginal
        of_z.append((of_value - of_all).double().mean(0).cpu())
        if p is not None:
            means = torch.stack([p[at].mean(0) for at in groups]).cpu()
            within = share @ torch.special.entr(means).sum(1)
            of_y.append(torch.special.entr(share @ means).sum() - within)
    entropy, information = torch.stack(entropies), torch.stack(of_z)
    found = {"images": len(z), "factors": factors, "entropy": entropy.tolist()}
    found |= _gaps(information, entropy)
    if of_y:
        with_y = torch.cat([information, torch.stack(of_y)[:, None]], 1)
        found["with_y"] = _gaps(with_y, entropy)
    return found


def _gaps(information: Tensor, entropy: Tensor) -> dict[str, Any]:
    """The scores of information (F, latents) on factors with these entropies (F,)."""
    information = information.clamp_min(0)
    # A single latent is compared with one that knows nothing.
    most = F.pad(information, (0, 1)).topk(2).values
    gap = most[:, 0] - most[:, 1]
    return {
        "information": information.tolist(),
        "gap": (gap / entropy).tolist(),
        "mig": float((gap / entropy).mean()),
        "weighted": float(gap.sum() / entropy.sum()),
    }
