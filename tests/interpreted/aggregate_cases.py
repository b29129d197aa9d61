"""The Triton kernels of the aggregated posterior against the float64 definition; see mmd_cases.py."""

from __future__ import annotations

import math

import pytest
import torch
from triton import knobs

import vimae_kernels as vk
from vimae_kernels.ops.aggregate import reference, triton_impl

DEVICE = "cpu" if knobs.runtime.interpret else "cuda"
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
EPS = {F64: 2.0**-52, F32: 2.0**-23}


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch):
    """Memory from torch.empty holds NaN, so that an element nobody writes is seen."""

    def poison(empty):
        return lambda *args, **kwargs: empty(*args, **kwargs).fill_(float("nan"))

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


def posteriors(n, B, d, dtype, batch=(), shift=0.0):
    """z, mean and log_var; rows of z are near posteriors, so that no density is very small."""
    g = torch.Generator().manual_seed(n + B + d)

    def normal(rows):
        return torch.randn(*batch, rows, d, generator=g, dtype=F64)

    mean, log_var = normal(B), 0.5 * normal(B) - 1
    z = mean[..., torch.arange(n) % B, :] + torch.exp(0.5 * log_var[..., :1, :]) * normal(n)
    return [x.to(DEVICE, dtype) for x in (z + shift, mean + shift, log_var)]


def directions(joint, marginal):
    g = torch.Generator().manual_seed(9)
    return [torch.randn(x.shape, generator=g, dtype=F64).to(DEVICE) for x in (joint, marginal)]


def truth(inputs, weighting, dataset_size):
    """joint, marginal, the directions they are pulled in and the gradient along these, in float64."""
    inputs = [x.double().requires_grad_() for x in inputs]
    out = reference.log_density(*inputs, weighting, dataset_size)
    along = directions(*out)
    total = sum((x * v).sum() for x, v in zip(out, along, strict=True))
    return *(x.detach() for x in out), along, torch.autograd.grad(total, inputs)


def evaluate(inputs, along, weighting, dataset_size):
    joint, marginal, *kept = triton_impl.log_density(*inputs, weighting, dataset_size)
    along = [v.to(inputs[0].dtype) for v in along]
    gradient = triton_impl.log_density_grad(*inputs, joint, *kept, *along, weighting, dataset_size)
    return joint, marginal, gradient


def check(inputs, weighting="uniform", dataset_size=0, times=1.0):
    """Errors are a few roundings of the largest number around; the joint's is that of what it sums."""
    joint, marginal, along, gradient = truth(inputs, weighting, dataset_size)
    got = evaluate(inputs, along, weighting, dataset_size)
    eps = EPS[inputs[0].dtype] * times
    d = inputs[0].shape[-1]
    assert got[0].dtype == F64
    for a, b, size in ((got[0], joint, 4 + d), (got[1], marginal, 4)):
        assert a.shape == b.shape
        assert (a.double() - b).abs().max() <= 4 * eps * (size + b.abs().max())
    for a, b, x in zip(got[2], gradient, inputs, strict=True):
        assert (a.shape, a.dtype) == (x.shape, x.dtype)
        assert a.is_contiguous()
        assert (a.double() - b).norm() <= 16 * eps * (4 + d) * b.norm()


# Around what tiles own, 128 to 512, and sweep, 8 or 16; 130 is split in two; d = 33 keeps what rounding took.
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    ("n", "B", "d", "batch"),
    [
        (1, 1, 1, ()),
        (3, 17, 2, (1, 2)),
        (17, 3, 5, ()),
        (2, 130, 3, ()),
        (260, 5, 1, ()),
        (3, 5, 33, ()),
    ],
)
def test_against_the_definition(n, B, d, batch, dtype):
    check(posteriors(n, B, d, dtype, batch))


def test_minibatch_weights():
    check(posteriors(5, 7, 2, F32), "mws", 10**12)


# The neighbour of the last row is the first column; several blocks; two, where every weight is special.
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("B", "dataset_size"), [(2, 2), (17, 17), (135, 10**12)])
def test_stratified(B, dataset_size, dtype):
    check(posteriors(B, B, 2, dtype), "mss", dataset_size)


@pytest.mark.parametrize("d", [2, 40])
def test_a_common_offset_costs_nothing(d):
    check(posteriors(5, 7, d, F32, shift=128.0))


