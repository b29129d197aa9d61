"""Squared kernel Stein discrepancy: the public function, its checks and its derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor
from torch.distributions import Distribution

from ... import _checks, _score
from ..._autograd import accumulator
from ..._backend import Backend, resolve
from ..._operation import on_backend, saved_gradient
from ...kernels import RBF, Kernel, resolve_kernel
from . import reference

ESTIMATORS = ("biased", "unbiased")


def ksd(
    z: Tensor,
    prior: Distribution | Literal["normal", "logistic"] = "normal",
    kernel: Kernel = "imq",
    *,
    estimator: Literal["unbiased", "biased"] = "unbiased",
    score: _score.Score | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Squared kernel Stein discrepancy between the samples z and a prior p: a distance that needs no samples of p.

    With s = grad log p, `"unbiased"` is the mean over i != j, and `"biased"` that over all pairs, of u(z_i, z_j),

        u(x, y) = s(x) . s(y) k(x, y) + s(x) . grad_y k(x, y) + s(y) . grad_x k(x, y) + trace grad_x grad_y k(x, y).

    Value and first gradient cost one pass over the pairs and O(n d) memory. The first derivative with respect to z
    (through s(z) as well), to `score` and to the parameters of a distribution is exact; a second raises.

    Args:
        z: samples (..., n, d) in float64, float32, bfloat16 or float16; any strides. Leading dimensions are
            independent problems.
        prior: `"normal"`, N(0, I); `"logistic"`, independent coordinates of mean 0 and variance 1; or a
            `torch.distributions.Distribution` over R^d, or over R with independent coordinates, whose `log_prob` is
            differentiated.
        kernel: `IMQ`, `RBF`, or `"imq"`, `"rbf"` for their defaults. `RBF("median")` takes the median of the distances
            between samples that are not zero; where all of them are zero the kernel is 1.
        estimator: `"unbiased"` (can be negative; needs n >= 2) or `"biased"` (never negative).
        score: grad log p at z (..., n, d), in place of `prior`; its leading dimensions broadcast against those of z.
            The gradient to z is then that at a fixed score, unless the score was computed from z. Or a function
            that gives it for z, and is differentiated.
        backend: `"triton"`, `"native"` or `"reference"`; None takes the fastest that can run.

    Returns:
        (...), in units of the squared score: float64 for float64 input, otherwise float32. NaN or Inf in the data
        gives NaN.

    Raises:
        TypeError: not a tensor, distribution or kernel; a prior given as samples, which have no score; a dtype that
            is not floating point.
        ValueError: shapes that do not fit, devices that differ, n < 2 for the unbiased estimator or `RBF("median")`,
            an unknown name, a score beside a prior.
        RuntimeError: an explicit `backend` that cannot run here; a second derivative.

    Source: Liu, Lee and Jordan, A Kernelized Stein Discrepancy for Goodness-of-fit Tests (2016), theorem 3.6, eq. 14.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}; known estimators are {list(ESTIMATORS)}")
    unbiased = estimator == "unbiased"
    k = resolve_kernel(kernel)
    median = isinstance(k, RBF) and k.bandwidth == "median"
    at_least, why = (2, " for the unbiased estimator") if unbiased else (1, "")
    if median and not unbiased:
        at_least, why = 2, " for the median distance"
    _checks.samples("z", z, at_least, why)
    _score.check(z, prior, score)
    chosen = resolve(backend, z.device)

    x, s = _score.samples_and_score(z, prior, score)
    unit = None
    if median:
        x, s, unit = _score.in_units_of_the_median(x, s, chosen)
    value = _value(x, s, k.family, _score.scales_of(k, z.shape[-1]), unbiased, chosen)
    return value if unit is None else value / unit[..., 0, 0].square()


def _value(
    z: Tensor,
    score: Tensor | None,
    family: str,
    scales: tuple[float, ...],
    unbiased: bool,
    backend: Backend,
) -> Tensor:
    if backend == "reference":
        z = z.to(accumulator(z))
        score = -z if score is None else score.to(z.dtype)
        return reference.ksd(z, score, family, scales, unbiased)
    return _ksd(z, score, family, scales, unbiased, backend)  # type: ignore[no-any-return]


# The operations, shared by the backends. z is (..., n, d), score of the same shape and dtype, or None for the standard
# normal: then the gradient to z is the whole one.

_CONFIG = "str family, float[] scales, bool unbiased, str backend"


_gradient = on_backend(__package__, "ksd_grad")


def _value_and_gradient(
    z: Tensor, score: Tensor | None, need: Sequence[bool], *config: Any
) -> tuple[Tensor, Tensor, Tensor]:
    value, dz, dscore = _gradient(z, score, need[1], *config)
    return value, dz if need[0] else dz.new_empty(0), dscore


_ksd = saved_gradient(
    "ksd",
    "Tensor z, Tensor? score",
    _CONFIG,
    on_backend(__package__, "ksd"),
    _value_and_gradient,
)
