"""Log densities and entropies of an aggregated Gaussian posterior: public functions, checks and derivatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from ... import _checks
from ..._backend import Backend, resolve
from ..._distributed import Ranks, between_graphs, meet
from ..._operation import (
    Derivative,
    no_forward_mode,
    no_second,
    on_backend,
    operation,
    saved_gradient,
)
from . import reference

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Weighting = Literal["uniform", "mws", "mss"]
WEIGHTINGS = ("uniform", "mws", "mss")


class AggregateLogDensity(NamedTuple):
    """Log densities in nats: of the joint distribution (..., n) and of every coordinate (..., n, d)."""

    joint: Tensor
    marginal: Tensor


class LatentInformation(NamedTuple):
    """Entropies and information of a latent space, in nats; `latent_information` has the formulas."""

    joint_entropy: Tensor
    marginal_entropy: Tensor
    conditional_entropy: Tensor
    total_correlation: Tensor
    mutual_information: Tensor
    marginal_information: Tensor


def aggregate_log_density(
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    *,
    weighting: Weighting = "uniform",
    dataset_size: int | None = None,
    group: ProcessGroup | None = None,
    backend: Backend | None = None,
) -> AggregateLogDensity:
    """Log density of an aggregated Gaussian posterior and of its marginals, at samples z.

        joint_i     = log sum_j w_ij prod_k N(z_ik; mean_jk, var_jk)
        marginal_ik = log sum_j w_ij N(z_ik; mean_jk, var_jk)

    with var = exp(log_var), over a batch of B posteriors. The weights are

        "uniform"  w_ij = 1 / B
        "mws"      w_ij = 1 / (B N), minibatch-weighted: N is the size of the data set
        "mss"      minibatch-stratified, for the B posteriors that the n = B samples were drawn from: with
                   M = B - 1, w_ii = 1 / N, w_ij = (N - M) / (N M) for j = (i + 1) mod B, else 1 / M
                   (the paper's; public code has the 1 / N in a column, so that rows do not sum to 1)

    One pass over the pairs gives all of them in O((n + B) d) memory. First derivatives with respect to
    z, mean and log_var are exact; a second raises.

    Args:
        z: samples (..., n, d) in float64, float32, bfloat16 or float16; any strides.
        mean: means (..., B, d) of the posteriors. Leading dimensions are independent problems and broadcast.
        log_var: logarithms (..., B, d) of their variances, or what broadcasts to that: (d,) or (..., 1, d) where
            the posteriors share them, () where all coordinates do too. Made for -20 to 20.
        weighting: `"uniform"`, `"mws"` or `"mss"`.
        dataset_size: N, the number of data points that the minibatch of B was drawn from, at least B for
            "mss"; "uniform" needs none and ignores it.
        group: a torch.distributed process group: the densities at this rank's own samples z, of the aggregate of
            the posteriors of all its ranks, which may have different n and B (for "mss", B = n on each). Derivatives
            are those of the sum of all ranks' losses: averaged over ranks, as DDP and FSDP do, parameter gradients
            are those of the mean of these losses. Backward exchanges them, so every rank must call it.
        backend: `"triton"`, `"native"` or `"reference"`; None takes the fastest that can run.

    Returns:
        A named tuple: joint (..., n) and marginal (..., n, d), in nats; float64 for float64 input, otherwise
        float32. Mixed input is promoted as in torch. NaN or Inf in the data gives NaN.

    Raises:
        TypeError: not a tensor; a dtype that is not floating point; a dataset_size that is not an integer.
        ValueError: shapes that do not fit, devices that differ, an unknown weighting, a dataset_size that is
            missing or out of range; for "mss", n other than B or B < 2.
        RuntimeError: an explicit `backend` that cannot run here.

    Source: IMAE, eq. 34; InfoVAE, App. B.2; Chen et al., Isolating Sources of Disentanglement in VAEs (2018),
    eq. 5 ("mws") and App. C.2 ("mss").
    """
    if group is not None:
        densities, _, _ = between_graphs(_densities_of_group)(
            "aggregate_log_density", z, mean, log_var, weighting, dataset_size, group, backend
        )
        return AggregateLogDensity(*densities)
    z, mean, log_var, size, chosen = _prepare(z, mean, log_var, weighting, dataset_size, backend)
    densities = _densities("aggregate_log_density", z, mean, log_var, weighting, size, chosen)
    return AggregateLogDensity(*densities)


def _densities(
    called: str, z: Tensor, mean: Tensor, log_var: Tensor, weighting: str, size: int, chosen: str
) -> tuple[Tensor, Tensor]:
    """Joint and marginal log densities on the chosen backend; `called` is the public function, for messages."""
    if chosen == "reference":
        return reference.log_density(z, mean, log_var, weighting, size)
    joint, marginal, *_ = _log_density(z, mean, log_var, called, weighting, size, chosen)
    return joint.to(z.dtype), marginal


def latent_information(
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    *,
    weighting: Weighting = "uniform",
    dataset_size: int | None = None,
    group: ProcessGroup | None = None,
    backend: Backend | None = None,
) -> LatentInformation:
    """Entropies, total correlation and mutual information of a latent space with Gaussian posteriors q(z|x).

    Entropies of the aggregated posterior are minus the mean of its log densities at the samples z, those of
    the posteriors are exact:

        joint_entropy        (...)     H(z) = -mean_i joint_i
        marginal_entropy     (..., d)  H(z_k) = -mean_i marginal_ik
        conditional_entropy  (..., d)  H(z_k|x) = mean_j (1 + log 2 pi + log_var_jk) / 2
        total_correlation    (...)     sum_k H(z_k) - H(z)
        mutual_information   (...)     I(x; z) = H(z) - sum_k H(z_k|x)
        marginal_information (..., d)  I(x; z_k) = H(z_k) - H(z_k|x)

    all in nats. Arguments, weights, dtypes and errors are those of `aggregate_log_density`; z are samples of
    the posteriors. Differentiable with respect to z, mean and log_var, once. With `group`, a
    torch.distributed process group, the samples and posteriors are those of all its ranks, in their order;
    every rank returns the same bits. Its gradients with respect to its own tensors are those of a single process
    which has all, times the number of ranks: so DDP and FSDP, which average parameter gradients over ranks, give
    the single process's. Backward exchanges gradients, so every rank must call it, with the same upstream gradient.

    Estimates from one batch: I(x; z) has noise around log B, its most for B data points, because H(z) is sampled
    where H(z|x) is exact. InfoVAE's estimator (App. B.2), which samples both, never exceeds log B:
    mean_i (log q(z_i|x_i) - joint_i) with "uniform" weights.

    Source: IMAE, eq. 34 and App. B; InfoVAE, App. B.2; Chen et al. 2018, eq. 2.
    """
    if group is not None:
        return between_graphs(_information_of_group)(  # type: ignore[no-any-return]
            z, mean, log_var, weighting, dataset_size, group, backend
        )
    z, mean, log_var, size, chosen = _prepare(z, mean, log_var, weighting, dataset_size, backend)
    joint, marginal = _densities("latent_information", z, mean, log_var, weighting, size, chosen)
    return _information(
        -joint.mean(-1),
        -marginal.mean(-2),
        (joint - marginal.sum(-1)).mean(-1),
        _finite(log_var.to(joint.dtype)).mean(-2),
    )


def _information(
    joint_entropy: Tensor, marginal_entropy: Tensor, total_correlation: Tensor, log_var: Tensor
) -> LatentInformation:
    """`log_var` is the mean over the posteriors."""
    conditional = 0.5 * (1 + math.log(2 * math.pi) + log_var)
    conditional = conditional.expand(marginal_entropy.shape)
    return LatentInformation(
        joint_entropy,
        marginal_entropy,
        conditional,
        total_correlation,
        joint_entropy - conditional.sum(-1),
        marginal_entropy - conditional,
    )


def _finite(log_var: Tensor) -> Tensor:
    # An infinite variance has no entropy: inf - inf is NaN, as for any other bad number.
    return log_var + (log_var - log_var).detach()


def total_correlation(
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    *,
    weighting: Weighting = "uniform",
    dataset_size: int | None = None,
    group: ProcessGroup | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Total correlation of the aggregated posterior, sum_k H(z_k) - H(z) = mean_i (joint_i - sum_k marginal_ik).

    The penalty of beta-TCVAE (`weighting="mws"` or `"mss"`) and IMAE (`"uniform"`), in nats, of shape (...):
    `latent_information(...).total_correlation` without the rest. Arguments, dtypes and errors are those of
    `aggregate_log_density`; `group` is that of `latent_information`.

    Source: IMAE, eq. 10 and App. B; Chen et al., Isolating Sources of Disentanglement in VAEs (2018), eq. 2.
    """
    if group is not None:
        return between_graphs(_total_correlation_of_group)(  # type: ignore[no-any-return]
            z, mean, log_var, weighting, dataset_size, group, backend
        )
    z, mean, log_var, size, chosen = _prepare(z, mean, log_var, weighting, dataset_size, backend)
    return _total(z, mean, log_var, weighting, size, chosen)


def _total(
    z: Tensor, mean: Tensor, log_var: Tensor, weighting: str, size: int, chosen: str
) -> Tensor:
    if chosen == "reference":
        joint, marginal = reference.log_density(z, mean, log_var, weighting, size)
        return (joint - marginal.sum(-1)).mean(-1)
    return _total_correlation(z, mean, log_var, weighting, size, chosen)  # type: ignore[no-any-return]


def _rows_of_group(
    called: str,
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    weighting: str,
    dataset_size: int | None,
    group: ProcessGroup,
    backend: Backend | None,
) -> tuple[Ranks, tuple[Any, ...]]:
    """The ranks, and what this rank computes: its own z with the posteriors of all."""
    size, chosen = 0, ""

    def check() -> dict[str, Tensor]:
        nonlocal z, mean, log_var, size, chosen
        check_weighting(weighting, dataset_size)
        size = 0 if dataset_size is None or weighting == "uniform" else int(dataset_size)
        z, mean, log_var, _, chosen = _prepare(z, mean, log_var, "uniform", None, backend)
        if weighting == "mss" and z.shape[-2] != mean.shape[-2]:
            raise ValueError(
                f"z has shape {tuple(z.shape)} and mean {tuple(mean.shape)}; weighting 'mss' needs as many "
                "samples as posteriors on every rank"
            )
        return {"z": z, "mean": mean, "log_var": log_var}

    # Backward talks: no rank may be without it.
    differentiated = torch.is_grad_enabled() and tuple(
        isinstance(x, Tensor) and x.requires_grad for x in (mean, log_var)
    )
    config = weighting, dataset_size, f"mean and log_var with gradient: {differentiated}"
    ranks = meet(called, group, check, *config)
    if weighting == "mss":
        d = z.shape[-1]
        _check_stratified((ranks.total("z"), d), (ranks.total("mean"), d), dataset_size)
    z = ranks.enter(z)
    mean, log_var = ranks.gather_for_own("mean", mean), ranks.gather_for_own("log_var", log_var)
    if weighting == "mss":
        # Row i has column i for its own: those of this rank come first.
        first = ranks.own("mean").start
        mean, log_var = mean.roll(-first, -2), log_var.roll(-first, -2)
    return ranks, (z, mean, log_var, weighting, size, chosen)


def _densities_of_group(called: str, *args: Any) -> tuple[tuple[Tensor, Tensor], Ranks, Tensor]:
    """At this rank's samples; the ranks, and the log variances of all posteriors."""
    ranks, rows = _rows_of_group(called, *args)
    return _densities(called, *rows), ranks, rows[2]


def _information_of_group(*args: Any) -> LatentInformation:
    (joint, marginal), ranks, log_var = _densities_of_group("latent_information", *args)
    n, dtype = ranks.total("z"), joint.dtype
    joint, marginal = joint.double(), marginal.double()
    # Every rank has all of log_var, and adds an equal share of its mean.
    shares = (
        -joint.sum(-1) / n,
        -marginal.sum(-2) / n,
        (joint - marginal.sum(-1)).sum(-1) / n,
        _finite(log_var.double()).mean(-2) / ranks.size,
    )
    return LatentInformation(*(t.to(dtype) for t in _information(*map(ranks.sum, shares))))


def _total_correlation_of_group(*args: Any) -> Tensor:
    ranks, rows = _rows_of_group("total_correlation", *args)
    mean_of_own = _total(*rows)
    share = rows[0].shape[-2] / ranks.total("z")
    return ranks.sum(mean_of_own.double() * share).to(mean_of_own.dtype)


def _prepare(
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    weighting: str,
    dataset_size: int | None,
    backend: Backend | None,
) -> tuple[Tensor, Tensor, Tensor, int, Backend]:
    """The inputs in one dtype and with equal batch dimensions, the size of the data set and the backend."""
    log_var = _of_every_posterior(log_var, mean)
    size = _check(z, mean, log_var, weighting, dataset_size)
    chosen = resolve(backend, z.device)
    if not torch.float32 == z.dtype == mean.dtype == log_var.dtype:
        dtype = torch.promote_types(torch.promote_types(z.dtype, mean.dtype), log_var.dtype)
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        z, mean, log_var = z.to(dtype), mean.to(dtype), log_var.to(dtype)
    if not z.shape[:-2] == mean.shape[:-2] == log_var.shape[:-2]:
        batch = torch.broadcast_shapes(z.shape[:-2], mean.shape[:-2], log_var.shape[:-2])
        z, mean, log_var = (x.expand(*batch, *x.shape[-2:]) for x in (z, mean, log_var))
    return z, mean, log_var, size, chosen


def _of_every_posterior(log_var: Tensor, mean: Tensor) -> Tensor:
    """log_var with the last two dimensions of mean, where it broadcasts to them."""
    if not isinstance(log_var, Tensor) or not isinstance(mean, Tensor) or mean.ndim < 2:
        return log_var  # refused later
    own, wanted = log_var.shape[-2:], mean.shape[-2:]
    if own == wanted:
        return log_var
    if all(a in (1, b) for a, b in zip(reversed(own), reversed(wanted), strict=False)):
        return log_var.expand(*log_var.shape[:-2], *wanted)
    if log_var.ndim < 2:
        raise ValueError(
            f"log_var has shape {tuple(own)}; it must be (..., B, d) or broadcast to that of mean, "
            f"{tuple(mean.shape)}"
        )
    return log_var  # refused later


def check_weighting(weighting: str, dataset_size: int | None) -> None:
    """A known weighting, with a size of the data set where it needs one."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}; known weightings are {list(WEIGHTINGS)}")
    if dataset_size is None:
        if weighting == "uniform":
            return
        raise ValueError(f"dataset_size is None; weighting {weighting!r} needs an int >= 1")
    if not isinstance(dataset_size, Integral) or isinstance(dataset_size, bool):
        raise TypeError(
            f"dataset_size is of type {type(dataset_size).__name__}; it must be an int >= 1"
        )
    if not 1 <= dataset_size < 2**63:
        raise ValueError(f"dataset_size is {dataset_size}; it must be at least 1, and below 2^63")


def _check_stratified(z: tuple[int, ...], mean: tuple[int, ...], dataset_size: int | None) -> None:
    """Samples and posteriors of these shapes may be of one minibatch of the data set."""
    B = mean[-2]
    if z[-2] != B or B < 2:
        raise ValueError(
            f"z has shape {z} and mean {mean}; weighting 'mss' needs as many samples as posteriors, at least 2"
        )
    if dataset_size is not None and dataset_size < B:
        raise ValueError(
            f"dataset_size is {dataset_size}; for weighting 'mss' it must be at least the batch's {B}"
        )


def _check(
    z: Tensor, mean: Tensor, log_var: Tensor, weighting: str, dataset_size: int | None
) -> int:
    """The size of the data set, 0 where there is none; raises for what cannot be computed."""
    check_weighting(weighting, dataset_size)
    _checks.samples("z", z)
    _checks.samples("mean", mean)
    _checks.samples("log_var", log_var)
    _checks.same_space("z", z, "mean", mean)
    _checks.same_space("z", z, "log_var", log_var)
    _checks.same_space("mean", mean, "log_var", log_var)
    B = mean.shape[-2]
    if log_var.shape[-2] != B:
        raise ValueError(
            f"log_var has shape {tuple(log_var.shape)}; it must have the {B} rows of mean, "
            f"{tuple(mean.shape)}, or one for all"
        )
    if weighting == "mss":
        _check_stratified(tuple(z.shape), tuple(mean.shape), dataset_size)
    return 0 if dataset_size is None or weighting == "uniform" else int(dataset_size)


# The operations, shared by the backends. z is (..., n, d), mean and log_var (..., B, d) with equal batch dimensions, in
# float32 or float64; csrc/aggregate/aggregate.h says what they give.

_INPUTS = "Tensor z, Tensor mean, Tensor log_var"
_CONFIG = "str weighting, SymInt dataset_size, str backend"

_run = on_backend(__package__, "log_density")
_run_gradient = on_backend(__package__, "log_density_grad")


def _fake(z: Tensor, *_: Any) -> Any:
    joint = z.new_empty(z.shape[:-1], dtype=torch.float64)
    return joint, z.new_empty(z.shape), z.new_empty(z.shape), z.new_empty(z.shape)


class _Refused(Derivative):
    def save(self, ctx: Any, inputs: Any, config: Any, outputs: Any) -> None:
        ctx.called = config[0]

    def backward(self, ctx: Any, *_: Any) -> Any:
        raise RuntimeError(no_second(ctx.called))

    def jvp(self, ctx: Any, *_: Any) -> Any:
        raise RuntimeError(no_forward_mode(ctx.called))


class _ByGradient(Derivative):
    def save(self, ctx: Any, inputs: Any, config: Any, outputs: Any) -> None:
        joint, _, peak, total = outputs
        ctx.mark_non_differentiable(peak, total)
        ctx.save_for_backward(*inputs, joint, peak, total)
        ctx.config = config

    def backward(self, ctx: Any, g_joint: Tensor, g_marginal: Tensor, *_: Any) -> Any:
        g_joint = g_joint.to(g_marginal.dtype)  # the joint density itself is in float64
        return _log_density_gradient(*ctx.saved_tensors, g_joint, g_marginal, *ctx.config)

    def jvp(self, ctx: Any, *_: Any) -> Any:
        raise RuntimeError(no_forward_mode(ctx.config[0]))


_log_density_gradient = operation(
    f"_aggregate_log_density_grad({_INPUTS}, Tensor joint, Tensor peak, Tensor total, Tensor g_joint, "
    f"Tensor g_marginal, str called, {_CONFIG}) -> (Tensor, Tensor, Tensor)",
    lambda *args: _run_gradient(*args[:8], *args[9:]),
    lambda z, mean, *_: (z.new_empty(z.shape), z.new_empty(mean.shape), z.new_empty(mean.shape)),
    tensors=8,
    derivative=_Refused(),
)

_log_density = operation(
    f"_aggregate_log_density({_INPUTS}, str called, {_CONFIG}) -> (Tensor, Tensor, Tensor, Tensor)",
    lambda z, mean, log_var, called, *config: _run(z, mean, log_var, *config),
    _fake,
    tensors=3,
    derivative=_ByGradient(),
)


# On CPUs in one pass, from which the densities need not be kept.
_one_pass = on_backend(__package__, "total_correlation")
_one_pass_with_gradient = on_backend(__package__, "total_correlation_grad")


def _total_correlation_run(z: Tensor, mean: Tensor, log_var: Tensor, *config: Any) -> Tensor:
    if config[-1] == "native" and not z.is_cuda:
        return _one_pass(z, mean, log_var, *config)  # type: ignore[no-any-return]
    joint, marginal, *_ = _run(z, mean, log_var, *config)
    return (joint.to(z.dtype) - marginal.sum(-1)).mean(-1)  # type: ignore[no-any-return]


def _total_correlation_and_gradient(
    z: Tensor, mean: Tensor, log_var: Tensor, need: Sequence[bool], *config: Any
) -> Any:
    if config[-1] == "native" and not z.is_cuda:
        value, *gradients = _one_pass_with_gradient(z, mean, log_var, *config)
    else:
        joint, marginal, peak, total = _run(z, mean, log_var, *config)
        value = (joint.to(z.dtype) - marginal.sum(-1)).mean(-1)
        each = 1 / z.shape[-2]
        made = (
            joint,
            peak,
            total,
            torch.full_like(marginal[..., 0], each),
            torch.full_like(marginal, -each),
        )
        gradients = _run_gradient(z, mean, log_var, *made, *config)
    return value, *(g if n else g.new_empty(0) for g, n in zip(gradients, need, strict=True))


_total_correlation = saved_gradient(
    "total_correlation", _INPUTS, _CONFIG, _total_correlation_run, _total_correlation_and_gradient
)
