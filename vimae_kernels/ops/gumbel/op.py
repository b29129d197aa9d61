"""Gumbel-softmax: the public function, its checks and its derivatives."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ... import _checks
from ..._autograd import accumulator
from ..._backend import Backend, resolve
from ..._operation import Derivative, implementation, operation, plain
from . import reference


def gumbel_softmax(
    logits: Tensor,
    tau: float | Tensor = 1.0,
    hard: bool = False,
    eps: float = 1e-10,
    dim: int = -1,
    *,
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
        tau: temperature, positive; beyond the normal numbers of the dtype it counts as the nearest of them. A tensor
            is broadcast against the logits, with one temperature for all categories along `dim`, and has a gradient;
            its numbers are not looked at on a GPU, and where one is not positive the sample is NaN.
        hard: one-hot samples with the gradient of the soft ones.
        eps: of no effect, as in torch.
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
        ValueError: tau that is not positive and finite, or of a shape that does not fit, a `dim` that does not
            exist or is empty, a generator on another device, an unknown backend.
        RuntimeError: an explicit `backend` that cannot run here.

    Source: Jang et al., Categorical Reparameterization with Gumbel-Softmax (2017), eqs. 1 and 2 and
    section 2.2; Maddison et al., The Concrete Distribution (2017), eq. 10. The noise: Salmon et al.,
    Parallel Random Numbers: As Easy as 1, 2, 3 (2011), Philox4x32-10.
    """
    _check(logits, tau, dim)
    hard = bool(hard)
    _checks.generator(generator, logits.device)
    chosen = resolve(backend, logits.device)
    # Compiled code takes no generator, not even None.
    source: Any = {} if generator is None else {"generator": generator}
    seed = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=logits.device, **source)
    tau = _of_rows(tau, logits, dim) if isinstance(tau, Tensor) else float(tau)
    last = dim in (-1, logits.ndim - 1)
    x = logits if last else logits.movedim(dim, -1)
    if logits.ndim == 0:
        return sample(x.reshape(1), seed, tau, hard, chosen).reshape(())
    y = sample(x, seed, tau, hard, chosen)
    return y if last else y.movedim(-1, dim).contiguous()


def _of_rows(tau: Tensor, logits: Tensor, dim: int) -> Tensor:
    """A tensor of temperatures, one for all or one for each row of the logits where `dim` is the last."""
    tau = tau.to(logits.device, accumulator(logits))
    if tau.numel() == 1:
        return tau.reshape(())
    rows = list(logits.shape)
    rows[dim] = 1
    return tau.broadcast_to(rows).movedim(dim, -1).squeeze(-1)


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
    if isinstance(tau, Tensor):
        _check_tensor(tau, logits, dim)
        return
    if isinstance(tau, bool) or not isinstance(tau, Real):
        raise TypeError(
            f"tau is of type {type(tau).__name__}; it must be a positive number or a tensor of them"
        )
    if not 0 < float(tau) < math.inf:
        raise ValueError(f"tau is {tau}; it must be positive and finite")


def _check_tensor(tau: Tensor, logits: Tensor, dim: int) -> None:
    if tau.dtype == torch.bool or tau.is_complex():
        raise TypeError(f"tau has dtype {tau.dtype}; it must be a tensor of positive numbers")
    if tau.device != logits.device and tau.numel() > 1:
        raise ValueError(
            f"tau is on {tau.device}; it must be on {logits.device}, as the logits are"
        )
    rows = list(logits.shape)
    if rows:
        rows[dim] = 1
    fits = tau.ndim <= len(rows) and all(
        a in (1, b) for a, b in zip(reversed(tau.shape), reversed(rows), strict=False)
    )
    if not (fits or tau.numel() == 1):
        raise ValueError(
            f"tau has shape {tuple(tau.shape)}; for logits of shape {tuple(logits.shape)} it must be of one element, "
            f"or broadcast to {tuple(rows)}"
        )
    # On a GPU, a look at its numbers would wait for them.
    if tau.device.type == "cpu" and plain(tau) and not ((tau > 0) & (tau < math.inf)).all():
        raise ValueError("tau has an element that is not positive and finite")


def sample(logits: Tensor, seed: Tensor, tau: float | Tensor, hard: bool, backend: str) -> Tensor:
    """gumbel_softmax over the last dimension of `logits`, with the noise of `seed`.

    `seed` is int64 and () or as many of the leading dimensions of `logits`: each entry has its own noise. `tau` is a
    number, or a tensor in the accumulator's dtype of shape () or (...), one for each row of logits (..., K).
    """
    if backend == "reference":
        return reference.gumbel_softmax(logits, seed, tau, hard)
    temperature = (None, (tau,)) if isinstance(tau, float) else (tau, ())
    run = _hard if hard else _soft
    return run(logits, seed, *temperature, backend).to(logits.dtype)  # type: ignore[no-any-return]


# The operations, shared by the backends: logits (..., K), a seed for each entry of its first dimensions, and the
# temperature as a tensor or as the only one of `numbers`. Soft samples are in the accumulator's dtype.

_ARGUMENTS = "Tensor logits, Tensor seed, Tensor? tau, float[] numbers, str backend"


def _temperature(logits: Tensor, tau: Tensor | None, numbers: tuple[float, ...]) -> float | Tensor:
    if tau is None:
        return numbers[0]
    rows = logits.shape[:-1]
    if tau.ndim == 0 or tau.shape == rows:
        return tau.contiguous()
    # One for each entry that vmap runs over.
    return tau.reshape(*tau.shape, *[1] * (len(rows) - tau.ndim)).expand(rows).contiguous()


