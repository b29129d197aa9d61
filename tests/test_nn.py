"""The modules call the functions with what they were made with."""

import torch

import vimae_kernels as vk


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
