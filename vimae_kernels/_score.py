"""The score grad log p of a prior at samples: what the Stein gradient and the Stein discrepancy know of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    Distribution,
    Independent,
    TransformedDistribution,
    constraints,
)

from . import _checks
from ._autograd import accumulator
from ._distributed import Ranks
from .kernels import IMQ, RBF
from .ops.median.op import median_unit
from .priors import NAMES, UNIT_LOGISTIC_SCALE, check_shapes, parameters

Score = Tensor | Callable[[Tensor], Tensor]
"""What is accepted as a score: grad log p at z, or a function that gives it for z."""


def check(z: Tensor, prior: object, score: object) -> None:
    """A `prior` with a score, or a `score` of the shape of z."""
    if score is None:
        check_prior(prior)
        if isinstance(prior, Distribution):
            check_shapes(prior, z)
        return
    if not (isinstance(prior, str) and prior == "normal"):
        raise ValueError("prior and score are both given; score stands in place of a prior")
    if not callable(score):
        _check_score("score", z, score)


def check_prior(prior: object) -> None:
    """A `prior` with a score over all of R^d, whatever z."""
    if isinstance(prior, str):
        if prior not in NAMES:
            raise ValueError(f"prior is {prior!r}; known names are {list(NAMES)}")
    elif isinstance(prior, Tensor):
        raise TypeError(
            "prior is a tensor, and samples have no score; it must be a torch.distributions.Distribution, "
            "'normal' or 'logistic', or give score=, the tensor of grad log p at z"
        )
    elif not isinstance(prior, Distribution):
        raise TypeError(
            f"prior is of type {type(prior).__name__}; it must be a torch.distributions.Distribution, "
            "'normal' or 'logistic'"
        )
    elif type(prior).log_prob is Distribution.log_prob:
        raise ValueError(f"prior is {type(prior).__name__}, which has no log_prob to differentiate")
    elif not _is_everywhere(prior):
        raise ValueError(
            f"prior is {type(prior).__name__}, whose support is bounded or discrete; it must have a density on "
            "all of R^d, of which the score is the gradient"
        )


def _is_everywhere(prior: Distribution) -> bool:
    """Whether the support is R or R^d, as far as is known."""
    while isinstance(prior, Independent):
        prior = prior.base_dist
    if type(prior) is TransformedDistribution:
        # Its own support is what the last transform may reach, not what it does reach.
        filled = _is_everywhere(prior.base_dist)
        for transform in ComposeTransform(prior.transforms).parts:
            filled = _is_real(transform.codomain) and (filled or not _is_real(transform.domain))
        return filled
    try:
        support = prior.support
    except NotImplementedError:
        return True
    return _is_real(support)


def _is_real(support: Any) -> bool:
    if hasattr(support, "cseq"):  # of torch.distributions.constraints.cat and stack
        return all(_is_real(part) for part in support.cseq)
    if hasattr(support, "base_constraint"):
        return _is_real(support.base_constraint)
    own = type(support).__module__ != constraints.__name__
    return own or isinstance(support, type(constraints.real)) or support is constraints.dependent


def _check_score(name: str, z: Tensor, score: object) -> None:
    _checks.samples(name, score)
    assert isinstance(score, Tensor)
    _checks.same_space("z", z, name, score)
    if score.shape[-2] != z.shape[-2]:
        raise ValueError(
            f"{name} has shape {tuple(score.shape)}; it must have a row for every row of z, {tuple(z.shape)}"
        )


def at(z: Tensor, score: Score | None) -> Tensor | None:
    """The score at z where it is a function, with whatever graph that makes."""
    if score is None or isinstance(score, Tensor):
        return score
    value = score(z)
    _check_score("score(z)", z, value)
    return value


def samples_and_score(
    z: Tensor, prior: Distribution | str, score: Score | None
) -> tuple[Tensor, Tensor | None]:
    """z and grad log p at z in one dtype and shape; None is the score -z of the standard normal.

    Differentiable in z, in `score` and in the parameters of a distribution.
    """
    score = at(z, score)
    if score is None:
        if isinstance(prior, str) and prior == "normal":
            return z, None
        z = z.to(accumulator(z))
        if isinstance(prior, str):
            return z, (z / (2 * UNIT_LOGISTIC_SCALE)).tanh() / -UNIT_LOGISTIC_SCALE
        return z, _score_of_distribution(prior, z)
    if z.dtype != score.dtype:
        common = torch.promote_types(z.dtype, score.dtype)
        z, score = z.to(common), score.to(common)
    if z.shape != score.shape:
        shape = torch.broadcast_shapes(z.shape, score.shape)
        z, score = z.expand(shape), score.expand(shape)
    return z, score


def _score_of_distribution(prior: Distribution, z: Tensor) -> Tensor:
    # Distributions refuse NaN and Inf, and ask for them in a way that no transform allows.
    finite = z.isfinite()
    prior = _unvalidated(prior)

    def log_density(z: Tensor) -> Tensor:
        # Coordinates of a distribution over R are in its batch, as samples of R^d are not: n comes first.
        return prior.log_prob(z.movedim(-2, 0)).sum()

    with torch.autocast(z.device.type, enabled=False):
        if torch._C._get_tracing_state() is None:
            score = torch.func.grad(log_density)(z.where(finite, 0.0))
        else:  # torch.jit.trace knows no transforms
            learned = torch.is_grad_enabled() and any(p.requires_grad for p in parameters(prior))
            score = _traced_gradient(log_density, z.where(finite, 0.0), learned)
    return score.to(z.dtype).where(finite, torch.nan)  # type: ignore[no-any-return]


def _traced_gradient(f: Callable[[Tensor], Tensor], z: Tensor, learned: bool) -> Tensor:
    differentiable = learned or z.requires_grad
    with torch.enable_grad():
        if not z.requires_grad:
            z = z.detach().requires_grad_()
        return torch.autograd.grad(f(z), z, create_graph=differentiable)[0]


def _unvalidated(prior: Distribution) -> Distribution:
    """A copy that shares its tensors and does not look at values."""
    copied = copy.copy(prior)
    for name, value in vars(copied).items():
        if isinstance(value, Distribution):
            setattr(copied, name, _unvalidated(value))
    copied._validate_args = False
    return copied


def in_units_of_the_median(
    z: Tensor, score: Tensor | None, backend: str, ranks: Ranks | None
) -> tuple[Tensor, Tensor, Tensor]:
    """z and its score where the median distance is the unit of length, and that unit (..., 1, 1).

    So no host ever sees the bandwidth of a batch entry. Where the score is 2^50 or more in that unit, what pushes
    points apart is nothing beside what pulls them together, and the score is measured in a shorter one, which still
    says so: its products would overflow. Where all points coincide nothing pushes. `ranks` are those of `median_unit`.
    """
    dtype = accumulator(z)
    z = z.to(dtype)
    score = -z if score is None else score.to(dtype)
    unit = median_unit(z, backend, ranks)
    most = 2.0**50
    largest = score.detach().abs().amax((-1, -2), keepdim=True)
    length = unit.length.where(unit.length.isfinite(), most)
    length = torch.minimum(length, most / largest.clamp(min=torch.finfo(dtype).tiny))
    return unit.measure(z), score * length, length


def scales_of(kernel: IMQ | RBF, d: int) -> tuple[float, ...]:
    """The scales of a kernel whose unit of length is the median distance where it asks for that."""
    if isinstance(kernel, RBF) and kernel.bandwidth == "median":
        return (2.0,)
    return kernel.scales(d)
