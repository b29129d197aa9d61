"""Statistics over the samples of several processes, against one process that has all of them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

import vimae_kernels as vk

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo"
)

DIMENSION, BATCH = 3, (2,)


def samples(rank, seed=0):
    """What a rank has, different in number from rank to rank."""
    g = torch.Generator().manual_seed(10 * rank + seed)
    shape = *BATCH, 7 + 4 * rank, DIMENSION
    return torch.randn(shape, generator=g, dtype=torch.float64) + 0.3


def mmd_of_tensors(z, p, group):
    return vk.mmd(z, p, group=group)


def mmd_biased_rbf(z, p, group):
    return vk.mmd(z, p, "rbf", estimator="biased", group=group)


def mmd_of_a_name(z, p, group):
    # Ranks that draw for themselves would not agree.
    rank = 0 if group is None else dist.get_rank(group)
    generator = torch.Generator().manual_seed(5 + rank)
    return vk.mmd(z, "logistic", generator=generator, group=group)


def mmd_module(z, p, group):
    return vk.nn.MMDLoss(p, "rbf", group=group)(z)


def mmd_closed_form(z, p, group):
    return vk.mmd(z, "normal", estimator="closed_form", group=group)


def stein(z, p, group):
    return vk.stein_loss(z, group=group)


def stein_score(z, p, group):
    return vk.nn.SteinLoss(group=group)(z, score=p)


def information(z, p, group):
    # As many samples as posteriors; of p the means, of its squares the variances.
    options = {"weighting": "mss", "dataset_size": 1000, "group": group}
    found = vk.latent_information(z, p, 0.1 * p.square() - 1, **options)
    return sum(t if t.ndim == 1 else t.square().sum(-1) for t in found)


STATISTICS = [
    mmd_of_tensors,
    mmd_biased_rbf,
    mmd_of_a_name,
    mmd_module,
    mmd_closed_form,
    stein,
    stein_score,
    information,
]


def evaluate(statistic, parts, group=None):
    """Value, and gradients of a weighted sum of the batch entries with respect to z and p."""
    z, p = (t.requires_grad_() for t in parts)
    value = statistic(z, p, group)
    weight = torch.arange(1.0, 1 + value.numel(), dtype=value.dtype).reshape(value.shape)
    gradients = torch.autograd.grad((weight * value).sum(), (z, p), allow_unused=True)
    return value.detach(), *gradients


def refuses_second_derivatives(group):
    z = samples(0).requires_grad_()
    value = vk.mmd(z, samples(0, 1), group=group).sum()
    (gradient,) = torch.autograd.grad(value, z, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(gradient.square().sum(), z)


def refuses_ranks_that_differ(group):
    rank = dist.get_rank(group)
    with pytest.raises(
        ValueError, match="rank 0 in its dtype or in more than the number of samples"
    ):
        vk.mmd(torch.randn(5, 3 + rank), torch.randn(5, 3 + rank), group=group)
    with pytest.raises(
        ValueError, match=r"n >= 2 for the unbiased|parameters that need a gradient"
    ):
        loc = torch.zeros(3, requires_grad=True)
        vk.mmd(torch.randn(5, 3), torch.distributions.Normal(loc, 1.0), group=group)


def work(rank, world, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    group = dist.group.WORLD
    parts = samples(rank), samples(rank, 1)
    found = {s.__name__: evaluate(s, [t.clone() for t in parts], group) for s in STATISTICS}
    refuses_second_derivatives(group)
    refuses_ranks_that_differ(group)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_are_one_process(world, tmp_path):
    multiprocessing.spawn(work, (world, tmp_path), nprocs=world)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    parts = [torch.cat([samples(rank, seed) for rank in range(world)], -2) for seed in (0, 1)]
    for statistic in STATISTICS:
        value, *gradients = evaluate(statistic, [t.clone() for t in parts])
        for one in found:
            assert torch.equal(one[statistic.__name__][0], found[0][statistic.__name__][0])
            torch.testing.assert_close(one[statistic.__name__][0], value, rtol=1e-13, atol=1e-15)
        for i, gradient in enumerate(gradients):
            own = [one[statistic.__name__][1 + i] for one in found]
            if gradient is None:
                assert own == [None] * world
            else:
                assert gradient.abs().min() > 0
                torch.testing.assert_close(torch.cat(own, -2), gradient, rtol=1e-12, atol=1e-16)


def test_bad_groups_are_refused():
    z = torch.randn(4, 2)
    with pytest.raises(TypeError, match="group is of type str; it must be a torch.distributed"):
        vk.mmd(z, z, group="world")
