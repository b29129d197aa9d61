"""Gumbel-softmax: the public function, its checks and its derivatives."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

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
from ..._library import register
from . import reference


def gumbel_softmax(
    logits: Tensor,
    tau: float = 1.0,
    hard: bool = False,
    *,
    dim: int = -1,
    generator: torch.Generator | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """A differentiable sample of a categorical distribution; takes the place of `torch.nn.functional.gumbel_softmax`.

    With g independent standard Gumbel noise, g = -log(-log(1 - u)), the sample is

        y = softmax((logits + g) / tau)

    along `dim`, or with `hard` the one-hot vector of its largest element, the first of equals: zeros
    and ones exactly. The gradient is in both cases that of y (straight-through):
    y * (dy - sum(dy * y)) / tau. All derivatives exist. The noise is made inside the kernel, forward
    and backward, and takes no memory; it depends on the seed and an element's place alone, not on
    backend, threads or strides. It has 32 random bits per element, also in float64: |g| < 23.

    Args:
        logits: unnormalised log-probabilities in float64, float32, bfloat16 or float16; any shape and
            strides, with at least one category along `dim`. -inf is probability 0.
        tau: temperature, positive; beyond the normal numbers of the dtype it counts as the nearest of them.
        hard: one-hot samples with the gradient of the soft ones.
        dim: the dimension of the categories.
        generator: source of the seed, one 64-bit number per call (under `torch.func.vmap` with
            randomness="different", one per entry); None is torch's default generator, which
            `torch.manual_seed` governs. torch.compile has no support for generator objects.
        backend: `"triton"`, `"native"` or `"reference"`; None takes the fastest that can run.

    Returns:
        The shape and dtype of the logits, contiguous. Half types are computed in float32, and their
        gradient from the logits rather than from the rounded sample. Finite logits give finite
        samples. A slice with NaN, +inf or nothing but -inf gives NaN.

    Raises:
        TypeError: not a tensor, number or generator; a dtype that is not floating point.
        ValueError: tau that is not positive and finite, a `dim` that does not exist or is empty,
            a generator on another device, an unknown backend.
        RuntimeError: an explicit `backend` that cannot run here.

    Source: Jang et al., Categorical Reparameterization with Gumbel-Softmax (2017), eqs. 1 and 2 and
    section 2.2; Maddison et al., The Concrete Distribution (2017), eq. 10. The noise: Salmon et al.,
    Parallel Random Numbers: As Easy as 1, 2, 3 (2011), Philox4x32-10.
    """
    _check(logits, tau, dim)
    tau, hard = float(tau), bool(hard)
    _checks.generator(generator, logits.device)
    chosen = resolve(backend, logits.device)
    seed = torch.randint(
        -(2**63), 2**63 - 1, (), dtype=torch.int64, device=logits.device, generator=generator
    )
    last = dim in (-1, logits.ndim - 1)
    x = logits if last else logits.movedim(dim, -1)
    if logits.ndim == 0:
        return sample(x.reshape(1), seed, tau, hard, chosen).reshape(())
    y = sample(x, seed, tau, hard, chosen)
    return y if last else y.movedim(-1, dim).contiguous()


def _check(logits: object, tau: object, dim: object) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"logits is of type {type(logits).__name__}; it must be a torch.Tensor"
            f"{_checks.from_numpy('logits', logits)}"
        )
    if logits.dtype not in _checks.FLOATS:
        names = ", ".join(str(f).removeprefix("torch.") for f in _checks.FLOATS)
        raise TypeError(f"logits has dtype {logits.dtype}; it must be one of {names}")
    if logits.layout != torch.strided or logits.is_nested:
        layout = "nested" if logits.is_nested else logits.layout
        raise TypeError(f"logits has layout {layout}; it must be dense")
    if isinstance(tau, bool) or not isinstance(tau, Real):
        raise TypeError(
            f"tau is of type {type(tau).__name__}; it must be a positive number (not a tensor, for the kernel "
            "takes it from the host)"
        )
    if not 0 < float(tau) < math.inf:
        raise ValueError(f"tau is {tau}; it must be positive and finite")
    if not isinstance(dim, int):
        raise TypeError(f"dim is of type {type(dim).__name__}; it must be an int")
    dims = max(1, logits.ndim)
    if not -dims <= dim < dims:
        raise ValueError(
            f"dim is {dim}; for logits of shape {tuple(logits.shape)} it must be from {-dims} to {dims - 1}"
        )
    if logits.ndim and logits.shape[dim] == 0:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}; it needs at least one category in dimension {dim}"
        )


def sample(logits: Tensor, seed: Tensor, tau: float, hard: bool, backend: str) -> Tensor:
    """gumbel_softmax over the last dimension of `logits`, with the noise of `seed`.

    `seed` is int64 and () or as many of the leading dimensions of `logits`: each entry has its own noise.
    """
    if backend == "reference":
        return reference.gumbel_softmax(logits, seed, tau, hard)
    if torch._C._are_functorch_transforms_active() or has_tangent(logits):
        if torch.compiler.is_compiling():
            # torch.compile drops the gradient of custom operations inside torch.func.grad without a word.
            torch._dynamo.graph_break(
                msg="vimae_kernels.gumbel_softmax inside torch.func inside torch.compile"
            )
        refuse_forward_over_forward("gumbel_softmax")
        return _TransformableGumbelSoftmax.apply(logits, seed, tau, hard, backend)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and logits.requires_grad:
        return _GumbelSoftmax.apply(logits, seed, tau, hard, backend)  # type: ignore[no-any-return]
    run = _gumbel_softmax_impl if plain(logits, seed) else _gumbel_softmax
    return run(logits, seed, tau, hard, backend)  # type: ignore[no-any-return]


# The operations, shared by the backends: logits (..., K) and a seed for each entry of its first
# dimensions; results are contiguous.


def _gumbel_softmax_impl(logits, seed, tau, hard, backend):  # type: ignore[no-untyped-def]
    return implementation(__package__, backend).gumbel_softmax(logits, seed, tau, hard)


def _gumbel_softmax_vmap(info, dims, logits, seed, *rest):  # type: ignore[no-untyped-def]
    led = (lead(t, dim, info.batch_size) for t, dim in zip((logits, seed), dims, strict=False))
    return _gumbel_softmax(*led, *rest), 0


_gumbel_softmax = register(
    "_gumbel_softmax(Tensor logits, Tensor seed, float tau, bool hard, str backend) -> Tensor",
    _gumbel_softmax_impl,
    lambda logits, seed, tau, hard, backend: logits.new_empty(logits.shape),
    _gumbel_softmax_vmap,
)


def _gumbel_softmax_grad_impl(logits, seed, g, tau, backend):  # type: ignore[no-untyped-def]
    return implementation(__package__, backend).gumbel_softmax_grad(logits, seed, g, tau)


def _gumbel_softmax_grad_vmap(info, dims, logits, seed, g, *rest):  # type: ignore[no-untyped-def]
    led = (lead(t, dim, info.batch_size) for t, dim in zip((logits, seed, g), dims, strict=False))
    return _gumbel_softmax_grad(*led, *rest), 0


# The gradient of the soft sample in the logits, with its noise made again from the seed.
_gumbel_softmax_grad = register(
    "_gumbel_softmax_grad(Tensor logits, Tensor seed, Tensor g, float tau, str backend) -> Tensor",
    _gumbel_softmax_grad_impl,
    lambda logits, seed, g, tau, backend: logits.new_empty(logits.shape),
    _gumbel_softmax_grad_vmap,
)


def _softmax_grad_impl(y, g, tau, backend):  # type: ignore[no-untyped-def]
    return implementation(__package__, backend).softmax_grad(y, g, tau)


def _softmax_grad_vmap(info, dims, y, g, *rest):  # type: ignore[no-untyped-def]
    led = (lead(t, dim, info.batch_size) for t, dim in zip((y, g), dims, strict=False))
    return _softmax_grad(*led, *rest), 0


# The same from the sample y, in float32 or float64.
_softmax_grad = register(
    "_gumbel_from_sample_grad(Tensor y, Tensor g, float tau, str backend) -> Tensor",
    _softmax_grad_impl,
    lambda y, g, tau, backend: y.new_empty(y.shape),
    _softmax_grad_vmap,
)


class _GumbelSoftmax(torch.autograd.Function):
    """The eager and the compiled path."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, seed: Tensor, tau: float, hard: bool, backend: str
    ) -> Tensor:
        run = _gumbel_softmax_impl if plain(logits, seed) else _gumbel_softmax
        y = run(logits, seed, tau, hard, backend)
        _save(ctx, logits, seed, y, tau, hard, backend)
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _backward(ctx, g), None, None, None, None


