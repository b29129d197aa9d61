"""Every way torch has to differentiate once or twice, against plain autograd through the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, functional, grad

import vimae_kernels as vk

Z, V, P = (torch.randn(6, 3, generator=torch.Generator().manual_seed(s)).double() for s in range(3))


def gumbel(hard):
    def sample(z: Tensor) -> Tensor:
        same_noise = torch.Generator().manual_seed(0)
        return (vk.gumbel_softmax(z, 0.7, hard, generator=same_noise) * V).square().sum()

    return sample


# Functions of one argument, some with derivatives of their own around ours.
FUNCTIONS = {
    "mmd": lambda z: vk.mmd(z, P),
    "mmd squared": lambda z: vk.mmd(z, P, "rbf") ** 2,
    "mmd, both samples": lambda z: vk.mmd(z, P * z.sum()),
    "mmd, batch": lambda z: vk.mmd(torch.stack([z, 2 * z]), P, vk.IMQ.wae(3)).prod(),
    "mmd, median": lambda z: vk.mmd(z, P, vk.RBF("median")).exp(),
    "closed form": lambda z: vk.mmd(z, "normal", estimator="closed_form").exp(),
    "gumbel": gumbel(hard=False),
    "gumbel, hard": gumbel(hard=True),
}


def double_reverse(f):
    """v . df/dz as the derivative of its transpose, and that differentiated again."""
    z = Z.clone().requires_grad_()
    along = functional.jvp(f, z, V, create_graph=True)[1]
    return grad(along + z.square().sum(), z)[0]


def weight_of_a_gradient(f):
    z, weight = Z.clone().requires_grad_(), torch.tensor(1.5).double().requires_grad_()
    (dz,) = grad(f(z), z, weight, create_graph=True)
    (along,) = grad((dz * V).sum(), weight, create_graph=True)
    return grad(along + z.square().sum(), z)[0]


def dual(f):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(Z, V))).tangent


def dual_of_gradient(f):
    with forward_ad.dual_level():
        z = forward_ad.make_dual(Z.clone().requires_grad_(), V)
        return forward_ad.unpack_dual(grad(f(z), z, create_graph=True)[0]).tangent


FIRST = {
    "dual": dual,
    "jvp": lambda f: torch.func.jvp(f, (Z,), (V,))[1],
    "jacfwd": lambda f: torch.func.jacfwd(f, randomness="same")(Z),
}
SECOND = {
    "forward over forward": lambda f: torch.func.jacfwd(
        torch.func.jacfwd(f, randomness="same"), randomness="same"
    )(Z),
    "jvp of jvp": lambda f: torch.func.jvp(
        lambda z: torch.func.jvp(f, (z,), (z.sin(),))[1], (Z,), (V,)
    )[1],
    "double reverse": double_reverse,
    "weight of a gradient": weight_of_a_gradient,
    "hvp": lambda f: functional.hvp(f, Z, V)[1],
    "vhp": lambda f: functional.vhp(f, Z, V)[1],
    "dual of gradient": dual_of_gradient,
    "jvp of grad": lambda f: torch.func.jvp(torch.func.grad(f), (Z,), (V,))[1],
    "forward over reverse": lambda f: torch.func.jacfwd(torch.func.grad(f), randomness="same")(Z),
    "reverse over forward": lambda f: torch.func.grad(
        lambda z: torch.func.jvp(f, (z,), (V,))[1] + z.square().sum()
    )(Z),
}


@pytest.mark.parametrize("way", FIRST | SECOND)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_against_the_reference(name, way):
    derive = (FIRST | SECOND)[way]
    with vk.use_backend("reference"):
        truth = derive(FUNCTIONS[name])
    with vk.use_backend("native"):
        ours = derive(FUNCTIONS[name])
    assert truth.abs().max() > 1e-4
    torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-13)


def test_torch_func_hessian():
    with vk.use_backend("reference"):
        truth = torch.func.hessian(FUNCTIONS["mmd"])(Z)
    torch.testing.assert_close(torch.func.hessian(FUNCTIONS["mmd"])(Z), truth)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_forward_mode_in_every_dtype(dtype):
    z, v = Z.to(dtype), V.to(dtype)
    _, along = torch.func.jvp(lambda z: vk.mmd(z, P.float()), (z,), (v,))
    _, truth = torch.func.jvp(lambda z: vk.mmd(z, P), (z.double(),), (v.double(),))
    assert along.dtype == torch.float32
    assert along.item() == pytest.approx(truth.item(), rel=1e-5)


def test_an_input_without_a_tangent():
    for f in (lambda p: vk.mmd(Z, p), lambda z: vk.mmd(z, Z)):
        with vk.use_backend("reference"):
            truth = torch.func.jvp(f, (P,), (V,))[1]
        torch.testing.assert_close(torch.func.jvp(f, (P,), (V,))[1], truth)


@pytest.mark.parametrize("outer", [torch.func.jacrev, torch.func.jacfwd])
def test_a_third_derivative_of_mmd_is_refused(outer):
    second = torch.func.jacrev(torch.func.jacrev(FUNCTIONS["mmd"]))
    with pytest.raises(RuntimeError, match="not third"):
        outer(second)(Z)


@pytest.mark.parametrize(
    "f",
    [
        vk.ksd,
        lambda z: vk.total_correlation(z, Z, V),
        lambda z: vk.aggregate_log_density(z, Z, V)[0].sum(),
    ],
    ids=["ksd", "total_correlation", "aggregate_log_density"],
)
def test_what_the_others_do_not_have_is_refused(f):
    for refused in (dual_of_gradient, lambda f: torch.func.hessian(f)(Z)):
        with pytest.raises(RuntimeError, match="has no forward-mode derivative|not a second"):
            refused(f)
