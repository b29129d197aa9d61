"""Squared kernel Stein discrepancy: the public function, its checks and its derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from ... import _checks, _score
from ..._autograd import accumulator
from ..._backend import Backend, resolve
from ..._distributed import Ranks, between_graphs, meet
from ..._operation import on_backend, saved_gradient
from ...kernels import RBF, Kernel, resolve_kernel
from . import reference

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

ESTIMATORS = ("biased", "unbiased")


def ksd(
    z: Tensor,
    prior: Distribution | Literal["normal", "logistic"] = "normal",
    kernel: Kernel = "imq",
    *,
    estimator: Literal["unbiased", "biased"] = "unbiased",
    score: _score.Score | None = None,
    group: ProcessGroup | None = None,
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
        group: a torch.distributed process group: the discrepancy of the samples of all its ranks,
            which may have different n. Every rank returns the
            same bits. The gradient with respect to a rank's own samples is that of a single process which has all,
            times the number of ranks, so that DDP and FSDP, which average parameter gradients over ranks, give the
            single process's; a rank's upstream gradient must be that of the others. Only first derivatives.
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
    if group is not None:
        return between_graphs(_of_group)(z, prior, kernel, estimator, score, group, backend)  # type: ignore[no-any-return]
    k, at_least, why = _check(z, prior, kernel, estimator, score)
    _checks.samples("z", z, at_least, why)
    chosen = resolve(backend, z.device)
    x, s = _score.samples_and_score(z, prior, score)
    return _of(x, s, k, estimator, chosen)


def _check(
    z: Tensor,
    prior: Distribution | str,
    kernel: Kernel,
    estimator: str,
    score: _score.Score | None,
) -> tuple[Any, int, str]:
    """The kernel, the least number of samples, and why so many."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}; known estimators are {list(ESTIMATORS)}")
    k = resolve_kernel(kernel)
    _checks.samples("z", z)
    _score.check(z, prior, score)
    if estimator == "unbiased":
        return k, 2, " for the unbiased estimator"
    if isinstance(k, RBF) and k.bandwidth == "median":
        return k, 2, " for the median distance"
    return k, 1, ""


def _of(
    x: Tensor,
    s: Tensor | None,
    k: Any,
    estimator: str,
    chosen: Backend,
    ranks: Ranks | None = None,
) -> Tensor:
    """The discrepancy of samples and their score, as of `_score.samples_and_score`."""
    unit = None
    if isinstance(k, RBF) and k.bandwidth == "median":
        x, s, unit = _score.in_units_of_the_median(x, s, chosen, ranks)
    scales = _score.scales_of(k, x.shape[-1])
    value = _value(x, s, k.family, scales, estimator == "unbiased", chosen)
    # Not by its square, which may be beyond the dtype.
    return value if unit is None else value / unit[..., 0, 0] / unit[..., 0, 0]


def _of_group(
    z: Tensor,
    prior: Distribution | str,
    kernel: Kernel,
    estimator: str,
    score: _score.Score | None,
    group: ProcessGroup,
    backend: Backend | None,
) -> Tensor:
    k, at_least, why, chosen = None, 1, "", resolve("reference", torch.device("cpu"))

    def check() -> dict[str, Tensor]:
        nonlocal k, at_least, why, chosen, z, score
        k, at_least, why = _check(z, prior, kernel, estimator, score)
        chosen = resolve(backend, z.device)
        z, score = _score.samples_and_score(z, prior, score)
        return {"z": z} if score is None else {"z": z, "score": score}

    ranks = meet("ksd", group, check, kernel, estimator)
    z = ranks.gather("z", z)
    _checks.samples("z", z, at_least, why)
    s = None if score is None else ranks.gather("score", score)  # type: ignore[arg-type]
    return _of(z, s, k, estimator, chosen, ranks)


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
