"""The Triton kernels of the Stein gradient and the kernel Stein discrepancy against the float64 definitions.

Run by tests/test_interpreted.py, as mmd_cases.py is.
"""

from __future__ import annotations

import pytest
import torch
from triton import knobs

import vimae_kernels as vk
from vimae_kernels.ops.ksd import reference as ksd_reference
from vimae_kernels.ops.ksd import triton_impl as ksd_triton
from vimae_kernels.ops.stein import reference as stein_reference
from vimae_kernels.ops.stein import triton_impl as stein_triton

pytestmark = pytest.mark.usefixtures("poisoned")

DEVICE = "cpu" if knobs.runtime.interpret else "cuda"
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16

# Relative to the largest entry; values are relative to the largest product of two scores.
TOLERANCE = {F64: 1e-12, F32: 2e-5, BF16: 2e-5}


def samples(n, d, dtype, batch=(), shift=0.0, seed=0):
    """Points, and scores that are not those of a normal distribution."""
    g = torch.Generator().manual_seed(seed)
    z = 1.2 * torch.randn(*batch, n, d, generator=g, dtype=F64) + 0.3 + shift
    score = torch.randn(*batch, n, d, generator=g, dtype=F64) - 0.7 * z
    return z.to(DEVICE, dtype), score.to(DEVICE, dtype)


def check(actual, expected, tolerance, unit=None):
    assert actual.shape == expected.shape
    unit = expected.abs().max() if unit is None else unit
    assert (actual.double() - expected).abs().max() <= tolerance * unit


def check_all(z, score, kernel, tolerance=None):
    """Every output for the standard normal or a given score."""
    tolerance = tolerance or TOLERANCE[z.dtype]
    accumulator = F64 if z.dtype == F64 else F32
    x = z.double().requires_grad_()
    own = -x if score is None else score.double().requires_grad_()
    unit = own.square().sum(-1).max() + 2

    phi = stein_triton.stein_gradient(z, score, *kernel)
    assert phi.dtype == accumulator
    check(phi, stein_reference.stein_gradient(x, own, *kernel), tolerance)

    for unbiased in (True, False):
        value = ksd_reference.ksd(x, own, *kernel, unbiased)
        wanted = (x,) if score is None else (x, own)
        gradients = torch.autograd.grad(value.sum(), wanted)
        alone = ksd_triton.ksd(z, score, *kernel, unbiased)
        assert alone.dtype == accumulator
        check(alone, value, tolerance, unit)
        for need_score in (False, True) if score is not None and unbiased else (False,):
            out, *actual = ksd_triton.ksd_grad(z, score, need_score, *kernel, unbiased)
            check(out, value, tolerance, unit)
            for mine, gradient in zip(actual, gradients, strict=False):
                if mine.numel():
                    check(mine, gradient, tolerance)
            assert actual[0].dtype == accumulator
            assert actual[1].shape == (z.shape if need_score else (0,))


# Every d below, at and above the powers of two; d = 17 and more, and every score, take the tiled kernel.
@pytest.mark.parametrize(
    ("n", "d", "dtype", "kernel", "batch", "with_score"),
    [
        (2, 1, F64, ("imq", [3.0]), (), False),
        (3, 2, F32, ("rbf", [5.0]), (3,), False),
        (17, 2, F32, ("imq", [9.1, 0.4, 27.3]), (), True),
        (33, 3, F64, ("rbf", [0.7, 5.0]), (2,), False),
        (7, 3, F64, ("rbf", [0.7, 5.0]), (2, 2), True),
        (70, 8, F32, ("imq", [16.0]), (), False),
        (33, 8, BF16, ("rbf", [16.0]), (2,), False),
        (35, 10, F64, ("imq", [20.0]), (), True),
        (33, 16, F64, ("imq", [32.0]), (), False),
        (40, 16, F32, ("rbf", [32.0, 8.0]), (), False),
        (33, 17, F32, ("imq", [34.0, 3.0]), (2,), False),
        (70, 40, F32, ("rbf", [80.0]), (), False),
        (35, 20, F64, ("rbf", [40.0]), (), False),
        (40, 20, F32, ("imq", [40.0]), (), True),
        (3, 100, BF16, ("rbf", [200.0]), (), True),
    ],
)
def test_against_the_definitions(n, d, dtype, kernel, batch, with_score):
    z, score = samples(n, d, dtype, batch)
    check_all(z, score if with_score else None, kernel)


