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
from vimae_kernels.ops.gumbel import op, reference, triton_impl

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


def temperatures(shape, dtype):
    """Of each row."""
    return (0.4 + torch.rand(shape[:-1], dtype=F64)).to(DEVICE, dtype)


# Widths below, at and above powers of two, with rows that begin at each word of a Philox block; beyond 8192
# rows are met in pieces.
@pytest.mark.parametrize(
    ("dtype", "tau"),
    [
        (F64, 0.5),
        (F64, "rows"),
        (F32, 1.0),
        (F32, "one"),
        (F32, "rows"),
        (BF16, 1.0),
        (F16, "rows"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 2), (20, 5), (2, 3, 13), (33, 16), (3, 1001), (2, 8195)], ids=str
)
def test_against_the_definition(shape, dtype, tau):
    x, seed, exact = logits(shape, dtype), a_seed(), F64 if dtype == F64 else F32
    if tau == "one":
        tau = torch.tensor(0.5, dtype=exact, device=DEVICE)
    elif tau == "rows":
        tau = temperatures(shape, exact)
    rows = torch.as_tensor(tau, dtype=F64, device=DEVICE).expand(shape[:-1])[..., None]
    z = x.double() + reference.gumbel_noise(x.shape, seed)
    want = (z / rows).softmax(-1)
    eps = torch.finfo(exact).eps * (16 + 8 * (z.abs().max() + z.max() - z.min()) / rows)
    first = torch.zeros(shape, device=DEVICE, dtype=dtype)
    first.scatter_(-1, z.argmax(-1, keepdim=True), 1.0)

    soft, nothing = triton_impl.gumbel_softmax(x, seed, tau, False, False)
    assert soft.dtype == exact and soft.shape == shape and nothing.shape == (0,)
    assert ((soft - want).abs() <= eps * want + 1e-37).all()
    nothing, alone = triton_impl.gumbel_softmax(x, seed, tau, True, False)
    assert nothing.shape == (0,) and alone.dtype == dtype and torch.equal(alone, first)
    beside_it, beside = triton_impl.gumbel_softmax(x, seed, tau, True, True)
    assert torch.equal(beside_it, soft)
    assert beside.dtype == dtype and torch.equal(beside, first)

    g = torch.randn(shape, dtype=F64).to(DEVICE, exact)
    slope = want * (g - (want * g).sum(-1, keepdim=True)) / rows
    scale = want * ((want * g.abs()).sum(-1, keepdim=True) + g.abs()) / rows
    got = triton_impl.softmax_grad(soft, g, tau)
    assert got.dtype == exact
    assert ((got - slope).abs() <= 4 * eps * scale + 1e-37).all()


def test_several_seeds():
    x, seed = logits((3, 2, 7), F64), a_seed((3, 2))
    tau = temperatures(x.shape, F64)
    for seeds in (seed, seed[:, 0].clone()):
        z = x + reference.gumbel_noise(x.shape, seeds)
        soft, one_hot = triton_impl.gumbel_softmax(x, seeds, tau, True, True)
        torch.testing.assert_close(soft, (z / tau[..., None]).softmax(-1), rtol=1e-11, atol=0)
        assert torch.equal(one_hot.argmax(-1), z.argmax(-1))


@pytest.mark.parametrize("k", [4, 8196])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_no_temperature_makes_its_row_nan_and_no_other(k, dtype):
    values = [0.5, 0.0, -1.0, math.nan, math.inf, 1e-45]
    if k > 4:  # long rows take the interpreter two seconds each
        values = [0.5, math.nan, math.inf]
    tau = torch.tensor(values, dtype=dtype, device=DEVICE)
    x, seed = logits((len(values), k), dtype), a_seed()
    soft, beside = triton_impl.gumbel_softmax(x, seed, tau, True, True)
    _, alone = triton_impl.gumbel_softmax(x, seed, tau, True, False)
    slope = triton_impl.softmax_grad(torch.full_like(x, 1 / k), 0.01 * x, tau)
    good = tau > 0
    for result in (soft, beside, alone, slope):
        assert result[good].isfinite().all() and result[~good].isnan().all()
    # Infinite is the limit: all alike.
    torch.testing.assert_close(soft[tau == math.inf], torch.full_like(x[:1], 1 / k))


@pytest.mark.parametrize("k", [4, 8196])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_extremes(k, dtype):
    most = torch.finfo(dtype).max
    rows = torch.tensor(
        [
            [1e30, -1e30, 0.0, 3e38],
            [-3e38, 3e38, 3e38, 0.0],
            [1.0, -math.inf, 0.0, -math.inf],
            [-math.inf, -most, -most, -most],
            [1.0, math.nan, 0.0, 2.0],
            [1.0, math.inf, 0.0, 2.0],
            [-math.inf] * 4,
        ],
        dtype=dtype,
    )
    x, seed = rows.repeat(1, k // 4).to(DEVICE), a_seed()
    z = (x.double() + reference.gumbel_noise(x.shape, seed)).to(dtype)
    # Long rows take the interpreter two seconds each.
    for tau in (5e-324, 1e-30, 1.0, 1e30, 1e300) if k == 4 else (1e-30, 1e30):
        soft, beside = triton_impl.gumbel_softmax(x, seed, tau, True, True)
        _, alone = triton_impl.gumbel_softmax(x, seed, tau, True, False)
        for y in (soft, beside, alone):
            assert y[:4].isfinite().all() and y[4:].isnan().all()
            assert (y[:4][x[:4] == -math.inf] == 0).all()
            torch.testing.assert_close(y[:4].sum(-1), torch.ones_like(y[:4, 0]))
        # The first of equals.
        for y in (beside, alone):
            assert torch.equal(y[:4].argmax(-1), z[:4].argmax(-1))
        g = triton_impl.softmax_grad(soft, torch.randn_like(soft), tau)
        assert not g[:4].isnan().any() and g[4:].isnan().all()


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