def _run(hard: bool, need_soft: bool, *arguments: Any) -> Any:
    logits, seed, tau, numbers, backend = arguments
    run = implementation(__package__, backend).gumbel_softmax
    return run(logits, seed, _temperature(logits, tau, numbers), hard, need_soft)


def _run_gradient(
    y: Tensor, g: Tensor, tau: Tensor | None, logits: Tensor | None, numbers: Any, backend: str
) -> Tensor:
    run = implementation(__package__, backend).softmax_grad
    return run(y, g, _temperature(y, tau, numbers))  # type: ignore[no-any-return]


def _formula(
    y: Tensor, g: Tensor, tau: Tensor | None, logits: Tensor | None, numbers: Any, backend: str
) -> Tensor:
    """The same, as torch can differentiate it any number of times."""
    half = reference.half_tau(numbers[0] if tau is None else tau, y.dtype)
    if isinstance(half, Tensor) and half.ndim:
        half = half.unsqueeze(-1)
    return y * (g - (g * y).sum(-1, keepdim=True)) * (0.5 / half)  # type: ignore[no-any-return]


# y (g - sum(g y)) / tau: the product with the symmetric Jacobian of the soft sample y in the logits, which are here for
# autograd's sake alone.
_softmax_gradient = operation(
    "_softmax_gradient(Tensor y, Tensor g, Tensor? tau, Tensor? logits, float[] numbers, str backend) -> Tensor",
    _run_gradient,
    lambda y, *_: y.new_empty(y.shape),
    tensors=4,
    differentiated=_formula,
)


class _FromTheSample(Derivative):
    """From the soft sample, which is all that is saved: the logits may be changed in place after the call."""

    def save(self, ctx: Any, inputs: Any, config: Any, outputs: Any) -> None:
        logits, _, tau = inputs
        soft = outputs[0] if isinstance(outputs, tuple) else outputs
        ctx.numbers, ctx.backend = config
        ctx.dtype, ctx.both = logits.dtype, isinstance(outputs, tuple)
        ctx.set_materialize_grads(False)
        # A compiled backward that did not take them would hide from a second derivative that it depends on them.
        source = logits if torch._C._len_torch_dispatch_stack() else None
        ctx.save_for_backward(soft, tau, source)
        ctx.save_for_forward(soft, tau, source)

    def backward(self, ctx: Any, *gradients: Tensor | None) -> Any:
        soft, tau, source = ctx.saved_tensors
        given = [t.to(soft.dtype) for t in gradients if t is not None]
        if not given:
            return None, None, None
        g = given[0] if len(given) == 1 else given[0] + given[1]
        of_logits = self.along(ctx, soft, g, tau, source).to(ctx.dtype)
        if tau is None:
            return of_logits, None, None
        of_tau = (g * self.of_tau(ctx, soft, tau, source)).sum(-1)
        return of_logits, None, of_tau.sum() if tau.ndim == 0 else of_tau

    def jvp(self, ctx: Any, saved: Any, v: Tensor | None, _: Any, v_tau: Tensor | None) -> Any:
        soft, tau, source = saved
        tangent = torch.zeros_like(soft)
        if v is not None:
            tangent = tangent + self.along(ctx, soft, v.to(soft.dtype), tau, source)
        if v_tau is not None:
            weight = v_tau.unsqueeze(-1) if v_tau.ndim else v_tau
            tangent = tangent + weight * self.of_tau(ctx, soft, tau, source)
        return (tangent, tangent.to(ctx.dtype)) if ctx.both else tangent

    def along(self, ctx: Any, soft: Tensor, g: Tensor, *sources: Tensor | None) -> Tensor:
        return _softmax_gradient(soft, g, *sources, ctx.numbers, ctx.backend)  # type: ignore[no-any-return]

    def of_tau(self, ctx: Any, soft: Tensor, *sources: Tensor | None) -> Tensor:
        """dy / dtau: (logits + g) / tau is log y but for what is the same in a row. Where y is 0 so is this."""
        log = soft.where(soft > 0, 1.0).log()
        return -self.along(ctx, soft, log, *sources)


_soft = operation(
    f"_gumbel_softmax({_ARGUMENTS}) -> Tensor",
    lambda *arguments: _run(False, True, *arguments)[0],
    lambda logits, *_: logits.new_empty(logits.shape, dtype=accumulator(logits)),
    tensors=3,
    derivative=_FromTheSample(),
)

_soft_and_hard = operation(
    f"_gumbel_softmax_both({_ARGUMENTS}) -> (Tensor, Tensor)",
    lambda *arguments: _run(True, True, *arguments),
    lambda logits, *_: (
        logits.new_empty(logits.shape, dtype=accumulator(logits)),
        logits.new_empty(logits.shape),
    ),
    tensors=3,
    derivative=_FromTheSample(),
)

_hard = operation(
    f"_gumbel_softmax_hard({_ARGUMENTS}) -> Tensor",
    lambda *arguments: _run(True, False, *arguments)[1],
    lambda logits, *_: logits.new_empty(logits.shape),
    tensors=3,
    differentiated=lambda *arguments: _soft_and_hard(*arguments)[1],
    eager=lambda *arguments: _soft_and_hard.eager(*arguments)[1],  # type: ignore[attr-defined]
)
