"""A signal is answered during a long call, which leaves nothing behind."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest
import torch

import vimae_kernels as vk
from vimae_kernels import _native

pytestmark = [
    pytest.mark.skipif(_native._C is None, reason="the native core was not built"),
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here"),
]

N = 200_000  # minutes, if it were not given up
z = torch.randn(N, 32)
small = torch.randn(40, 3, dtype=torch.float64)


def many(x: torch.Tensor) -> torch.Tensor:
    """A problem of a thousand points for every fiftieth of x."""
    return x[::50, None, :2] + torch.arange(1000.0)[:, None] / 1000


def gradient_of(loss: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


def hessian_product(x: torch.Tensor) -> torch.Tensor:
    # The samples of the prior are few until the second derivative asks for all pairs.
    _, product = torch.autograd.functional.hvp(
        lambda x: vk.mmd(x, x[:7], estimator="biased"), x, torch.ones_like(x)
    )
    return product


CALLS = {
    "mmd": lambda x: vk.mmd(x, x.flip(0)),
    "mmd, gradient": lambda x: gradient_of(lambda x: vk.mmd(x, x.flip(0)), x),
    "mmd, many problems": lambda x: vk.mmd(many(x), many(x).flip(-2)),
    "mmd, Hessian product": hessian_product,
    "mmd, median": lambda x: vk.mmd(x, x.flip(0), vk.RBF("median")),
    "closed form": lambda x: vk.mmd(x, "normal", estimator="closed_form"),
    "stein_gradient": lambda x: vk.stein_gradient(x),
    "stein_gradient, score": lambda x: vk.stein_gradient(x, kernel="imq", score=-x),
    "ksd": lambda x: vk.ksd(x),
    "ksd, gradient": lambda x: gradient_of(vk.ksd, x),
    "mmd_test": lambda x: vk.mmd_test(x, x.flip(0), permutations=100, generator=torch.Generator().manual_seed(3))[0],
    "aggregate_log_density": lambda x: vk.aggregate_log_density(x, x, x / 9)[0],
    "aggregate_log_density, gradient": lambda x: gradient_of(
        lambda x: vk.aggregate_log_density(x[:1000], x, x / 9)[0].sum(), x
    ),
    "total_correlation": lambda x: vk.total_correlation(x, x, x / 9),
    "total_correlation, gradient": lambda x: gradient_of(
        lambda x: vk.total_correlation(x, x, x / 9), x
    ),
}  # fmt: skip


class Stop(Exception):
    pass


def stop(*_: object) -> None:
    raise Stop


def interrupted(call: Callable[[torch.Tensor], object], delay: float) -> float:
    """How long after the signal the call raised what its handler did, in seconds."""
    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, delay)
        start = time.perf_counter()
        with pytest.raises(Stop):
            call(z)
        return time.perf_counter() - start - delay
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", CALLS)
def test_a_signal_ends_a_long_call_within_a_second(name):
    call = CALLS[name]
    want = call(small)
    assert interrupted(call, 0.5) < 1
    assert torch.equal(call(small), want)


def test_control_c():
    timer = threading.Timer(0.5, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        vk.mmd(z, z.flip(0))
    timer.join()
    assert time.perf_counter() - start < 1.5


def test_a_handler_that_returns_does_not_end_the_call():
    x = torch.randn(15_000, 40)
    want = vk.mmd(x, x.flip(0))
    handled = []
    before = signal.signal(signal.SIGALRM, lambda *_: handled.append(vk.mmd(small, small[:5])))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.02)
        got = vk.mmd(x, x.flip(0))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert torch.equal(got, want) and handled
    assert all(torch.equal(value, vk.mmd(small, small[:5])) for value in handled)


def test_other_threads_run_and_their_calls_are_not_given_up():
    x = torch.randn(20_000, 40)
    want, results = vk.ksd(x), []
    other = threading.Thread(target=lambda: results.append(vk.ksd(x)))
    other.start()
    try:
        assert interrupted(CALLS["mmd"], 0.1) < 1
    finally:
        other.join()
    assert torch.equal(results[0], want)
