"""Priors: the logistic distribution, and sampling whatever a user calls a prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, constraints, register_kl
from torch.distributions.utils import broadcast_all
from torch.utils._python_dispatch import TorchDispatchMode

from . import _checks

__all__ = ["Logistic", "Prior"]

Prior = Tensor | Distribution | Literal["normal", "logistic"]
"""What is accepted wherever a prior is taken: samples, a distribution, or a name."""

NAMES = ("logistic", "normal")
UNIT_LOGISTIC_SCALE = math.sqrt(3) / math.pi


class Logistic(Distribution):
    """Logistic distribution on R, with density sech^2((x - loc) / (2 scale)) / (4 scale).

    Its mean is `loc` and its variance scale^2 pi^2 / 3. `Logistic()` has mean 0 and variance 1, which is
    what the prior named "logistic" means (VIMAE, sec. 5). Its Kullback-Leibler divergence to a normal
    distribution is registered with `torch.distributions.kl_divergence`.

    Args:
        loc: mean, a number or a tensor; 0 unless given.
        scale: positive, a number or a tensor; broadcast against `loc`. Unless given it is sqrt(3) / pi, for
            variance 1, and not 1.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(
        self,
        loc: Tensor | float = 0.0,
        scale: Tensor | float = UNIT_LOGISTIC_SCALE,
        validate_args: bool | None = None,
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
        u = _random(torch.rand, shape, generator, dtype=dtype, device=self.loc.device)
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


@register_kl(Logistic, Normal)  # type: ignore[untyped-decorator]
def _kl_logistic_normal(p: Logistic, q: Normal) -> Tensor:
    # E_p of -log q needs no more of p than its mean and variance.
    squares = (p.variance + (p.mean - q.loc).square()) / q.scale.square()
    return 0.5 * (math.log(2 * math.pi) + squares) + q.scale.log() - p.entropy()


def _random(
    make: Callable[..., Tensor], shape: Any, generator: torch.Generator | None, **rest: Any
) -> Tensor:
    """torch.rand or torch.randn; torch.compile takes no generator of a symbolic shape, not even None."""
    if generator is None:
        return make(shape, **rest)
    return make(shape, generator=generator, **rest)


def check_prior(prior: object, name: str = "prior") -> None:
    """`prior` must be a tensor, a distribution or a name that is known."""
    if isinstance(prior, str):
        if prior not in NAMES:
            raise ValueError(f"{name} is {prior!r}; known names are {list(NAMES)}")
    elif not isinstance(prior, Tensor | Distribution):
        raise TypeError(
            f"{name} is of type {type(prior).__name__}; it must be a tensor of samples, a "
            f"torch.distributions.Distribution, 'normal' or 'logistic'{_checks.from_numpy(name, prior)}"
        )


def check_shapes(prior: Distribution, z: Tensor, name: str = "prior") -> None:
    """`prior` must be over R^d, or over R with independent coordinates, for every batch entry of z."""
    *batch, _, d = z.shape
    event, own = prior.event_shape, prior.batch_shape
    if event not in ((), (d,)):
        raise ValueError(
            f"{name} has event_shape {tuple(event)}; for z of shape {tuple(z.shape)} it must be () or ({d},)"
        )
    per_draw = _per_draw(prior, z)
    fits = len(own) <= len(per_draw) and all(
        a in (1, b) for a, b in zip(reversed(own), reversed(per_draw), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name} has batch_shape {tuple(own)}, which does not broadcast to {tuple(per_draw)} for z of "
            f"shape {tuple(z.shape)}"
        )
    for parameter in parameters(prior):
        if not parameter.is_floating_point() and type(prior).__module__.startswith("torch."):
            raise ValueError(
                f"{name} has parameters of dtype {parameter.dtype}; they must be floating-point"
            )
        # A number stays where it was made.
        if parameter.device != z.device and parameter.ndim:
            raise ValueError(
                f"{name} has parameters on {parameter.device} but z is on {z.device}; they must be on one device"
            )


def _per_draw(prior: Distribution, z: Tensor) -> torch.Size:
    """The batch shape of `prior` of which n draws are as many points as z has."""
    *batch, _, d = z.shape
    return torch.Size(batch) if prior.event_shape else torch.Size([*batch, d])


def parameters(prior: Distribution) -> Iterator[Tensor]:
    """The tensors that a distribution was made of."""
    for value in vars(prior).values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Distribution):
            yield from parameters(value)


