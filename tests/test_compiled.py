"""Compiled code: at most two graphs for any shapes and for numbers that change, and the values of eager code."""

from __future__ import annotations

import pytest
import torch
from operations import OPERATIONS, inputs_of, weighted
from torch import distributions as D
from torch._dynamo.testing import CompileCounterWithBackend

import vimae_kernels as vk
from vimae_kernels import _backend

F64 = torch.float64
pytestmark = pytest.mark.skipif(
    _backend.unavailable("native", "cpu") is not None, reason="no native core"
)


class Compiled:
    """A function compiled into counted graphs, whose results are compared with eager code that draws the same."""

    def __init__(self, function, dynamic=None):
        torch._dynamo.reset()
        self.function = function
        self.counter = CompileCounterWithBackend("aot_eager")
        self.compiled = torch.compile(
            function, fullgraph=True, backend=self.counter, dynamic=dynamic
        )

    def check(self, *arguments):
        results = []
        for run in (self.compiled, self.function):
            torch.manual_seed(0)
            inputs = [
                a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments
            ]
            out = run(*inputs)
            out = tuple(out) if isinstance(out, tuple) else (out,)
            active = [t for t in inputs if isinstance(t, torch.Tensor)]
            if any(t.requires_grad for t in out):
                out = *out, *torch.autograd.grad(weighted(out), active, allow_unused=True)
            results.append(out)
        torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)

    @property
    def graphs(self):
        return self.counter.frame_count


