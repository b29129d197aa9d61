"""mmd_test where divisions of the points tie: as data of few values do, at every scale and SIMD level."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch

import vimae_kernels as vk
from vimae_kernels import _native

NATIVE = vk._backend.unavailable("native", "cpu") is None
# Every way that this machine has to run it.
WAYS = [("native", level) for level in _native.simd_levels()["runnable"]] + [("reference", None)]
F64, F32 = torch.float64, torch.float32
N, M = 24, 41


@contextlib.contextmanager
def simd_level(level):
    used = _native.simd_levels()["used"]
    try:
        if level:
            _native._C.set_level(level)
        yield
    finally:
        if level:
            _native._C.set_level(used)


def binary(ones, size, unit=7.0):
    """(batch, size, 1) of so many `unit` and zeros."""
    ones = torch.as_tensor(ones).reshape(-1, 1)
    return (unit * (torch.arange(size) < ones).float())[..., None]


def exact(ones_z, ones_x, kernel):
    """The probability of a statistic at or above that of these samples: a hypergeometric tail."""
    total = ones_z + ones_x
    possible = torch.arange(max(0, total - M), min(N, total) + 1)
    values = vk.mmd(
        binary(possible, N).double(),
        binary(total - possible, M).double(),
        kernel,
        backend="reference",
    )
    observed = values[possible == ones_z]
    ways = [math.comb(total, int(j)) * math.comb(N + M - total, N - int(j)) for j in possible]
    tied = values >= observed - 1e-12
    return sum(w for w, t in zip(ways, tied.tolist(), strict=True) if t) / math.comb(N + M, N)


@pytest.mark.parametrize(("backend", "level"), WAYS)
@pytest.mark.parametrize("unit", [1e-10, 1e-5, 1.0, 1e5, 1e10])
def test_the_exact_p_value_of_two_kinds_of_points(unit, backend, level):
    permutations = 20000
    for ones in ((19, 40), (20, 30), (2, 1)):
        want = exact(*ones, vk.IMQ(1.0))
        z, x = (binary(k, size, 7.0 * unit)[0] for k, size in zip(ones, (N, M), strict=True))
        for order in (False, True):
            if order:  # no order of the points is special
                z, x = (
                    t[torch.randperm(len(t), generator=torch.Generator().manual_seed(1))]
                    for t in (z, x)
                )
            with simd_level(level):
                g = torch.Generator().manual_seed(3)
                p = vk.mmd_test(
                    z, x, vk.IMQ(unit**2), permutations=permutations, generator=g, backend=backend
                ).p_value
            assert abs(p - want) < 4.5 * math.sqrt(want / permutations)


@pytest.mark.parametrize(("backend", "level"), WAYS)
@pytest.mark.parametrize(
    ("unit", "kernel"),
    [
        (unit, kernel)
        for unit in (1e-12, 1e-5, 1e-2, 3.0, 1e5)
        for kernel in (vk.IMQ(1.0), vk.RBF(1.0), vk.IMQ((0.5, 30.0)))
        if unit < 1e5 or isinstance(kernel, vk.IMQ)  # the RBF's values are 0 there
    ],
    ids=str,
)
def test_float32_is_the_test_in_float64(unit, kernel, backend, level):
    # Kernels that are nearly 1 or nearly 0 tell the samples apart as well as their float64 does.
    g = torch.Generator().manual_seed(2)
    z, x = torch.randn(50, 1, generator=g) * unit, (torch.randn(60, 1, generator=g) + 0.6) * unit
    with simd_level(level):
        options = {"kernel": kernel, "permutations": 500, "backend": backend}
        got = vk.mmd_test(z, x, generator=g.manual_seed(5), **options)
        want = vk.mmd_test(z.double(), x.double(), generator=g.manual_seed(5), **options)
    assert abs(got.p_value - want.p_value) <= 3 / 501
    assert abs(got.statistic - want.statistic) <= 1e-4 * abs(want.statistic) + 1e-30
    if unit < 0.1:
        assert got.p_value < 0.05


@pytest.mark.parametrize(("backend", "level"), WAYS)
def test_data_times_a_power_of_two_give_the_same_p_value(backend, level):
    g = torch.Generator().manual_seed(2)
    z, x = torch.randn(3, 40, 2, generator=g), torch.randn(3, 50, 2, generator=g) + 0.4
    with simd_level(level):
        for kernel in (lambda a: vk.IMQ(a * a), lambda a: vk.RBF(a), lambda a: vk.RBF("median")):
            results = [
                vk.mmd_test(
                    a * z,
                    a * x,
                    kernel(a),
                    permutations=200,
                    generator=g.manual_seed(5),
                    backend=backend,
                )
                for a in (1.0, 2.0**-100, 2.0**-60, 2.0**-17, 2.0**17, 2.0**60, 2.0**100)
            ]
            for result in results:
                torch.testing.assert_close(result.p_value, results[0].p_value, rtol=0, atol=1e-6)
                torch.testing.assert_close(
                    result.statistic, results[0].statistic, rtol=1e-4, atol=1e-7
                )


@pytest.mark.parametrize(("backend", "level"), WAYS)
def test_every_division_ties(backend, level):
    with simd_level(level):
        # One point apart from all others, which are alike: wherever it is, the statistic is 0.
        z = torch.zeros(50, 2)
        z[3] = 5.0
        for kernel in ("imq", "rbf", vk.IMQ(1e9), vk.RBF("median")):
            p = vk.mmd_test(
                z, torch.zeros(50, 2), kernel, permutations=100, backend=backend
            ).p_value
            assert p == 1
            for m in (90, 700):
                assert (
                    vk.mmd_test(
                        z[:10], torch.zeros(m, 2), kernel, permutations=500, backend=backend
                    ).p_value
                    == 1
                )
        # All points as far apart as any two.
        z = torch.eye(20) * 3.0
        for kernel in ("imq", "rbf", vk.RBF(0.01)):
            assert vk.mmd_test(z[:8], z[8:], kernel, permutations=100, backend=backend).p_value == 1


@pytest.mark.parametrize(("backend", "level"), WAYS)
def test_samples_in_order_of_their_values(backend, level):
    # Whole tiles of one kind and one label: their sums are rounded again and again in one direction.
    z = torch.tensor([0.0] * 700 + [3.0] * 900)[:, None]
    x = torch.tensor([0.0] * 450 + [3.0] * 550)[:, None]
    if backend == "reference":
        z, x = z[::4], x[::4]
    with simd_level(level):
        p = [
            float(
                vk.mmd_test(
                    *samples,
                    vk.IMQ(1.0),
                    permutations=400,
                    generator=torch.Generator().manual_seed(4),
                    backend=backend,
                ).p_value
            )
            for samples in ((z, x), (z.flip(0), x), (z.double(), x.double()))
        ]
    assert abs(p[0] - p[2]) < 0.06 and abs(p[1] - p[2]) < 0.06


def level_of_the_test(backend, trials, make, permutations=199, at_once=100):
    """The part of the trials, samples (at_once, N, 1) and (at_once, M, 1) each, whose p is at most 0.05."""
    g = torch.Generator().manual_seed(11)
    rejected = 0
    for _ in range(trials // at_once):
        p = vk.mmd_test(
            *make(g, at_once), vk.IMQ(1.0), permutations=permutations, generator=g, backend=backend
        ).p_value
        rejected += int((p <= 0.05).sum())
    return rejected / trials


@pytest.mark.skipif(not NATIVE, reason="the native core is not built")
@pytest.mark.parametrize("level", _native.simd_levels()["runnable"])
@pytest.mark.parametrize("values", [(0.0, 7.0), (0.0, 0.1, 0.3), (0.0, 7e-5), (0.0, 7e5)], ids=str)
def test_the_level_is_held_with_ties(values, level):
    weights = torch.tensor([0.1, 0.9]) if len(values) == 2 else torch.tensor([0.1, 0.2, 0.7])

    def make(g, at_once):
        drawn = torch.multinomial(weights, at_once * (N + M), True, generator=g).view(
            at_once, N + M, 1
        )
        return torch.tensor(values)[drawn].split((N, M), 1)

    trials = 5000
    with simd_level(level):
        got = level_of_the_test("native", trials, make)
    assert got <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    # And is no less than the exact test's, which ties make conservative.
    assert got > 0.015