def sample_prior(
    prior: Distribution | str, z: Tensor, generator: torch.Generator | None, name: str = "prior"
) -> Tensor:
    """As many independent samples of `prior` as `z` has, in the shape and on the device of `z`.

    Half-precision `z` gets float32 samples: the prior need not be rounded because z was.
    """
    check_prior(prior, name)
    dtype = z.dtype if z.dtype == torch.float64 else torch.float32
    if isinstance(prior, str):
        if prior == "normal":
            return _random(torch.randn, z.shape, generator, dtype=dtype, device=z.device)
        zero = torch.zeros((), dtype=dtype, device=z.device)
        unit = Logistic(zero, torch.full_like(zero, UNIT_LOGISTIC_SCALE), validate_args=False)
        return unit.rsample(z.shape, generator=generator)
    check_shapes(prior, z, name)
    if generator is None:
        samples = _sample_distribution(prior, z, name)
    else:
        draw = _sample_through
        if torch.compiler.is_dynamo_compiling():
            # Neither generators nor modes can be traced: drawn between two graphs.
            draw = torch.compiler.disable(draw)
        samples = draw(prior, z, generator, name)
    if not samples.is_floating_point():
        raise TypeError(
            f"{name} is {type(prior).__name__}, with samples of dtype {samples.dtype}; it must have "
            f"floating-point samples, points of R^d"
        )
    # Where only numbers are parameters, they say nothing of the device.
    return samples.to(z.device)


def _sample_distribution(prior: Distribution, z: Tensor, name: str) -> Tensor:
    """Samples of the shape of z."""
    n = z.shape[-2]
    draw = prior.rsample if prior.has_rsample else prior.sample
    if not prior.batch_shape:
        return draw(z.shape[:-1] if prior.event_shape else z.shape)
    # Every sample of every batch entry is drawn on its own, so the batch is expanded before drawing.
    per_draw = _per_draw(prior, z)
    if prior.batch_shape != per_draw:
        try:
            prior = prior.expand(per_draw)
        except NotImplementedError:
            raise ValueError(
                f"{name} is {type(prior).__name__}, which has no expand() from its batch_shape "
                f"{tuple(prior.batch_shape)}; for z of shape {tuple(z.shape)} it must be {tuple(per_draw)}"
            ) from None
        draw = prior.rsample if prior.has_rsample else prior.sample
    return draw(torch.Size([n])).movedim(0, -2)


def _sample_through(
    prior: Distribution, z: Tensor, generator: torch.Generator, name: str
) -> Tensor:
    with _Through(generator, f"{name} is {type(prior).__name__}"):
        return _sample_distribution(prior, z, name)


class _Through(TorchDispatchMode):
    """What is drawn inside comes from `generator`: distributions of torch take none.

    A seed for the default generator instead would be one for every thread.
    """

    def __init__(self, generator: torch.Generator, who: str) -> None:
        super().__init__()
        self.generator = generator
        self.who = who

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            func = self._taking_a_generator(func)
            kwargs["generator"] = self.generator
            devices = {a.device for a in args if isinstance(a, Tensor)}
            for device in devices | {torch.device(kwargs.get("device") or self.generator.device)}:
                if device.type != self.generator.device.type:
                    raise ValueError(
                        f"{self.who} with parameters on {device}; with a generator on "
                        f"{self.generator.device} they must be there too"
                    )
        return func(*args, **kwargs)

    def _taking_a_generator(self, func: Any) -> Any:
        own = [a.name for a in func._schema.arguments]
        if "generator" in own:
            return func
        for overload in func.overloadpacket.overloads():
            other = getattr(func.overloadpacket, overload)
            names = [a.name for a in other._schema.arguments]
            if "generator" in names and [n for n in names if n != "generator"] == own:
                return other
        raise ValueError(
            f"{self.who}, which draws by {func}, an operation that takes no generator: leave generator "
            "out, or pass samples"
        )
