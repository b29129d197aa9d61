"""gumbel_softmax: its noise, its samples and its derivatives, on the native core against the definition in float64."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vimae_kernels as vk
from vimae_kernels import _native
from vimae_kernels.ops.gumbel import op, reference

pytestmark = pytest.mark.skipif(
    vk._backend.unavailable("native", "cpu") is not None, reason="the native core is not built"
)

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16

# Windows of noise hold 2048 elements, vectors 4 to 16, blocks of words 4: sizes on both sides of each.
SHAPES = [
    (1, 1),
    (5, 1),
    (3, 2),
    (2, 3, 3),
    (7, 5),
    (129, 10),
    (3, 16),
    (33, 17),
    (2, 3, 64),
    (9, 1000),
    (3, 2047),
    (3, 2048),
    (4, 2049),
    (2, 100_000),
    (1, 300_001),
]


def a_seed() -> torch.Tensor:
    return torch.randint(-(2**63), 2**63 - 1, ())


def logits(shape, dtype, scale=3.0):
    return (scale * torch.randn(shape, dtype=F64)).to(dtype)


def sample_tolerance(dtype, z, tau):
    """Of a sample, relative: some ulp of the exponential's argument, which z, rounded, is part of."""
    return torch.finfo(dtype).eps * (8 + 4 * float(z) / tau)


def test_philox_is_philox():
    # The known answers of Random123, kat_vectors, philox4x32 10.
    for counter, key, words in [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ]:  # fmt: skip
        c, k, w = ([torch.tensor(int(x, 16)) for x in t.split()] for t in (counter, key, words))
        assert torch.equal(torch.stack(reference.philox(tuple(c), tuple(k))), torch.stack(w))


def noise(shape, seed, dtype, backend):
    """The noise that a backend adds: with two categories far apart but for it, a sample tells their difference."""
    # softmax of (g0, g1) has log(y0 / y1) = g0 - g1; at tau = 64 both are far from 0.
    pairs = torch.zeros(*shape, 2, dtype=dtype)
    y = op.sample(pairs, seed, 64.0, False, backend)
    return 64 * (y[..., 0] / y[..., 1]).log()


@pytest.mark.parametrize("level", _native.simd_levels()["runnable"])
def test_noise_is_that_of_the_definition(level):
    used = _native.simd_levels()["used"]
    seed = a_seed()
    g = reference.gumbel_noise(torch.Size((200_000, 2)), seed)
    want = g[:, 0] - g[:, 1]
    try:
        _native._C.set_level(level)
        got = noise((200_000,), seed, F64, "native")
    finally:
        _native._C.set_level(used)
    assert (got - want).abs().max() < 64 * 8 * torch.finfo(F64).eps


def test_noise_is_gumbel():
    from scipy import stats

    g = reference.gumbel_noise(torch.Size((1_000_000,)), torch.tensor(1234)).numpy()
    assert stats.kstest(g, stats.gumbel_r.cdf).pvalue > 0.01
    # Tails: counts beyond the quantiles, within four deviations.
    for p in (1e-2, 1e-3, 1e-4):
        for count in ((g > stats.gumbel_r.isf(p)).sum(), (g < stats.gumbel_r.ppf(p)).sum()):
            assert abs(count - 1e6 * p) < 4 * math.sqrt(1e6 * p)
    # Neighbours, words of a block and blocks are independent.
    for lag in (1, 2, 3, 4, 10):
        assert abs(stats.pearsonr(g[lag:], g[:-lag]).statistic) < 4e-3


def test_seeds_are_independent():
    seeds = torch.tensor([0, 1, 2, 2**32, -1, -(2**63), 2**63 - 1])
    g = reference.gumbel_noise(torch.Size((7, 20_000)), seeds)
    correlation = torch.corrcoef(g) - torch.eye(7, dtype=F64)
    assert correlation.abs().max() < 0.04