class _TransformableGumbelSoftmax(torch.autograd.Function):
    """The same for torch.func and forward mode, which want setup_context: microseconds per call."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, seed, tau, hard, backend):  # type: ignore[no-untyped-def]
        return _gumbel_softmax(logits, seed, tau, hard, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        logits, seed, *config = inputs
        _save(ctx, logits, seed, output, *config)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _backward(ctx, g), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, v: Tensor, *_: Any) -> Any:
        return _backward(ctx, v)  # the Jacobian is symmetric


def _save(
    ctx: Any, logits: Tensor, seed: Tensor, y: Tensor, tau: float, hard: bool, backend: str
) -> None:
    # A sample that was rounded, to one-hot or to a half type, says too little about its gradient.
    ctx.again = hard or y.dtype != accumulator(y)
    saved = (logits, seed) if ctx.again else (y,)
    ctx.save_for_backward(*saved)
    ctx.save_for_forward(*saved)
    ctx.config = tau, backend


def _backward(ctx: Any, g: Tensor) -> Any:
    """The gradient in the logits; in terms of operations that have derivatives where those may be wanted."""
    tau, backend = ctx.config
    create_graph = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if ctx.again:
        logits, seed = ctx.saved_tensors
        if create_graph:
            dtype = accumulator(logits)
            y = sample(logits.to(dtype), seed, tau, False, backend)
            return _from_sample(y, g.to(dtype), tau).to(logits.dtype)
        again = _gumbel_softmax_grad_impl if plain(logits, g) else _gumbel_softmax_grad
        return again(logits, seed, g, tau, backend)
    (y,) = ctx.saved_tensors
    if create_graph:
        return _from_sample(y, g, tau)
    run = _softmax_grad_impl if plain(y, g) else _softmax_grad
    return run(y, g, tau, backend)


def _from_sample(y: Tensor, g: Tensor, tau: float) -> Tensor:
    return y * (g - (g * y).sum(-1, keepdim=True)) * (0.5 / reference.half_tau(tau, y.dtype))
