"""The score grad log p of a prior at samples: what the Stein gradient and the Stein discrepancy know of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from . import _checks
from ._autograd import accumulator
from .kernels import IMQ, RBF
from .ops.median.op import median_unit
from .priors import NAMES, UNIT_LOGISTIC_SCALE


def check(z: Tensor, prior: object, score: object) -> None:
    """A `prior` with a score, or a `score` of the shape of z."""
    if score is None:
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
        else:
            _check_shapes(prior, z)
        return
    if not (isinstance(prior, str) and prior == "normal"):
        raise ValueError("prior and score are both given; score stands in place of a prior")
    _checks.samples("score", score)
    assert isinstance(score, Tensor)
    _checks.same_space("z", z, "score", score)
    if score.shape[-2] != z.shape[-2]:
        raise ValueError(
            f"score has shape {tuple(score.shape)}; it must have a row for every row of z, {tuple(z.shape)}"
        )


def _check_shapes(prior: Distribution, z: Tensor) -> None:
    """A distribution over R^d, or over R with independent coordinates, for every batch entry of z."""
    *batch, _, d = z.shape
    event, own = prior.event_shape, prior.batch_shape
    if event not in ((), (d,)):
        raise ValueError(
            f"prior has event_shape {tuple(event)}; for z of shape {tuple(z.shape)} it must be () or ({d},)"
        )
    per_draw = torch.Size(batch) if event else torch.Size([*batch, d])
    fits = len(own) <= len(per_draw) and all(
        a in (1, b) for a, b in zip(reversed(own), reversed(per_draw), strict=False)
    )
    if not fits:
        raise ValueError(
            f"prior has batch_shape {tuple(own)}, which does not broadcast to {tuple(per_draw)} for z of "
            f"shape {tuple(z.shape)}"
        )


def samples_and_score(
    z: Tensor, prior: Distribution | str, score: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """z and grad log p at z in one dtype and shape; None is the score -z of the standard normal.

    Differentiable in z, in `score` and in the parameters of a distribution.
    """
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
    # Distributions refuse NaN and Inf; here these have the score NaN.
    finite = z.isfinite()

    def log_density(z: Tensor) -> Tensor:
        # Coordinates of a distribution over R are in its batch, as samples of R^d are not: n comes first.
        return prior.log_prob(z.movedim(-2, 0)).sum()

    with torch.autocast(z.device.type, enabled=False):
        score = torch.func.grad(log_density)(z.where(finite, 0.0))
    return score.to(z.dtype).where(finite, torch.nan)  # type: ignore[no-any-return]


def in_units_of_the_median(
    z: Tensor, score: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """z and its score where the median distance is the unit of length, and that unit (..., 1, 1).

    So no host ever sees the bandwidth of a batch entry. Where the score is 2^50 or more in that unit, what pushes
    points apart is nothing beside what pulls them together, and the score is measured in a shorter one, which still
    says so: its products would overflow. Where all points coincide nothing pushes.
    """
    dtype = accumulator(z)
    z = z.to(dtype)
    score = -z if score is None else score.to(dtype)
    unit = median_unit(z, backend)
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