@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_hard_samples_have_the_probabilities_of_the_logits(tau):
    from scipy import stats

    p = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01], dtype=F64)
    counts = vk.gumbel_softmax(p.log().float().expand(200_000, 6), tau, hard=True).sum(0)
    assert stats.chisquare(counts.double().numpy(), 200_000 * p.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("tau", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_definition(shape, dtype, tau, poisoned):
    x, seed = logits(shape, dtype), a_seed()
    exact = x.double()
    want = reference.gumbel_softmax(exact, seed, tau, False)
    z = exact + reference.gumbel_noise(x.shape, seed)
    tolerance = sample_tolerance(dtype, z.abs().max() + z.max() - z.min(), tau)

    soft = op.sample(x, seed, tau, False, "native")
    assert soft.dtype == dtype and soft.shape == shape
    seen = want > torch.finfo(dtype).tiny * 16
    assert ((soft - want).abs() <= tolerance * want)[seen].all()
    assert (soft.double().sum(-1) - 1).abs().max() <= tolerance

    hard = op.sample(x, seed, tau, True, "native")
    assert torch.equal(hard, torch.zeros_like(x).scatter(-1, z.argmax(-1, keepdim=True), 1.0))
    assert torch.equal(hard.argmax(-1), soft.argmax(-1))

    g = torch.randn(shape, dtype=dtype)
    scale = (want * g.abs()).sum(-1, keepdim=True) + g.abs()
    slope = want * (g - (want * g).sum(-1, keepdim=True)) / tau
    for hard in (False, True):
        y = x.clone().requires_grad_()
        (got,) = torch.autograd.grad(op.sample(y, seed, tau, hard, "native"), y, g)
        assert got.dtype == dtype
        assert ((got - slope).abs() <= 4 * tolerance * want * scale / tau + 1e-37).all()


@pytest.mark.parametrize("level", _native.simd_levels()["runnable"])
def test_every_simd_level(level, poisoned):
    used = _native.simd_levels()["used"]
    x, seed, g = logits((70, 37), F32), a_seed(), torch.randn(70, 37)
    try:
        _native._C.set_level(level)
        for tau in (1.0, 0.4):
            want = reference.gumbel_softmax(x.double(), seed, tau, False)
            torch.testing.assert_close(
                op.sample(x, seed, tau, False, "native").double(), want, rtol=1e-4, atol=1e-37
            )
            hard = op.sample(x, seed, tau, True, "native")
            assert torch.equal(hard.argmax(-1), want.argmax(-1))
            slope = want * (g - (want * g).sum(-1, keepdim=True)) / tau
            for hard in (False, True):
                y = x.clone().requires_grad_()
                (got,) = torch.autograd.grad(op.sample(y, seed, tau, hard, "native"), y, g)
                torch.testing.assert_close(got.double(), slope, rtol=1e-4, atol=1e-5)
    finally:
        _native._C.set_level(used)


@pytest.mark.parametrize("shape", [(700, 100), (20_000, 3), (2, 130_000), (1, 260_001)], ids=str)
@pytest.mark.parametrize("hard", [False, True])
def test_any_number_of_threads(shape, hard, poisoned):
    before = torch.get_num_threads()
    x, seed, g = logits(shape, F32), a_seed(), torch.randn(shape)
    results = []
    try:
        for threads in (1, 2, 3, 7, 7):
            torch.set_num_threads(threads)
            y = x.clone().requires_grad_()
            value = op.sample(y, seed, 0.7, hard, "native")
            results.append((value.detach(), torch.autograd.grad(value, y, g)[0]))
    finally:
        torch.set_num_threads(before)
    for value, slope in results:
        torch.testing.assert_close(value, results[0][0], rtol=1e-5, atol=1e-37)
        torch.testing.assert_close(slope, results[0][1], rtol=1e-4, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(results[-1], results[-2], strict=True))


def test_any_dimension_and_strides():
    wide = logits((6, 10, 7, 5), F32)
    for x, dim in [
        (wide, 1),
        (wide, -2),
        (wide, 0),
        (wide[::2, ::3, :, ::2], 2),
        (wide.transpose(0, 3), -1),
        (wide[:, :, 0:1].expand(6, 10, 7, 5), 2),
    ]:
        x = x.clone().requires_grad_() if x.is_contiguous() else x.detach().requires_grad_()
        for hard in (False, True):
            torch.manual_seed(3)
            y = vk.gumbel_softmax(x, 0.8, hard, dim=dim)
            assert y.shape == x.shape and y.is_contiguous()
            torch.manual_seed(3)
            last = x.detach().movedim(dim, -1).contiguous().requires_grad_()
            want = vk.gumbel_softmax(last, 0.8, hard)
            assert torch.equal(y.movedim(dim, -1), want)
            g = torch.randn_like(y)
            (got,) = torch.autograd.grad(y, x, g)
            (slope,) = torch.autograd.grad(want, last, g.movedim(dim, -1))
            assert torch.equal(got.movedim(dim, -1), slope)


def test_seeds_and_generators():
    x = torch.randn(50, 6)
    torch.manual_seed(5)
    first, second = vk.gumbel_softmax(x), vk.gumbel_softmax(x)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(vk.gumbel_softmax(x), first)
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(9)
    drawn = vk.gumbel_softmax(x, generator=generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(drawn, vk.gumbel_softmax(x, generator=generator))
    assert torch.equal(drawn, vk.gumbel_softmax(x, generator=generator.manual_seed(9)))
    # One number per call, whatever the backend.
    torch.manual_seed(5)
    torch.testing.assert_close(vk.gumbel_softmax(x, backend="reference"), first)


def test_several_seeds_have_their_noise_each():
    for shape, seeds in [((4, 3, 5), (4,)), ((4, 3, 5), (4, 3)), ((2, 3, 1000), (2, 3))]:
        x, seed = logits(shape, F64), torch.randint(2**62, seeds)
        for hard in (False, True):
            got = op.sample(x, seed, 0.5, hard, "native")
            want = reference.gumbel_softmax(x, seed, 0.5, hard)
            torch.testing.assert_close(got, want, rtol=1e-11, atol=0)
            last = (-1,) * len(seeds)
            alone = op.sample(x[last], seed[last].clone(), 0.5, hard, "native")
            assert torch.equal(got[last], alone)


EXTREMES = torch.tensor(
    [
        [1e30, -1e30, 0.0, 3e38],
        [-3e38, 3e38, 3e38, 0.0],
        [1.0, -math.inf, 0.0, -math.inf],
        [-math.inf, -math.inf, -math.inf, -3e38],
        [0.0, 0.0, 0.0, 1e-45],
        [88.0, -88.0, 100.0, -104.0],
    ]
)
FAR = 1e300


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("tau", [5e-324, 1e-300, 1e-45, 1e-30, 1e-3, 1.0, 1e3, 1e30, FAR, 1.7e308])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_extreme_logits_and_temperatures(dtype, tau, backend):
    x = EXTREMES.to(dtype)
    for hard in (False, True):
        z = x.repeat(50, 1).requires_grad_()
        y = vk.gumbel_softmax(z, tau, hard, backend=backend)
        assert y.isfinite().all()
        assert (y[z == -math.inf] == 0).all()
        torch.testing.assert_close(y.sum(-1), torch.ones_like(y[:, 0]))
        (g,) = torch.autograd.grad(y, z, torch.randn_like(y))
        if tau >= 1e-3:
            assert g.isfinite().all()
        else:
            assert not g.isnan().any()
        if not hard and tau == FAR and dtype == F64:
            # Hot enough, and all that are possible are equal.
            possible = z > -math.inf
            torch.testing.assert_close(y, possible / possible.sum(-1, keepdim=True).to(dtype))


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("tau", [1.0, 0.5])
@pytest.mark.parametrize("hard", [False, True])
def test_bad_numbers_give_nan_in_their_row(hard, tau, backend):
    for k in (3, 40, 5000):
        x = torch.randn(6, k)
        x[1, k - 1], x[2, 0], x[3] = math.nan, math.inf, -math.inf
        x[4, k // 2], x[4, 0] = -math.inf, math.nan
        x.requires_grad_()
        y = vk.gumbel_softmax(x, tau, hard, backend=backend)
        (g,) = torch.autograd.grad(y, x, torch.randn_like(y))
        for t in (y, g):
            assert t[1:5].isnan().all() and t[[0, 5]].isfinite().all()


def test_ties_go_to_the_first():
    # At 1e30 the noise is rounded away.
    for k in (5, 33, 5000):
        x = torch.full((3, k), 1e30)
        x[0, : k // 2], x[1, 0] = 1e29, -1e30
        hard = vk.gumbel_softmax(x, hard=True)
        assert hard.argmax(-1).tolist() == [k // 2, 1, 0]
        assert torch.equal(hard.sum(-1), torch.ones(3))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_half_types_compute_in_float32(dtype):
    x, seed = logits((200, 30), dtype), a_seed()
    g = torch.randn(200, 30).to(dtype)
    for tau in (1.0, 0.1):
        want = reference.gumbel_softmax(x.double(), seed, tau, False)
        slope = want * (g.double() - (want * g.double()).sum(-1, keepdim=True)) / tau
        for hard in (False, True):
            y = x.clone().requires_grad_()
            value = op.sample(y, seed, tau, hard, "native")
            assert value.dtype == dtype
            if not hard:
                assert ((value - want).abs() <= torch.finfo(dtype).eps * (want + 1e-4)).all()
            (got,) = torch.autograd.grad(value, y, g)
            assert got.dtype == dtype
            # From the rounded sample the error would be that of the largest element, not its own.
            error = (got - slope).abs()
            assert (error <= torch.finfo(dtype).eps * slope.abs() + 1e-5 / tau).all()


def test_first_and_second_derivatives():
    x = torch.randn(3, 4, dtype=F64, requires_grad=True)
    for tau in (1.0, 0.6):
        seed = a_seed()

        def soft(x, seed=seed, tau=tau):
            return op.sample(x, seed, tau, False, "native")

        assert torch.autograd.gradcheck(soft, (x,))
        assert torch.autograd.gradgradcheck(lambda x: soft(x).sin(), (x,))

        # Straight-through: the gradient, and the gradient of it, of the soft sample.
        def derivatives(hard, backend, seed=seed, tau=tau):
            y = op.sample(x, seed, tau, hard, backend)
            weight = torch.arange(12.0, dtype=F64).reshape(3, 4).requires_grad_()
            (g,) = torch.autograd.grad((y * weight).sum(), x, create_graph=True)
            return g, *torch.autograd.grad((g.square() * weight).sum(), (x, weight))

        for hard in (False, True):
            torch.testing.assert_close(derivatives(hard, "native"), derivatives(hard, "reference"))


def test_second_derivatives_of_half_types():
    x, seed = logits((20, 6), F16), a_seed()
    for hard in (False, True):
        y, z = x.clone().requires_grad_(), x.double().requires_grad_()
        (g,) = torch.autograd.grad(
            op.sample(y, seed, 0.7, hard, "native")[:, :2].sum(), y, create_graph=True
        )
        (h,) = torch.autograd.grad(
            reference.gumbel_softmax(z, seed, 0.7, hard)[:, :2].sum(), z, create_graph=True
        )
        (gg,) = torch.autograd.grad(g.float().square().sum(), y)
        (hh,) = torch.autograd.grad(h.square().sum(), z)
        torch.testing.assert_close(gg.double(), hh, rtol=5e-3, atol=1e-4)


def test_gradient_is_that_of_torch_for_the_same_noise():
    x, seed = logits((40, 12), F64), a_seed()
    g = torch.randn(40, 12, dtype=F64)
    noise = reference.gumbel_noise(x.shape, seed)
    y = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(((y + noise) / 0.7).softmax(-1), y, g)
    for hard in (False, True):
        y = x.clone().requires_grad_()
        (got,) = torch.autograd.grad(op.sample(y, seed, 0.7, hard, "native"), y, g)
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("hard", [False, True])
def test_vmap(hard):
    vmap, grad = torch.func.vmap, torch.func.grad
    x = torch.randn(5, 4, 3, dtype=F64)

    def f(x):
        return vk.gumbel_softmax(x, 0.7, hard)

    with pytest.raises(RuntimeError, match="randomness"):
        vmap(f)(x)
    same = torch.zeros(5, 50, 3)
    got = vmap(f, randomness="different")(same)
    assert got.shape == same.shape
    assert not any(torch.equal(got[0], other) for other in got[1:])
    got = vmap(f, randomness="same")(same)
    assert all(torch.equal(got[0], other) for other in got[1:])

    # Each entry as alone with its seed: values, gradients, and inside each other.
    seeds = torch.randint(2**62, (5,))
    w = torch.randn(4, 3, dtype=F64)

    def loss(x, seed, backend):
        return (op.sample(x, seed, 0.7, hard, backend) * w).sum().sin()

    def native(x, seed):
        return loss(x, seed, "native")

    def definition(x, seed):
        return loss(x, seed, "reference")

    for transformed in [
        lambda f: vmap(f)(x, seeds),
        lambda f: vmap(f, (None, 0))(x[0], seeds),
        lambda f: vmap(f, (1, None))(x.movedim(0, 1), seeds[0]),
        lambda f: grad(f)(x[0], seeds[0]),
        lambda f: vmap(grad(f))(x, seeds),
        lambda f: grad(lambda x: vmap(f)(x, seeds).sum())(x),
        lambda f: vmap(grad(lambda x, s: grad(f)(x, s).square().sum()))(x, seeds),
        lambda f: torch.func.jacrev(f)(x[0], seeds[0]),
    ]:
        torch.testing.assert_close(
            transformed(native), transformed(definition), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("hard", [False, True])
def test_compiles_into_one_graph(hard):
    torch._dynamo.reset()
    x = torch.randn(20, 3, requires_grad=True)

    @torch.compile(fullgraph=True)
    def f(x, tau):
        return 2 * vk.gumbel_softmax(x.tanh(), tau, hard, dim=0)

    for tau in (1.0, 0.8, 0.6):
        first, second = f(x, tau), f(x, tau)
        assert not torch.equal(first, second)
        torch.testing.assert_close(first.sum(0), torch.full((3,), 2.0))
        if hard:
            assert ((first == 0) | (first == 2)).all()
        (g,) = torch.autograd.grad(first, x, torch.randn(20, 3))
        assert g.abs().max() > 0 and g.isfinite().all()


@pytest.mark.parametrize("hard", [False, True])
def test_compiled_gradients_are_right(hard):
    torch._dynamo.reset()
    x, seed = torch.randn(20, 3, dtype=F64, requires_grad=True), a_seed()
    compiled = torch.compile(lambda x: op.sample(x.tanh(), seed, 0.5, hard, "native").sin())
    g = torch.randn(20, 3, dtype=F64)
    got = compiled(x)
    want = reference.gumbel_softmax(x.tanh(), seed, 0.5, hard).sin()
    torch.testing.assert_close(got, want)
    pair = (torch.autograd.grad(y, x, g)[0] for y in (got, want))
    torch.testing.assert_close(*pair)


@pytest.mark.parametrize("hard", [False, True])
def test_compiled_gradients_are_not_differentiated_silently(hard):
    torch._dynamo.reset()
    x = torch.randn(20, 3, requires_grad=True)
    value = torch.compile(lambda x: vk.gumbel_softmax(x, 0.7, hard), fullgraph=True)(x)
    (g,) = torch.autograd.grad(value[:, 0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(value.sum() + g.square().sum(), x)


def test_operations_pass_opcheck():
    x, seed = torch.randn(2, 9, 3), torch.randint(2**62, (2,))
    number, tau, none = torch.tensor([0.7]).double(), torch.rand(2, 9) + 0.5, torch.empty(0)
    y = op.sample(x, seed, 0.7, False, "native")
    for temperature in ((None, number), (tau, none.double())):
        arguments = (x.clone().requires_grad_(), seed, *temperature, "native")
        for operation in (op._soft, op._hard, op._soft_and_hard):
            torch.library.opcheck(operation.dispatched, arguments)
        arguments = (y, x, temperature[0], None, temperature[1], "native")
        torch.library.opcheck(op._softmax_gradient.dispatched, arguments)


def test_autocast_and_modes():
    layer = torch.nn.Linear(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = vk.gumbel_softmax(layer(torch.randn(64, 8)), 0.9)
    assert y.dtype == BF16
    y[:, 0].sum().backward()
    assert layer.weight.grad.abs().max() > 0
    with torch.no_grad():
        assert not vk.gumbel_softmax(layer.weight).requires_grad
    with torch.inference_mode():
        vk.gumbel_softmax(torch.randn(3, 4), hard=True)
    x = torch.randn(5, 3)
    torch.manual_seed(0)
    want = vk.gumbel_softmax(-x)
    torch.manual_seed(0)
    assert torch.equal(vk.gumbel_softmax(torch._neg_view(x)), want)


def test_odd_shapes():
    for backend in ("native", "reference"):
        for hard in (False, True):
            one = vk.gumbel_softmax(
                torch.tensor(3.0, requires_grad=True), hard=hard, backend=backend
            )
            assert one.shape == () and one == 1
            one.backward()
            empty = torch.randn(0, 5, requires_grad=True)
            y = vk.gumbel_softmax(empty, hard=hard, backend=backend)
            assert y.shape == (0, 5)
            y.sum().backward()
            assert vk.gumbel_softmax(torch.randn(3, 0, 2), dim=2, backend=backend).shape == (
                3,
                0,
                2,
            )


x = torch.randn(10, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: vk.gumbel_softmax([[1.0]]), TypeError, "logits is of type list; it must be a"),
        (lambda: vk.gumbel_softmax(x.long()), TypeError, "logits has dtype torch.int64; it must"),
        (lambda: vk.gumbel_softmax(x.to_sparse()), TypeError, "logits has layout torch.sparse_coo"),
        (lambda: vk.gumbel_softmax(x, "1"), TypeError, "tau is of type str; it must be a positive"),
        (lambda: vk.gumbel_softmax(x, True), TypeError, "tau is of type bool"),
        (lambda: vk.gumbel_softmax(x, 0.0), ValueError, "tau is 0.0; it must be positive"),
        (lambda: vk.gumbel_softmax(x, -1), ValueError, "tau is -1; it must be positive"),
        (lambda: vk.gumbel_softmax(x, math.nan), ValueError, "tau is nan; it must be positive"),
        (lambda: vk.gumbel_softmax(x, math.inf), ValueError, "tau is inf; it must be positive"),
        (lambda: vk.gumbel_softmax(x, dim=2), ValueError, "dim is 2; for logits of shape (10, 3)"),
        (lambda: vk.gumbel_softmax(x, dim=1.0), TypeError, "dim is of type float; it must be"),
        (lambda: vk.gumbel_softmax(x[:, :0]), ValueError, "it needs at least one category"),
        (lambda: vk.gumbel_softmax(x, generator=3), TypeError, "generator is of type int"),
        (lambda: vk.gumbel_softmax(x, backend="bogus"), ValueError, "known backends are"),
        (lambda: vk.gumbel_softmax(x, backend="triton"), RuntimeError, "cannot run on cpu"),
    ],
)
def test_bad_input(call, error, message):
    state = torch.get_rng_state()
    with pytest.raises(error, match=re.escape(message)):
        call()
    assert torch.equal(torch.get_rng_state(), state)


@given(
    st.integers(1, 40),
    st.integers(1, 130),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0.05, 1.0, 20.0]),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_and_seed(rows, k, seed, tau):
    z = logits((rows, k), F64)
    seed = torch.tensor(seed)
    for hard in (False, True):
        got = op.sample(z, seed, tau, hard, "native")
        want = reference.gumbel_softmax(z, seed, tau, hard)
        torch.testing.assert_close(got, want, rtol=1e-13 * (10 + 100 / tau), atol=1e-300)


@pytest.mark.parametrize("hard", [False, True])
def test_noise_takes_no_memory(hard):
    code = f"""
import resource, torch, vimae_kernels as vk
x, g = torch.ones(2048, 50000, requires_grad=True), torch.ones(2048, 50000)
vk.gumbel_softmax(x[:4], hard={hard}).backward(g[:4])
x.grad = None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
y = vk.gumbel_softmax(x, hard={hard})
y.backward(g)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Kilobytes: the sample, its gradient, and half an array.
    assert int(out.stdout) < 2.5 * 4 * 2048 * 50000 / 1024
