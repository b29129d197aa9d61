"""Distributions p(x|z) of images given what a decoder says about them.

A decoder gives `theta` (B, channels, H, W), where `channels` is what the likelihood asks for; an
image is shown as its mean. Log densities are summed over the pixels of an image, in nats.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

import vimae_kernels as vk

from . import densities


class Likelihood(Protocol):
    def channels(self, image_channels: int) -> int:
        """Channels of theta for images of `image_channels`; ValueError if it has none for them."""

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p(x|z) of images x (B, C, H, W) in [0, 1], summed over pixels: (B,), in nats."""

    def mean(self, theta: Tensor) -> Tensor:
        """The mean image (B, C, H, W)."""

    def sample(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw x ~ p(x|z), (B, C, H, W)."""


class Bernoulli:
    """Independent binary pixels with logits theta.

    For grey pixels in [0, 1] `log_prob` is the expectation over their random binarisation.
    """

    def channels(self, image_channels: int) -> int:
        return image_channels

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(theta, x, reduction="none")
        return -losses.flatten(1).sum(1)

    def mean(self, theta: Tensor) -> Tensor:
        return theta.sigmoid()

    def sample(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(theta.sigmoid(), generator=generator)


class SquaredError:
    """A deterministic decoder g = sigmoid(theta) with log p(x|z) := -||x - g||^2.

    That is N(g, I / 2) without its constant, -(C H W / 2) log pi. A draw is g itself.

    Source: VIMAE preprint, sec. 5; WAE, sec. 3.
    """

    def channels(self, image_channels: int) -> int:
        return image_channels

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        return -(x - theta.sigmoid()).square().flatten(1).sum(1)

    def mean(self, theta: Tensor) -> Tensor:
        return theta.sigmoid()

    def sample(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return theta.sigmoid()


class Gaussian(SquaredError):
    """N(sigmoid(theta), I / 2) with its constant, so that it can be compared as a density."""

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        return super().log_prob(theta, x) - 0.5 * math.log(math.pi) * x[0].numel()

    def sample(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        g = theta.sigmoid()
        noise = torch.randn(
            g.shape, dtype=g.dtype, device=g.device, **densities.drawn_from(generator)
        )
        return g + math.sqrt(0.5) * noise


class LogisticMixture:
    """Discretised mixture of logistic distributions over the 256 levels of a byte.

    With x scaled to [-1, 1], p(x) = sum_k pi_k [sigma((x + 1/255 - mu_k) / s_k) - sigma((x - 1/255 -
    mu_k) / s_k)], the first and the last level reaching to -inf and +inf. Of three channels green
    depends on red, and blue on both, linearly through mu_k. theta has, for K components, K logits,
    then per channel K means and K log scales, and for three channels 3 K coefficients.

    Source: Salimans et al., PixelCNN++ (2017), eqs. 1 to 3; K = 10.
    """

    components = 10

    def channels(self, image_channels: int) -> int:
        if image_channels not in (1, 3):
            raise ValueError(
                "likelihood 'logistic-mixture' takes images of 1 or 3 channels; these have "
                f"{image_channels}"
            )
        return self.components * (3 if image_channels == 1 else 10)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        log_pi, mu, log_s, coefficients = self._split(theta)
        x = (2 * x - 1).unsqueeze(2)  # (B, C, 1, H, W)
        if coefficients is not None:
            mu = _shifted(mu, coefficients, x)
        inverse = (-log_s).exp()
        upper = inverse * (x - mu + 1 / 255)
        lower = inverse * (x - mu - 1 / 255)
        # sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a)): nothing cancels. Of a mixture as
        # wide as a float can say, a - b underflows, but not its logarithm.
        to_upper, from_lower = F.logsigmoid(upper), F.logsigmoid(-lower)
        gap = 2 / 255 * inverse
        of_gap = (-torch.expm1(-gap.clamp_min(1e-4))).log()
        of_gap = torch.where(gap > 1e-4, of_gap, math.log(2 / 255) - log_s - gap / 2)
        inner = to_upper + from_lower + of_gap
        half = 0.5 / 255
        level = torch.where(x < -1 + half, to_upper, torch.where(x > 1 - half, from_lower, inner))
        return torch.logsumexp(log_pi + level.sum(1), 1).flatten(1).sum(1)

    def mean(self, theta: Tensor) -> Tensor:
        log_pi, mu, _, coefficients = self._split(theta)
        if coefficients is not None:
            red = mu[:, 0]
            green = mu[:, 1] + coefficients[:, 0] * red
            blue = mu[:, 2] + coefficients[:, 1] * red + coefficients[:, 2] * green
            mu = torch.stack([red, green, blue], 1)
        mean = (log_pi.exp().unsqueeze(1) * mu).sum(2)
        return (0.5 * (mean + 1)).clamp(0, 1)

    def sample(self, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        log_pi, mu, log_s, coefficients = self._split(theta)
        batch, k, height, width = log_pi.shape
        flat = log_pi.exp().permute(0, 2, 3, 1).reshape(-1, k)
        chosen = torch.multinomial(flat, 1, generator=generator).view(batch, 1, 1, height, width)

        def of_chosen(each: Tensor) -> Tensor:
            index = chosen.expand(-1, each.shape[1], -1, -1, -1)
            return each.gather(2, index).squeeze(2)  # (B, C, H, W)

        mu, log_s = of_chosen(mu), of_chosen(log_s)
        x = vk.Logistic(mu, log_s.exp(), validate_args=False).rsample(generator=generator)
        x = x.clamp(-1, 1)
        if coefficients is not None:
            c = of_chosen(coefficients)
            green = (x[:, 1] + c[:, 0] * x[:, 0]).clamp(-1, 1)
            blue = (x[:, 2] + c[:, 1] * x[:, 0] + c[:, 2] * green).clamp(-1, 1)
            x = torch.stack([x[:, 0], green, blue], 1)
        return torch.round((x + 1) * 127.5) / 255

    def _split(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """log pi (B, K, H, W); means and log scales (B, C, K, H, W); coefficients likewise."""
        k = self.components
        channels = 1 if theta.shape[1] == 3 * k else 3
        log_pi = theta[:, :k].log_softmax(1)
        rest = theta[:, k:].unflatten(1, (-1, channels, k))
        # Scales below exp(-7) of the range are far narrower than a level.
        mu, log_s = rest[:, 0], rest[:, 1].clamp_min(-7)
        return log_pi, mu, log_s, rest[:, 2].tanh() if channels == 3 else None


def _shifted(mu: Tensor, coefficients: Tensor, x: Tensor) -> Tensor:
    """The means of green and blue, given the channels before them."""
    green = mu[:, 1] + coefficients[:, 0] * x[:, 0]
    blue = mu[:, 2] + coefficients[:, 1] * x[:, 0] + coefficients[:, 2] * x[:, 1]
    return torch.stack([mu[:, 0], green, blue], 1)


LIKELIHOODS: dict[str, Likelihood] = {
    "bernoulli": Bernoulli(),
    "l2": SquaredError(),
    "gaussian": Gaussian(),
    "logistic-mixture": LogisticMixture(),
}
