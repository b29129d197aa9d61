"""Objectives as pure functions: tensors in, named scalar terms out, all to be minimised.

`reconstruction` is -E log p(x|z), summed over the pixels of an image and averaged over images. Terms
are in nats, without their weights, unless a docstring says otherwise; "loss" is the weighted sum.

`group` is a torch.distributed process group whose processes have equal shares of one batch, in the
order of their ranks; None is a batch by itself. What is no mean over images (a divergence, an
entropy of the batch) is then that of the whole batch, and has the gradient with which the mean over
processes of the gradients of "loss", as data parallel training takes it, is that of one process.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

import vimae_kernels as vk
from vimae_kernels.kernels import Kernel as FixedKernel
from vimae_kernels.priors import Prior

from . import checks, densities, distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Terms = dict[str, Tensor]
Kernel = FixedKernel | Literal["wae", "mmd-vae", "median"]
KERNELS = ("imq", "rbf", "wae", "mmd-vae", "median")
Weighting = Literal["uniform", "mws", "mss"]


def named_kernel(kernel: Kernel, d: int) -> FixedKernel:
    """The kernel of a name, for codes of dimension d; a kernel itself is passed on.

    "imq" and "rbf" are the defaults of `vimae_kernels`, "wae" the sum over the seven scales of the
    WAE code, "mmd-vae" exp(-||x - y||^2 / d^2) of the MMD-VAE code, "median" the RBF kernel with the
    median heuristic.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(kernel, str):
        checks.one_of(KERNELS, kernel=kernel)
    if kernel == "wae":
        return vk.IMQ.wae(d)
    if kernel == "mmd-vae":
        return vk.RBF.mmd_vae(d)
    return vk.RBF("median") if kernel == "median" else kernel


def autoencoding(reconstruction: Tensor) -> Terms:
    """-E log p(x|z) alone. Source: InfoVAE, eq. 2."""
    return {"loss": reconstruction, "reconstruction": reconstruction}


