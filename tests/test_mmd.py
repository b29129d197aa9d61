"""mmd on the native core against the definition in float64, and everything autograd does with it."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from helpers import evaluate, relative, truth

import vimae_kernels as vk
from vimae_kernels import _native

pytestmark = pytest.mark.skipif(
    vk._backend.unavailable("native", "cpu") is not None, reason="the native core is not built"
)

# Panels hold 64 points and chunks 64 coordinates: sizes on both sides of those edges, never equal.
SHAPES = [
    ((), 2, 3, 1),
    ((), 3, 2, 2),
    ((), 7, 1000, 3),
    ((), 63, 65, 5),
    ((), 64, 128, 8),
    ((), 100, 101, 8),
    ((), 257, 63, 16),
    ((), 130, 67, 63),
    ((), 65, 66, 65),
    ((), 129, 70, 200),
    ((5,), 33, 20, 4),
    ((2, 3), 17, 90, 7),
]


def kernels(d: int) -> list[object]:
    return ["imq", "rbf", vk.IMQ(0.3), vk.RBF([0.5, 2.0]), vk.IMQ.wae(d), vk.RBF.mmd_vae(max(d, 2))]


# Loss per scale (absolute) and gradient (relative). The same with and without a shift of +100: it costs nothing.
TOLERANCE = {torch.float32: (3e-7, 5e-6), torch.float64: (1e-14, 1e-13)}


@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_definition(shape, dtype, shift, poisoned):
    batch, n, m, d = shape
    z = (0.7 * torch.randn(*batch, n, d, dtype=torch.float64) + 0.4 + shift).to(dtype)
    p = (torch.randn(*batch, m, d, dtype=torch.float64) + shift).to(dtype)
    loss_tolerance, gradient_tolerance = TOLERANCE[dtype]
    for kernel in kernels(d):
        scales = len(vk.kernels.resolve_kernel(kernel).scales(d))
        for estimator in ("biased", "unbiased"):
            want = truth(z, p, kernel, estimator)
            got = evaluate(z, p, kernel, estimator, "native")
            assert (got[0] - want[0]).abs().max() <= loss_tolerance * scales
            assert relative(got[1], want[1]) <= gradient_tolerance
            assert relative(got[2], want[2]) <= gradient_tolerance
            assert got[0].dtype == got[1].dtype == dtype


@pytest.mark.parametrize("d", [512, 4096])
def test_large_dimension(d, poisoned):
    z, p = torch.randn(70, d) + 0.1, torch.randn(33, d)
    want, got = truth(z, p, "imq", "unbiased"), evaluate(z, p, "imq", "unbiased", "native")
    assert abs(got[0] - want[0]) <= 3e-7
    assert relative(got[1], want[1]) <= 5e-6


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads(threads, poisoned):
    before = torch.get_num_threads()
    z, p = torch.randn(700, 24), torch.randn(900, 24) + 0.2
    want = truth(z, p, "imq", "unbiased")
    try:
        torch.set_num_threads(threads)
        got = evaluate(z, p, "imq", "unbiased", "native")
        again = evaluate(z, p, "imq", "unbiased", "native")
    finally:
        torch.set_num_threads(before)
    assert abs(got[0] - want[0]) <= 3e-7
    assert relative(got[1], want[1]) <= 5e-6
    assert relative(got[2], want[2]) <= 5e-6
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("level", _native.simd_levels()["runnable"])
def test_every_simd_level(level, poisoned):
    used = _native.simd_levels()["used"]
    z, p = torch.randn(130, 9), torch.randn(75, 9)
    try:
        _native._C.set_level(level)
        for kernel in ("imq", "rbf"):
            want, got = truth(z, p, kernel, "biased"), evaluate(z, p, kernel, "biased", "native")
            assert abs(got[0] - want[0]) <= 3e-7
            assert relative(got[1], want[1]) <= 5e-6
    finally:
        _native._C.set_level(used)


@pytest.mark.parametrize("spread", [1e-12, 1e-3, 1e6])
def test_clusters_and_outliers(spread):
    # Two tight clusters, then points so far apart that every kernel value underflows.
    z = spread * torch.randn(90, 4)
    p = spread * torch.randn(80, 4)
    for kernel in ("imq", "rbf"):
        want, got = truth(z, p, kernel, "unbiased"), evaluate(z, p, kernel, "unbiased", "native")
        assert abs(got[0] - want[0]) <= 3e-7
        assert relative(got[1], want[1]) <= 1e-5 or got[1].norm() == want[1].norm() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_compute_in_float32(dtype):
    z, p = (torch.randn(300, 8) + 0.2).to(dtype), torch.randn(200, 8).to(dtype)
    want, got = truth(z, p, "imq", "unbiased"), evaluate(z, p, "imq", "unbiased", "native")
    assert got[0].dtype == torch.float32 and abs(got[0] - want[0]) <= 3e-7
    assert got[1].dtype == dtype and relative(got[1], want[1]) <= 2 * torch.finfo(dtype).eps


def test_half_gradients_survive_loss_scaling():
    # 1 / n is below the smallest float16; scaled by 2^16 the gradient is not, and must come through.
    z = (torch.randn(30000, 1) + 1).half().requires_grad_()
    p = torch.randn(1000, 1)
    vk.mmd(z, p).mul(2.0**16).backward()
    # The definition needs 30000 x 30000 numbers here; the native core in float64 was checked above.
    want = evaluate(z.double(), p.double(), "imq", "unbiased", "native")[1] * 2.0**16
    assert relative(z.grad, want) <= 2e-3


def test_mixed_dtypes_are_promoted():
    z, p = torch.randn(20, 3).bfloat16().requires_grad_(), torch.randn(30, 3, dtype=torch.float64)
    value = vk.mmd(z, p)
    value.backward()
    assert value.dtype == torch.float64 and z.grad.dtype == torch.bfloat16


def test_batches_broadcast():
    z = torch.randn(4, 1, 20, 3, requires_grad=True)
    p = torch.randn(5, 30, 3, requires_grad=True)
    value = vk.mmd(z, p)
    assert value.shape == (4, 5)
    g = torch.autograd.grad(value.sum(), (z, p))
    want = vk.mmd(z.double(), p.double(), backend="reference")
    h = torch.autograd.grad(want.sum(), (z, p))
    assert torch.allclose(value.double(), want, atol=3e-7)
    assert relative(g[0], h[0]) < 5e-6 and relative(g[1], h[1]) < 5e-6
    assert vk.mmd(torch.randn(0, 6, 2), torch.randn(6, 2)).shape == (0,)


def test_any_strides():
    wide = torch.randn(40, 12, 6)
    for z, p in [
        (wide[0].T, wide[1].T),
        (wide[::2, 3, ::2], wide[1::2, 5, ::2]),
        (wide.movedim(0, 1)[..., 1:4], wide[:5, 0, 1:4]),
        (wide[:, :, 0:1].expand(40, 12, 6), wide[0]),
    ]:
        want = truth(z.contiguous(), p.contiguous(), "rbf", "unbiased")
        got = evaluate(z, p, "rbf", "unbiased", "native")
        assert torch.allclose(got[0].double(), want[0], atol=3e-7)
        assert relative(got[1], want[1]) < 5e-6 and relative(got[2], want[2]) < 5e-6


def test_only_the_gradient_that_is_needed():
    z, p = torch.randn(50, 3), torch.randn(40, 3)
    both = evaluate(z, p, "imq", "unbiased", "native")
    zz = z.clone().requires_grad_()
    vk.mmd(zz, p).backward()
    pp = p.clone().requires_grad_()
    vk.mmd(z, pp).backward()
    assert relative(zz.grad, both[1]) < 1e-6 and relative(pp.grad, both[2]) < 1e-6
    assert not vk.mmd(z, p).requires_grad
    with torch.no_grad():
        assert not vk.mmd(zz, pp).requires_grad


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", ["imq", vk.RBF(1.1), vk.IMQ.wae(3), vk.RBF([0.7, 2.0])], ids=str)
def test_first_and_second_derivatives(kernel, estimator):
    z = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    p = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def loss(z, p):
        return vk.mmd(z, p, kernel, estimator=estimator)

    assert torch.autograd.gradcheck(loss, (z, p))
    assert torch.autograd.gradgradcheck(loss, (z, p))
    # Through a nonlinear function, where the gradient of the loss with respect to itself matters as well.
    assert torch.autograd.gradgradcheck(lambda z, p: loss(z, p).sin() * loss(z, p), (z, p))
    assert torch.autograd.gradgradcheck(lambda z: loss(z, p.detach()).exp(), (z,))
    assert torch.autograd.gradgradcheck(lambda p: loss(z.detach(), p).exp(), (p,))


def test_second_derivatives_at_size():
    z, p = torch.randn(150, 70, dtype=torch.float64), torch.randn(90, 70, dtype=torch.float64)

    def penalty(backend):
        x, y = z.clone().requires_grad_(), p.clone().requires_grad_()
        g = torch.autograd.grad(
            vk.mmd(x, y, vk.IMQ.wae(70), backend=backend), (x, y), create_graph=True
        )
        return torch.autograd.grad(sum(t.square().sum() for t in g), (x, y))

    for a, b in zip(penalty("native"), penalty("reference"), strict=True):
        assert relative(a, b) < 1e-9


def test_a_third_derivative_is_refused():
    z = torch.randn(6, 2, requires_grad=True)
    (g,) = torch.autograd.grad(vk.mmd(z, torch.randn(5, 2)), z, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="not third"):
        h.sum().backward()


def test_func_transforms():
    z, p = torch.randn(4, 20, 3, dtype=torch.float64), torch.randn(15, 3, dtype=torch.float64)

    def reference(z, p):
        return vk.mmd(z, p, backend="reference")

    def penalty(f):
        return lambda z: torch.func.grad(lambda z: torch.func.grad(f)(z, p).square().sum())(z)

    grad, vmap, jacrev = torch.func.grad, torch.func.vmap, torch.func.jacrev
    for transformed in [
        lambda f: grad(f, (0, 1))(z[0], p),
        lambda f: vmap(f, (0, None))(z, p),
        lambda f: vmap(f, (1, None))(z.movedim(0, 1), p),
        lambda f: vmap(grad(f), (0, None))(z, p),
        lambda f: vmap(grad(f, 1), (0, None))(z, p),
        lambda f: grad(lambda z: vmap(f, (0, None))(z, p).square().sum())(z),
        lambda f: jacrev(f)(z, p),
        lambda f: penalty(f)(z[0]),
        lambda f: vmap(penalty(f))(z),
    ]:
        torch.testing.assert_close(
            transformed(vk.mmd), transformed(reference), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("kernel", ["imq", vk.RBF("median"), vk.IMQ.wae(3)], ids=str)
def test_compiles_into_one_graph(kernel):
    torch._dynamo.reset()
    z = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    p = torch.randn(15, 3, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(lambda z, p: 2 * vk.mmd(z.tanh(), p, kernel), fullgraph=True)
    value = compiled(z, p)
    got = value, *torch.autograd.grad(value, (z, p))
    value = 2 * vk.mmd(z.tanh(), p, kernel, backend="reference")
    want = value, *torch.autograd.grad(value, (z, p))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_compiles_with_named_priors():
    torch._dynamo.reset()
    z = torch.randn(200, 3, requires_grad=True)
    compiled = torch.compile(lambda z: vk.mmd(z, "logistic") + vk.mmd(z, "normal"), fullgraph=True)
    compiled(z).backward()
    assert z.grad.abs().max() > 0


def test_compiled_gradients_are_not_differentiated_silently():
    torch._dynamo.reset()
    z = torch.randn(20, 3, requires_grad=True)
    value = torch.compile(lambda z: vk.mmd(z, torch.ones(5, 3)), fullgraph=True)(z)
    (g,) = torch.autograd.grad(value, z, create_graph=True)
    # A path from z to the penalty other than through g, so that the lost one could hide.
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(value + g.square().sum(), z)


def test_the_value_has_the_same_bits_with_and_without_a_gradient():
    z, p = torch.randn(333, 5), torch.randn(200, 5)
    with_gradients = vk.mmd(z.clone().requires_grad_(), p.clone().requires_grad_()).detach()
    assert torch.equal(vk.mmd(z, p), vk.mmd(z.clone().requires_grad_(), p).detach())
    assert torch.equal(vk.mmd(z, p), with_gradients)


def test_whatever_watches_or_wraps_sees_the_operation():
    from torch.fx.experimental.proxy_tensor import make_fx

    z, p = torch.randn(20, 3), torch.randn(15, 3)
    want = vk.mmd(z, p)
    traced = make_fx(lambda z: vk.mmd(z, p))(z + 1)
    assert torch.equal(traced(z), want)
    jitted = torch.jit.trace(lambda z: vk.mmd(z, p) * 1.0, (z + 1,))
    assert torch.equal(jitted(z), want)
    assert torch.equal(vk.mmd(torch._neg_view(z), p), vk.mmd(-z, p))
    assert torch.equal(vk.mmd(torch._efficientzerotensor((20, 3)), p), vk.mmd(0 * z, p))
    assert torch.equal(vk.mmd(torch.nn.Parameter(z), p), want)


@pytest.mark.parametrize(
    "setting", ["OMP_THREAD_LIMIT=1", "OMP_THREAD_LIMIT=3", "OMP_DYNAMIC=true"]
)
def test_fewer_threads_than_asked_for(setting):
    code = """
