"""Squared maximum mean discrepancy: the public function, its checks and its derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from ... import _checks
from ..._autograd import (
    accumulator,
    has_tangent,
    implementation,
    lead,
    plain,
    refuse_forward_over_forward,
)
from ..._backend import Backend, resolve
from ..._distributed import check_group, from_first, gather
from ..._library import register
from ...kernels import RBF, Kernel, resolve_kernel
from ...priors import Prior, sample_prior
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
        kernel: `IMQ`, `RBF`, or `"imq"`, `"rbf"` for their defaults.
        estimator: `"unbiased"` (can be negative; needs n, m >= 2), `"biased"` (never negative), or
            `"closed_form"` (can be negative; needs n >= 2, the prior `"normal"` and any kernel but
            `RBF("median")`; RBF analytically, IMQ by a quadrature good to 1e-13).
        generator: source of the prior's samples; None is torch's default generator.
        group: a torch.distributed process group: the statistic over the samples of all its ranks, which
            may have different n and m. Every rank returns the same value, and its gradient with respect
            to the rank's own samples is that of a single process which has all (first derivatives only).
            A prior that is not a tensor is sampled by the first rank for all.
        backend: `"triton"`, `"native"` or `"reference"`; None takes the fastest that can run.

    Returns:
        (...), dimensionless: float64 for float64 input, otherwise float32. Mixed input is promoted as
        in torch. NaN or Inf in the data gives NaN.

    Raises:
        TypeError: not a tensor, distribution, kernel or generator; a dtype that is not floating point.
        ValueError: shapes that do not fit, devices that differ, n or m < 2 for the unbiased estimators,
            an unknown name, a prior or kernel that has no closed form.
        RuntimeError: an explicit `backend` that cannot run here.

    Source: Gretton et al., A Kernel Two-Sample Test (2012), eqs. 3 and 5; VIMAE preprint, eq. 15.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}; known estimators are {list(ESTIMATORS)}")
    if group is not None:
        z, prior = _gathered(z, prior, estimator, generator, group)
    unbiased = estimator != "biased"
    at_least, why = (2, f" for the {estimator} estimator") if unbiased else (1, "")
    k = resolve_kernel(kernel)
    _checks.samples("z", z, at_least, why)
    _checks.generator(generator, z.device)
    chosen = resolve(backend, z.device)
    if not isinstance(prior, Tensor | Distribution | str):
        raise TypeError(
            f"prior is of type {type(prior).__name__}; it must be a tensor of samples, a "
            "torch.distributions.Distribution, 'normal' or 'logistic'"
        )
    if estimator == "closed_form":
        closed_form.check(prior, k)
        # Half types add up both gradients in float32. No prior samples: mmd's terms within z remain.
        x = z.to(accumulator(z))
        none = x.new_empty(*x.shape[:-2], 0, x.shape[-1])
        within = _run(x, none, k.family, k.scales(x.shape[-1]), True, chosen)
        return (within + closed_form.prior_terms(x, k, chosen)).to(within.dtype)
    if not isinstance(prior, Tensor):
        prior = sample_prior(prior, z, generator)
    _checks.samples("prior", prior, at_least, why)
    _checks.same_space("z", z, "prior", prior)

    x, y = z, prior
    if x.dtype != y.dtype:
        common = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(common), y.to(common)
    if x.shape[:-2] != y.shape[:-2]:
        batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        x = x.expand(*batch, *x.shape[-2:])
        y = y.expand(*batch, *y.shape[-2:])

    scales: tuple[float, ...]
    if isinstance(k, RBF) and k.bandwidth == "median":
        # A bandwidth per batch entry that no host ever sees: measure everything in units of it.
        x, y = x.to(accumulator(x)), y.to(accumulator(x))
        unit = median_unit(torch.cat([x.detach(), y.detach()], -2), chosen)
        x, y, scales = unit.measure(x), unit.measure(y), (2.0,)
    else:
        scales = k.scales(z.shape[-1])

    return _run(x, y, k.family, scales, unbiased, chosen)


def _run(
    x: Tensor, y: Tensor, family: str, scales: tuple[float, ...], unbiased: bool, chosen: Backend
) -> Tensor:
    """The estimate on the chosen backend, with whatever derivatives are asked for."""
    if chosen == "reference":
        dtype = accumulator(x)
        return reference.mmd(x.to(dtype), y.to(dtype), family, scales, unbiased)
    if torch._C._are_functorch_transforms_active() or has_tangent(x, y):
        if torch.compiler.is_compiling():
            # torch.compile drops the gradient of custom operations inside torch.func.grad without a word.
            torch._dynamo.graph_break(
                msg="vimae_kernels.mmd inside torch.func inside torch.compile"
            )
        refuse_forward_over_forward("mmd")
        config = _Config((family, scales, unbiased, chosen))
        return _TransformableMMD.apply(x, y, config)[0]  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        return _MMD.apply(x, y, family, scales, unbiased, chosen)  # type: ignore[no-any-return]
    run = _mmd_impl if plain(x, y) else _mmd
    return run(x, y, family, scales, unbiased, chosen)  # type: ignore[no-any-return]


def _gathered(
    z: Tensor,
    prior: Prior,
    estimator: str,
    generator: torch.Generator | None,
    group: ProcessGroup,
) -> tuple[Tensor, Prior]:
    """The samples of all ranks: of z, and of a prior that has to be sampled, which is done once for all."""
    check_group(group)
    _checks.samples("z", z)
    if isinstance(prior, Tensor):
        _checks.samples("prior", prior)
        _checks.same_space("z", z, "prior", prior)
        return gather("z", z, group), gather("prior", prior, group)
    _checks.generator(generator, z.device)
    z = gather("z", z, group)
    if estimator == "closed_form":
        return z, prior
    drawn = sample_prior(prior, z, generator)
    if drawn.requires_grad:
        raise ValueError(
            "prior is a distribution with parameters that need a gradient, which group= does not give: "
            "pass each rank's own samples of it"
        )
    return z, from_first(drawn, group)


# The operations: one per direction, shared by the backends. x is (..., n, d) and y (..., m, d) with
# equal batch dimensions; gradients come in the accumulator's dtype and are empty where not needed.


def _mmd_impl(x, y, family, scales, unbiased, backend):  # type: ignore[no-untyped-def]
    return implementation(__package__, backend).mmd(x, y, family, scales, unbiased)


def _mmd_fake(x, y, family, scales, unbiased, backend):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[:-2], dtype=accumulator(x))


def _mmd_vmap(info, dims, x, y, *rest):  # type: ignore[no-untyped-def]
    size = info.batch_size
    return _mmd(lead(x, dims[0], size), lead(y, dims[1], size), *rest), 0


_mmd = register(
    "_mmd(Tensor x, Tensor y, str family, float[] scales, bool unbiased, str backend) -> Tensor",
    _mmd_impl,
    _mmd_fake,
    _mmd_vmap,
)


def _mmd_grad_impl(x, y, need_x, need_y, family, scales, unbiased, backend):  # type: ignore[no-untyped-def]
    return implementation(__package__, backend).mmd_grad(
        x, y, need_x, need_y, family, scales, unbiased
    )


def _mmd_grad_fake(x, y, need_x, need_y, family, scales, unbiased, backend):  # type: ignore[no-untyped-def]
    dtype = accumulator(x)
    return (
        x.new_empty(x.shape[:-2], dtype=dtype),
        x.new_empty(x.shape if need_x else (0,), dtype=dtype),
        y.new_empty(y.shape if need_y else (0,), dtype=dtype),
    )


def _mmd_grad_vmap(info, dims, x, y, need_x, need_y, *rest):  # type: ignore[no-untyped-def]
    size = info.batch_size
    out = _mmd_grad(lead(x, dims[0], size), lead(y, dims[1], size), need_x, need_y, *rest)
    return out, (0, 0 if need_x else None, 0 if need_y else None)


_mmd_grad = register(
    "_mmd_grad(Tensor x, Tensor y, bool need_x, bool need_y, str family, float[] scales, "
    "bool unbiased, str backend) -> (Tensor, Tensor, Tensor)",
    _mmd_grad_impl,
    _mmd_grad_fake,
    _mmd_grad_vmap,
)


def _mmd_hvp_impl(x, y, vx, vy, family, scales, unbiased, backend):  # type: ignore[no-untyped-def]
    return implementation(__package__, backend).mmd_hvp(x, y, vx, vy, family, scales, unbiased)


def _mmd_hvp_fake(x, y, vx, vy, family, scales, unbiased, backend):  # type: ignore[no-untyped-def]
    dtype = accumulator(x)
    return x.new_empty(x.shape, dtype=dtype), y.new_empty(y.shape, dtype=dtype)


def _mmd_hvp_vmap(info, dims, x, y, vx, vy, *rest):  # type: ignore[no-untyped-def]
    led = (lead(t, dim, info.batch_size) for t, dim in zip((x, y, vx, vy), dims, strict=False))
    return _mmd_hvp(*led, *rest), (0, 0)


_mmd_hvp = register(
    "_mmd_hvp(Tensor x, Tensor y, Tensor vx, Tensor vy, str family, float[] scales, "
    "bool unbiased, str backend) -> (Tensor, Tensor)",
    _mmd_hvp_impl,
    _mmd_hvp_fake,
    _mmd_hvp_vmap,
)


def _mmd_backward_impl(x, y, dx, dy, g, need_x, need_y):  # type: ignore[no-untyped-def]
    if g.ndim:
        g = g[..., None, None]
    # Multiplied before rounding to a half type: a gradient of size 1/n would underflow there.
    gx = (dx * g).to(x.dtype) if need_x else dx.new_empty(0, dtype=x.dtype)
    gy = (dy * g).to(y.dtype) if need_y else dy.new_empty(0, dtype=y.dtype)
    return gx, gy


def _mmd_backward_fake(x, y, dx, dy, g, need_x, need_y):  # type: ignore[no-untyped-def]
    gx = x.new_empty(x.shape if need_x else (0,))
    return gx, y.new_empty(y.shape if need_y else (0,))


def _mmd_backward_vmap(info, dims, x, y, dx, dy, g, need_x, need_y):  # type: ignore[no-untyped-def]
    led = (lead(t, dim, info.batch_size) for t, dim in zip((x, y, dx, dy, g), dims, strict=False))
    return _mmd_backward(*led, need_x, need_y), (0 if need_x else None, 0 if need_y else None)


# x and y are here for autograd's sake alone: a compiled backward that did not take them would hide from
# a second derivative that dx and dy depend on them.
_mmd_backward = register(
    "_mmd_backward(Tensor x, Tensor y, Tensor dx, Tensor dy, Tensor g, bool need_x, bool need_y) "
    "-> (Tensor, Tensor)",
    _mmd_backward_impl,
    _mmd_backward_fake,
    _mmd_backward_vmap,
)


class _MMD(torch.autograd.Function):
    """The eager path: the first gradient is made in the same pass as the value and saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, *config: Any) -> Tensor:
        need_x, need_y = ctx.needs_input_grad[:2]
        run = _mmd_grad_impl if plain(x, y) else _mmd_grad
        value, dx, dy = run(x, y, need_x, need_y, *config)
        ctx.save_for_backward(x, y, dx, dy)
        ctx.config = config
        return value  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, y, dx, dy = ctx.saved_tensors
        need_x, need_y = ctx.needs_input_grad[:2]
        if torch.compiler.is_compiling():
            gx, gy = _mmd_backward(x, y, dx, dy, g, need_x, need_y)
        elif torch.is_grad_enabled():  # create_graph
            config = _Config(ctx.config)
            gx, gy = _MMDBackward.apply(x, y, dx, dy, g, need_x, need_y, config)
        else:
            gx, gy = _mmd_backward_impl(x, y, dx, dy, g, need_x, need_y)
        return gx if need_x else None, gy if need_y else None, None, None, None, None


