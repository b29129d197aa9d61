"""Squared maximum mean discrepancy: the public function, its checks and its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from ... import _checks
from ..._autograd import accumulator
from ..._backend import Backend, resolve
from ..._distributed import Ranks, between_graphs, meet
from ..._operation import Derivative, on_backend, operation, saved_gradient
from ...kernels import RBF, Kernel, resolve_kernel
from ...priors import Prior, check_prior, check_shapes, parameters, sample_prior
from ..median.op import median_unit
from . import closed_form, reference

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

ESTIMATORS = ("biased", "closed_form", "unbiased")


def mmd(
    z: Tensor,
    prior: Prior,
    kernel: Kernel = "imq",
    *,
    estimator: Literal["unbiased", "biased", "closed_form"] = "unbiased",
    generator: torch.Generator | None = None,
    group: ProcessGroup | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy between the samples z and a prior.

    With p the samples of the prior, `"unbiased"` is

        sum_{i != j} k(z_i, z_j) / (n (n-1)) + sum_{i != j} k(p_i, p_j) / (m (m-1)) - 2 sum_{ij} k(z_i, p_j) / (n m)

    and `"biased"` the same with the diagonals in and n^2, m^2. `"closed_form"` draws nothing: with E
    the exact expectation over independent p, p' from N(0, I),

        sum_{i != j} k(z_i, z_j) / (n (n-1)) + E k(p, p') - 2 sum_i E k(z_i, p) / n

    which has the mean of `"unbiased"` and less variance. Value and first gradient cost one pass
    over the pairs and O((n + m) d) memory. First and second derivatives with respect to z, and to a
    prior tensor that requires them, are exact, in reverse and in forward mode; a third raises.

    Args:
        z: samples (..., n, d) in float64, float32, bfloat16 or float16; any strides. Leading dimensions
            are independent problems and broadcast against those of the prior.
        prior: samples (..., m, d) on the device of z; a `torch.distributions.Distribution` over R^d, or
            over R with independent coordinates; `"normal"`, N(0, I); or `"logistic"`, independent
            coordinates of mean 0 and variance 1. All but the first are sampled anew at every call,
            with m = n, reparameterised where the distribution can.
        kernel: `IMQ`, `RBF`, or `"imq"`, `"rbf"` for their defaults. Its scales are constants. `RBF("median")`
            takes the median of the distances between pooled samples that are not zero; where all of them are
            zero the MMD is 0, and so is its gradient.
        estimator: `"unbiased"` (can be negative; needs n, m >= 2), `"biased"` (never negative), or
            `"closed_form"` (can be negative; needs n >= 2, the prior `"normal"` or a distribution N(loc,
            scale^2 I), `Normal`, `MultivariateNormal` or `Independent`, and any kernel but `RBF("median")`;
            RBF analytically, IMQ by a quadrature good to 1e-13). Gradients flow to loc, not to scale, whose
            value the host reads: on a GPU that waits.
        generator: source of the prior's samples; None is torch's default generator, which another one
            leaves as it is.
        group: a torch.distributed process group: the statistic over the samples of all its ranks, which may have
            different n and m. Every rank returns the same bits. The gradient with respect to a rank's own samples is
            that of a single process which has all, times the number of ranks, so that DDP and FSDP, which average
            parameter gradients over ranks, give the single process's; a rank's upstream gradient must be that of
            the others. Only first derivatives. A prior that is not a tensor is sampled by the first rank for all.
        backend: `"triton"`, `"native"` or `"reference"`; None takes the fastest that can run.

    Returns:
        (...), dimensionless: float64 for float64 input, otherwise float32. Mixed input is promoted as
        in torch. NaN or Inf in the data gives NaN. One value for each batch entry: a loss over all of them
        is their `.mean()` or `.sum()`.

    Raises:
        TypeError: not a tensor, distribution, kernel or generator; a dtype that is not floating point.
        ValueError: shapes that do not fit, devices that differ, n or m < 2 for the unbiased estimators,
            an unknown name, a prior or kernel that has no closed form.
        RuntimeError: an explicit `backend` that cannot run here.

    Source: Gretton et al., A Kernel Two-Sample Test (2012), eqs. 3 and 5; VIMAE preprint, eq. 15.
    """
    if group is not None:
        return between_graphs(_of_group)(z, prior, kernel, estimator, generator, group, backend)  # type: ignore[no-any-return]
    _check_estimator(estimator)
    unbiased = estimator != "biased"
    k = resolve_kernel(kernel)
    _checks.samples("z", z, *_at_least(estimator))
    _checks.generator(generator, z.device)
    chosen = resolve(backend, z.device)
    check_prior(prior)
    if estimator == "closed_form":
        normal = closed_form.check(prior, k, z)
        # Half types add up both gradients in float32. No prior samples: mmd's terms within z remain.
        x = z.to(accumulator(z))
        if normal is not None:
            x = x.to(torch.promote_types(x.dtype, normal.loc.dtype))
        none = x.new_empty(*x.shape[:-2], 0, x.shape[-1])
        within = _run(x, none, k.family, k.scales(x.shape[-1]), True, chosen)
        return (within + closed_form.prior_terms(x, k, chosen, normal)).to(within.dtype)
    if not isinstance(prior, Tensor):
        prior = sample_prior(prior, z, generator)
    _checks.samples("prior", prior, *_at_least(estimator))
    _checks.same_space("z", z, "prior", prior)

    x, y = _as_one(z, prior)

    scales: tuple[float, ...]
    if isinstance(k, RBF) and k.bandwidth == "median":
        # A bandwidth per batch entry that no host ever sees: measure everything in units of it.
        x, y = x.to(accumulator(x)), y.to(accumulator(x))
        unit = median_unit(torch.cat([x.detach(), y.detach()], -2), chosen)
        x, y, scales = unit.measure(x), unit.measure(y), (2.0,)
    else:
        scales = k.scales(z.shape[-1])

    return _run(x, y, k.family, scales, unbiased, chosen)


