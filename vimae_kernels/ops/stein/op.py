"""The Stein variational gradient and its loss: the public functions, their checks and the operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from ... import _checks, _score
from ..._autograd import accumulator
from ..._backend import Backend, resolve
from ..._distributed import Ranks, between_graphs, meet
from ..._operation import on_backend, operation
from ...kernels import RBF, Kernel, resolve_kernel
from . import reference

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def stein_gradient(
    z: Tensor,
    prior: Distribution | Literal["normal", "logistic"] = "normal",
    kernel: Kernel = "rbf",
    *,
    score: _score.Score | None = None,
    group: ProcessGroup | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Stein variational gradient: the direction that moves the samples z fastest towards a prior p.

    With s = grad log p,

        phi_i = 1/n sum_j [ k(z_i, z_j) s(z_j) + grad_{z_j} k(z_j, z_i) ],

    j = i included. z + step * phi lowers KL(q || p), q being the distribution of z. One pass over the
    pairs in O(n d) memory. No gradient flows through phi.

    Errors are small against the terms of the sum, wherever the samples lie: differences of samples are
    taken, or, on CPUs with one RBF scale, products of matrices around their mean where a bound of what
    that loses, computed from the samples, allows it.

    Args:
        z: samples (..., n, d) in float64, float32, bfloat16 or float16; any strides. Leading dimensions
            are independent problems.
        prior: `"normal"`, N(0, I); `"logistic"`, independent coordinates of mean 0 and variance 1; or a
            `torch.distributions.Distribution` over R^d, or over R with independent coordinates, whose
            `log_prob` is differentiated.
        kernel: `RBF`, `IMQ`, or `"rbf"`, `"imq"` for their defaults. `RBF("median")` takes the median of the
            distances between samples that are not zero; where all of them are zero the kernel is 1, and
            nothing pushes them apart.
        score: grad log p at z (..., n, d), in place of `prior`; its leading dimensions broadcast
            against those of z. Or a function that gives it for z.
        group: a torch.distributed process group: the rows of this rank's own samples in the Stein gradient of the
            samples of all its ranks, which may have different n.
        backend: `"triton"`, `"native"` or `"reference"`; None takes the fastest that can run.

    Returns:
        (..., n, d) in the dtype of z, computed in float64 for float64 input, otherwise float32; in units
        of the score. NaN or Inf in the data gives NaN.

    Raises:
        TypeError: not a tensor, distribution or kernel; a prior given as samples, which have no score; a
            dtype that is not floating point.
        ValueError: shapes that do not fit, devices that differ, n < 2 for `RBF("median")`, an unknown
            name, a score beside a prior.
        RuntimeError: an explicit `backend` that cannot run here.

    Source: Liu and Wang, Stein Variational Gradient Descent (2016), eq. 8; Zhao et al., InfoVAE (2019),
    sec. 4.1.2.
    """
    if group is not None:
        phi, *_ = between_graphs(_phi_of_group)(
            "stein_gradient", z, prior, kernel, score, group, backend
        )
    else:
        phi = _phi(z, prior, kernel, score, backend)
    return phi.to(z.dtype)  # type: ignore[no-any-return]


def stein_loss(
    z: Tensor,
    prior: Distribution | Literal["normal", "logistic"] = "normal",
    kernel: Kernel = "rbf",
    *,
    score: _score.Score | None = None,
    group: ProcessGroup | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """A loss whose gradient moves the samples z along their Stein variational gradient phi:

        -1/n sum_i z_i . stop_gradient(phi_i).

    Its gradient with respect to z_i is -phi_i / n, so that descent lowers KL(q || p), q being the
    distribution of z. (InfoVAE, sec. 4.1.2, prints the sum without the minus, which ascends.) The value
    itself means nothing. Derivatives of every order and mode are those of a function linear in z.

    Args, errors and source are those of `stein_gradient`, and

        group: a torch.distributed process group: the loss of the samples of all its ranks, which may have
            different n. Every rank returns the same bits. The gradient with respect to a rank's own samples is that of
            a single process which has all, times the number of ranks, so that DDP and FSDP, which average parameter
            gradients over ranks, give the single process's; a rank's upstream gradient must be that of the others.
            Only first derivatives.

    Returns:
        (...): float64 for float64 input, otherwise float32.
    """
    if group is not None:
        return between_graphs(_loss_of_group)(z, prior, kernel, score, group, backend)  # type: ignore[no-any-return]
    phi = _phi(z, prior, kernel, score, backend)
    return (z.to(phi.dtype) * phi).sum((-1, -2)) / -z.shape[-2]


def _loss_of_group(z: Tensor, *args: Any) -> Tensor:
    phi, ranks = _phi_of_group("stein_loss", z, *args)
    share = (ranks.enter(z).to(phi.dtype) * phi).sum((-1, -2), dtype=torch.float64)
    return ranks.sum(share / -ranks.total("z")).to(phi.dtype)


def _phi_of_group(
    operation: str,
    z: Tensor,
    prior: Distribution | Literal["normal", "logistic"],
    kernel: Kernel,
    score: _score.Score | None,
    group: ProcessGroup,
    backend: Backend | None,
) -> tuple[Tensor, Ranks]:
    """This rank's rows."""

    def check() -> dict[str, Tensor]:
        nonlocal z, score
        resolve_kernel(kernel)
        _checks.samples("z", z)
        _score.check(z, prior, score)
        resolve(backend, z.device)
        z, score = _score.samples_and_score(z.detach(), prior, score)
        return {"z": z} if score is None else {"z": z, "score": score}

    ranks = meet(operation, group, check, kernel)
    z = ranks.gather("z", z)
    s = None if score is None else ranks.gather("score", score.detach())  # type: ignore[union-attr]
    return _phi(z, "normal", kernel, s, backend, ranks)[..., ranks.own("z"), :], ranks


def _phi(
    z: Tensor,
    prior: Distribution | Literal["normal", "logistic"],
    kernel: Kernel,
    score: _score.Score | None,
    backend: Backend | None,
    ranks: Ranks | None = None,
) -> Tensor:
    """The Stein gradient in the accumulator's dtype."""
    k = resolve_kernel(kernel)
    median = isinstance(k, RBF) and k.bandwidth == "median"
    _checks.samples("z", z, *((2, " for the median distance") if median else (1, "")))
    _score.check(z, prior, score)
    chosen = resolve(backend, z.device)

    x, s = _score.samples_and_score(z.detach(), prior, score)
    s = None if s is None else s.detach()
    unit = None
    if median:
        x, s, unit = _score.in_units_of_the_median(x, s, chosen, ranks)
    scales = _score.scales_of(k, z.shape[-1])
    if chosen == "reference":
        x = x.to(accumulator(x))
        phi = reference.stein_gradient(x, -x if s is None else s.to(x.dtype), k.family, scales)
    else:
        phi = _stein(x, s, k.family, scales, chosen)
    return phi if unit is None else phi / unit


# The operation, shared by the backends: z (..., n, d), score of the same shape and dtype or None for the
# standard normal, phi in the accumulator's dtype.


_stein = operation(
    "_stein(Tensor z, Tensor? score, str family, float[] scales, str backend) -> Tensor",
    on_backend(__package__, "stein_gradient"),
    lambda z, *_: z.new_empty(z.shape, dtype=accumulator(z)),
    tensors=2,
)