# The rest is for second derivatives and torch.func, which want setup_context and no *args: 10 microseconds
# more per call.


@dataclass(frozen=True)
class _Config:
    """The rest of an operation's arguments: a tuple of scales would be a pytree to vmap."""

    arguments: tuple[str, tuple[float, ...], bool, Backend]


class _TransformableMMD(torch.autograd.Function):
    """_MMD for torch.func and forward mode; the gradients are outputs, the only way to save them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, config: _Config) -> Any:
        return _mmd_grad(x, y, True, True, *config.arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, y, ctx.config = inputs
        _, dx, dy = output
        ctx.mark_non_differentiable(dx, dy)
        ctx.save_for_backward(x, y, dx, dy)
        ctx.save_for_forward(x, y, dx, dy)

    @staticmethod
    def backward(ctx: Any, g: Tensor, _dx: Any, _dy: Any) -> Any:
        x, y, dx, dy = ctx.saved_tensors
        gx, gy = _MMDBackward.apply(x, y, dx, dy, g, True, True, ctx.config)
        return gx, gy, None

    @staticmethod
    def jvp(ctx: Any, vx: Tensor, vy: Tensor, *_: Any) -> Any:
        x, y, dx, dy = ctx.saved_tensors
        return _directional(x, y, dx, dy, vx, vy, True, True, ctx.config), None, None


def _directional(x, y, dx, dy, vx, vy, need_x, need_y, config):  # type: ignore[no-untyped-def]
    """vx . dMMD/dx + vy . dMMD/dy as a function of x and y, which dx and dy themselves are not."""
    dtype = accumulator(x)
    one = dx.new_ones(x.shape[:-2])
    gx, gy = _MMDBackward.apply(x.to(dtype), y.to(dtype), dx, dy, one, need_x, need_y, config)
    total = torch.zeros_like(one)
    if need_x:
        total = total + (vx.to(dtype) * gx).sum((-1, -2))
    if need_y:
        total = total + (vy.to(dtype) * gy).sum((-1, -2))
    return total


class _MMDBackward(torch.autograd.Function):
    """(g dMMD/dx, g dMMD/dy) as a function of x, y and g; its derivative is a Hessian-vector product."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, y, dx, dy, g, need_x, need_y, config):  # type: ignore[no-untyped-def]
        return _mmd_backward(x, y, dx, dy, g, need_x, need_y)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, y, dx, dy, g, need_x, need_y, ctx.config = inputs
        ctx.save_for_backward(x, y, dx, dy, g)
        ctx.save_for_forward(x, y, dx, dy, g)
        ctx.need = need_x, need_y

    @staticmethod
    def backward(ctx: Any, vx: Tensor, vy: Tensor) -> Any:
        x, y, dx, dy, g = ctx.saved_tensors
        need_x, need_y = ctx.need
        dtype = accumulator(x)
        hx, hy = _hessian_vector(
            x,
            y,
            vx.to(dtype) if need_x else torch.zeros_like(x, dtype=dtype),
            vy.to(dtype) if need_y else torch.zeros_like(y, dtype=dtype),
            ctx.config,
        )
        dg = _directional(x, y, dx, dy, vx, vy, need_x, need_y, ctx.config)
        g = g[..., None, None]
        gx, gy = (g * hx).to(x.dtype), (g * hy).to(y.dtype)
        return gx, gy, None, None, dg, None, None, None

    @staticmethod
    def jvp(ctx: Any, vx: Tensor, vy: Tensor, _dx: Any, _dy: Any, vg: Tensor, *_: Any) -> Any:
        x, y, dx, dy, g = ctx.saved_tensors
        need_x, need_y = ctx.need
        dtype = accumulator(x)
        hx, hy = _hessian_vector(x, y, vx.to(dtype), vy.to(dtype), ctx.config)
        gx, gy = _MMDBackward.apply(x, y, dx, dy, vg, need_x, need_y, ctx.config)
        g = g[..., None, None]
        return (
            (g * hx).to(x.dtype) + gx if need_x else torch.zeros_like(gx),
            (g * hy).to(y.dtype) + gy if need_y else torch.zeros_like(gy),
        )