# Few blocks of many columns: several programs share them.
@pytest.mark.parametrize("d", [2, 17])
def test_partial_sums_are_added(d):
    z, score = samples(140, d, F32)
    kernel = ("imq", [2.0 * d])
    check_all(z, None, kernel)
    expected = stein_reference.stein_gradient(z.double(), score.double(), *kernel)
    check(stein_triton.stein_gradient(z, score, *kernel), expected, 2e-5)


@pytest.mark.parametrize("d", [5, 40])
def test_a_common_offset_costs_nothing(d):
    z, _ = samples(35, d, F32, shift=100.0)
    check_all(z, None, ("rbf", [2.0 * d]))
    # A score that the offset leaves alone.
    score = -(z - 100.0)
    check_all(z, score, ("imq", [2.0 * d]))


@pytest.mark.parametrize("d", [4, 20])
def test_any_strides(d):
    z, _ = samples(9, d, F32, (2,))
    for strided in (
        z.mT.contiguous().mT,
        samples(18, d, F32, (2,))[0][:, ::2],
        z.expand(2, 2, 9, d)[:, 0],
        torch.cat([z.new_zeros(1), z.flatten()])[1:].view(z.shape),
    ):
        check_all(strided, None, ("imq", [2.0 * d]))


@pytest.mark.parametrize("d", [3, 18])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_give_nan_for_that_problem_only(d, bad):
    z, score = samples(7, d, F32, (2,))
    z[1, 6, d - 1] = bad
    for own in (None, score):
        for out in (
            stein_triton.stein_gradient(z, own, "imq", [3.0])[..., d - 1],
            ksd_triton.ksd(z, own, "imq", [3.0], True),
            ksd_triton.ksd_grad(z, own, False, "rbf", [3.0], True)[0],
        ):
            assert out[0].isfinite().all()
            assert out[1].isnan().all()


@pytest.mark.parametrize("d", [8, 24])
def test_two_runs_are_bitwise_equal(d):
    z, _ = samples(40, d, F32)
    runs = [ksd_triton.ksd_grad(z, None, False, "imq", [16.0], True) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_no_problems_at_all():
    z, score = samples(4, 3, F32, (0,))
    assert stein_triton.stein_gradient(z, None, "imq", [1.0]).shape == (0, 4, 3)
    value, dz, dscore = ksd_triton.ksd_grad(z, score, True, "imq", [1.0], True)
    assert (value.shape, dz.shape, dscore.shape) == ((0,), (0, 4, 3), (0, 4, 3))


@pytest.mark.parametrize("prior", ["normal", "logistic"])
def test_public_functions_and_their_derivatives(prior):
    z, _ = samples(4, 2, F64)
    z.requires_grad_()
    kernel = vk.IMQ((1.0, 6.0))
    assert torch.autograd.gradcheck(lambda z: vk.ksd(z, prior, kernel, backend="triton"), z)
    losses = [vk.stein_loss(z, prior, "rbf", backend=b) for b in ("triton", "reference")]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, z)[0] for loss in losses]
    torch.testing.assert_close(*gradients)


def test_public_functions_in_half_precision():
    z, _ = samples(20, 8, BF16)
    z.requires_grad_()
    value = vk.ksd(z, backend="triton")
    value.backward()
    assert value.dtype == F32
    assert z.grad.dtype == BF16
    check(value, vk.ksd(z.double(), backend="reference"), 2e-5, 1.0)
    assert vk.stein_gradient(z, backend="triton").dtype == BF16
