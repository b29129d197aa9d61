"""gumbel_softmax in the place of torch's: its signature, a tensor of temperatures, logits that change later."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn.functional import gumbel_softmax as of_torch

import vimae_kernels as vk
from vimae_kernels import _backend

F64, HALF = torch.float64, (torch.float16, torch.bfloat16)
BACKENDS = [
    pytest.param(
        b,
        marks=pytest.mark.skipif(
            _backend.unavailable(b, "cpu") is not None, reason=f"no {b} backend here"
        ),
    )
    for b in ("native", "reference")
]


def test_the_signature_is_torchs_and_more():
    ours = list(inspect.signature(vk.gumbel_softmax).parameters.values())
    theirs = list(inspect.signature(of_torch).parameters.values())
    assert [(p.name, p.kind, p.default) for p in ours[: len(theirs)]] == [
        (p.name, p.kind, p.default) for p in theirs
    ]
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize("backend", BACKENDS)
def test_eps_is_of_no_effect(backend):
    x = torch.randn(5, 3)
    calls = [
        lambda: vk.gumbel_softmax(x, 0.5, True, 1e-3, 0, backend=backend),
        lambda: vk.gumbel_softmax(x, tau=0.5, hard=True, eps=0.0, dim=0, backend=backend),
        lambda: vk.gumbel_softmax(x, 0.5, True, dim=0, backend=backend),
    ]
    results = []
    for call in calls:
        torch.manual_seed(0)
        results.append(call())
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert torch.equal(results[0].sum(0), torch.ones(3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (4, 1), (3, 4, 1), (3, 1, 1), (1, 4, 1)])
def test_a_tensor_of_temperatures(shape, hard, backend):
    """Against torch's formula with the same noise, which is what tau 1 perturbs zero logits by."""
    x = torch.randn(3, 4, 5, dtype=F64)
    tau = torch.rand(shape, dtype=F64) + 0.4
    weight = torch.randn(3, 4, 5, dtype=F64)
    torch.manual_seed(1)
    noise = vk.gumbel_softmax(torch.zeros_like(x), 1.0, backend=backend).log()
    results = []
    for ours in (True, False):
        logits, t = x.clone().requires_grad_(), tau.clone().requires_grad_()
        torch.manual_seed(1)
        if ours:
            y = vk.gumbel_softmax(logits, t, hard, backend=backend)
        else:
            y = ((logits + noise) / t).softmax(-1)
            if hard:
                y = torch.zeros_like(y).scatter(-1, y.argmax(-1, keepdim=True), 1) + y - y.detach()
        gradients = torch.autograd.grad((y * weight).sum(), (logits, t), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in gradients), (logits, t))
        results.append((y, *gradients, *second))
    assert results[0][2].shape == tau.shape
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_temperatures_along_any_dimension_and_of_any_dtype(backend):
    x = torch.randn(4, 5, 3)
    for tau in (torch.tensor([[0.5], [1.0], [2.0], [3.0]])[..., None], torch.tensor(2), 0.5):
        torch.manual_seed(0)
        y = vk.gumbel_softmax(x, tau, dim=1, backend=backend)
        rows = tau.expand(4, 1, 3) if isinstance(tau, torch.Tensor) else torch.full((4, 1, 3), tau)
        torch.manual_seed(0)
        noise = vk.gumbel_softmax(0 * x, 1.0, dim=1, backend=backend).log()
        torch.testing.assert_close(y, ((x + noise) / rows).softmax(1), rtol=1e-4, atol=1e-6)
    for dtype in HALF:
        tau = torch.tensor(0.7, requires_grad=True)
        y = vk.gumbel_softmax(x.to(dtype), tau, backend=backend)
        (gradient,) = torch.autograd.grad(y[..., 0].sum(), tau)
        assert y.dtype == dtype and gradient.dtype == torch.float32 and gradient != 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64, *HALF])
def test_logits_may_change_in_place_after_the_call(dtype, hard, backend):
    x = torch.randn(6, 4, dtype=dtype, requires_grad=True)
    weight = torch.randn(6, 4, dtype=dtype)
    gradients = []
    for change in (lambda t: t, lambda t: t.add_(100), lambda t: t.zero_(), lambda t: t.mul_(-3)):
        logits = x * 1
        torch.manual_seed(0)
        y = vk.gumbel_softmax(logits, 0.6, hard, backend=backend)
        change(logits)
        gradients.append(torch.autograd.grad((y * weight).sum(), x, retain_graph=True)[0])
        with torch.no_grad():
            logits.fill_(float("nan"))
    # add_ hands the gradient through; what zeroes or scales the logits later does not touch that of the sample.
    for gradient in gradients[1:]:
        assert torch.equal(gradient, gradients[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loop_that_updates_its_logits_in_place(backend):
    """Optimisation of a tensor by hand, as in many loops: the graph is used after the update."""
    logits = torch.zeros(8, 3, requires_grad=True)
    for _ in range(3):
        torch.manual_seed(0)
        y = vk.gumbel_softmax(logits, 0.5, hard=True, backend=backend)
        loss = (y * torch.arange(3.0)).sum()
        with torch.no_grad():
            logits -= 0.1
        loss.backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("tau", "error", "message"),
    [
        (
            torch.tensor([1.0, 2.0]),
            ValueError,
            r"tau has shape \(2,\); for logits of shape \(5, 3\)",
        ),
        (torch.ones(5, 3), ValueError, r"tau has shape \(5, 3\)"),
        (torch.ones(2, 5, 1), ValueError, r"tau has shape \(2, 5, 1\)"),
        (torch.tensor(0.0), ValueError, "tau has an element that is not positive"),
        (torch.tensor([[1.0], [1], [-1], [1], [1]]), ValueError, "tau has an element"),
        (torch.tensor(float("nan")), ValueError, "tau has an element"),
        (torch.tensor(True), TypeError, "tau has dtype torch.bool"),
        (torch.tensor(1j), TypeError, "tau has dtype torch.complex64"),
        ("1", TypeError, "tau is of type str"),
        (0.0, ValueError, "tau is 0.0; it must be positive"),
    ],
)
def test_temperatures_that_cannot_be(tau, error, message):
    with pytest.raises(error, match=message):
        vk.gumbel_softmax(torch.zeros(5, 3), tau)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_temperature_that_cannot_be_seen_gives_nan_in_its_row_alone(backend):
    def run(tau):
        return vk.gumbel_softmax(torch.zeros(3), tau, backend=backend)

    y = torch.func.vmap(run, randomness="different")(torch.tensor([1.0, -1.0, 0.0, 0.5]))
    assert y[[0, 3]].isfinite().all() and y[[1, 2]].isnan().all()