@pytest.mark.parametrize("dynamic", [None, True], ids=["automatic", "dynamic"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_every_operation_at_several_sizes(operation, dynamic):
    def run(*inputs):
        return operation.run(*inputs, backend="native")

    compiled = Compiled(run, dynamic)
    for n in (64, 32, 50, 40):
        compiled.check(*inputs_of(operation, n, 4, F64, "cpu"))
    assert compiled.graphs <= 2


DRAWN = {
    "normal": lambda z: vk.mmd(z, "normal"),
    "logistic": lambda z: vk.mmd(z, "logistic"),
    "biased rbf": lambda z: vk.mmd(z, "normal", "rbf", estimator="biased"),
    "median": lambda z: vk.mmd(z, "logistic", vk.RBF("median")),
    "Logistic": lambda z: vk.mmd(z, vk.Logistic()),
    "Normal": lambda z: vk.mmd(z, D.Normal(0.5, 2.0)),
    "stein_gradient": lambda z: vk.stein_gradient(z, "logistic"),
    "ksd": lambda z: vk.ksd(z, "logistic"),
    "mmd_test": lambda z: vk.mmd_test(z, "normal", permutations=50),
    "MMDLoss": vk.nn.MMDLoss("logistic"),
    "SteinLoss": vk.nn.SteinLoss("logistic"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_priors_drawn_in_compiled_code(name):
    compiled = Compiled(DRAWN[name])
    for n in (64, 32, 17):
        compiled.check(torch.randn(n, 8, dtype=F64))
    assert compiled.graphs <= 2


def test_a_batch_of_problems_of_any_number():
    compiled = Compiled(lambda z: vk.mmd(z, "normal"))
    for batch in (2, 3, 5):
        compiled.check(torch.randn(batch, 10, 4, dtype=F64))
    assert compiled.graphs <= 2


P = torch.randn(12, 3, dtype=F64)
NUMBERS = {
    "tau": lambda z, t: vk.gumbel_softmax(z, t),
    "tau, hard": lambda z, t: vk.gumbel_softmax(z, tau=t, hard=True),
    "c": lambda z, t: vk.mmd(z, P, vk.IMQ(t)),
    "several c": lambda z, t: vk.mmd(z, P, vk.IMQ((t, 2.0 * t, 30.0))),
    "bandwidth": lambda z, t: vk.mmd(z, P, vk.RBF(t), estimator="biased"),
    "closed form": lambda z, t: vk.mmd(z, "normal", vk.RBF(t), estimator="closed_form"),
    "closed form, imq": lambda z, t: vk.mmd(z, "normal", vk.IMQ(t), estimator="closed_form"),
    "stein_gradient": lambda z, t: vk.stein_gradient(z, "normal", vk.RBF(t)),
    "stein_loss": lambda z, t: vk.stein_loss(z, "logistic", vk.IMQ(t)),
    "ksd": lambda z, t: vk.ksd(z, "normal", vk.IMQ(t)),
    "mmd_test": lambda z, t: vk.mmd_test(z, P, vk.IMQ(t), permutations=20),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_changes_between_calls(name):
    compiled = Compiled(NUMBERS[name])
    z = torch.randn(10, 3, dtype=F64)
    for i in range(10):
        compiled.check(z, 1.0 + 0.37 * i)
    assert compiled.graphs <= 2


@pytest.mark.parametrize("weighting", ["mws", "mss"])
@pytest.mark.parametrize(
    "function", [vk.total_correlation, vk.latent_information, vk.aggregate_log_density]
)
def test_a_data_set_that_grows(function, weighting):
    def run(z, mean, log_var, size):
        out = function(z, mean, log_var, weighting=weighting, dataset_size=size)
        return out if isinstance(out, torch.Tensor) else tuple(out)

    compiled = Compiled(run)
    inputs = torch.randn(3, 8, 3, dtype=F64)
    for size in range(100, 1100, 100):
        compiled.check(*inputs, size)
    assert compiled.graphs <= 2


def test_numbers_of_objects_that_compiled_code_refers_to():
    class Annealed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tau = 1.0
            self.kernel = vk.RBF(1.0)

        def forward(self, z):
            return vk.gumbel_softmax(z, self.tau), vk.mmd(z, P, self.kernel)

    module = Annealed()
    compiled = Compiled(module)
    z = torch.randn(10, 3, dtype=F64)
    for i in range(10):
        module.tau, module.kernel = 1.0 / (1 + i), vk.RBF(1.0 + 0.3 * i)
        compiled.check(z)
    assert compiled.graphs <= 2


def test_a_tensor_of_temperature_that_changes():
    compiled = Compiled(lambda z, tau: vk.gumbel_softmax(z, tau))
    z = torch.randn(10, 3, dtype=F64)
    for i in range(10):
        compiled.check(z, torch.tensor(1.0 + i, dtype=F64))
    assert compiled.graphs <= 2


@pytest.mark.parametrize("name", ["mmd", "tau"])
def test_inductor_too(name):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    function = {
        "mmd": lambda z, t: vk.mmd(z, P, vk.IMQ(t)) * 2,
        "tau": lambda z, t: vk.gumbel_softmax(z, t, hard=True).sum(-1),  # its noise is not eager's
    }[name]
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for i, n in enumerate((10, 20, 13, 7, 8)):
        z = torch.randn(n, 3, dtype=F64)
        torch.testing.assert_close(compiled(z, 1.0 + i), function(z, 1.0 + i))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_export_with_a_dynamic_batch(operation):
    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return operation.run(*inputs, backend="native")

    inputs = tuple(inputs_of(operation, 50, 4, F64, "cpu"))
    n = torch.export.Dim("n", min=17, max=1000)  # the stratified weights are for a data set of 1000
    program = torch.export.export(
        Module(), inputs, dynamic_shapes={"inputs": tuple({0: n} for _ in inputs)}
    ).module()
    for size in (50, 30):
        inputs = inputs_of(operation, size, 4, F64, "cpu")
        torch.manual_seed(0)
        got = program(*inputs)
        torch.manual_seed(0)
        torch.testing.assert_close(got, operation.run(*inputs, backend="native"))


def test_export_of_a_drawn_prior():
    n = torch.export.Dim("n", min=2, max=4096)
    z = torch.randn(16, 4)
    for prior in ("normal", "logistic"):
        program = torch.export.export(vk.nn.MMDLoss(prior), (z,), dynamic_shapes=({0: n},))
        assert program.module()(torch.randn(30, 4)).isfinite()


@pytest.mark.parametrize("estimator", ["unbiased", "closed_form"])
def test_a_second_derivative_of_compiled_mmd_is_refused(estimator):
    z = torch.randn(10, 3, dtype=F64, requires_grad=True)
    torch._dynamo.reset()
    loss = torch.compile(lambda z: vk.mmd(z, "normal", estimator=estimator), fullgraph=True)(z)
    (g,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        (loss + g.square().sum()).backward()


def test_a_second_derivative_inside_compiled_code():
    def penalty(z):
        gradient = torch.func.grad(lambda z: vk.mmd(z, P))
        return vk.mmd(z, P) + gradient(z).square().sum()

    compiled = Compiled(penalty)
    for n in (10, 20, 13):
        compiled.check(torch.randn(n, 3, dtype=F64))
    assert compiled.graphs <= 2


def test_half_types_summed_over_a_batch_before_rounding():
    """Of a prior that two problems share, where all but a 64th of the one's gradient cancels the other's."""
    g = torch.Generator().manual_seed(0)
    weight = torch.tensor([1.0, -63 / 64])
    for dtype in (torch.bfloat16, torch.float16):
        z = torch.randn(8, 2, generator=g).to(dtype).expand(2, 8, 2)
        p = torch.randn(6, 2, generator=g).to(dtype)
        got = torch.autograd.grad((weight * vk.mmd(z, p.requires_grad_())).sum(), p)[0]
        exact = p.detach().double().requires_grad_()
        want = torch.autograd.grad((weight * vk.mmd(z.double(), exact)).sum(), exact)[0]
        assert (got - want).norm() <= torch.finfo(dtype).eps * want.norm()
