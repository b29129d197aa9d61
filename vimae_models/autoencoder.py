"""What every system shares: encoding, decoding and sampling from the prior. No objective."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

import vimae_kernels as vk

from . import checks, densities, distributed
from .likelihoods import LIKELIHOODS
from .pixelcnn import Autoregressive, Progress

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Autoencoder(nn.Module):
    """An encoder, a decoder, the likelihood of images and the prior p(z) of codes.

    This class has an encoder that gives the code itself; systems with a posterior q(z|x) have one
    that gives its parameters. To be trained with one optimiser on `loss`, or, where `auxiliary` is
    not None, with two: on every batch first `auxiliary_loss` for the parameters of `auxiliary`, then
    `loss` for all others (`main_parameters`).

    Args:
        encoder: images (B, C, H, W) -> (B, sum of the heads).
        decoder: codes (B, code_dim) -> theta (B, channels, H, W), or `pixelcnn.Autoregressive`.
        data_shape: (C, H, W).
        latent_dim: d, the dimension of z.
        prior: "normal", N(0, I), or "logistic", independent coordinates of mean 0 and variance 1.
        likelihood: p(x|z), a name of `likelihoods.LIKELIHOODS`.
        auxiliary: a network trained beside the model, on an objective of its own.

    Attributes:
        code_dim: columns of a code: d, and those of the category of systems that have one.
        autoregressive: whether decoding draws pixel after pixel.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        data_shape: tuple[int, int, int],
        latent_dim: int,
        prior: Literal["normal", "logistic"] = "normal",
        likelihood: str = "bernoulli",
        auxiliary: nn.Module | None = None,
    ) -> None:
        super().__init__()
        checks.one_of(LIKELIHOODS, likelihood=likelihood)
        self.encoder = encoder
        self.decoder = decoder
        self.auxiliary = auxiliary
        self.data_shape = data_shape
        self.latent_dim = latent_dim
        self.code_dim = latent_dim
        self.prior: Literal["normal", "logistic"] = prior
        self.likelihood = likelihood
        self.p_x = LIKELIHOODS[likelihood]
        self.autoregressive = isinstance(decoder, Autoregressive)

    @staticmethod
    def heads(latent_dim: int, categories: int) -> tuple[int, ...]:
        """The numbers an encoder of this class must give, by head."""
        return (latent_dim,)

    def encode(self, x: Tensor) -> Tensor:
        """Codes (B, code_dim) of images x (B, C, H, W) with pixels in [0, 1].

        Of a posterior, its mean.
        """
        return self._encoded(x)

    def sample_posterior(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Codes (B, code_dim) drawn from q(z|x); of a deterministic encoder, the codes."""
        return self.encode(x)

    def decode(
        self,
        z: Tensor,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) with pixels in [0, 1] of codes z (B, code_dim).

        The mean of p(x|z). An autoregressive decoder has none: it draws an image, pixel by pixel,
        without gradient; only then are `generator` (None is torch's) and `progress` used.
        """
        self._check_codes(z)
        if isinstance(self.decoder, Autoregressive):
            return self.decoder.sample(z, self.p_x, generator, progress)
        return self.p_x.mean(self.decoder(z))

    def draw(
        self,
        z: Tensor,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) drawn from p(x|z), pixel noise included; see `decode`."""
        if self.autoregressive:
            return self.decode(z, generator, progress)
        self._check_codes(z)
        return self.p_x.sample(self.decoder(z), generator)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) of images x (B, C, H, W) and codes z (B, code_dim): (B,), in nats."""
        self._check_codes(z)
        theta = self.decoder(z, x) if self.autoregressive else self.decoder(z)
        return self.p_x.log_prob(theta, x)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) of codes z (B, code_dim): (B,), in nats."""
        self._check_codes(z)
        return densities.prior_log_density(z, self.prior)

    def reconstruct(self, x: Tensor) -> Tensor:
        """g(f(x)): images (B, C, H, W) from images of that shape."""
        return self.decode(self.encode(x))

    def sample_prior(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n codes (n, code_dim) from p(z), on the device of the model."""
        at = next(self.parameters())

        def drawn(n: int) -> Tensor:
            shape = (n, self.latent_dim)
            if self.prior == "normal":
                return torch.randn(
                    shape, dtype=at.dtype, device=at.device, **densities.drawn_from(generator)
                )
            loc = torch.zeros((), dtype=at.dtype, device=at.device)
            unit_variance = vk.Logistic(loc, math.sqrt(3) / math.pi)
            return unit_variance.rsample(shape, generator=generator)

        return distributed.rows(drawn, n, generator)

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """n images (n, C, H, W) decoded from fresh codes of the prior."""
        return self.decode(self.sample_prior(n, generator), generator, progress)

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """Named scalar terms of the objective on x (B, C, H, W); "loss" is to be minimised.

        No gradient reaches the parameters of `auxiliary`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no objective")

    def auxiliary_loss(self, x: Tensor) -> dict[str, Tensor]:
        """The same for the parameters of `auxiliary`; no gradient reaches any other."""
        raise NotImplementedError(f"{type(self).__name__} has no auxiliary network")

    def main_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that are trained on `loss`."""
        others = set() if self.auxiliary is None else set(self.auxiliary.parameters())
        return (p for p in self.parameters() if p not in others)

    @property
    def group(self) -> ProcessGroup | None:
        """The processes whose batches make one: in training mode those of `torch.distributed`.

        None without them, and in evaluation mode, which one process may be in by itself.
        """
        return distributed.group() if self.training else None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The same as `loss`."""
        return self.loss(x)

    def _encoded(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.data_shape:
            channels, height, width = self.data_shape
            raise ValueError(
                f"x has shape {tuple(x.shape)}; it must be (B, {channels}, {height}, {width})"
            )
        if self.training and len(x) == 1 and normalising(self):
            raise ValueError(
                "x is a batch of one image; batch normalisation in training mode takes two or more: "
                "drop a last batch of one, or choose a batch size that leaves none over"
            )
        return self.encoder(x)  # type: ignore[no-any-return]

    def _check_codes(self, z: Tensor) -> None:
        if z.ndim != 2 or z.shape[1] != self.code_dim:
            raise ValueError(f"z has shape {tuple(z.shape)}; it must be (B, {self.code_dim})")


class MemoryBank(nn.Module):
    """The latest `size` codes, so that a divergence sees more than a batch of them.

    Called with codes z (B, d) it gives all held codes followed by z: (held + B, d). Only z has a
    gradient, scaled by (held + B) / B: of a statistic over all codes, a batch then gives an unbiased
    estimate of what every code's gradient would be, and not a share that vanishes as the bank grows.
    z is held from then on in place of the oldest codes. With a bank of the size of the training set
    the MMD of InfoVAE's evaluation, over the full data set, becomes a regulariser, of which
    `objectives.infomax` makes half of its divergence: codes are held as they were when they were
    seen. In evaluation mode nothing is held and z alone is given.

    The processes of a group hold the codes of all, and each is given its share of them before its z.

    Args:
        size: number of codes, >= 1.
        latent_dim: d.

    Source: InfoVAE, sec. 4.2.1 (1), where this is "too expensive".
    """

    codes: Tensor
    seen: Tensor

    def __init__(self, size: int, latent_dim: int) -> None:
        super().__init__()
        checks.integer(1, bank=size)
        self.register_buffer("codes", torch.zeros(size, latent_dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, z: Tensor) -> Tensor:
        if not self.training:
            return z
        size, seen = len(self.codes), int(self.seen)
        held = self.codes[: min(seen, size)]
        own, now = z.detach(), distributed.gather(z.detach())
        scale = (len(held) + len(now)) / len(now)
        share = distributed.share(held).to(z.dtype)
        everything = torch.cat([share, own + scale * (z - own)])
        kept = now[-size:].to(self.codes.dtype)
        places = torch.arange(seen + len(now) - len(kept), seen + len(now), device=z.device)
        self.codes[places % size] = kept
        self.seen += len(now)
        return everything


def memory_bank(size: int, latent_dim: int) -> MemoryBank | None:
    """The bank of a hyperparameter `bank`, of which 0 is none."""
    checks.integer(0, bank=size)
    return MemoryBank(size, latent_dim) if size else None


def normalising(module: nn.Module) -> list[Any]:
    """The layers of batch normalisation."""
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside, batch normalisation in training mode leaves its running statistics alone."""
    layers = normalising(module)
    before = [layer.track_running_stats for layer in layers]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, tracked in zip(layers, before, strict=True):
            layer.track_running_stats = tracked


def with_frozen_parameters(module: nn.Module, *inputs: Any) -> Any:
    """module(*inputs) with gradients to the inputs only."""
    frozen = {name: parameter.detach() for name, parameter in module.named_parameters()}
    with statistics_kept(module):
        return torch.func.functional_call(module, frozen, inputs)