def test_many_coordinates():
    """The joint log density is in the hundreds, and its weights are still right."""
    g = torch.Generator().manual_seed(0)
    mean = 0.02 * torch.randn(4, 200, generator=g, dtype=F64)
    z = mean[:3] + torch.randn(3, 200, generator=g, dtype=F64)
    inputs = [x.to(DEVICE, F32) for x in (z, mean, torch.zeros_like(mean))]
    joint, _, along, gradient = truth(inputs, "uniform", 0)
    got = evaluate(inputs, along, "uniform", 0)
    assert joint.abs().max() > 250
    assert (got[0] - joint).abs().max() < 1e-4
    for a, b in zip(got[2], gradient, strict=True):
        assert (a.double() - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("log_var", [-20.0, 20.0])
@pytest.mark.parametrize("far", [0.0, 10.0])
def test_extreme_variances_and_samples_far_from_every_mean(far, log_var, d):
    z, mean, spread = posteriors(7, 20, d, F32)
    inputs = z + far, mean, 0 * spread + log_var
    joint, marginal, along, gradient = truth(inputs, "uniform", 0)
    got = evaluate(inputs, along, "uniform", 0)
    for a, b in ((got[0], joint), (got[1], marginal), *zip(got[2], gradient, strict=True)):
        assert a.isfinite().all()
        assert (a.double() - b).norm() <= 1e-4 * b.norm() + 1e-5


def test_any_strides():
    z, mean, log_var = posteriors(9, 20, 4, F32, (2,))
    check((z.mT.contiguous().mT, mean[:1].expand(2, 20, 4), log_var.flip(-1)))
    check((z[:, ::2], mean[..., ::2, :], log_var[..., 1::2, :]))


def test_gradients_that_come_with_any_strides():
    """Whole tiles of rows need no padding, and so no copy that would make them contiguous."""
    inputs = posteriors(16, 3, 1, F32, (2,))
    _, _, along, gradient = truth(inputs, "uniform", 0)
    along = [v.mT.contiguous().mT for v in along]
    got = evaluate(inputs, along, "uniform", 0)[2]
    for a, b in zip(got, gradient, strict=True):
        assert (a.double() - b).norm() <= 80 * EPS[F32] * b.norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", range(3))
def test_nan_and_inf_give_nan_where_they_matter(which, bad):
    inputs = posteriors(5, 19, 3, F32, (2,))
    inputs[which][1, 4, 2] = bad
    joint, marginal, *_ = triton_impl.log_density(*inputs, "uniform", 0)
    expected = reference.log_density(*inputs, "uniform", 0)
    assert torch.equal(joint.isnan(), expected[0].isnan())
    assert torch.equal(marginal.isnan(), expected[1].isnan())
    assert joint[1, 4].isnan()
    assert joint[0].isfinite().all()


def test_two_runs_are_bitwise_equal():
    inputs = posteriors(40, 70, 3, F32)
    _, _, along, _ = truth(inputs, "uniform", 0)
    first, second = (evaluate(inputs, along, "uniform", 0) for _ in range(2))
    for a, b in zip((*first[:2], *first[2]), (*second[:2], *second[2]), strict=True):
        assert torch.equal(a, b)


def test_no_problems_at_all():
    inputs = posteriors(4, 5, 3, F32, (0,))
    joint, marginal, *kept = triton_impl.log_density(*inputs, "uniform", 0)
    assert (joint.shape, marginal.shape) == ((0, 4), (0, 4, 3))
    gradient = triton_impl.log_density_grad(
        *inputs, joint, *kept, joint.float(), marginal, "uniform", 0
    )
    assert [x.shape for x in gradient] == [x.shape for x in inputs]


@pytest.mark.parametrize(("weighting", "size"), [("uniform", None), ("mws", 9), ("mss", 9)])
def test_public_functions_and_their_gradient(weighting, size):
    inputs = [x.requires_grad_() for x in posteriors(3, 3, 1, F64)]
    config = {"weighting": weighting, "dataset_size": size, "backend": "triton"}
    assert torch.autograd.gradcheck(lambda *x: vk.aggregate_log_density(*x, **config), inputs)
    got = vk.latent_information(*inputs, **config)
    want = vk.latent_information(*inputs, **{**config, "backend": "reference"})
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_public_function_in_half_precision():
    z, mean, log_var = posteriors(33, 20, 8, BF16)
    z.requires_grad_()
    loss = vk.total_correlation(z, mean, log_var, backend="triton")
    loss.backward()
    assert loss.dtype == F32
    assert z.grad.dtype == BF16
    exact = (x.detach().double() for x in (z, mean, log_var))
    want = vk.total_correlation(*exact, backend="reference")
    assert math.isclose(loss.item(), want.item(), abs_tol=1e-5)
