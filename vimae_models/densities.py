"""Densities, divergences and entropies of single distributions, in nats.

What is summed over pairs of a batch is in `vimae_kernels`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

import vimae_kernels as vk

from . import distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_LOG_2PI = math.log(2 * math.pi)


def drawn_from(generator: torch.Generator | None) -> dict[str, Any]:
    """The keyword `generator` of a draw of torch's, left out for None.

    Compiled code whose shapes change refuses the keyword even with None.
    """
    return {} if generator is None else {"generator": generator}


def draw_normal(mean: Tensor, log_var: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """mean + exp(log_var / 2) eps with eps ~ N(0, I): the reparameterisation trick.

    Without a generator, the processes of a group draw as one, see `distributed.rows`.

    Source: Kingma and Welling, Auto-Encoding Variational Bayes (2013), sec. 2.4.
    """

    def noise(n: int) -> Tensor:
        shape = (n, *mean.shape[1:])
        return torch.randn(shape, dtype=mean.dtype, device=mean.device, **drawn_from(generator))

    return mean + (0.5 * log_var).exp() * distributed.rows(noise, len(mean), generator)


def normal_log_density(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mean, diag exp(log_var)), summed over the last dimension: (..., d) -> (...)."""
    return -0.5 * (_LOG_2PI + log_var + (z - mean).square() * (-log_var).exp()).sum(-1)


def normal_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, 1)) of every coordinate: (..., d) -> (..., d).

    (mean^2 + var - 1 - log var) / 2; the sum over the last dimension is the rate of a posterior.
    """
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var)


def normal_cross_entropy(mean: Tensor, log_var: Tensor, scale: float = 1.0) -> Tensor:
    """-E log N(z; 0, scale^2) over z ~ N(mean, exp(log_var)), of every coordinate: (..., d)."""
    second_moment = mean.square() + log_var.exp()
    # A tensor: compiled code has a graph for every number whose logarithm is taken.
    width = scale * mean.new_ones(())
    return 0.5 * (_LOG_2PI + 2 * width.log() + second_moment / width.square())


def prior_log_density(z: Tensor, prior: str) -> Tensor:
    """log p(z) of independent coordinates of mean 0 and variance 1: (..., d) -> (...).

    Args:
        z: codes.
        prior: "normal" or "logistic".
    """
    if prior == "normal":
        zero = torch.zeros_like(z)
        return normal_log_density(z, zero, zero)
    zero = torch.zeros((), dtype=z.dtype, device=z.device)
    logistic = vk.Logistic(zero, math.sqrt(3) / math.pi, validate_args=False)
    return logistic.log_prob(z).sum(-1)


def categorical_entropy(log_p: Tensor) -> Tensor:
    """-sum_k p_k log p_k of log probabilities (..., K) -> (...), with 0 log 0 = 0."""
    p = log_p.exp()
    return -torch.where(p > 0, p * log_p, torch.zeros_like(p)).sum(-1)


def uniform_kl(log_p: Tensor) -> Tensor:
    """KL(p || uniform) = log K - H(p) of log probabilities (..., K) -> (...)."""
    return math.log(log_p.shape[-1]) - categorical_entropy(log_p)


def draw_category(
    log_p: Tensor,
    tau: float = 1.0,
    hard: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`vimae_kernels.gumbel_softmax` of log probabilities (B, K); a group draws as in `draw_normal`."""
    first, n = distributed.place(len(log_p)) if generator is None else (0, len(log_p))
    # The noise depends on the place of a row alone: rows around it stand for those of the others.
    whole = F.pad(log_p, (0, 0, first, n - first - len(log_p)))
    y = vk.gumbel_softmax(whole, tau, hard=hard, generator=generator)
    return y[first : first + len(log_p)]


def mean_log_probability(log_p: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Log of the mean over the batch, that of all processes of `group`, of the probabilities: (B, K) -> (K,)."""
    tiny = torch.finfo(log_p.dtype).tiny
    return distributed.mean(log_p.exp().mean(0), group).clamp_min(tiny).log()
