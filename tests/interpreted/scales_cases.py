"""The Triton kernels at scales that float32 does not hold, of points that coincide, and of sums of nearly nothing.

Run by tests/test_interpreted.py, as mmd_cases.py is.
"""

from __future__ import annotations

import pytest
import torch
from triton import knobs

from vimae_kernels.ops.ksd import reference as ksd_reference
from vimae_kernels.ops.ksd import triton_impl as ksd_triton
from vimae_kernels.ops.median import triton_impl as median_triton
from vimae_kernels.ops.mmd import reference as mmd_reference
from vimae_kernels.ops.mmd import triton_impl as mmd_triton
from vimae_kernels.ops.permutation import op as permutation
from vimae_kernels.ops.permutation import reference as permutation_reference
from vimae_kernels.ops.permutation import triton_impl as permutation_triton
from vimae_kernels.ops.stein import reference as stein_reference
from vimae_kernels.ops.stein import triton_impl as stein_triton

DEVICE = "cpu" if knobs.runtime.interpret else "cuda"
F64, F32 = torch.float64, torch.float32
KERNELS = [("imq", [6.0]), ("rbf", [5.0]), ("imq", [2.0, 9.0])]


def samples(n, m, d):
    g = torch.Generator().manual_seed(n)
    x, y, v = (torch.randn(k, d, generator=g) for k in (n, m, n))
    return [t.double().to(DEVICE) for t in (x, y + 0.5, v)]


@pytest.mark.parametrize(("family", "scales"), KERNELS)
@pytest.mark.parametrize(
    ("dtype", "power"), [(F32, -90), (F32, -30), (F32, 90), (F64, -300), (F64, 300)]
)
@pytest.mark.parametrize("d", [3, 20])
def test_any_scale(d, dtype, power, family, scales):
    x, y, v = samples(30, 20, d)
    a = 2.0**power
    scaled = [c * a * a for c in scales]
    tolerance = 60 * torch.finfo(dtype).eps
    one = x.clone().requires_grad_()
    want = mmd_reference.mmd(one, y, family, scales, True)
    (g,) = torch.autograd.grad(want, one, create_graph=True)
    (h,) = torch.autograd.grad((g * v).sum(), one)
    moved = [(a * t).to(dtype) for t in (x, y, v)]
    value, dx, _ = mmd_triton.mmd_grad(moved[0], moved[1], True, False, family, scaled, True)
    hx, _ = mmd_triton.mmd_hvp(
        *moved[:2], moved[2], torch.zeros_like(moved[1]), family, scaled, True
    )
    phi = stein_triton.stein_gradient(moved[0], (v / a).to(dtype), family, scaled)
    want_phi = stein_reference.stein_gradient(x, v, family, scales)
    assert abs(value - want) <= tolerance
    for got, w in ((dx.double() * a, g), (hx.double() * a, h), (phi.double() * a, want_phi)):
        assert (got - w).abs().max() <= tolerance * w.abs().max()


@pytest.mark.parametrize(
    ("family", "c"), [("imq", 1e40), ("imq", 1e-320), ("rbf", 1e-40), ("imq", 1e300)]
)
def test_the_limits_of_a_kernel(family, c):
    x, y, v = (t.float() for t in samples(30, 20, 3))
    value, dx, dy = mmd_triton.mmd_grad(x, y, True, True, family, [c], False)
    assert abs(value - (1 / 30 + 1 / 20) * (c < 1)) < 1e-6
    assert dx.abs().max() < 1e-35 and dy.abs().max() < 1e-35
    phi = stein_triton.stein_gradient(x, None, family, [c])
    want = -x / 30 if c < 1 else -x.mean(0).expand_as(x)
    assert (phi - want).abs().max() < 1e-6
    value, dz, _ = ksd_triton.ksd_grad(x, None, False, family, [c], True)
    assert not value.isnan() and not dz.isnan().any()
    if c > 1:
        assert abs(value - (x.sum(0).square().sum() - x.square().sum()) / (30 * 29)) < 1e-5


@pytest.mark.parametrize(("family", "c"), [("imq", 2.0), ("rbf", 2.0)])
def test_biased_estimates_are_not_negative(family, c):
    x = torch.tensor([[0.0], [1.0], [3.0]], device=DEVICE)
    assert mmd_triton.mmd(x, x, family, [c], False) >= 0
    batch = torch.randn(20, 5, 2, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    assert (mmd_triton.mmd(batch, batch.flip(-2), family, [c], False) >= 0).all()
    z, score = torch.zeros(20, 2, 1, device=DEVICE), 100 * batch[:, :2, :1]
    score[:, 1] = -score[:, 0]
    assert (ksd_triton.ksd(z, score, family, [c], False) >= 0).all()


@pytest.mark.parametrize("d", [2, 16, 64])
@pytest.mark.parametrize("with_score", [False, True])
def test_unbiased_ksd_where_the_diagonal_is_nearly_all(d, with_score):
    z = samples(40, 2, d)[0].float()
    x = z.double().requires_grad_()
    for family, c in (("rbf", 0.045 * d), ("imq", 1e-4 * d)):
        want = ksd_reference.ksd(x, -x, family, [c], True)
        (w,) = torch.autograd.grad(want, x)
        value, dz, ds = ksd_triton.ksd_grad(
            z, -z if with_score else None, with_score, family, [c], True
        )
        alone = ksd_triton.ksd(z, -z if with_score else None, family, [c], True)
        total = dz - ds if with_score else dz
        assert abs(value - want) <= 2e-5 * abs(want) and abs(alone - want) <= 2e-5 * abs(want)
        assert (total - w).norm() <= 5e-5 * w.norm()


@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_median_is_that_of_distances_that_are_not_zero(dtype):
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 3, (4, 90, 2), generator=g).to(DEVICE, dtype) * 0.7
    x[1, 1:] = x[1, 0]
    x[1, 0] += 2
    x[2] = 0.3
    got = median_triton.median_distance(x)
    for b in range(4):
        distances = torch.pdist(x[b].double())
        apart = distances[distances > 1e-6]
        want = apart.median() if len(apart) else torch.zeros((), device=DEVICE)
        assert abs(got[b] - want) <= 4 * torch.finfo(dtype).eps * want


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    ("unit", "family", "scales"),
    [
        (unit, family, scales)
        for unit in (1e-9, 1e-5, 1e-2, 1.0, 1e4)
        for family, scales in KERNELS
        if family != "rbf" or unit <= 1  # beyond, its values are 0
    ],
)
def test_statistics_of_kernels_that_are_nearly_one_or_zero(unit, family, scales, dtype):
    g = torch.Generator().manual_seed(3)
    x = (torch.randn(90, 2, generator=g) * unit).to(DEVICE, dtype)
    labels = permutation._draw(40, 40, 90, g, torch.device("cpu"), "reference").to(DEVICE)
    centre, _ = permutation._centre(x, family, tuple(scales))
    got = permutation_triton.permuted_mmd(x, labels, centre, 40, family, scales)[:41]
    first = permutation.unpack(labels, 90)[:41]
    want = permutation_reference.permuted_mmd(x.double(), first, family, tuple(scales))
    # In float64 the labels' weights are two float32.
    assert (got - want).abs().max() <= max(100 * torch.finfo(dtype).eps, 1e-12) * want.abs().max()
