"""mmd_test: its statistics against brute force and float64, and what makes a p-value one."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import vimae_kernels as vk
from vimae_kernels import _native
from vimae_kernels.ops.permutation import native_impl, op, reference

BACKENDS = [b for b in ("native", "reference") if vk._backend.unavailable(b, "cpu") is None]
native_only = pytest.mark.skipif("native" not in BACKENDS, reason="the native core is not built")
F64, F32 = torch.float64, torch.float32


def pack(first: torch.Tensor) -> torch.Tensor:
    """Labels (columns, N) as bits, with the padding that the backends expect."""
    labels = op.pack(first)
    return torch.nn.functional.pad(labels, (0, -labels.shape[-1] % op.COLUMNS))


def random_labels(size: int, n: int, columns: int) -> torch.Tensor:
    return torch.rand(columns, size).argsort(-1) < n


def kernels(d: int) -> list[object]:
    return ["imq", "rbf", vk.IMQ(0.3 * d), vk.RBF([0.5, 2.0]), vk.IMQ.wae(d)]


def run(x, first, kernel, centre=0.5):
    """The native core's statistics, for labels (..., columns, N)."""
    k = vk.kernels.resolve_kernel(kernel)
    scales = list(k.scales(x.shape[-1]))
    labels = (
        pack(first)
        if first.ndim == 2
        else torch.stack([pack(f) for f in first.flatten(0, -3)]).unflatten(0, first.shape[:-2])
    )
    about = torch.full(x.shape[:-2], centre * len(scales), dtype=x.dtype)
    n = int(first.sum(-1).flatten()[0])
    values = native_impl.permuted_mmd(x, labels, about, n, k.family, scales)
    return values[..., : first.shape[-2]]


def truth(x, first, kernel):
    k = vk.kernels.resolve_kernel(kernel)
    return reference.permuted_mmd(x.double(), first, k.family, k.scales(x.shape[-1]))


# Rounding beside a spread over the permutations of about a tenth of 1 / n.
def tolerance(dtype, n, m, kernel, d):
    scales = len(vk.kernels.resolve_kernel(kernel).scales(d))
    # The float64 definition itself subtracts numbers of the size of k.
    return (200 * torch.finfo(dtype).eps / min(n, m) + 1e-14) * scales


def test_the_definition_is_mmd_of_permuted_samples():
    x = torch.randn(2, 12, 3, dtype=F64)
    first = random_labels(12, 5, 40)
    for kernel in kernels(3):
        got = truth(x, first, kernel)
        for c in range(40):
            want = vk.mmd(x[:, first[c]], x[:, ~first[c]], kernel, backend="reference")
            torch.testing.assert_close(got[:, c], want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n", "m"), [(2, 2), (2, 3), (3, 4), (4, 4)])
def test_enumeration(n, m, backend):
    # With all divisions of a few points as labels, the p-value is a fraction one can count.
    z, x = torch.randn(n, 2, dtype=F64), torch.randn(m, 2, dtype=F64) + 0.5
    pooled = torch.cat([z, x])
    subsets = list(itertools.combinations(range(n + m), n))
    assert subsets[0] == tuple(range(n))
    first = torch.zeros(len(subsets), n + m, dtype=torch.bool)
    for row, subset in zip(first, subsets, strict=True):
        row[list(subset)] = True
    for kernel in kernels(2):
        got = (run if backend == "native" else truth)(pooled, first, kernel)
        rest = [[i for i in range(n + m) if i not in subset] for subset in subsets]
        want = torch.stack(
            [
                vk.mmd(pooled[list(s)], pooled[r], kernel, backend="reference")
                for s, r in zip(subsets, rest, strict=True)
            ]
        )
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


@native_only
@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize(
    ("batch", "n", "m", "d", "columns"),
    [
        ((), 2, 3, 1, 1),
        ((), 2, 2, 5, 31),
        ((), 31, 33, 8, 33),
        ((3,), 63, 66, 2, 64),
        ((2, 2), 20, 130, 3, 40),
        ((), 300, 257, 17, 20),
        ((), 40, 30, 200, 7),
    ],
    ids=str,
)
def test_matches_the_definition(batch, n, m, d, columns, dtype, shift, poisoned):
    x = (torch.randn(*batch, n + m, d, dtype=F64) + shift).to(dtype)
    first = random_labels(n + m, n, columns)
    first[0] = torch.arange(n + m) < n
    for kernel in kernels(d):
        error = (run(x, first, kernel) - truth(x, first, kernel)).abs().max()
        assert error <= tolerance(dtype, n, m, kernel, d)


@native_only
def test_labels_of_their_own_for_each_problem():
    x = torch.randn(3, 50, 4)
    first = torch.stack([random_labels(50, 20, 9) for _ in range(3)])
    want = torch.stack([truth(x[b], first[b], "imq") for b in range(3)])
    assert (run(x, first, "imq") - want).abs().max() < 1e-6


@native_only
@pytest.mark.parametrize("level", _native.simd_levels()["runnable"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_simd_level_and_number_of_threads(level, threads):
    used, before = _native.simd_levels()["used"], torch.get_num_threads()
    x = torch.randn(300, 5)
    first = random_labels(300, 130, 70)
    try:
        _native._C.set_level(level)
        torch.set_num_threads(threads)
        got, again = run(x, first, "rbf"), run(x, first, "rbf")
    finally:
        _native._C.set_level(used)
        torch.set_num_threads(before)
    assert torch.equal(got, again)
    assert (got - truth(x, first, "rbf")).abs().max() <= tolerance(F32, 130, 170, "rbf", 5)


@native_only
@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 90), m=st.integers(2, 90), d=st.sampled_from([1, 3, 8, 70]))
def test_any_sizes(n, m, d):
    torch.manual_seed(n + 100 * m + d)
    x = torch.randn(n + m, d, dtype=F64)
    first = random_labels(n + m, n, 17)
    got, want = run(x, first, "imq"), truth(x, first, "imq")
    assert (got - want).abs().max() <= tolerance(F64, n, m, "imq", d)
    # A labelling and, for equal sizes, its complement are one division of the points: a tie to the last bit.
    columns = [first, first] + ([~first] if n == m else [])
    parts = run(x, torch.cat(columns), "imq").split(17)
    assert all(torch.equal(part, parts[0]) for part in parts)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [4, 31, 32, 33, 1000])
