"""Kernels as values: made inside of compiled code, and of constants alone."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

import vimae_kernels as vk

z = torch.randn(20, 4, dtype=torch.float64)
p = torch.randn(15, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    "make",
    [
        lambda d: vk.RBF(2.0),
        lambda d: vk.RBF(2),
        lambda d: vk.RBF(bandwidth=math.sqrt(d)),
        lambda d: vk.RBF((1.0, 2.0)),
        lambda d: vk.RBF([1, 2.5]),
        lambda d: vk.RBF("median"),
        lambda d: vk.RBF(),
        lambda d: vk.RBF.mmd_vae(d),
        lambda d: vk.IMQ(0.3),
        lambda d: vk.IMQ(range(1, 4)),
        lambda d: vk.IMQ(),
        lambda d: vk.IMQ(2 * d),
        lambda d: vk.IMQ.wae(d),
    ],
)
def test_made_inside_of_one_graph(make):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda z, p: vk.mmd(z, p, make(z.shape[-1])), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(z, p), vk.mmd(z, p, make(4)))
    compiled = torch.compile(lambda z: vk.ksd(z, kernel=make(4)), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z), vk.ksd(z, kernel=make(4)))


def test_made_inside_of_a_number_that_changes():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda z, p, b: vk.mmd(z, p, vk.RBF((b, 2 * b))), fullgraph=True, backend="eager"
    )
    for b in (1.5, 2.5, 0.5):
        torch.testing.assert_close(compiled(z, p, b), vk.mmd(z, p, vk.RBF((b, 2 * b))))


def test_made_of_what_is_a_number():
    for value in (2, np.float32(2), np.array(2.0), torch.tensor(2.0), Fraction(2), 2.0):
        assert vk.RBF(value) == vk.RBF(2.0) and vk.IMQ(value) == vk.IMQ(2.0)
    for value in ([1, 2], (1.0, 2), np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]), range(1, 3)):
        assert vk.RBF(value) == vk.RBF((1.0, 2.0))
    assert vk.RBF(torch.nn.Parameter(torch.tensor(2.0)).detach()) == vk.RBF(2.0)


parameter = torch.nn.Parameter(torch.tensor(2.0))


@pytest.mark.parametrize(
    "value",
    [
        parameter,
        2 * parameter,
        torch.nn.Parameter(torch.ones(3)),
        (1.0, parameter),
        [parameter, parameter],
    ],
    ids=str,
)
def test_a_scale_that_needs_a_gradient_is_refused(value):
    message = "is a tensor that needs a gradient, and scales are constants"
    for make, name in ((vk.RBF, "RBF: bandwidth"), (vk.IMQ, "IMQ: c")):
        with pytest.raises(ValueError, match=re.escape(f"{name} {message}")):
            make(value)


@pytest.mark.parametrize("wrong", ["grad", "jvp", "vmap", "grad of a captured one"])
def test_a_scale_inside_a_transform_is_refused(wrong):
    def run(b):
        return vk.mmd(z, p, vk.RBF(b))

    one = torch.tensor(2.0, dtype=torch.float64)
    constants = "RBF: bandwidth is a tensor that needs a gradient"
    if wrong == "grad":
        with pytest.raises(ValueError, match=constants):
            torch.func.grad(run)(one)
    elif wrong == "jvp":
        with pytest.raises(ValueError, match=constants):
            torch.func.jvp(run, (one,), (one,))
    elif wrong == "vmap":
        with pytest.raises(ValueError, match="RBF: bandwidth is a tensor that vmap runs over"):
            torch.func.vmap(run)(one.expand(3))
    else:
        with pytest.raises(ValueError, match=constants):
            torch.func.grad(lambda z: vk.mmd(z, p, vk.RBF(2 * parameter)))(z)
    # One that is only made there is a constant.
    made = torch.func.grad(lambda z: vk.mmd(z, p, vk.RBF(torch.tensor(2.0))))(z)
    assert torch.equal(made, torch.func.grad(lambda z: vk.mmd(z, p, vk.RBF(2.0)))(z))