def _as_one(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of one dtype and with equal batch dimensions."""
    if x.dtype != y.dtype:
        common = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(common), y.to(common)
    if x.shape[:-2] != y.shape[:-2]:
        # Gradients are summed over what is repeated before they are rounded to a half type.
        x, y = x.to(accumulator(x)), y.to(accumulator(y))
        batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        x = x.expand(*batch, *x.shape[-2:])
        y = y.expand(*batch, *y.shape[-2:])
    return x, y


def _run(
    x: Tensor, y: Tensor, family: str, scales: tuple[float, ...], unbiased: bool, chosen: Backend
) -> Tensor:
    """The estimate on the chosen backend, of samples of one dtype and with equal batch dimensions."""
    if chosen == "reference":
        dtype = accumulator(x)
        return reference.mmd(x.to(dtype), y.to(dtype), family, scales, unbiased)
    return _mmd(x, y, family, scales, unbiased, chosen)  # type: ignore[no-any-return]


def check_options(prior: Prior, kernel: Kernel, estimator: str) -> None:
    """Raises for what no z can make right."""
    _check_estimator(estimator)
    check_prior(prior)
    if estimator == "closed_form":
        closed_form.check(prior, resolve_kernel(kernel))
    elif isinstance(prior, Tensor):
        _checks.samples("prior", prior, *_at_least(estimator))
    resolve_kernel(kernel)


def _check_estimator(estimator: str) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}; known estimators are {list(ESTIMATORS)}")


def _at_least(estimator: str) -> tuple[int, str]:
    """How many samples an estimator needs, and why."""
    return (1, "") if estimator == "biased" else (2, f" for the {estimator} estimator")


def _of_group(
    z: Tensor,
    prior: Prior,
    kernel: Kernel,
    estimator: Literal["unbiased", "biased", "closed_form"],
    generator: torch.Generator | None,
    group: ProcessGroup,
    backend: Backend | None,
) -> Tensor:
    """Of the samples of all ranks; a prior that has to be sampled is, once for all."""

    def check() -> dict[str, Tensor]:
        check_options(prior, kernel, "biased" if isinstance(prior, Tensor) else estimator)
        _check_estimator(estimator)
        _checks.samples("z", z)
        _checks.generator(generator, z.device)
        resolve(backend, z.device)
        if estimator == "closed_form":
            closed_form.check(prior, resolve_kernel(kernel), z)
            return {"z": z}
        if isinstance(prior, Tensor):
            _checks.same_space("z", z, "prior", prior)
            return {"z": z, "prior": prior}
        if isinstance(prior, Distribution):
            check_shapes(prior, z)
            if torch.is_grad_enabled() and any(p.requires_grad for p in parameters(prior)):
                raise ValueError(
                    "prior is a distribution with parameters that need a gradient, which group= does not give: "
                    "pass each rank's own samples of it"
                )
        return {"z": z}

    ranks = meet("mmd", group, check, kernel, estimator)
    k = resolve_kernel(kernel)
    chosen = resolve(backend, z.device)
    _check_total("z", ranks, estimator)
    x = ranks.enter(z).to(accumulator(z))
    if estimator == "closed_form":
        normal = closed_form.check(prior, k, z)
        if normal is not None:
            normal = normal._replace(loc=ranks.enter(normal.loc))
            x = x.to(torch.promote_types(x.dtype, normal.loc.dtype))
        rows = _Rows(x, ranks.parts("z", x), ranks)
        # Every rank has the constant among its terms, and all have the whole of it together.
        share = ranks.share("z") * closed_form.prior_terms(x, k, chosen, normal)
        share = share + rows.within(k.family, k.scales(x.shape[-1]), True, chosen)
        return ranks.sum(share).to(x.dtype)

    if isinstance(prior, Tensor):
        _check_total("prior", ranks, estimator)
        x, y = _as_one(x, ranks.enter(prior).to(accumulator(prior)))
        samples, others = _Rows(x, ranks.parts("z", x), ranks), ranks.parts("prior", y)
    else:
        samples = _Rows(x, ranks.parts("z", x), ranks)
        like = torch.cat(samples.parts).movedim(0, -2)
        drawn = ranks.attempt(lambda: sample_prior(prior, like, generator))
        drawn = ranks.of_first(drawn).to(x.dtype)
        others = list(drawn.movedim(-2, 0).split(ranks.rows["z"]))
        y = others[ranks.rank].movedim(0, -2)
    draws = _Rows(y, others, ranks)
    if isinstance(k, RBF) and k.bandwidth == "median":
        pooled = torch.cat([*samples.parts, *draws.parts]).movedim(0, -2)
        unit = median_unit(pooled, chosen, ranks)
        samples, draws = (rows.map(unit.measure) for rows in (samples, draws))
        scales: tuple[float, ...] = (2.0,)
    else:
        scales = k.scales(z.shape[-1])
    unbiased = estimator == "unbiased"
    config = k.family, scales, chosen
    share = (
        samples.within(k.family, scales, unbiased, chosen)
        + draws.within(k.family, scales, unbiased, chosen)
        - 2 * samples.across(draws, *config)
    )
    if draws.own.requires_grad:
        # To this rank's y from all x: the value of these pairs is among other ranks' too.
        pull = draws.across(samples, *config)
        share = share - 2 * (pull - pull.detach())
    value = ranks.sum(share).to(x.dtype)
    # A squared norm, which rounding does not make negative.
    return value if unbiased else value - value.detach().clamp(max=0)


class _Rows(NamedTuple):
    """A rank's own points (..., n, d), differentiated, and those of all ranks in parts (n, ..., d), constants."""

    own: Tensor
    parts: list[Tensor]
    ranks: Ranks

    def map(self, function: Callable[[Tensor], Tensor]) -> _Rows:
        parts = [function(part.movedim(0, -2)).movedim(-2, 0) for part in self.parts]
        return _Rows(function(self.own), parts, self.ranks)

    def within(
        self, family: str, scales: tuple[float, ...], unbiased: bool, chosen: Backend
    ) -> Tensor:
        """This rank's share of the mean kernel over the pairs of all points."""
        n, total = self.own.shape[-2], sum(map(len, self.parts))
        all_pairs = total * (total - 1) if unbiased else total**2
        others = torch.cat(
            [p for r, p in enumerate(self.parts) if r != self.ranks.rank] or [self.own.new_empty(0)]
        )
        share = self.own.new_full(
            self.own.shape[:-2],
            0.0 if unbiased else n * len(scales) / all_pairs,
            dtype=torch.float64,
        )
        if n > 1:
            within = _mean_kernel(self.own, self.own[..., :0, :], family, scales, chosen)
            share = share + n * (n - 1) / all_pairs * within
        if n < total:
            cross = _mean_kernel(self.own, others.movedim(0, -2), family, scales, chosen)
            # Each of these pairs is met again on the other's rank, which has no gradient for this one.
            share = share + n * (total - n) / all_pairs * (2 * cross - cross.detach())
        return share

    def across(
        self, other: _Rows, family: str, scales: tuple[float, ...], chosen: Backend
    ) -> Tensor:
        """The same over the pairs of these points and the other sample's."""
        points = torch.cat(other.parts).movedim(0, -2)
        share = self.own.shape[-2] / sum(map(len, self.parts))
        return share * _mean_kernel(self.own, points, family, scales, chosen)


def _mean_kernel(
    x: Tensor, y: Tensor, family: str, scales: tuple[float, ...], chosen: Backend
) -> Tensor:
    if chosen == "reference":
        return reference.pairs(x, y, family, scales)
    return _pairs(x, y, family, scales, chosen)  # type: ignore[no-any-return]


def _check_total(name: str, ranks: Ranks, estimator: str) -> None:
    at_least, why = _at_least(estimator)
    if ranks.total(name) < at_least:
        raise ValueError(
            f"{name} has {ranks.total(name)} samples on all ranks; it needs n >= {at_least}{why}"
        )


# The operations, shared by the backends. x is (..., n, d) and y (..., m, d) with equal batch dimensions.

_CONFIG = "str family, float[] scales, bool unbiased, str backend"


_gradient = on_backend(__package__, "mmd_grad")


def _product_fake(x: Tensor, y: Tensor, *_: Any) -> Any:
    dtype = accumulator(x)
    return x.new_empty(x.shape, dtype=dtype), y.new_empty(y.shape, dtype=dtype)


class _Linear(Derivative):
    """Of the Hessian's product with (vx, vy), which is linear in them, and symmetric."""

    def save(self, ctx: Any, inputs: Any, config: Any, outputs: Any) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])
        ctx.config = config

    def backward(self, ctx: Any, hx: Tensor, hy: Tensor) -> Any:
        x, y = ctx.saved_tensors
        # Those of x and y are refused before they come here: what they are is of no matter.
        return torch.zeros_like(x), torch.zeros_like(y), *_hessian(x, y, hx, hy, *ctx.config)

    def jvp(self, ctx: Any, saved: Any, _x: Any, _y: Any, vx: Tensor, vy: Tensor) -> Any:
        return _hessian(*saved, vx, vy, *ctx.config)