def test_drawn_labels(size, backend):
    n = size // 3 + 1
    g = torch.Generator().manual_seed(3)
    labels = op._draw(100, n, size, g, torch.device("cpu"), backend)
    assert labels.dtype == torch.int32 and labels.shape == (-(-size // 32), 128)
    first = op.unpack(labels, size)
    assert torch.equal(first[0], torch.arange(size) < n)
    assert (first[1:101].sum(-1) == n).all() and not first[101:].any()
    assert torch.equal(pack(first), labels)
    again = op._draw(100, n, size, g.manual_seed(3), torch.device("cpu"), backend)
    assert torch.equal(labels, again)
    assert not torch.equal(labels, op._draw(100, n, size, g, torch.device("cpu"), backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_divisions_are_uniform(backend):
    g = torch.Generator().manual_seed(0)
    labels = op._draw(9000, 2, 6, g, torch.device("cpu"), backend)[0, 1:9001]
    counts = labels.unique(return_counts=True)[1].double()
    assert len(counts) == 15
    # Chi-square with 14 degrees of freedom: above 42 once in 8000.
    assert ((counts - 600).square() / 600).sum() < 42


@native_only
def test_draws_are_in_blocks_of_bounded_memory(monkeypatch):
    monkeypatch.setattr(op, "BLOCK", 50)
    first = op.unpack(op._draw(30, 4, 10, None, torch.device("cpu"), "reference"), 10)
    assert (first[:31].sum(-1) == 4).all()
    assert len(first[1:31].unique(dim=0)) > 20


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistic_is_mmd_and_p_counts(backend):
    z, x = torch.randn(3, 1, 40, 2), torch.randn(2, 50, 2) + 0.2
    for kernel in [*kernels(2), vk.RBF("median")]:
        g = torch.Generator().manual_seed(5)
        result = vk.mmd_test(z, x, kernel, permutations=99, generator=g, backend=backend)
        want = vk.mmd(z.double(), x.double(), kernel, backend="reference")
        assert result.statistic.shape == result.p_value.shape == (3, 2)
        assert result.statistic.dtype == result.p_value.dtype == F32
        assert (result.statistic - want).abs().max() < 3e-6
        labels = op._draw(99, 40, 90, g.manual_seed(5), torch.device("cpu"), backend)
        for i, j in itertools.product(range(3), range(2)):
            pooled = torch.cat([z[i, 0], x[j]]).double()
            if kernel == vk.RBF("median"):
                kernel = vk.RBF(torch.pdist(pooled).median().item())
                values = truth(pooled, op.unpack(labels, 90)[:100], kernel)
                kernel = vk.RBF("median")
            else:
                values = truth(pooled, op.unpack(labels, 90)[:100], kernel)
            p = (values >= values[0]).double().mean()
            assert abs(result.p_value[i, j] - p) < 1e-6


def test_p_values_are_uniform_under_the_null():
    # 400 tests on different data, of normal samples of unequal size.
    g = torch.Generator().manual_seed(1)
    p = []
    for _ in range(400):
        z, x = torch.randn(12, 2, generator=g), torch.randn(9, 2, generator=g)
        p.append(float(vk.mmd_test(z, x, permutations=99, generator=g).p_value))
    p = torch.tensor(p).sort().values
    # Kolmogorov-Smirnov against the grid of k / 100: above 1.63 / sqrt(400) once in 100.
    distance = (p - torch.arange(1, 401) / 400).abs().max()
    assert distance < 1.63 / 20 + 0.01
    for alpha in (0.05, 0.2):
        assert (p <= alpha).double().mean() <= alpha + 3 * math.sqrt(alpha / 400)


@pytest.mark.parametrize("backend", BACKENDS)
def test_power_and_the_smallest_p_value(backend):
    z, x = torch.randn(60, 4), torch.randn(50, 4) + 1
    assert vk.mmd_test(z, x, permutations=199, backend=backend).p_value == torch.tensor(1 / 200)
    assert vk.mmd_test(z, 2 * z.flip(0), permutations=199, backend=backend).p_value < 0.05
    assert vk.mmd_test(z, x, permutations=1, backend=backend).p_value in (0.5, 1.0)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_count(backend, dtype):
    # All points alike: every division has the statistic 0, up to rounding, and p is 1.
    for value in (0.0, 0.1, 100.3):
        z = torch.full((70, 3), value, dtype=dtype)
        assert vk.mmd_test(z, z[:50], permutations=50, backend=backend).p_value == 1
    # Two kinds of points: only the division's counts matter, and p is a hypergeometric tail.
    z = torch.tensor([0.1] * 8 + [1.3] * 2, dtype=dtype)[:, None]
    x = torch.tensor([0.1] * 3 + [1.3] * 7, dtype=dtype)[:, None]
    p = vk.mmd_test(z, x, permutations=20000, backend=backend).p_value
    ways = [math.comb(11, k) * math.comb(9, 10 - k) for k in range(11)]
    want = sum(ways[k] for k in (1, 2, 3, 8, 9, 10)) / math.comb(20, 10)
    assert abs(p - want) < 4 * math.sqrt(want / 20000)


@pytest.mark.parametrize("backend", BACKENDS)
def test_invariances(backend):
    z, x = torch.randn(40, 3, dtype=F64), torch.randn(40, 3, dtype=F64) + 0.3

    def test(z, x):
        g = torch.Generator().manual_seed(0)
        return vk.mmd_test(z, x, permutations=200, generator=g, backend=backend)

    want = test(z, x)
    assert test(z.clone(), x.clone()).p_value == want.p_value
    for moved in (test(z + 100, x + 100), test(-z, -x), test(z[:, [2, 0, 1]], x[:, [2, 0, 1]])):
        assert abs(moved.statistic - want.statistic) < 1e-12
        assert moved.p_value == want.p_value
    # For equal sizes, swapping the samples swaps the labels of every division.
    assert abs(test(x, z).statistic - want.statistic) < 1e-12
    assert abs(test(x, z).p_value - want.p_value) < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, F32, F64], ids=str)
def test_dtypes(dtype):
    z, x = torch.randn(50, 3).to(dtype), torch.randn(40, 3).to(dtype)
    g = torch.Generator().manual_seed(0)
    result = vk.mmd_test(z, x, permutations=50, generator=g)
    want = vk.mmd_test(z.double(), x.double(), permutations=50, generator=g.manual_seed(0))
    assert result.statistic.dtype == (F64 if dtype == F64 else F32)
    assert abs(result.statistic - want.statistic) < 1e-6
    assert abs(result.p_value - want.p_value) < 1e-6
    mixed = vk.mmd_test(z, x.double(), permutations=5)
    assert mixed.statistic.dtype == F64


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kernel", ["imq", "rbf", vk.RBF("median")], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_numbers_give_nan(kernel, bad, backend):
    z, x = torch.randn(2, 70, 3), torch.randn(60, 3)
    z[1, 66, 1] = bad
    result = vk.mmd_test(z, x, kernel, permutations=20, backend=backend)
    for out in result:
        assert out[0].isfinite() and out[1].isnan()


def test_no_gradient_flows():
    z = torch.randn(20, 3, requires_grad=True)
    result = vk.mmd_test(z, torch.randn(10, 3), permutations=5)
    assert not result.statistic.requires_grad and not result.p_value.requires_grad


@native_only
def test_vmap():
    z, x = torch.randn(4, 20, 3), torch.randn(30, 3)
    for randomness in ("same", "different"):

        def run(z, x):
            return tuple(vk.mmd_test(z, x, permutations=60))

        statistic, p = torch.func.vmap(run, (0, None), randomness=randomness)(z, x)
        assert (statistic - vk.mmd(z, x)).abs().max() < 1e-6
        assert ((p >= 1 / 61) & (p <= 1)).all()
    # The same data with the same permutations, and with permutations of their own.
    alike = z[:1].expand(4, 20, 3)
    same = torch.func.vmap(run, (0, None), randomness="same")(alike, x)[1]
    assert (same == same[0]).all()
    assert len(torch.func.vmap(run, (0, None), randomness="different")(alike, x)[1].unique()) > 1


@native_only
@pytest.mark.parametrize("kernel", ["imq", vk.RBF("median")], ids=str)
def test_compiles_into_one_graph(kernel):
    torch._dynamo.reset()
    z, x = torch.randn(60, 3), torch.randn(50, 3) + 1
    compiled = torch.compile(
        lambda z, x: tuple(vk.mmd_test(2 * z, 2 * x, kernel, permutations=99)), fullgraph=True
    )
    statistic, p = compiled(z, x)
    want = vk.mmd_test(2 * z, 2 * x, kernel, permutations=99)
    assert abs(statistic - want.statistic) < 1e-6 and p == want.p_value == torch.tensor(0.01)


@native_only
def test_operations_pass_opcheck():
    x, first = torch.randn(2, 9, 3), random_labels(9, 4, 5)
    config = (pack(first), torch.zeros(2), 4, "imq", torch.tensor([6.0]).double(), "native")
    torch.library.opcheck(op._permuted_mmd.dispatched, (x, *config))
    seeds = torch.randint(2**62, (2, 7))
    torch.library.opcheck(op._draw_labels.dispatched, (seeds, 9, 4, 32))


@native_only
def test_the_generator_decides():
    z, x = torch.randn(30, 2), torch.randn(30, 2)
    g = torch.Generator().manual_seed(0)
    first = vk.mmd_test(z, x, generator=g).p_value
    second = vk.mmd_test(z, x, generator=g).p_value
    assert first != second
    assert vk.mmd_test(z, x, generator=g.manual_seed(0)).p_value == first
    torch.manual_seed(0)
    assert vk.mmd_test(z, x).p_value == first


t = torch.randn(10, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: vk.mmd_test([1.0], t), TypeError, "z is of type list"),
        (
            lambda: vk.mmd_test(t, 3),
            TypeError,
            "x is of type int; it must be a tensor of samples, a torch.distributions.Distribution",
        ),
        (lambda: vk.mmd_test(t, t.long()), TypeError, "x has dtype torch.int64"),
        (lambda: vk.mmd_test(t[:1], t), ValueError, "z has shape (1, 3); it needs n >= 2"),
        (lambda: vk.mmd_test(t, t[:1]), ValueError, "x has shape (1, 3); it needs n >= 2"),
        (lambda: vk.mmd_test(t, t[:, :2]), ValueError, "x has shape (10, 2): its last dimension"),
        (lambda: vk.mmd_test(t, t.to("meta")), ValueError, "x is on meta but z is on cpu"),
        (lambda: vk.mmd_test(t, t, "laplace"), ValueError, "kernel is 'laplace'; known names are"),
        (
            lambda: vk.mmd_test(t, t, permutations=0),
            ValueError,
            "permutations is 0; it must be at least 1",
        ),
        (
            lambda: vk.mmd_test(t, t, permutations=10.0),
            TypeError,
            "permutations is 10.0; it must be an integer of at least 1",
        ),
        (lambda: vk.mmd_test(t, t, permutations=True), TypeError, "permutations is True"),
        (lambda: vk.mmd_test(t, t, generator=3), TypeError, "generator is of type int"),
        (lambda: vk.mmd_test(t, t, backend="gpu"), ValueError, "backend is 'gpu'; known backends"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


@native_only
def test_memory_has_no_kernel_matrix():
    code = """
import resource, torch, vimae_kernels as vk
z = torch.randn(20000, 2)
vk.mmd_test(z[:1000], z[1000:2000], permutations=31)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
vk.mmd_test(z[:10000], z[10000:], permutations=31)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 50 * 1024  # kilobytes; one 20000 x 20000 matrix would be 1.6 million
