"""The Triton kernels of gumbel_softmax against the definition in float64.

Not collected by name: tests/test_interpreted.py runs this file in a process of its own, interpreted on the
CPU or, where there is one, on a GPU.
"""

from __future__ import annotations

import math

import pytest
import torch
from triton import knobs

import vimae_kernels as vk
from vimae_kernels.ops.gumbel import op, reference

DEVICE = "cpu" if knobs.runtime.interpret else "cuda"
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch):
    """Memory from new_empty holds NaN, so that an element nobody writes is seen."""
    new_empty = torch.Tensor.new_empty

    def poison(self, *args, **kwargs):
        out = new_empty(self, *args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    monkeypatch.setattr(torch.Tensor, "new_empty", poison)


@pytest.fixture(autouse=True)
def numpy_says_nothing_of_nan():
    import numpy

    with numpy.errstate(all="ignore"):
        yield


def logits(shape, dtype, scale=3.0):
    return (scale * torch.randn(shape, dtype=F64)).to(DEVICE, dtype)


def a_seed(shape=()):
    return torch.randint(-(2**63), 2**63 - 1, shape, device=DEVICE)


# Widths below, at and above powers of two, with rows that begin at each word of a Philox block; beyond 8192
# rows are met in pieces.
@pytest.mark.parametrize(
    ("dtype", "tau"), [(F64, 0.5), (F32, 1.0), (F32, 0.5), (BF16, 1.0), (F16, 0.5)], ids=str
)
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 2), (20, 5), (2, 3, 13), (33, 16), (3, 1001), (2, 8195)]
)
def test_against_the_definition(shape, dtype, tau):
    x, seed = logits(shape, dtype), a_seed()
    g = torch.randn(shape, dtype=F64).to(DEVICE, dtype)
    exact, weight = x.double(), g.double()
    want = reference.gumbel_softmax(exact, seed, tau, False)
    slope = want * (weight - (want * weight).sum(-1, keepdim=True)) / tau
    z = exact + reference.gumbel_noise(x.shape, seed)
    accumulator = F64 if dtype == F64 else F32
    eps = torch.finfo(accumulator).eps * float(16 + 8 * (z.abs().max() + z.max() - z.min()) / tau)
    rounding = 0 if dtype == accumulator else torch.finfo(dtype).eps
    small = 1e-7 if dtype == F16 else 1e-37

    soft = op.sample(x, seed, tau, False, "triton")
    assert soft.dtype == dtype and soft.shape == shape
    assert ((soft.double() - want).abs() <= (eps + rounding) * want + small).all()
    hard = op.sample(x, seed, tau, True, "triton")
    assert torch.equal(hard.argmax(-1), z.argmax(-1))
    assert torch.equal(hard, (hard == 1).to(dtype)) and (hard.sum(-1) == 1).all()

    scale = want * ((want * weight.abs()).sum(-1, keepdim=True) + weight.abs()) / tau
    for hard in (False, True):
        y = x.clone().requires_grad_()
        (got,) = torch.autograd.grad(op.sample(y, seed, tau, hard, "triton"), y, g)
        assert got.dtype == dtype
        assert (
            (got.double() - slope).abs() <= 4 * eps * scale + rounding * slope.abs() + small
        ).all()


def test_several_seeds():
    x, seed = logits((3, 2, 7), F64), a_seed((3, 2))
    for seeds in (seed, seed[:, 0].clone()):
        for hard in (False, True):
            got = op.sample(x, seeds, 0.5, hard, "triton")
            want = reference.gumbel_softmax(x, seeds, 0.5, hard)
            torch.testing.assert_close(got, want, rtol=1e-11, atol=0)


@pytest.mark.parametrize("k", [4, 8196])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_extremes(k, dtype):
    rows = torch.tensor(
        [
            [1e30, -1e30, 0.0, 3e38],
            [-3e38, 3e38, 3e38, 0.0],
            [1.0, -math.inf, 0.0, -math.inf],
            [1.0, math.nan, 0.0, 2.0],
            [1.0, math.inf, 0.0, 2.0],
            [-math.inf] * 4,
        ]
    )
    x = rows.repeat(1, k // 4).to(DEVICE, dtype)
    # Long rows take the interpreter two seconds each.
    for tau in (5e-324, 1e-30, 1.0, 1e30, 1e300) if k == 4 else (1e-30, 1e30):
        for hard in (False, True):
            y = x.clone().requires_grad_()
            value = vk.gumbel_softmax(y, tau, hard, backend="triton")
            assert value[:3].isfinite().all() and value[3:].isnan().all()
            assert (value[2][x[2] == -math.inf] == 0).all()
            torch.testing.assert_close(value[:3].sum(-1), torch.ones_like(value[:3, 0]))
            (g,) = torch.autograd.grad(value, y, torch.randn_like(value))
            assert not g[:3].isnan().any() and g[3:].isnan().all()


def test_no_rows():
    x = torch.randn(0, 5, device=DEVICE, requires_grad=True)
    for hard in (False, True):
        y = vk.gumbel_softmax(x, hard=hard, backend="triton")
        assert y.shape == (0, 5)
        y.sum().backward()


def test_second_derivative():
    x, seed = logits((4, 5), F64).requires_grad_(), a_seed()
    for hard in (False, True):

        def twice(backend, hard=hard):
            y = op.sample(x, seed, 0.7, hard, backend)[:, :2].sum()
            (g,) = torch.autograd.grad(y, x, create_graph=True)
            return torch.autograd.grad(g.square().sum(), x)[0]

        torch.testing.assert_close(twice("triton"), twice("reference"))