def infomax(
    reconstruction: Tensor,
    z: Tensor,
    prior: Prior,
    lam: float,
    kernel: Kernel = "imq",
    memory: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Terms:
    """The variational infomax objective, -E log p(x|z) + lam MMD^2(q(z), p(z)): VIMAE and MMD-VAE.

    MMD^2 is the unbiased estimate with k(x, y) = C / (C + ||x - y||^2), C = 2 d, between the codes
    and as many fresh samples of the prior.

    Args:
        reconstruction: ().
        z: codes (n, d).
        prior: anything `vimae_kernels.mmd` takes.
        lam: weight of the divergence, in the units of the reconstruction.
        kernel: anything `vimae_kernels.mmd` or `named_kernel` takes.
        memory: z and the codes of earlier batches (m, d), from `autoencoder.MemoryBank`; MMD^2 is
            then the mean of that of z and that of all of them. Of a group each process has its
            share of them.

    Returns:
        "loss", "reconstruction" and "mmd" (dimensionless; an unbiased estimate, so it can be
        negative).

    Source: VIMAE preprint, eqs. 9 and 15; ICLR version, eq. 7; InfoVAE, sec. 4.1.3.
    """
    kernel = named_kernel(kernel, z.shape[-1])
    mmd = vk.mmd(z, prior, kernel, group=group)
    if memory is not None:
        # Where codes that have since moved are all that pushes, the push comes late: q(z) circles
        # the prior and never comes to rest. A push as strong by z itself damps every such circle.
        mmd = (mmd + vk.mmd(memory, prior, kernel, group=group)) / 2
    return {"loss": reconstruction + lam * mmd, "reconstruction": reconstruction, "mmd": mmd}


def stein(
    reconstruction: Tensor,
    z: Tensor,
    prior: Prior,
    lam: float,
    kernel: Kernel = "rbf",
    group: ProcessGroup | None = None,
) -> Terms:
    """-E log p(x|z) + lam * Stein surrogate of KL(q(z) || p(z)).

    The surrogate is `vimae_kernels.stein_loss`, whose descent moves codes along their Stein gradient
    phi and lowers KL; the paper prints it without the minus sign, which would ascend.

    Args: as `infomax`, the prior being a name or a distribution.

    Returns:
        "loss", "reconstruction" and "stein" (its gradient means something, its value nothing).

    Source: InfoVAE, sec. 4.1.2.
    """
    # The prior is never a sample here: it needs a score.
    named = named_kernel(kernel, z.shape[-1])
    surrogate = vk.stein_loss(z, prior, named, group=group)  # type: ignore[arg-type]
    loss = reconstruction + lam * surrogate
    return {"loss": loss, "reconstruction": reconstruction, "stein": surrogate}


def elbo(reconstruction: Tensor, mean: Tensor, log_var: Tensor, beta: float = 1.0) -> Terms:
    """-E log p(x|z) + beta KL(q(z|x) || p(z)); beta = 1 is minus the ELBO.

    Args:
        reconstruction: ().
        mean, log_var: of the posteriors, (B, d).
        beta: weight of the rate.

    Returns:
        "loss", "reconstruction" and "kl", the rate.

    Source: VIMAE (ICLR version), eq. 2; InfoVAE, eq. 1; Higgins et al. (2017) for beta.
    """
    kl = densities.normal_kl(mean, log_var).sum(-1).mean()
    return {"loss": reconstruction + beta * kl, "reconstruction": reconstruction, "kl": kl}


def minimal_rate(
    reconstruction: Tensor,
    mean: Tensor,
    log_var: Tensor,
    beta: float,
    rate: float,
    group: ProcessGroup | None = None,
) -> Terms:
    """-E log p(x|z) + beta |R0 - KL|, KL being the mean rate of the batch; R0 = 0 is beta-VAE.

    Args: as `elbo`, and

        rate: R0, in nats.

    Returns:
        "loss", "reconstruction" and "kl".

    Source: VIMAE (ICLR version), eq. 4.
    """
    kl = distributed.mean(densities.normal_kl(mean, log_var).sum(-1).mean(), group)
    # Not rate - kl: compiled code has a graph for every number that a tensor is taken from.
    loss = reconstruction + beta * (kl - rate).abs()
    return {"loss": loss, "reconstruction": reconstruction, "kl": kl}


def info_vae(
    reconstruction: Tensor,
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    *,
    alpha: float,
    lam: float,
    divergence: str,
    kernel: Kernel = "imq",
    group: ProcessGroup | None = None,
) -> Terms:
    """-E log p(x|z) + alpha I_q(x; z) + lam D(q(z) || p(z)), p(z) = N(0, I).

    D is "mmd" (`infomax`), "stein" (`stein`) or "kl". I_q and KL(q(z) || p(z)) come from the
    entropy of the aggregated posterior of the batch (`vimae_kernels.latent_information`), the rest
    of them exactly; their sum is the rate E KL(q(z|x) || p(z)), so that alpha = lam = 1 with "kl" is
    the ELBO. alpha = 0 with "mmd" is MMD-VAE.

    Args:
        reconstruction: ().
        z: samples of the posteriors (B, d).
        mean, log_var: of the posteriors (B, d).
        alpha, lam: weights.
        divergence: "mmd", "kl" or "stein".
        kernel: of "mmd" and "stein".

    Returns:
        "loss", "reconstruction", "mutual_information", "kl" (the rate) and the divergence: "mmd",
        "stein" or "kl_aggregate".

    Source: VIMAE preprint, eqs. 3 and 4; InfoVAE, sec. 4 and app. B.2.
    """
    information = vk.latent_information(z, mean, log_var, group=group).mutual_information
    kl = densities.normal_kl(mean, log_var).sum(-1).mean()
    if divergence == "kl":
        name, value = "kl_aggregate", kl - information
    else:
        regularised = {"mmd": partial(infomax, group=group), "stein": partial(stein, group=group)}
        terms = regularised[divergence](reconstruction, z, "normal", lam, kernel)
        name, value = divergence, terms[divergence]
    return {
        "loss": reconstruction + alpha * information + lam * value,
        "reconstruction": reconstruction,
        "mutual_information": information,
        "kl": kl,
        name: value,
    }


def adversarial(reconstruction: Tensor, logits: Tensor, lam: float) -> Terms:
    """-E log p(x|z) - lam E_q(z) log D(z): what an adversarial autoencoder's encoder minimises.

    D is the probability a discriminator gives a code of coming from the prior. This is the
    non-saturating form of the game whose optimum is JS(q(z), p(z)) = 0.

    Args:
        reconstruction: ().
        logits: of D at the codes, any shape.
        lam: weight.

    Returns:
        "loss", "reconstruction" and "adversarial" (log 2 where D cannot tell).

    Source: InfoVAE, sec. 4.1.1; Makhzani et al. (2015), sec. 2.
    """
    fooled = F.softplus(-logits).mean()
    loss = reconstruction + lam * fooled
    return {"loss": loss, "reconstruction": reconstruction, "adversarial": fooled}


def discrimination(prior_logits: Tensor, code_logits: Tensor) -> Terms:
    """-E_p(z) log D(z) - E_q(z) log(1 - D(z)): what the discriminator minimises.

    Returns:
        "loss", and "js" = log 2 - loss / 2, a lower bound of JS(q(z), p(z)) that is exact for the
        best D (from 0 to log 2).

    Source: Goodfellow et al., Generative Adversarial Networks (2014), eqs. 1 and 4.
    """
    loss = F.softplus(-prior_logits).mean() + F.softplus(code_logits).mean()
    return {"loss": loss, "js": math.log(2) - loss / 2}


def information_bound(log_q: Tensor, entropy: Tensor) -> Tensor:
    """E log Q(code|x') + H(code), a lower bound of I(code; x): ().

    Args:
        log_q: log Q of every code given the image decoded from it, (B,).
        entropy: H of the code, ().

    Source: VMI-VAE, eqs. 4, 8 and 12.
    """
    return log_q.mean() + entropy


def imae(
    reconstruction: Tensor,
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    log_p: Tensor,
    smoothness: Tensor,
    *,
    beta: float,
    gamma: float,
    scale: float = 1.0,
    weighting: Weighting = "uniform",
    dataset_size: int | None = None,
    group: ProcessGroup | None = None,
) -> Terms:
    """-E log p(x|y, z) - beta L(y) - beta L(z) + gamma TC(z).

    L(y) = H(mean_n p(y|x_n)) - mean_n H(p(y|x_n)) - smoothness, L(z) = -sum_k KL(p(z_k) || r(z_k))
    with r = N(0, scale^2), TC(z) = KL(p(z) || prod_k p(z_k)), with the entropies of p(z) and p(z_k)
    from the batch.

    Args:
        reconstruction: ().
        z: samples of the posteriors (B, d).
        mean, log_var: of the posteriors (B, d).
        log_p: log p(y|x), (B, K).
        smoothness: the second term of eq. 11, weighted, ().
        beta, gamma: weights.
        scale: standard deviation of r.
        weighting, dataset_size: as in `vimae_kernels.aggregate_log_density`; the paper's is "uniform".

    Returns:
        "loss", "reconstruction", "information_y" (eq. 7), "entropy_y", "marginal_kl" (-L(z)),
        "total_correlation" and "vat" (smoothness).

    Source: IMAE, eqs. 6, 7, 10, 11 and 34.
    """
    entropy = densities.categorical_entropy(densities.mean_log_probability(log_p, group))
    information_y = entropy - densities.categorical_entropy(log_p).mean()
    latent = vk.latent_information(
        z, mean, log_var, weighting=weighting, dataset_size=dataset_size, group=group
    )
    cross = densities.normal_cross_entropy(mean, log_var, scale).mean(0)
    marginal_kl = (cross - latent.marginal_entropy).sum()
    tc = latent.total_correlation
    return {
        "loss": reconstruction + beta * (smoothness - information_y + marginal_kl) + gamma * tc,
        "reconstruction": reconstruction,
        "information_y": information_y,
        "entropy_y": entropy,
        "marginal_kl": marginal_kl,
        "total_correlation": tc,
        "vat": smoothness,
    }


def hybrid_elbo(
    reconstruction: Tensor,
    mean: Tensor,
    log_var: Tensor,
    log_p: Tensor,
    smoothness: Tensor | float = 0.0,
    beta: float = 1.0,
) -> Terms:
    """-E log p(x|y, z) + beta [KL(q(z|x) || N(0, I)) + KL(q(y|x) || uniform) + smoothness].

    beta = 1 without smoothness is minus the ELBO of a joint code.

    Args: as `imae`.

    Returns:
        "loss", "reconstruction", "kl_z", "kl_y" and "vat" (smoothness).

    Source: IMAE, figure 1 and eq. 11; VMI-VAE, eqs. 9 and 10.
    """
    kl_z = densities.normal_kl(mean, log_var).sum(-1).mean()
    kl_y = densities.uniform_kl(log_p).mean()
    return {
        "loss": reconstruction + beta * (kl_z + kl_y + smoothness),
        "reconstruction": reconstruction,
        "kl_z": kl_z,
        "kl_y": kl_y,
        "vat": torch.as_tensor(smoothness, dtype=kl_z.dtype, device=kl_z.device),
    }


def hybrid_info_vae(
    reconstruction: Tensor,
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    log_p: Tensor,
    smoothness: Tensor,
    *,
    beta: float,
    group: ProcessGroup | None = None,
) -> Terms:
    """-E log p(x|y, z) + beta [KL(p(z) || N(0, I)) + KL(p(y) || uniform) + smoothness].

    The aggregated p(z) and p(y) are those of the batch, as in `imae`.

    Returns:
        "loss", "reconstruction", "kl_z" and "kl_y" (of the aggregated posteriors) and "vat".

    Source: IMAE, figure 1 ("InfoVAE") and eqs. 11 and 34.
    """
    entropy = vk.latent_information(z, mean, log_var, group=group).joint_entropy
    kl_z = densities.normal_cross_entropy(mean, log_var).sum(-1).mean() - entropy
    kl_y = densities.uniform_kl(densities.mean_log_probability(log_p, group))
    return {
        "loss": reconstruction + beta * (kl_z + kl_y + smoothness),
        "reconstruction": reconstruction,
        "kl_z": kl_z,
        "kl_y": kl_y,
        "vat": smoothness,
    }


def joint_vae(
    reconstruction: Tensor,
    mean: Tensor,
    log_var: Tensor,
    log_p: Tensor,
    smoothness: Tensor,
    capacity_z: Tensor,
    capacity_y: Tensor,
    *,
    beta: float,
    group: ProcessGroup | None = None,
) -> Terms:
    """-E log p(x|y, z) + beta [|KL(z) - C_z| + |KL(y) - C_y| + smoothness], KLs as `hybrid_elbo`.

    Returns:
        "loss", "reconstruction", "kl_z", "kl_y", "capacity_z", "capacity_y" and "vat".

    Source: IMAE, figure 1; Dupont, JointVAE (2018), eq. 7.
    """
    terms = hybrid_elbo(reconstruction, mean, log_var, log_p, smoothness, beta)
    terms |= {name: distributed.mean(terms[name], group) for name in ("kl_z", "kl_y")}
    distance = (terms["kl_z"] - capacity_z).abs() + (terms["kl_y"] - capacity_y).abs()
    return terms | {
        "loss": reconstruction + beta * (distance + smoothness),
        "capacity_z": capacity_z,
        "capacity_y": capacity_y,
    }
