"""The modules call the functions with what they were made with."""

import re

import pytest
import torch
from torch.distributions import Normal, Uniform

import vimae_kernels as vk
from vimae_kernels.nn import MMDLoss, SteinLoss, TotalCorrelation

p = torch.randn(20, 3)


def test_mmd_loss():
    z, p = torch.randn(30, 3, requires_grad=True), torch.randn(20, 3)
    assert torch.equal(
        vk.nn.MMDLoss(p, "rbf", estimator="biased")(z), vk.mmd(z, p, "rbf", estimator="biased")
    )
    assert torch.equal(vk.nn.MMDLoss(kernel=vk.IMQ.wae(3))(z, p), vk.mmd(z, p, vk.IMQ.wae(3)))
    closed = vk.nn.MMDLoss(estimator="closed_form", backend="reference")
    assert torch.equal(closed(z), vk.mmd(z, "normal", estimator="closed_form", backend="reference"))
    drawn = vk.nn.MMDLoss("logistic", generator=torch.Generator().manual_seed(1))(z)
    again = vk.mmd(z, "logistic", generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)
    assert "IMQ(c=2.0)" in repr(vk.nn.MMDLoss(p, vk.IMQ(2))) and "(20, 3)" in repr(vk.nn.MMDLoss(p))


def test_stein_loss():
    z = torch.randn(30, 3, requires_grad=True)
    assert torch.equal(vk.nn.SteinLoss("logistic", "imq")(z), vk.stein_loss(z, "logistic", "imq"))
    score = torch.randn(30, 3)
    assert torch.equal(vk.nn.SteinLoss()(z, score), vk.stein_loss(z, score=score))
    assert "logistic" in repr(vk.nn.SteinLoss("logistic"))


def test_total_correlation():
    z, mean, log_var = torch.randn(3, 20, 4).unbind()
    module = vk.nn.TotalCorrelation(weighting="mss", dataset_size=500)
    want = vk.total_correlation(z, mean, log_var, weighting="mss", dataset_size=500)
    assert torch.equal(module(z, mean, log_var), want)
    assert repr(module) == "TotalCorrelation(weighting='mss', dataset_size=500)"


def test_modules_train():
    z = torch.nn.Parameter(torch.randn(50, 2) + 1)
    before = vk.nn.MMDLoss(estimator="closed_form")(z).item()
    optimizer = torch.optim.Adam([z], 0.1)
    for _ in range(30):
        optimizer.zero_grad()
        vk.nn.MMDLoss(estimator="closed_form")(z).backward()
        optimizer.step()
    assert vk.nn.MMDLoss(estimator="closed_form")(z).item() < 0.1 * before


def test_a_score_stands_in_for_the_prior_and_samples_move_with_the_module():
    z = torch.randn(10, 2)
    assert torch.equal(vk.nn.SteinLoss("logistic")(z, -z), vk.stein_loss(z, score=-z))
    module = vk.nn.MMDLoss(torch.randn(7, 2))
    assert module.to("meta").prior.device.type == "meta" and not module.state_dict()


def test_a_prior_that_is_a_parameter_is_one_of_the_module():
    p = torch.nn.Parameter(torch.randn(20, 3))
    module = vk.nn.MMDLoss(p)
    assert list(module.parameters()) == [p] and "prior" in module.state_dict()
    assert module.to(torch.float64).prior.dtype == torch.float64
    z = torch.randn(30, 3)
    before = module(z).item()
    optimizer = torch.optim.Adam(module.parameters(), 0.1)
    for _ in range(20):
        optimizer.zero_grad()
        module(z).backward()
        optimizer.step()
    assert module(z).item() < before
    assert not list(vk.nn.MMDLoss(p.detach()).parameters())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MMDLoss(estimator="v"), ValueError, "estimator is 'v'; known estimators are"),
        (lambda: MMDLoss(kernel="laplace"), ValueError, "kernel is 'laplace'; known names are"),
        (lambda: MMDLoss(kernel=2.0), TypeError, "kernel is of type float; it must be"),
        (lambda: MMDLoss("gaussian"), ValueError, "prior is 'gaussian'; known names are"),
        (lambda: MMDLoss(3), TypeError, "prior is of type int; it must be a tensor of samples"),
        (lambda: MMDLoss(p.numpy()), TypeError, "write torch.from_numpy(prior)"),
        (lambda: MMDLoss(p.long()), TypeError, "prior has dtype torch.int64"),
        (lambda: MMDLoss(p[0]), ValueError, "prior has shape (3,); it must be (..., n, d)"),
        (lambda: MMDLoss(p[:1]), ValueError, "prior has shape (1, 3); it needs n >= 2"),
        (
            lambda: MMDLoss(p, estimator="closed_form"),
            ValueError,
            "prior is of type Tensor; the closed",
        ),
        (
            lambda: MMDLoss(estimator="closed_form", kernel=vk.RBF("median")),
            ValueError,
            "kernel is RBF('median'); the closed_form",
        ),
        (
            lambda: MMDLoss(Normal(0.0, torch.tensor([1.0, 2.0])), estimator="closed_form"),
            ValueError,
            "prior is Normal with scales from 1 to 2",
        ),
        (lambda: MMDLoss(generator=3), TypeError, "generator is of type int"),
        (lambda: MMDLoss(group=3), TypeError, "group is of type int"),
        (lambda: MMDLoss(backend="gpu"), ValueError, "backend is 'gpu'; known backends are"),
        (lambda: SteinLoss(p), TypeError, "prior is a tensor, and samples have no score"),
        (lambda: SteinLoss("gaussian"), ValueError, "prior is 'gaussian'; known names are"),
        (
            lambda: SteinLoss(Uniform(0.0, 1.0)),
            ValueError,
            "prior is Uniform, whose support is bounded",
        ),
        (lambda: SteinLoss(kernel="laplace"), ValueError, "kernel is 'laplace'"),
        (lambda: SteinLoss(group=3), TypeError, "group is of type int"),
        (lambda: SteinLoss(backend="gpu"), ValueError, "backend is 'gpu'"),
        (lambda: TotalCorrelation(weighting="w"), ValueError, "weighting is 'w'; known weightings"),
        (
            lambda: TotalCorrelation(weighting="mss"),
            ValueError,
            "dataset_size is None; weighting 'mss'",
        ),
        (
            lambda: TotalCorrelation(weighting="mws", dataset_size=2.0),
            TypeError,
            "dataset_size is of type float; it must be an int >= 1",
        ),
        (
            lambda: TotalCorrelation(weighting="mws", dataset_size=0),
            ValueError,
            "dataset_size is 0; it must be at least 1",
        ),
        (lambda: TotalCorrelation(backend="gpu"), ValueError, "backend is 'gpu'"),
    ],
)
def test_modules_refuse_when_they_are_made(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
