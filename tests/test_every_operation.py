"""What holds for every operation: the same tests on CPU and, with `pytest -m gpu`, on a GPU."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers import relative
from operations import BF16, F16, F32, F64, OPERATIONS, evaluate, inputs_of, weighted

from vimae_kernels import _backend

CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WHERE = [
    pytest.param(("cpu", "native"), id="cpu native"),
    pytest.param(("cuda", "native"), id="cuda native", marks=CUDA),
    pytest.param(("cuda", "triton"), id="cuda triton", marks=CUDA),
]


@pytest.fixture(params=WHERE)
def where(request):
    device, backend = request.param
    reason = _backend.unavailable(backend, device)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    return device, backend


@pytest.fixture(params=OPERATIONS, ids=str)
def operation(request):
    return request.param


DIFFERENTIABLE = pytest.mark.parametrize(
    "operation", [o for o in OPERATIONS if o.differentiable], ids=str
)
# Of values (absolute, in units of the operation, plus relative) and of gradients (relative norm). Half types compute
# in float32, and what is returned in the half type is rounded once at the end.
TOLERANCE = {F64: (1e-12, 1e-10), F32: (3e-6, 2e-5), BF16: (1e-2, 1e-2), F16: (2e-3, 2e-3)}


def truth(operation, inputs):
    """The definition in float64; of noise, which is rounded as its dtype is, in float32 where that is computed in."""
    dtype = F32 if operation.random and inputs[0].dtype != F64 else F64
    return evaluate(operation, [t.to(dtype) for t in inputs], "reference")


def agrees(got, want, dtype, operation):
    of_value, of_gradient = TOLERANCE[dtype]
    if operation.random and dtype == F32:
        of_value, of_gradient = 1e-4, 3e-4  # noise near its lower end has few digits
        if operation.inputs > 1:
            of_gradient = 1e-3  # and what the weights of a row have in common cancels in the gradient of its tau
    # The terms of a discrepancy of Stein's are as large as d.
    unit = got[1][0].shape[-1] if operation.name.startswith("ksd") else operation.unit
    # Permutations are drawn differently by the backends: of a test the statistic alone is compared.
    outputs = slice(1 if operation.name == "mmd_test" else None)
    for a, b in zip(got[0][outputs], want[0][outputs], strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=of_value, atol=of_value * unit)
    for a, b in zip(got[1], want[1], strict=True):
        assert a.dtype == dtype
        if operation.random and dtype in (BF16, F16):
            continue  # a difference of gradients that come in, and were rounded before that
        rounding = 2.0**-24 * b.numel() ** 0.5 if dtype == F16 else 0.0
        if not b.any():  # where it is zero there is nothing to be relative to
            rounding = 1e-14 if dtype == F64 else 1e-6
        assert (a.double() - b).norm() <= of_gradient * b.norm() + rounding


# Odd sizes on both sides of tiles; small d in registers, large d in tiles.
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(2, 1), (65, 3), (70, 8), (131, 17), (40, 130)], ids=str)
def test_matches_the_definition(operation, shape, dtype, where):
    device, backend = where
    inputs = inputs_of(operation, *shape, dtype, device, batch=(2,))
    agrees(evaluate(operation, inputs, backend), truth(operation, inputs), dtype, operation)


def test_poisoned_memory_changes_nothing(operation, where, poisoned):
    device, backend = where
    inputs = inputs_of(operation, 67, 5, F32, device)
    agrees(evaluate(operation, inputs, backend), truth(operation, inputs), F32, operation)


def test_the_same_inputs_give_the_same_bits(operation, where):
    device, backend = where
    inputs = inputs_of(operation, 300, 9, F32, device)
    first = evaluate(operation, inputs, backend)
    for _ in range(3):
        again = evaluate(operation, inputs, backend)
        for a, b in zip([*first[0], *first[1]], [*again[0], *again[1]], strict=True):
            assert torch.equal(a, b)


def test_any_strides(operation, where):
    device, backend = where
    inputs = inputs_of(operation, 33, 6, F32, device, batch=(3,))
    want = evaluate(operation, inputs, backend)
    strided = [t.mT.contiguous().mT for t in inputs]
    strided[-1] = torch.stack([strided[-1]] * 2, -1)[..., 0]
    agrees(evaluate(operation, strided, backend), want, F32, operation)


def test_a_batch_is_its_entries(operation, where):
    if operation.random:
        pytest.skip("entries draw their own numbers")
    device, backend = where
    inputs = inputs_of(operation, 30, 4, F64, device, batch=(2, 3))
    together = evaluate(operation, inputs, backend)[0]
    for i in range(2):
        for j in range(3):
            alone = evaluate(operation, [t[i, j] for t in inputs], backend)[0]
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[i, j], b, rtol=1e-12, atol=1e-12)


def test_an_empty_batch(operation, where):
    device, backend = where
    inputs = inputs_of(operation, 5, 4, F32, device, batch=(0,))
    outputs, gradients = evaluate(operation, inputs, backend)
    assert all(t.shape[0] == 0 for t in (*outputs, *gradients))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_numbers_give_nan(operation, bad, where):
    if operation.random and bad == float("inf"):
        pytest.skip("a logit may be infinite")
    device, backend = where
    inputs = inputs_of(operation, 66, 3, F32, device, batch=(2,))
    for t in inputs:
        t[1, 65, 1] = bad
    for t in operation.run(*inputs, backend=backend):
        assert t[0].isfinite().all()
        assert t[1].isnan().any()


def test_under_autocast(operation, where):
    device, backend = where
    inputs = inputs_of(operation, 40, 5, F32, device)
    want = evaluate(operation, inputs, backend)
    with torch.autocast(device, torch.bfloat16):
        got = evaluate(operation, inputs, backend)
    for a, b in zip([*got[0], *got[1]], [*want[0], *want[1]], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("inductor", [False, True], ids=["aot_eager", "inductor"])
def test_compiles_into_one_graph(operation, inductor, where):
    device, backend = where
    if inductor and device == "cpu" and operation.name not in ("mmd", "total_correlation"):
        pytest.skip("on a CPU inductor takes seconds; two operations stand for all")
    torch._dynamo.reset()
    inputs = inputs_of(operation, 20, 4, F64, device)

    def step(*inputs):
        return [2 * t for t in operation.run(*(t + 0 for t in inputs), backend=backend)]

    active = [t.requires_grad_() for t in inputs[: operation.differentiable]]
    compiled = torch.compile(step, fullgraph=True, backend="inductor" if inductor else "aot_eager")
    torch.manual_seed(1)
    outputs = compiled(*inputs)
    got = [*outputs, *(torch.autograd.grad(weighted(tuple(outputs)), active) if active else ())]
    torch.manual_seed(1)
    outputs = step(*inputs)
    want = [*outputs, *(torch.autograd.grad(weighted(tuple(outputs)), active) if active else ())]
    if operation.random and inductor:
        return  # inductor draws other random numbers
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_vmap(operation, where):
    device, backend = where
    inputs = inputs_of(operation, 12, 3, F64, device, batch=(4,))

    def run(*inputs):
        return operation.run(*inputs, backend=backend)

    if operation.random:
        outputs = torch.func.vmap(run, randomness="different")(*inputs)
        assert all(t.shape[0] == 4 and t.isfinite().all() for t in outputs)
        repeated = [t[:1].expand_as(t) for t in inputs]
        same = torch.func.vmap(run, randomness="same")(*repeated)
        assert all(torch.equal(t[0], t[3]) for t in same)
        return
    mapped = torch.func.vmap(run)(*inputs)
    batched = operation.run(*inputs, backend=backend)
    torch.testing.assert_close(mapped, batched, rtol=1e-12, atol=1e-12)


@DIFFERENTIABLE
def test_grad_under_vmap(operation, where):
    if operation.random:
        pytest.skip("a generator object does not pass into vmap")
    device, backend = where
    inputs = inputs_of(operation, 12, 3, F64, device, batch=(4,))

    def gradient(*inputs):
        loss = lambda *inputs: weighted(operation.run(*inputs, backend=backend))  # noqa: E731
        return torch.func.grad(loss, tuple(range(operation.differentiable)))(*inputs)

    mapped = torch.func.vmap(gradient)(*inputs)
    for i in range(4):
        alone = evaluate(operation, [t[i] for t in inputs], backend)[1]
        for a, b in zip(mapped, alone, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-10, atol=1e-12)


@DIFFERENTIABLE
def test_gradcheck(operation, where):
    if operation.name == "gumbel_softmax, hard":
        pytest.skip("its gradient is that of the soft sample")
    device, backend = where
    inputs = inputs_of(operation, 5, 3, F64, device)
    active = [t.requires_grad_() for t in inputs[: operation.differentiable]]
    if operation.name == "mmd, median":
        pytest.skip("the bandwidth is a constant for the gradient, not for differences")
    if operation.name == "stein_loss":
        # phi is a constant of this loss: its gradient is -phi / n, not what differences would say.
        (gradient,) = torch.autograd.grad(operation.run(*inputs, backend=backend)[0], active)
        from vimae_kernels import stein_gradient

        phi = stein_gradient(inputs[0], "logistic", backend=backend)
        torch.testing.assert_close(gradient, -phi / 5)
        return
    rest = inputs[operation.differentiable :]
    assert torch.autograd.gradcheck(lambda *t: operation.seeded(*t, *rest, backend=backend), active)


@DIFFERENTIABLE
def test_second_derivatives(operation, where):
    device, backend = where
    inputs = inputs_of(operation, 6, 3, F64, device)
    active = [t.requires_grad_() for t in inputs[: operation.differentiable]]

    def penalty(backend):
        value = weighted(operation.seeded(*inputs, backend=backend))
        gradients = torch.autograd.grad(value, active, create_graph=True)
        total = sum(g.square().sum() for g in gradients)
        return torch.autograd.grad(total, active, allow_unused=True)

    if operation.name == "stein_loss":
        # It is linear in z: its gradient does not depend on z.
        value = weighted(operation.run(*inputs, backend=backend))
        (gradient,) = torch.autograd.grad(value, active, create_graph=True)
        assert not gradient.requires_grad
    elif operation.orders < 2:
        with pytest.raises(RuntimeError, match="not a second: use backend='reference'"):
            penalty(backend)
    else:
        got, want = penalty(backend), penalty("reference")
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@DIFFERENTIABLE
def test_forward_mode(operation, where):
    device, backend = where
    inputs = inputs_of(operation, 6, 3, F64, device)

    def derivative(backend):
        with torch.autograd.forward_ad.dual_level(), warnings.catch_warnings():
            duals = [
                torch.autograd.forward_ad.make_dual(t, torch.ones_like(t))
                for t in inputs[: operation.differentiable]
            ]
            out = operation.seeded(*duals, *inputs[operation.differentiable :], backend=backend)
            return [torch.autograd.forward_ad.unpack_dual(t).tangent for t in out]

    if not operation.forward:
        with pytest.raises(RuntimeError, match="has no forward-mode derivative"):
            derivative(backend)
        return
    got, want = derivative(backend), derivative("reference")
    assert all(a is not None for a in got)
    torch.testing.assert_close(got, want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("d", [8, 24])
def test_graph_capture_and_replay(operation, d, backend):
    inputs = inputs_of(operation, 200, d, F32, "cuda")
    active = [t.requires_grad_() for t in inputs[: operation.differentiable]]

    def step():
        out = operation.run(*inputs, backend=backend)
        return [*out, *(torch.autograd.grad(weighted(out), active) if active else ())]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()
    graph.replay()
    first = [t.clone() for t in made]
    graph.replay()
    if operation.name.startswith("gumbel"):
        assert not torch.equal(first[0], made[0])
    elif not operation.random:
        for a, b, c in zip(first, made, step(), strict=True):
            assert torch.equal(a, b)
            assert relative(a, c) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["native", "triton"])
def test_memory_is_linear_in_the_number_of_points(operation, backend):
    n, d = (20_000, 8)
    inputs = inputs_of(operation, n, d, F32, "cuda")
    evaluate(operation, [t[:100] for t in inputs], backend)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    evaluate(operation, inputs, backend)
    # One n x n matrix would be 1.6 GB.
    assert torch.cuda.max_memory_allocated() - before <= 200 * 4 * n * d


@DIFFERENTIABLE
def test_batched_gradients(operation, where):
    """grad(is_grads_batched=True), which jacobian(vectorize=True) uses."""
    device, backend = where
    inputs = inputs_of(operation, 5, 3, F64, device)
    active = [t.requires_grad_() for t in inputs[: operation.differentiable]]
    (out, *_) = operation.seeded(*inputs, backend=backend)
    directions = torch.randn(3, *out.shape, dtype=F64, device=device)
    together = torch.autograd.grad(
        out, active, directions, is_grads_batched=True, retain_graph=True
    )
    for i in range(3):
        alone = torch.autograd.grad(out, active, directions[i], retain_graph=True)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-12, atol=1e-14)


@DIFFERENTIABLE
def test_lazily_negated_inputs(operation, where):
    if operation.random:
        return
    device, backend = where
    inputs = inputs_of(operation, 9, 3, F64, device)
    want = evaluate(operation, inputs, backend)
    got = evaluate(operation, [torch._neg_view(-t) for t in inputs], backend)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("reference", [False, True])
def test_dynamic_shapes_compile(operation, where, reference):
    device, backend = where
    backend = "reference" if reference else backend
    torch._dynamo.reset()
    run = torch.compile(
        lambda *t: operation.run(*t, backend=backend),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    for n, d in ((7, 3), (9, 3), (9, 5)):
        inputs = inputs_of(operation, n, d, F64, device)
        outputs = run(*inputs)
        if not operation.random:
            torch.testing.assert_close(outputs, operation.run(*inputs, backend=backend))


def test_tracing_leaves_nothing_behind(operation, where):
    from torch._subclasses.fake_tensor import FakeTensorMode

    device, backend = where
    inputs = inputs_of(operation, 8, 7, F64, device)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in inputs]
        operation.run(*fakes, backend=backend)
    for t in operation.run(*inputs, backend=backend):
        assert type(t) is torch.Tensor and t.isfinite().all()
