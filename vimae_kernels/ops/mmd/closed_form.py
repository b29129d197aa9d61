"""The terms of the squared MMD that hold a prior N(loc, scale^2 I), exactly: no samples of it are drawn.

Where points and kernel are measured from loc and in units of scale it is N(0, I).

For p and p' from N(0, I) in d dimensions, r = ||z||^2 and every t >= 0,

    E exp(-t ||z - p||^2)  = (1 + 2t)^(-d/2) exp(-r t / (1 + 2t))
    E exp(-t ||p - p'||^2) = (1 + 4t)^(-d/2)

(a noncentral chi-square's moment generating function). The RBF kernel exp(-s / c) is the case t = 1 / c.
The IMQ kernel is a mixture of these, c / (c + s) = integral of c e^(-ct) e^(-ts) dt over t > 0, so both
its expectations are integrals over t; a quadrature whose nodes do not depend on z makes them sums too.
Either way E k(z, p) is a sum of exponentials of r.

Beyond r = 1e8 the integrand is nearly e^(-(c + r) t), and a Gauss rule for that exponential, whose nodes follow r,
takes what is left, 1 + O(d / r), for the polynomial it nearly is.

Error of the quadrature against 30 digits, relative, for every d in 1 ... 4096, c in 1e-3 ... 1e5 and r in
0 ... 1e30: below 1e-13 (tests/test_closed_form.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from ... import _checks
from ..._operation import Derivative, operation
from ...kernels import IMQ, RBF
from ...priors import check_shapes

STEP = 0.28  # of the trapezoidal rule in log t
CUT = 40.0  # the integrand is cut where it has fallen by exp(-CUT)
FARTHEST = 1e8  # the largest r that the nodes are made for; beyond it they follow r
FAR_NODES = 10
SMALLEST = 8  # nodes for all t below the resolution of FARTHEST
BLOCK = 2**15  # points at once: memory is BLOCK times the nodes, some 20 MB


SUPPORTED = (
    "the closed_form estimator supports 'normal' and Normal, MultivariateNormal or Independent distributions "
    "N(loc, scale^2 I) only"
)


class Isotropic(NamedTuple):
    """N(loc, scale^2 I), other than N(0, I)."""

    loc: Tensor  # broadcasts against z
    scale: Any  # a float; in traced code, which cannot read it, a tensor ()

    def measure(self, z: Tensor, scales: Sequence[float]) -> tuple[Tensor, tuple[float, ...]]:
        """z and the scales of a kernel, which are squares, where this is N(0, I)."""
        return (z.double() - self.loc) / self.scale, tuple(c / self.scale**2 for c in scales)


def check(prior: object, kernel: IMQ | RBF, z: Tensor | None = None) -> Isotropic | None:
    """The prior if it is not N(0, I) by name; raises where there is no closed form (for z, if given)."""
    normal = None
    if isinstance(prior, Distribution):
        if z is not None:
            check_shapes(prior, z)
        normal = _isotropic(prior)
    elif not (isinstance(prior, str) and prior == "normal"):
        what = repr(prior) if isinstance(prior, str) else f"of type {type(prior).__name__}"
        raise ValueError(f"prior is {what}; {SUPPORTED}")
    if isinstance(kernel, RBF) and kernel.bandwidth == "median":
        raise ValueError(
            "kernel is RBF('median'); the closed_form estimator has no prior samples to pool with z: "
            "give a bandwidth"
        )
    return normal


def _isotropic(prior: Distribution) -> Isotropic:
    given = type(prior).__name__
    while isinstance(prior, Independent):
        prior = prior.base_dist
    if not isinstance(prior, Normal | MultivariateNormal):
        raise ValueError(f"prior is of type {given}; {SUPPORTED}")
    loc = prior.loc.unsqueeze(-2) if prior.loc.ndim else prior.loc
    if isinstance(prior, Normal):
        return Isotropic(loc, _one_number(prior.scale, given))
    factor = prior._unbroadcasted_scale_tril
    scale = factor.diagonal(dim1=-2, dim2=-1)
    return Isotropic(loc, _one_number(scale, given, factor))


def _one_number(scale: Tensor, given: str, factor: Tensor | None = None) -> Any:
    """The only value of `scale`, the diagonal of a `factor` that is zero elsewhere: read on the host."""
    if _checks.is_differentiated(scale if factor is None else factor):
        raise ValueError(
            "prior has a scale with a derivative, which the closed_form estimator has in loc alone: detach it, or "
            "take the estimator 'unbiased'"
        )
    if _checks.is_mapped(scale):
        raise ValueError(
            "prior has a scale that vmap runs over; the closed_form estimator takes one number for all: take the "
            "estimator 'unbiased'"
        )
    if torch.compiler.is_compiling() and factor is None and not any(scale.stride()):
        return scale.flatten()[0].double()
    ends = [*scale.detach().aminmax()]
    if factor is not None:
        ends.append((factor - scale.diag_embed()).detach().abs().amax())
    least, most, *rest = torch.stack(ends).tolist()
    if least != most or any(rest):
        raise ValueError(
            f"prior is {given} with scales from {least:.6g} to {most:.6g}"
            f"{' and correlations' if any(rest) else ''}; {SUPPORTED}"
        )
    if not 0 < least < math.inf:
        raise ValueError(f"prior has the scale {least}; it must be positive and finite")
    return least


def prior_terms(
    z: Tensor, kernel: IMQ | RBF, backend: str, normal: Isotropic | None = None
) -> Tensor:
    """E k(p, p') - 2/n sum_i E k(z_i, p) of z (..., n, d), in float64: O(n) numbers, of which sums cancel."""
    d = z.shape[-1]
    scales = kernel.scales(d)
    if normal is not None:
        z, scales = normal.measure(z, scales)
    r = z.double().square().sum(-1)
    if backend == "reference" and not torch.compiler.is_compiling():
        rate, weight, constant = _exponentials(kernel.family, scales, d, z.device)
        near = (-r.unsqueeze(-1) * rate).exp() @ weight
        if kernel.family == "imq":
            near = torch.where(r > FARTHEST, _far_imq(r, scales, d, 0), near)
        return constant - 2 * near.mean(-1)
    expectation = _expectation(r, kernel.family, scales, d, 0)
    return _constant(r.detach(), kernel.family, scales, d) - 2 * expectation.mean(-1)  # type: ignore[no-any-return]


# Operations, so that torch.compile leaves the nodes alone.


def _derivative_of_expectation(
    r: Tensor, family: str, scales: tuple[float, ...], d: int, order: int
) -> Tensor:
    """The derivative of E k(z, p) of this order with respect to r = ||z||^2, for every element of r."""
    rate, weight, _ = _exponentials(family, scales, d, r.device)
    weight = weight * (-rate) ** order
    flat = r.flatten()
    # Made before the blocks: small tensors left between them would keep the heap from using them again.
    out = torch.empty_like(flat)
    for i in range(0, len(flat), BLOCK):
        out[i : i + BLOCK] = (flat[i : i + BLOCK, None] * -rate).exp_() @ weight
    # A device is not asked whether there are such points.
    if family == "imq" and (flat.device.type != "cpu" or bool((flat > FARTHEST).any())):
        out = torch.where(flat > FARTHEST, _far_imq(flat, tuple(scales), d, order), out)
    return out.view(r.shape)


class _NextOrder(Derivative):
    def save(self, ctx: Any, inputs: Any, config: Any, outputs: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)
        *ctx.config, order = config
        ctx.order = order + 1

    def backward(self, ctx: Any, g: Tensor) -> Any:
        return (g * _expectation(*ctx.saved_tensors, *ctx.config, ctx.order),)

    def jvp(self, ctx: Any, saved: Any, v: Tensor) -> Any:
        return v * _expectation(*saved, *ctx.config, ctx.order)


_expectation = operation(
    "_closed_form_expectation(Tensor r, str family, float[] scales, SymInt d, int order) -> Tensor",
    _derivative_of_expectation,
    lambda r, *_: r.new_empty(r.shape),
    tensors=1,
    derivative=_NextOrder(),
)

# E k(p, p'), ().
_constant: Any = operation(
    "_closed_form_constant(Tensor r, str family, float[] scales, SymInt d) -> Tensor",
    lambda r, family, scales, d: _exponentials(family, scales, d, r.device)[2].clone(),
    lambda r, *_: r.new_empty(()),
    tensors=1,
    vmap=lambda info, dims, r, *rest: (_constant.dispatched(r, *rest), None),
)


Exponentials = tuple[Tensor, Tensor, Tensor]
# What captured CUDA graphs read at every replay; they cannot be captured with a copy from the host in them.
_captured: dict[tuple[str, tuple[float, ...], int, torch.device], Exponentials] = {}


def _exponentials(
    family: str, scales: tuple[float, ...], d: int, device: torch.device
) -> Exponentials:
    """(rate, weight, E k(p, p')): E k(z, p) = sum_k weight_k exp(-rate_k ||z||^2), for all scales together."""
    key = family, scales, d, device
    if torch._C._len_torch_dispatch_stack():  # somebody only traces, or watches
        return _make(*key)
    found = _kept(*key)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _captured[key] = found
    return found


def _make(family: str, scales: tuple[float, ...], d: int, device: torch.device) -> Exponentials:
    made = _exponentials_on_host(family, scales, d)
    # Neither inference mode nor a transform of torch.func may leave a mark on what is kept.
    with torch.inference_mode(False), torch._C._DisableFuncTorch():
        rate, weight, constant = (torch.tensor(t, dtype=torch.float64, device=device) for t in made)
    return rate, weight, constant


# A scale that is annealed has new ones at every step.
_kept = lru_cache(maxsize=64)(_make)


def _exponentials_on_host(
    family: str, scales: tuple[float, ...], d: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], float]:
    if family == "rbf":
        c = np.array(scales)
        rate, weight = 1 / (c + 2), (1 + 2 / c) ** (-d / 2)
        constant = float(((1 + 4 / c) ** (-d / 2)).sum())
    else:
        nodes = [_imq_nodes(c, d) for c in scales]
        rate, weight = (np.concatenate(part) for part in zip(*nodes, strict=True))
        # With t' = 2t, the expectation over p' - p is the one at r = 0 of half the scale.
        constant = float(sum(_imq_nodes(c / 2, d)[1].sum() for c in scales))
    return rate, weight, constant


