"""The Triton kernel of mmd_test against the float64 definition; run by tests/test_interpreted.py."""

from __future__ import annotations

import pytest
import torch
from triton import knobs

import vimae_kernels as vk
from vimae_kernels.ops.permutation import op, reference, triton_impl

DEVICE = "cpu" if knobs.runtime.interpret else "cuda"
F64, F32 = torch.float64, torch.float32
IMQ1, IMQ3 = ("imq", [3.0]), ("imq", [9.1, 0.4, 27.3])
RBF1, RBF2 = ("rbf", [5.0]), ("rbf", [0.7, 5.0])


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch):
    """Memory from new_empty holds NaN, so that an element nobody writes is seen."""
    new_empty = torch.Tensor.new_empty

    def poison(*args, **kwargs):
        out = new_empty(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out.fill_(-(2**30))

    monkeypatch.setattr(torch.Tensor, "new_empty", poison)


def problem(n, m, d, dtype, batch=(), permutations=40, shift=0.0):
    g = torch.Generator().manual_seed(n + m + d)
    x = torch.randn(*batch, n + m, d, generator=g, dtype=F64) + shift
    x[..., :n, :] *= 1.3
    labels = op._draw(permutations, n, n + m, g, torch.device("cpu"), "reference")
    return x.to(DEVICE, dtype), labels.to(DEVICE)


def check(x, labels, n, kernel, permutations=40, centre=0.4):
    kernel = kernel[0], [c * x.shape[-1] for c in kernel[1]]
    centre = torch.full(x.shape[:-2], centre * len(kernel[1]), dtype=x.dtype, device=x.device)
    got = triton_impl.permuted_mmd(x, labels, centre, n, *kernel)
    first = op.unpack(labels, x.shape[-2])
    want = reference.permuted_mmd(x.double(), first, kernel[0], tuple(kernel[1]))
    assert got.dtype == F64 and got.shape == want.shape
    error = (got - want)[..., : permutations + 1].abs().max()
    m = x.shape[-2] - n
    # In float64, scales and labels reach the kernel as two float32: 48 bits.
    assert error <= max(200 * torch.finfo(x.dtype).eps / min(n, m), 1e-14) * len(kernel[1])


@pytest.mark.parametrize(
    ("n", "m", "d", "dtype", "kernel", "batch", "permutations"),
    [
        (2, 3, 1, F64, IMQ1, (), 40),
        (2, 2, 3, F32, RBF1, (3,), 3),
        (33, 30, 8, F32, IMQ3, (2,), 31),
        (64, 64, 5, F32, IMQ1, (), 100),
        (40, 25, 17, F64, RBF2, (), 33),
        (100, 170, 4, F32, IMQ1, (), 20),
        (70, 20, 100, F32, RBF1, (2, 2), 5),
    ],
)
def test_against_the_definition(n, m, d, dtype, kernel, batch, permutations):
    x, labels = problem(n, m, d, dtype, batch, permutations)
    check(x, labels, n, kernel, permutations)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_common_offset_costs_nothing(dtype):
    x, labels = problem(40, 30, 5, dtype, shift=100.0)
    check(x, labels, 40, IMQ1)


def test_labels_of_their_own_for_each_problem():
    x, labels = problem(30, 20, 3, F32, (2,))
    both = torch.stack([labels, labels.flip(-1)])
    centre = torch.zeros(2, device=DEVICE)
    got = triton_impl.permuted_mmd(x, both, centre, 30, *IMQ1)
    for b in range(2):
        alone = triton_impl.permuted_mmd(x[b], both[b], centre[0], 30, *IMQ1)
        torch.testing.assert_close(got[b, :30], alone[:30], rtol=0, atol=1e-7)


def test_two_runs_are_bitwise_equal():
    x, labels = problem(90, 60, 4, F32)
    centre = torch.zeros((), device=DEVICE)
    runs = [triton_impl.permuted_mmd(x, labels, centre, 90, *IMQ1) for _ in range(2)]
    assert torch.equal(*runs)


def test_public_function():
    g = torch.Generator(DEVICE).manual_seed(0)
    z = torch.randn(30, 3, device=DEVICE, generator=g)
    x = torch.randn(25, 3, device=DEVICE, generator=g) + 1
    for kernel in ("imq", vk.RBF("median")):
        states = g.get_state()
        got = vk.mmd_test(z, x, kernel, permutations=60, generator=g, backend="triton")
        g.set_state(states)
        want = vk.mmd_test(z, x, kernel, permutations=60, generator=g, backend="reference")
        torch.testing.assert_close(got.statistic, want.statistic, rtol=1e-5, atol=1e-6)
        assert got.p_value == want.p_value
    z[3, 1] = float("nan")
    assert vk.mmd_test(z, x, backend="triton").p_value.isnan()
