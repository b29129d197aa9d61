"""Priors: the logistic distribution, and sampling whatever a user calls a prior."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all

__all__ = ["Logistic", "Prior"]

Prior = Tensor | Distribution | Literal["normal", "logistic"]
"""What is accepted wherever a prior is taken: samples, a distribution, or a name."""

NAMES = ("logistic", "normal")
UNIT_LOGISTIC_SCALE = math.sqrt(3) / math.pi


class Logistic(Distribution):
    """Logistic distribution on R, with density sech^2((x - loc) / (2 scale)) / (4 scale).

    Its mean is `loc` and its variance scale^2 pi^2 / 3; unit variance is scale = sqrt(3) / pi, which is
    what the prior named "logistic" means (VIMAE, sec. 5).

    Args:
        loc: mean, a number or a tensor.
        scale: positive, a number or a tensor; broadcast against `loc`.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(
        self, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Logistic:
        new: Logistic = self._get_checked_instance(Logistic, _instance)
        new.loc = self.loc.expand(batch_shape)
        new.scale = self.scale.expand(batch_shape)
        super(Logistic, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return (self.scale * (math.pi / math.sqrt(3))).square()

    def rsample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        """Reparameterised samples, from `generator` when given."""
        shape = self._extended_shape(torch.Size(sample_shape))
        # Half types have too few values in (0, 1) for the tails: their logits are drawn in float32.
        dtype = torch.float64 if self.loc.dtype == torch.float64 else torch.float32
        u = torch.rand(shape, dtype=dtype, device=self.loc.device, generator=generator)
        # rand is in [0, 1), on a grid: half a step from 0 instead of 0, and never 1.
        eps = torch.finfo(dtype).eps
        u = u.clamp(eps / 4, 1 - eps / 2)
        return self.loc + self.scale * (u.log() - (-u).log1p()).to(self.loc.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        z = (value - self.loc) / self.scale
        logsigmoid = torch.nn.functional.logsigmoid
        return logsigmoid(z) + logsigmoid(-z) - self.scale.log()

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return torch.sigmoid((value - self.loc) / self.scale)

    def icdf(self, value: Tensor) -> Tensor:
        return self.loc + self.scale * (value.log() - (-value).log1p())

    def entropy(self) -> Tensor:
        return self.scale.log() + 2


def sample_prior(prior: Distribution | str, z: Tensor, generator: torch.Generator | None) -> Tensor:
    """As many independent samples of `prior` as `z` has, in the shape and on the device of `z`.

    Half-precision `z` gets float32 samples: the prior need not be rounded because z was.
    """
    dtype = z.dtype if z.dtype == torch.float64 else torch.float32
    if isinstance(prior, str):
        if prior == "normal":
            return torch.randn(z.shape, dtype=dtype, device=z.device, generator=generator)
        if prior == "logistic":
            zero = torch.zeros((), dtype=dtype, device=z.device)
            unit = Logistic(zero, torch.full_like(zero, UNIT_LOGISTIC_SCALE), validate_args=False)
            return unit.rsample(z.shape, generator=generator)
        raise ValueError(f"prior is {prior!r}; known names are {list(NAMES)}")
    if generator is None:
        return _sample_distribution(prior, z)
    # torch.distributions draw from the global generator only: lend it a seed from the user's.
    devices = [] if z.device.type == "cpu" else [z.device]
    with torch.random.fork_rng(devices, device_type=z.device.type if devices else "cuda"):
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        torch.manual_seed(int(seed))
        return _sample_distribution(prior, z)


def _sample_distribution(prior: Distribution, z: Tensor) -> Tensor:
    """Samples of the shape of z from a distribution over R^d, or over R with independent coordinates."""
    *batch, n, d = z.shape
    event = prior.event_shape
    if event not in ((), (d,)):
        raise ValueError(
            f"prior has event_shape {tuple(event)}; for z of shape {tuple(z.shape)} it must be () or ({d},)"
        )
    # Every sample of every batch entry is drawn on its own, so the batch is expanded before drawing.
    per_draw = torch.Size(batch) if event else torch.Size([*batch, d])
    draw = prior.rsample if prior.has_rsample else prior.sample
    if not prior.batch_shape:
        samples = draw(z.shape if not event else z.shape[:-1])
    else:
        try:
            wide = prior if prior.batch_shape == per_draw else prior.expand(per_draw)
        except RuntimeError as error:
            raise ValueError(
                f"prior has batch_shape {tuple(prior.batch_shape)}, which does not broadcast to "
                f"{tuple(per_draw)} for z of shape {tuple(z.shape)}"
            ) from error
        wide_draw = wide.rsample if wide.has_rsample else wide.sample
        samples = wide_draw(torch.Size([n])).movedim(0, -2)
    return samples