import torch, vimae_kernels as vk
torch.manual_seed(0)
torch.set_num_threads(8)
z, p = torch.randn(900, 8), torch.randn(700, 8) + 0.1
batch = vk.mmd(z.expand(9, 900, 8), p)
values = [vk.mmd(z, p), batch[0], batch[8], vk.mmd(z, p, vk.RBF("median"))]
print(*(value.item() for value in values))
"""
    name, value = setting.split("=")
    run = [sys.executable, "-c", code]
    out = subprocess.run(
        run, env={**os.environ, name: value}, capture_output=True, text=True, check=True
    )
    torch.manual_seed(0)
    z, p = torch.randn(900, 8), torch.randn(700, 8) + 0.1
    want = [float(vk.mmd(z.double(), p.double(), k)) for k in ("imq", vk.RBF("median"))]
    got = [float(word) for word in out.stdout.split()]
    assert got == pytest.approx([want[0], want[0], want[0], want[1]], abs=3e-7)


def test_operations_pass_opcheck():
    from vimae_kernels.ops.mmd import op

    x, y = torch.randn(9, 3), torch.randn(2, 7, 3)
    x = x.expand(2, 9, 3)
    config = ("imq", torch.tensor([6.0]).double(), True, "native")
    gradient, scaled = op._mmd.with_gradient.dispatched, op._mmd.scaled.dispatched
    value, dx, dy = gradient(x, y, [True, True], *config)
    z = y.clone().requires_grad_()
    torch.library.opcheck(op._mmd.dispatched, (x, z, *config))
    torch.library.opcheck(gradient, (x, y, [True, False], *config))
    torch.library.opcheck(op._hessian.dispatched, (x, y, x, y, *config))
    torch.library.opcheck(scaled, (x, y, dx, dy, value, *config))


def test_autocast():
    layer = torch.nn.Linear(8, 4)
    x, p = torch.randn(64, 8), torch.randn(64, 4)
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(x)
        assert z.dtype == torch.bfloat16
        value = vk.mmd(z, p)
    assert value.dtype == torch.float32
    assert torch.equal(value, vk.mmd(z.float(), p))
    value.backward()
    assert layer.weight.grad.abs().max() > 0


def test_median_is_the_median_heuristic():
    z, p = (
        torch.randn(80, 5, dtype=torch.float64) + 100,
        torch.randn(61, 5, dtype=torch.float64) + 101,
    )
    bandwidth = torch.pdist(torch.cat([z, p])).median().item()
    for backend in ("native", "reference"):
        got = evaluate(z, p, vk.RBF("median"), "unbiased", backend)
        want = truth(z, p, vk.RBF(bandwidth), "unbiased")
        assert abs(got[0] - want[0]) < 1e-13
        assert relative(got[1], want[1]) < 1e-10
    # Every entry of a batch has its own bandwidth.
    batch = torch.stack([z, 7 * z])
    assert torch.allclose(vk.mmd(batch, p, vk.RBF("median"))[1], vk.mmd(7 * z, p, vk.RBF("median")))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kernel", ["imq", "rbf", vk.RBF("median")], ids=str)
def test_bad_numbers_give_nan(kernel, bad):
    z, p = torch.randn(70, 3), torch.randn(60, 3)
    z[66, 1] = bad
    assert vk.mmd(z, p, kernel).isnan()
    assert vk.mmd(p, z, kernel).isnan()


def test_memory_is_linear_in_the_number_of_points():
    code = """
import resource, torch, vimae_kernels as vk
z, p = torch.randn(30000, 8, requires_grad=True), torch.randn(30000, 8)
vk.mmd(z[:1000], p[:1000]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
z.grad = None
vk.mmd(z, p).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 100 * 1024  # kilobytes; one 30000 x 30000 matrix would be 3.6 million


def test_calls_do_not_leak():
    code = """
import resource, torch, vimae_kernels as vk
z, p = torch.randn(2000, 8), torch.randn(2000, 8)
def calls(count):
    for _ in range(count):
        vk.mmd(z, p)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(-calls(10) + calls(300))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 20 * 1024  # kilobytes; a lost workspace a call would be ten times that
