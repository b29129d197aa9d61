"""What users write first, and what they are told where it is wrong."""

from __future__ import annotations

import re

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

import vimae_kernels as vk

z = torch.randn(12, 3)
line = torch.randn(12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: vk.mmd(a, z), "z is of type ndarray; it must be a torch.Tensor: write torch.from_numpy(z)"),
        (lambda a: vk.mmd(z, a), "'normal' or 'logistic': write torch.from_numpy(prior)"),
        (lambda a: vk.mmd_test(a, z), "write torch.from_numpy(z)"),
        (lambda a: vk.mmd_test(z, a), "write torch.from_numpy(x)"),
        (lambda a: vk.ksd(a), "write torch.from_numpy(z)"),
        (lambda a: vk.ksd(z, score=a), "write torch.from_numpy(score)"),
        (lambda a: vk.stein_gradient(a), "write torch.from_numpy(z)"),
        (lambda a: vk.total_correlation(z, a, z), "write torch.from_numpy(mean)"),
        (lambda a: vk.latent_information(z, z, a), "write torch.from_numpy(log_var)"),
        (lambda a: vk.gumbel_softmax(a), "write torch.from_numpy(logits)"),
    ],
)  # fmt: skip
def test_arrays_of_numpy(call, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        call(z.numpy())


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: vk.mmd(x, z), "z"),
        (lambda x: vk.mmd(z, x), "prior"),
        (lambda x: vk.mmd_test(x, z), "z"),
        (lambda x: vk.mmd_test(z, x), "x"),
        (lambda x: vk.ksd(x), "z"),
        (lambda x: vk.stein_loss(x), "z"),
        (lambda x: vk.ksd(z, score=x), "score"),
        (lambda x: vk.total_correlation(x, z, z), "z"),
        (lambda x: vk.aggregate_log_density(z, x, z), "mean"),
        (lambda x: vk.nn.MMDLoss(x), "prior"),
    ],
)
def test_samples_in_one_dimension(call, name):
    message = (
        f"{name} has shape (12,); it must be (..., n, d): for n samples in one dimension write "
        f"{name}[:, None]"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        call(line)
    with pytest.raises(ValueError, match=re.escape(f"{name} has shape (); it must be (..., n, d)")):
        call(line[0])


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    "prior",
    [
        "normal",
        "logistic",
        Normal(0.0, 1.0),
        vk.Logistic(),
        MultivariateNormal(torch.zeros(3), torch.eye(3)),
    ],
    ids=str,
)
def test_mmd_test_against_a_prior(prior, backend):
    if vk._backend.unavailable(backend, "cpu") is not None:
        pytest.skip("the native core was not built")
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))

    def run(points, seed=2):
        generator = torch.Generator().manual_seed(seed)
        return vk.mmd_test(points, prior, permutations=99, generator=generator, backend=backend)

    state = torch.get_rng_state()
    assert run(points).p_value > 0.011 and run(points + 1).p_value == 0.01
    assert torch.equal(run(points).statistic, run(points).statistic)
    assert not torch.equal(run(points).statistic, run(points, 3).statistic)
    assert torch.equal(torch.get_rng_state(), state)
    # The samples come first from the generator, as many as of z.
    generator = torch.Generator().manual_seed(2)
    drawn = vk.priors.sample_prior(prior, points, generator)
    want = vk.mmd_test(points, drawn, permutations=99, generator=generator, backend=backend)
    assert torch.equal(run(points).p_value, want.p_value)
    assert run(points.expand(2, 200, 3)).p_value.shape == (2,)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    "shape", [(), (1,), (3,), (1, 3), (1, 1), (12, 1), (2, 1, 3), (2, 12, 1)], ids=str
)
def test_log_var_broadcasts(shape, backend):
    if vk._backend.unavailable(backend, "cpu") is not None:
        pytest.skip("the native core was not built")
    mean, log_var = torch.randn(12, 3, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    points = z.double()
    whole = log_var.expand(torch.broadcast_shapes(shape, (12, 3)))
    for call in (
        lambda v: vk.aggregate_log_density(points, mean, v, backend=backend),
        lambda v: vk.latent_information(points, mean, v, backend=backend),
        lambda v: (vk.total_correlation(points, mean, v, backend=backend),),
        lambda v: (
            vk.total_correlation(
                points, mean, v, weighting="mss", dataset_size=50, backend=backend
            ),
        ),
        lambda v: (vk.nn.TotalCorrelation(backend=backend)(points, mean, v),),
    ):
        gradients = []
        for given in (log_var, whole):
            leaf = log_var.detach().requires_grad_()
            out = call(leaf if given is log_var else leaf.expand(whole.shape))
            total = sum((i + 1) * t.square().sum() for i, t in enumerate(out))
            gradients.append((out, torch.autograd.grad(total, leaf)[0]))
        (got, got_gradient), (want, want_gradient) = gradients
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(got_gradient, want_gradient)


@pytest.mark.parametrize(
    ("log_var", "message"),
    [
        (
            torch.zeros(4),
            "log_var has shape (4,); it must be (..., B, d) or broadcast to that of mean, (12, 3)",
        ),
        (
            torch.zeros(2, 3),
            "log_var has shape (2, 3); it must have the 12 rows of mean, (12, 3), or one",
        ),
        (
            torch.zeros(12),
            "log_var has shape (12,); it must be (..., B, d) or broadcast to that of mean, (12, 3)",
        ),
        (torch.zeros(1, 4), "log_var has shape (1, 4): its last dimension must be that of"),
    ],
    ids=str,
)
def test_a_log_var_that_does_not_broadcast(log_var, message):
    for call in (vk.aggregate_log_density, vk.latent_information, vk.total_correlation):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(z, z, log_var)
