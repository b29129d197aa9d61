"""Both GPU backends on a GPU, against float64 on the same GPU: `pytest -m gpu`."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch
from helpers import evaluate, relative, truth

import vimae_kernels as vk
from vimae_kernels import _backend
from vimae_kernels.ops.median import reference as median_reference
from vimae_kernels.ops.median.op import median_distance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
# Of the loss per scale (absolute) and of gradients (relative norm). A half type computes in float32, and its
# gradient is rounded once at the end.
TOLERANCE = {F64: (1e-12, 1e-10), F32: (1e-6, 1e-5), BF16: (1e-6, 8e-3), F16: (1e-6, 1e-3)}


@pytest.fixture(params=["triton", "native"])
def backend(request):
    reason = _backend.unavailable(request.param, "cuda")
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


def samples(n, m, d, dtype=F32, batch=(), shift=0.0):
    g = torch.Generator().manual_seed(n + m + d)
    z = 0.7 * torch.randn(*batch, n, d, generator=g, dtype=F64) + 0.4 + shift
    p = torch.randn(*batch, m, d, generator=g, dtype=F64) + shift
    return z.to("cuda", dtype), p.to("cuda", dtype)


def check(got, want, dtype, scales=1):
    absolute, of_gradient = TOLERANCE[dtype]
    assert (got[0].double() - want[0]).abs().max() <= absolute * scales
    for a, b in zip(got[1:], want[1:], strict=True):
        assert a.dtype == dtype
        # Gradients of size 1 / n reach the subnormal numbers of float16, which are 2^-24 apart.
        rounding = 2.0**-24 * b.numel() ** 0.5 if dtype == F16 else 0.0
        assert (a.double() - b).norm() <= of_gradient * b.norm() + rounding


def blocked_truth(z, p, c, rows=1024):
    """Value and gradients of the unbiased IMQ estimator in float64, block of rows by block of rows.

    Around a common centre, ||x||^2 + ||y||^2 - 2 x.y loses a few of float64's sixteen digits, no more.
    """
    centre = z.double().mean(0)
    z, p = z.double() - centre, p.double() - centre
    n, m = len(z), len(p)
    value, gz, gp = z.new_zeros(()), torch.zeros_like(z), torch.zeros_like(p)

    def term(a, b, weight, ga, gb):
        nonlocal value
        norms = (b * b).sum(1)
        for i in range(0, len(a), rows):
            block = a[i : i + rows]
            s = torch.addmm((block * block).sum(1)[:, None] + norms, block, b.T, alpha=-2).clamp_(0)
            k = c / (c + s)
            value = value + weight * k.sum()
            slope = k.square_() * (-2 * weight / c)  # of k in s, times the 2 of s in a coordinate
            ga[i : i + rows] += block * slope.sum(1, keepdim=True) - slope @ b
            gb += b * slope.sum(0)[:, None] - slope.T @ block

    term(z, z, 1 / (n * (n - 1)), gz, gz)
    term(p, p, 1 / (m * (m - 1)), gp, gp)
    term(z, p, -2 / (n * m), gz, gp)
    return value - 1 / (n - 1) - 1 / (m - 1), gz, gp


def test_the_blocked_truth_is_the_definition():
    z, p = samples(70, 90, 5, F64)
    want = truth(z, p, vk.IMQ(10.0), "unbiased")
    for a, b in zip(blocked_truth(z, p, 10.0, rows=32), want, strict=True):
        assert relative(a, b) < 1e-11


# Odd sizes on both sides of every tile; small d in registers, large d in tiles.
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 1), (65, 33, 2), (130, 67, 8), (300, 513, 16), (129, 1000, 17), (513, 257, 100)],
)
def test_matches_the_definition(shape, dtype, backend):
    z, p = samples(*shape, dtype)
    d = shape[-1]
    for kernel in ("imq", "rbf", vk.IMQ.wae(d), vk.RBF([0.5 * d**0.5, 2.0 * d**0.5])):
        for estimator in ("biased", "unbiased"):
            want = truth(z, p, kernel, estimator)
            scales = len(vk.kernels.resolve_kernel(kernel).scales(d))
            check(evaluate(z, p, kernel, estimator, backend), want, dtype, scales)


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("d", [3, 8, 40])
def test_a_shift_of_100_costs_nothing(d, dtype, backend):
    z, p = samples(300, 200, d, dtype, shift=100.0)
    check(evaluate(z, p, "imq", "unbiased", backend), truth(z, p, "imq", "unbiased"), dtype)


@pytest.mark.parametrize(("n", "d"), [(10_000, 8), (10_000, 64), (30_000, 8), (100_000, 8)])
def test_large(n, d, backend):
    z, p = samples(n, n - 77, d)
    got = evaluate(z, p, vk.IMQ(2.0 * d), "unbiased", backend)
    check(got, blocked_truth(z, p, 2.0 * d), F32)


@pytest.mark.parametrize("d", [8, 24])
def test_batches(d, backend):
    z, p = samples(65, 70, d, batch=(3, 4))
    check(evaluate(z, p, "imq", "unbiased", backend), truth(z, p, "imq", "unbiased"), F32)
    # One prior for all of them, and strides that are not the usual.
    p = p[0, 0]
    z = z.mT.contiguous().mT
    check(evaluate(z, p, "imq", "biased", backend), truth(z, p, "imq", "biased"), F32)
    assert vk.mmd(z[:0], p, backend=backend).shape == (0, 4)


@pytest.mark.parametrize("d", [3, 8, 20])
def test_second_derivatives(d, backend):
    z, p = samples(140, 75, d, F64)

    def penalty(backend):
        x, y = z.clone().requires_grad_(), p.clone().requires_grad_()
        value = vk.mmd(x, y, vk.IMQ.wae(d), backend=backend)
        g = torch.autograd.grad(value, (x, y), create_graph=True)
        return torch.autograd.grad(value + sum(t.square().sum() for t in g), (x, y))

    for a, b in zip(penalty(backend), penalty("reference"), strict=True):
        assert relative(a, b) < 1e-9


def test_gradcheck(backend):
    z, p = samples(5, 4, 3, F64)
    inputs = z.requires_grad_(), p.requires_grad_()
    assert torch.autograd.gradcheck(lambda z, p: vk.mmd(z, p, backend=backend), inputs)
    assert torch.autograd.gradgradcheck(lambda z, p: vk.mmd(z, p, backend=backend), inputs)


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_median(dtype, backend):
    x, _ = samples(500, 2, 7, dtype, batch=(2,))
    got = median_distance(x, backend)
    torch.testing.assert_close(got, median_reference.median_distance(x))
    z, p = samples(200, 150, 6, dtype)
    kernel = vk.RBF("median")
    torch.testing.assert_close(
        vk.mmd(z, p, kernel, backend=backend), vk.mmd(z, p, kernel, backend="reference")
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_numbers_give_nan(bad, backend):
    z, p = samples(70, 60, 3, batch=(2,))
    z[1, 66, 1] = bad
    value = vk.mmd(z, p, backend=backend)
    assert value[0].isfinite() and value[1].isnan()


@pytest.mark.parametrize("d", [8, 64])
@pytest.mark.parametrize("n", [100, 5000])
def test_the_same_inputs_give_the_same_bits(n, d, backend):
    z, p = samples(n, n + 3, d)
    first = evaluate(z, p, "imq", "unbiased", backend)
    for _ in range(5):
        again = evaluate(z, p, "imq", "unbiased", backend)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_other_streams(backend):
    """Work goes to the current stream: what it waits for there is waited for."""
    z, p = samples(3000, 2000, 8)
    want = evaluate(z, p, "imq", "unbiased", backend)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.full_like(z, float("nan"))
        torch.cuda._sleep(50_000_000)
        late.copy_(z)
        got = evaluate(late, p, "imq", "unbiased", backend)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("d", [8, 24])
def test_graph_capture_and_replay(d, backend):
    z, p = samples(500, 400, d)
    z.requires_grad_()

    def run():
        value = vk.mmd(z, p, backend=backend)
        return value, torch.autograd.grad(value, z)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, gradient = run()
    for scale in (1.0, 0.5):
        with torch.no_grad():
            z.mul_(scale)
        graph.replay()
        want = evaluate(z, p, "imq", "unbiased", backend)
        assert torch.equal(value, want[0])
        # evaluate asks for both gradients, another configuration with other roundings.
        assert relative(gradient, want[1]) < 1e-5


@pytest.mark.parametrize("kernel", ["imq", vk.RBF("median")], ids=str)
def test_compiles_into_one_graph(kernel, backend):
    torch._dynamo.reset()
    z, p = samples(200, 150, 8, F64)
    z.requires_grad_(), p.requires_grad_()
    compiled = torch.compile(
        lambda z, p: 2 * vk.mmd(z.tanh(), p, kernel, backend=backend), fullgraph=True
    )
    value = compiled(z, p)
    got = value, *torch.autograd.grad(value, (z, p))
    value = 2 * vk.mmd(z.tanh(), p, kernel, backend="reference")
    want = value, *torch.autograd.grad(value, (z, p))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("d", [8, 64])
def test_memory_is_linear_in_the_number_of_points(d, backend):
    n = 50_000
    z, p = samples(n, n, d)
    z.requires_grad_()
    vk.mmd(z[:100], p[:100], backend=backend)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(vk.mmd(z, p, backend=backend), z)
    # Copies of the points, gradients and at most eight partial ones; one n x n matrix would be 10 GB.
    points = 4 * n * d
    assert torch.cuda.max_memory_allocated() - before <= 32 * points + 2**22


def test_devices_must_agree():
    z, p = samples(5, 4, 3)
    with pytest.raises(ValueError, match="cuda"):
        vk.mmd(z, p.cpu())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices(backend):
    z, p = samples(50, 40, 8)
    with pytest.raises(ValueError, match="cuda:1"):
        vk.mmd(z, p.to("cuda:1"), backend=backend)
    # On a device that is not the current one.
    want = evaluate(z, p, "imq", "unbiased", backend)
    got = evaluate(z.to("cuda:1"), p.to("cuda:1"), "imq", "unbiased", backend)
    assert all(torch.equal(a, b.to(a.device)) for a, b in zip(want, got, strict=True))


SANITIZED = """
import torch, vimae_kernels as vk
for d in (3, 8, 24):
    for dtype in (torch.float32, torch.float64):
        z = torch.randn(70, d, device="cuda", dtype=dtype, requires_grad=True)
        p = torch.randn(131, d, device="cuda", dtype=dtype, requires_grad=True)
        value = vk.mmd(z, p, vk.RBF("median") if d == 3 else "imq", backend={backend!r})
        g = torch.autograd.grad(value, (z, p), create_graph=True)
        torch.autograd.grad(sum(t.square().sum() for t in g), (z, p))
torch.cuda.synchronize()
print("reached the end")
"""


@pytest.mark.parametrize("checker", ["memcheck", "racecheck"])
def test_compute_sanitizer(checker, backend):
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if tool is None:
        pytest.skip("compute-sanitizer is not installed")
    # The caching allocator would hide an overrun inside one of its blocks.
    program = "import os; os.environ['PYTORCH_NO_CUDA_MEMORY_CACHING'] = '1'\n" + SANITIZED.format(
        backend=backend
    )
    command = [tool, "--tool", checker, "--error-exitcode", "86", sys.executable, "-c", program]
    run = subprocess.run(command, text=True, capture_output=True, timeout=170)
    if run.returncode != 86 and "reached the end" not in run.stdout:
        pytest.skip(f"compute-sanitizer does not work here: {(run.stdout + run.stderr)[-300:]}")
    assert run.returncode == 0, run.stdout[-3000:]