_hessian = operation(
    f"_mmd_hessian(Tensor x, Tensor y, Tensor vx, Tensor vy, {_CONFIG}) -> (Tensor, Tensor)",
    on_backend(__package__, "mmd_hvp"),
    _product_fake,
    tensors=4,
    derivative=_Linear(),
    refused=(0, 1),
    refusal="vimae_kernels.mmd has first and second derivatives, not third: use backend='reference', "
    "which plain autograd differentiates any number of times",
)

_mmd = saved_gradient(
    "mmd",
    "Tensor x, Tensor y",
    _CONFIG,
    on_backend(__package__, "mmd"),
    lambda x, y, need, *rest: _gradient(x, y, *need, *rest),
    hessian=_hessian,
)


# The mean kernel over pairs, in float64: of x and y or, with m = 0, of two different points of x.

_pairs_gradient = on_backend(__package__, "pairs_grad")


def _pairs_and_gradient(x: Tensor, y: Tensor, need: Sequence[bool], *config: Any) -> Any:
    return _pairs_gradient(x, y, *need, *config)


_pairs = saved_gradient(
    "mmd_pairs",
    "Tensor x, Tensor y",
    "str family, float[] scales, str backend",
    on_backend(__package__, "pairs"),
    _pairs_and_gradient,
)
