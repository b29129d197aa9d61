"""Squared kernel Stein discrepancy: the public function, its checks and its derivatives."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from ... import _checks, _score
from ..._autograd import accumulator, implementation, lead, no_forward_mode, plain, refuse_tangents
from ..._backend import Backend, resolve
from ..._library import register
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
        kernel: `IMQ`, `RBF`, or `"imq"`, `"rbf"` for their defaults.
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
    if chosen != "reference":
        refuse_tangents("ksd", x) if s is None else refuse_tangents("ksd", x, s)
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
    config = family, scales, unbiased, backend
    if torch._C._are_functorch_transforms_active():
        if torch.compiler.is_compiling():
            # torch.compile drops the gradient of custom operations inside torch.func.grad without a word.
            torch._dynamo.graph_break(
                msg="vimae_kernels.ksd inside torch.func inside torch.compile"
            )
        return _TransformableKSD.apply(z, score, *config)[0]  # type: ignore[no-any-return]
    tensors = (z,) if score is None else (z, score)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _KSD.apply(z, score, *config)  # type: ignore[no-any-return]
    run = _ksd_impl if plain(*tensors) else _ksd
    return run(z, score, *config)  # type: ignore[no-any-return]


# The operations: one per direction, shared by the backends. z is (..., n, d), score of the same shape and dtype,
# or None for the standard normal: then dz is the whole gradient. Gradients come in the accumulator's dtype.


def _ksd_impl(z, score, family, scales, unbiased, backend):  # type: ignore[no-untyped-def]
    return implementation(__package__, backend).ksd(z, score, family, scales, unbiased)


def _ksd_fake(z, score, family, scales, unbiased, backend):  # type: ignore[no-untyped-def]
    return z.new_empty(z.shape[:-2], dtype=accumulator(z))


def _ksd_vmap(info, dims, z, score, *rest):  # type: ignore[no-untyped-def]
    size = info.batch_size
    score = None if score is None else lead(score, dims[1], size)
    return _ksd(lead(z, dims[0], size), score, *rest), 0


_ksd = register(
    "_ksd(Tensor z, Tensor? score, str family, float[] scales, bool unbiased, str backend) -> Tensor",
    _ksd_impl,
    _ksd_fake,
    _ksd_vmap,
)


def _ksd_grad_impl(z, score, need_score, family, scales, unbiased, backend):  # type: ignore[no-untyped-def]
    return implementation(__package__, backend).ksd_grad(
        z, score, need_score, family, scales, unbiased
    )


def _ksd_grad_fake(z, score, need_score, family, scales, unbiased, backend):  # type: ignore[no-untyped-def]
    dtype = accumulator(z)
    return (
        z.new_empty(z.shape[:-2], dtype=dtype),
        z.new_empty(z.shape, dtype=dtype),
        z.new_empty(z.shape if need_score else (0,), dtype=dtype),
    )


def _ksd_grad_vmap(info, dims, z, score, need_score, *rest):  # type: ignore[no-untyped-def]
    size = info.batch_size
    score = None if score is None else lead(score, dims[1], size)
    out = _ksd_grad(lead(z, dims[0], size), score, need_score, *rest)
    return out, (0, 0, 0 if need_score else None)


_ksd_grad = register(
    "_ksd_grad(Tensor z, Tensor? score, bool need_score, str family, float[] scales, bool unbiased, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    _ksd_grad_impl,
    _ksd_grad_fake,
    _ksd_grad_vmap,
)


def _ksd_backward_impl(z, score, dz, dscore, g, need_score):  # type: ignore[no-untyped-def]
    if g.ndim:
        g = g[..., None, None]
    # Multiplied before rounding to a half type: a gradient of size 1/n would underflow there.
    gz = (dz * g).to(z.dtype)
    return gz, (dscore * g).to(z.dtype) if need_score else dscore.new_empty(0, dtype=z.dtype)


def _ksd_backward_fake(z, score, dz, dscore, g, need_score):  # type: ignore[no-untyped-def]
    return z.new_empty(z.shape), z.new_empty(z.shape if need_score else (0,))


def _ksd_backward_vmap(info, dims, z, score, dz, dscore, g, need_score):  # type: ignore[no-untyped-def]
    tensors = (z, score, dz, dscore, g)
    led = (
        None if t is None else lead(t, dim, info.batch_size)
        for t, dim in zip(tensors, dims, strict=False)
    )
    return _ksd_backward(*led, need_score), (0, 0 if need_score else None)


# z and score are here for autograd's sake alone: a compiled backward that did not take them would hide from a
# second derivative that dz and dscore depend on them.
_ksd_backward = register(
    "_ksd_backward(Tensor z, Tensor? score, Tensor dz, Tensor dscore, Tensor g, bool need_score) "
    "-> (Tensor, Tensor)",
    _ksd_backward_impl,
    _ksd_backward_fake,
    _ksd_backward_vmap,
)


class _KSD(torch.autograd.Function):
    """The eager path: the first gradient is made in the same pass as the value and saved."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, score: Tensor | None, *config: Any) -> Tensor:
        need_score = ctx.needs_input_grad[1]
        run = _ksd_grad_impl if plain(*((z,) if score is None else (z, score))) else _ksd_grad
        value, dz, dscore = run(z, score, need_score, *config)
        ctx.save_for_backward(z, score, dz, dscore)
        return value  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        z, score, dz, dscore = ctx.saved_tensors
        need_z, need_score = ctx.needs_input_grad[:2]
        if torch.compiler.is_compiling():
            gz, gs = _ksd_backward(z, score, dz, dscore, g, need_score)
        elif torch.is_grad_enabled():  # create_graph
            gz, gs = _KSDBackward.apply(z, score, dz, dscore, g, need_score)
        else:
            gz, gs = _ksd_backward_impl(z, score, dz, dscore, g, need_score)
        return gz if need_z else None, gs if need_score else None, None, None, None, None


# The rest is for torch.func, which wants setup_context and no *args, and for second derivatives, which are refused.


class _TransformableKSD(torch.autograd.Function):
    """_KSD for torch.func; the gradients are outputs, which is the only way to save them."""

    generate_vmap_rule = True
    jvp = staticmethod(no_forward_mode("ksd"))

    @staticmethod
    def forward(z, score, family, scales, unbiased, backend):  # type: ignore[no-untyped-def]
        return _ksd_grad(z, score, score is not None, family, scales, unbiased, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, score = inputs[:2]
        _, dz, dscore = output
        ctx.mark_non_differentiable(dz, dscore)
        ctx.save_for_backward(z, score, dz, dscore)

    @staticmethod
    def backward(ctx: Any, g: Tensor, _dz: Any, _dscore: Any) -> Any:
        z, score, dz, dscore = ctx.saved_tensors
        gz, gs = _KSDBackward.apply(z, score, dz, dscore, g, score is not None)
        return gz, gs if score is not None else None, None, None, None, None


class _KSDBackward(torch.autograd.Function):
    """(g dKSD/dz, g dKSD/dscore) as a function of z, score and g; its derivative is refused rather than dropped."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z, score, dz, dscore, g, need_score):  # type: ignore[no-untyped-def]
        return _ksd_backward(z, score, dz, dscore, g, need_score)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gz: Tensor, gs: Tensor) -> Any:
        raise RuntimeError(
            "vimae_kernels.ksd has a first derivative, not a second: use backend='reference', which plain autograd "
            "differentiates any number of times"
        )