def _imq_nodes(c: float, d: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(rate, weight) of the integral of c e^(-ct) (1 + 2t)^(-d/2) exp(-r t / (1 + 2t)) over t > 0.

    In x = log t the integrand is analytic for |Im x| < pi / 2, where the trapezoidal rule converges as
    exp(-pi^2 / STEP). It falls slowly only for x -> -inf: there, below the smallest t that any r can
    tell from 0, it is t times a polynomial, and a Gauss rule does for all those nodes of the trapezoid.
    """

    def decay(t: Any) -> Any:
        return c * t + d / 2 * np.log1p(2 * t)

    low, high = -700.0, 700.0
    while high - low > 0.1:
        middle = (low + high) / 2
        low, high = (middle, high) if decay(math.exp(middle)) < CUT else (low, middle)
    smallest = 1 / (c + d + FARTHEST)
    count = math.ceil((high - math.log(smallest)) / STEP) + 1
    t = smallest * np.exp(STEP * np.arange(count))
    below, share = _gauss_of_geometric_sequence(math.exp(-STEP), SMALLEST)
    t = np.concatenate([smallest * below, t])
    dt = STEP * np.concatenate([smallest * share, t[SMALLEST:]])
    return t / (1 + 2 * t), c * dt * np.exp(-decay(t))


def _far_imq(r: Tensor, scales: tuple[float, ...], d: int, order: int) -> Tensor:
    """The same integral, or its derivative of this order by r, where r is so large that t is small."""
    total = torch.zeros_like(r)
    r = r.clamp(FARTHEST, 1e300)
    for node, share in zip(*np.polynomial.laguerre.laggauss(FAR_NODES), strict=True):
        for c in scales:
            t = float(node) / (c + r)
            rest = (
                2 * float(node) * t * (r / (c + r)) / (1 + 2 * t) - d / 2 * (2 * t).log1p()
            ).exp()
            total = total + float(share) * c / (c + r) * rest * (-t / (1 + 2 * t)) ** order
    return total


def _gauss_of_geometric_sequence(
    q: float, count: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The Gauss rule of `count` nodes for sums of q^j f(q^j) over j = 1, 2, ... (Golub and Welsch 1969)."""
    x = q ** np.arange(1, 40 / -math.log(q))
    before, p = np.zeros_like(x), np.ones_like(x) / math.sqrt(x.sum())
    diagonal, beside = [], [0.0]
    for _ in range(count):
        diagonal.append(float((x * p * x * p).sum()))
        rest = (x - diagonal[-1]) * p - beside[-1] * before
        beside.append(math.sqrt((x * rest * rest).sum()))
        before, p = p, rest / beside[-1]
    off = beside[1:count]
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    return nodes, vectors[0] ** 2 * x.sum()