def _hessian_vector(x, y, vx, vy, config):  # type: ignore[no-untyped-def]
    return _MMDHessianVector.apply(_NoThird.apply(x), _NoThird.apply(y), vx, vy, config)


class _MMDHessianVector(torch.autograd.Function):
    """The second derivative applied to (vx, vy): linear in them, and symmetric."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, vx: Tensor, vy: Tensor, config: _Config) -> Any:
        return _mmd_hvp(x, y, vx, vy, *config.arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, y, _, _, ctx.config = inputs
        ctx.save_for_backward(x, y)
        ctx.save_for_forward(x, y)

    @staticmethod
    def backward(ctx: Any, hx: Tensor, hy: Tensor) -> Any:
        x, y = ctx.saved_tensors
        gx, gy = _MMDHessianVector.apply(x, y, hx, hy, ctx.config)
        # Those of x and y go to _NoThird, which looks at no value.
        return torch.zeros_like(x), torch.zeros_like(y), gx, gy, None

    @staticmethod
    def jvp(ctx: Any, _x: Any, _y: Any, vx: Tensor, vy: Tensor, *_: Any) -> Any:
        x, y = ctx.saved_tensors
        return _MMDHessianVector.apply(x, y, vx, vy, ctx.config)


class _NoThird(torch.autograd.Function):
    """x where it is differentiated a third time, which is refused rather than silently dropped."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        raise RuntimeError(_THIRD)

    @staticmethod
    def jvp(ctx: Any, v: Tensor) -> Any:
        raise RuntimeError(_THIRD)


_THIRD = (
    "vimae_kernels.mmd has first and second derivatives, not third: use backend='reference', "
    "which plain autograd differentiates any number of times"
)
