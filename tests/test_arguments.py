"""Bad input: the right type of error, and a message with the argument, what it was and what it must be."""

from __future__ import annotations

import re

import pytest
import torch

import vimae_kernels as vk

z = torch.randn(10, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: vk.mmd([[1.0]], z), TypeError, "z is of type list; it must be a torch.Tensor"),
        (lambda: vk.mmd(z.numpy(), z), TypeError, "z is of type ndarray"),
        (
            lambda: vk.mmd(z.long(), z),
            TypeError,
            "z has dtype torch.int64; it must be one of float64",
        ),
        (lambda: vk.mmd(z, z.bool()), TypeError, "prior has dtype torch.bool"),
        (lambda: vk.mmd(z, z.to(torch.complex64)), TypeError, "prior has dtype torch.complex64"),
        (lambda: vk.mmd(z.to_sparse(), z), TypeError, "z has layout torch.sparse_coo"),
        (lambda: vk.mmd(z, 3), TypeError, "prior is of type int; it must be a tensor of samples"),
        (lambda: vk.mmd(z[0], z), ValueError, "z has shape (3,); it must be (..., n, d)"),
        (lambda: vk.mmd(z, z[0]), ValueError, "prior has shape (3,); it must be (..., n, d)"),
        (
            lambda: vk.mmd(z[:, :0], z[:, :0]),
            ValueError,
            "z has shape (10, 0); it needs at least one",
        ),
        (
            lambda: vk.mmd(z[:1], z),
            ValueError,
            "z has shape (1, 3); it needs n >= 2 for the unbiased",
        ),
        (lambda: vk.mmd(z, z[:1]), ValueError, "prior has shape (1, 3); it needs n >= 2"),
        (
            lambda: vk.mmd(z[:0], z, estimator="biased"),
            ValueError,
            "z has shape (0, 3); it needs n >= 1",
        ),
        (
            lambda: vk.mmd(z, z[:, :2]),
            ValueError,
            "prior has shape (10, 2): its last dimension must be",
        ),
        (
            lambda: vk.mmd(z.expand(4, 10, 3), z.expand(5, 10, 3)),
            ValueError,
            "its batch dimensions (5,) must broadcast against those of z, (4,)",
        ),
        (lambda: vk.mmd(z, z.to("meta")), ValueError, "prior is on meta but z is on cpu"),
        (
            lambda: vk.mmd(z, "gaussian"),
            ValueError,
            "prior is 'gaussian'; known names are ['logistic', 'normal']",
        ),
        (
            lambda: vk.mmd(z, z, "laplace"),
            ValueError,
            "kernel is 'laplace'; known names are ['imq', 'rbf']",
        ),
        (
            lambda: vk.mmd(z, z, 2.0),
            TypeError,
            "kernel is of type float; it must be vimae_kernels.IMQ",
        ),
        (
            lambda: vk.mmd(z, z, estimator="v"),
            ValueError,
            "estimator is 'v'; known estimators are ['biased'",
        ),
        (
            lambda: vk.mmd(z, z, backend="cuda"),
            ValueError,
            "backend is 'cuda'; known backends are ['triton'",
        ),
        (
            lambda: vk.mmd(z, "normal", generator=3),
            TypeError,
            "generator is of type int; it must be",
        ),
        (
            lambda: vk.use_backend("fast").__enter__(),
            ValueError,
            "backend is 'fast'; known backends are",
        ),
        (lambda: vk.IMQ(0), ValueError, "IMQ: c is 0; it must be positive and finite"),
        (lambda: vk.IMQ(-1.0), ValueError, "IMQ: c is -1.0; it must be positive"),
        (lambda: vk.IMQ(float("nan")), ValueError, "IMQ: c is nan; it must be positive"),
        (
            lambda: vk.IMQ([1.0, float("inf")]),
            ValueError,
            "IMQ: c is inf; it must be positive and finite",
        ),
        (lambda: vk.IMQ([]), ValueError, "IMQ: c is an empty sequence"),
        (lambda: vk.IMQ("2d"), TypeError, "IMQ: c is '2d'; it must be a positive number"),
        (
            lambda: vk.IMQ(torch.tensor([1.0, -2.0])),
            ValueError,
            "IMQ: c is -2.0; it must be positive",
        ),
        (lambda: vk.IMQ(b"ab"), TypeError, "IMQ: c is b'ab'; it must be a positive number"),
        (lambda: vk.IMQ(10**400), ValueError, "it must be positive and finite"),
        (
            lambda: vk.RBF(1e160),
            ValueError,
            "RBF: bandwidth is 1e+160; it must be positive and finite",
        ),
        (lambda: vk.RBF(1e-170), ValueError, "RBF: bandwidth is 1e-170; it must be positive"),
        (lambda: vk.mmd(torch.nested.nested_tensor([z, z]), z), TypeError, "z has layout nested"),
        (lambda: vk.RBF(0.0), ValueError, "RBF: bandwidth is 0.0; it must be positive"),
        (
            lambda: vk.RBF("mean"),
            ValueError,
            "RBF: bandwidth is 'mean'; the only name known is 'median'",
        ),
        (lambda: vk.RBF([None]), TypeError, "RBF: bandwidth is None; it must be a positive number"),
        (
            lambda: vk.mmd(z, torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))),
            ValueError,
            "prior has event_shape (2,); for z of shape (10, 3) it must be () or (3,)",
        ),
        (
            lambda: vk.mmd(z, torch.distributions.Normal(torch.zeros(4), 1.0)),
            ValueError,
            "prior has batch_shape (4,), which does not broadcast to (3,)",
        ),
        (lambda: vk.Logistic(0.0, -1.0, validate_args=True), ValueError, "parameter scale"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_nothing_is_drawn_before_the_arguments_are_checked():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    with pytest.raises(ValueError, match="backend"):
        vk.mmd(z, "normal", generator=generator, backend="bogus")
    assert torch.equal(generator.get_state(), before)


def test_a_backend_that_cannot_run_says_why():
    with pytest.raises(
        RuntimeError, match="backend 'triton' cannot run on cpu tensors here: .*Triton needs"
    ):
        vk.mmd(z, z, backend="triton")
    with vk.use_backend("triton"), pytest.raises(RuntimeError, match="cannot run on cpu"):
        vk.mmd(z, z)
