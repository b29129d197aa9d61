"""Statistics over the samples of several processes, against one process that has all of them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

import vimae_kernels as vk
from benchmarks import scaling
from vimae_kernels._distributed import Ranks
from vimae_kernels.ops.median.op import median_unit

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo"
)

D, BATCH, SIZE, N = 3, (2,), 1000, 40


class Model(torch.nn.Module):
    """Samples z, samples or scores p, means and log variances of posteriors, and a reconstruction."""

    def __init__(self):
        super().__init__()
        self.encode = torch.nn.Linear(5, 4 * D, dtype=torch.float64)
        self.decode = torch.nn.Linear(D, 5, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.5, generator=generator)

    def forward(self, x):
        made = self.encode(x).split(D, -1)
        return *made, (self.decode(made[0]) - x).square().mean(-1)


def inputs(rank):
    """What a rank has, different in number from rank to rank."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(*BATCH, 7 + 3 * (rank % 3), 5, generator=generator, dtype=torch.float64)


def own_generator(group):
    # Ranks that draw for themselves would not agree.
    return torch.Generator().manual_seed(5 + (0 if group is None else dist.get_rank(group)))


def mmd(*config, **options):
    return lambda z, p, mean, log_var, group: vk.mmd(z, p, *config, group=group, **options)


def mmd_of_a_name(z, p, mean, log_var, group):
    return vk.mmd(z, "logistic", generator=own_generator(group), group=group)


def mmd_closed_form(z, p, mean, log_var, group):
    return vk.mmd(z, "normal", estimator="closed_form", group=group)


def mmd_closed_form_elsewhere(z, p, mean, log_var, group):
    prior = torch.distributions.Normal(0.3, 2.0)
    return vk.mmd(z, prior, vk.RBF((1.0, 3.0)), estimator="closed_form", group=group)


def mmd_reference(z, p, mean, log_var, group):
    return vk.mmd(z, p, "rbf", group=group, backend="reference")


def mmd_to_constants(z, p, mean, log_var, group):
    return vk.mmd(z, p.detach(), group=group)


def mmd_from_constants(z, p, mean, log_var, group):
    return vk.mmd(z.detach(), p, group=group)


def mmd_module(z, p, mean, log_var, group):
    return vk.nn.MMDLoss("normal", vk.RBF((0.5, 2.0)), estimator="closed_form", group=group)(z)


def mmd_test(z, p, mean, log_var, group):
    generator = own_generator(group)
    found = vk.mmd_test(z, p, permutations=50, generator=generator, group=group)
    return found.statistic + found.p_value


def mmd_test_of_a_name(z, p, mean, log_var, group):
    generator = own_generator(group)
    return vk.mmd_test(z, "normal", permutations=50, generator=generator, group=group).p_value


def mmd_test_median(z, p, mean, log_var, group):
    kernel, generator = vk.RBF("median"), own_generator(group)
    found = vk.mmd_test(z, 8 * p, kernel, permutations=50, generator=generator, group=group)
    return found.statistic + found.p_value


def stein_gradient(z, p, mean, log_var, group):
    return Rows(vk.stein_gradient(z, group=group).square().sum(-1))


def stein_gradient_score(z, p, mean, log_var, group):
    return Rows(vk.stein_gradient(z, kernel="imq", score=p, group=group).square().sum(-1))


def stein_loss(z, p, mean, log_var, group):
    return vk.stein_loss(z, group=group)


def stein_loss_median(z, p, mean, log_var, group):
    return vk.stein_loss(z, "logistic", vk.RBF("median"), group=group)


def stein_module(z, p, mean, log_var, group):
    return vk.nn.SteinLoss(group=group)(z, score=p)


def ksd(z, p, mean, log_var, group):
    return vk.ksd(z, group=group)


def ksd_biased_logistic(z, p, mean, log_var, group):
    return vk.ksd(z, "logistic", "rbf", estimator="biased", group=group)


def ksd_score(z, p, mean, log_var, group):
    return vk.ksd(z, kernel=vk.IMQ((1.0, 3.0)), score=p, group=group)


def ksd_median(z, p, mean, log_var, group):
    return vk.ksd(z, kernel=vk.RBF("median"), score=lambda z: -(z**3), group=group)


def densities(weighting, **options):
    def log_density(z, p, mean, log_var, group):
        found = vk.aggregate_log_density(
            z, mean, log_var, weighting=weighting, dataset_size=SIZE, group=group, **options
        )
        return Rows(found.joint + found.marginal.square().sum(-1))

    return log_density


def information(weighting, **options):
    def latent_information(z, p, mean, log_var, group):
        found = vk.latent_information(
            z, mean, log_var, weighting=weighting, dataset_size=SIZE, group=group, **options
        )
        return sum(t if t.ndim == 1 else t.square().sum(-1) for t in found)

    return latent_information


def total_correlation(weighting, **options):
    return lambda z, p, mean, log_var, group: vk.total_correlation(
        z, mean, log_var, weighting=weighting, dataset_size=SIZE, group=group, **options
    )


def total_correlation_module(z, p, mean, log_var, group):
    return vk.nn.TotalCorrelation(group=group)(z, mean, torch.tensor([-1.0, 0.0, 0.5]))


class Rows:
    """What a rank returns for its own samples; a loss is the mean over those of all."""

    def __init__(self, values):
        self.values = values


STATISTICS = {
    "mmd": mmd(),
    "mmd biased rbf": mmd("rbf", estimator="biased"),
    "mmd many scales": mmd(vk.IMQ.wae(D)),
    "mmd median": mmd(vk.RBF("median")),
    "mmd median reference": mmd(vk.RBF("median"), backend="reference"),
    "mmd median biased": mmd(vk.RBF("median"), estimator="biased"),
    "mmd of a name": mmd_of_a_name,
    "mmd closed_form": mmd_closed_form,
    "mmd closed_form elsewhere": mmd_closed_form_elsewhere,
    "mmd reference": mmd_reference,
    "mmd to constants": mmd_to_constants,
    "mmd from constants": mmd_from_constants,
    "MMDLoss": mmd_module,
    "mmd_test": mmd_test,
    "mmd_test of a name": mmd_test_of_a_name,
    "mmd_test median": mmd_test_median,
    "stein_gradient": stein_gradient,
    "stein_gradient score": stein_gradient_score,
    "stein_loss": stein_loss,
    "stein_loss median": stein_loss_median,
    "SteinLoss": stein_module,
    "ksd": ksd,
    "ksd biased logistic": ksd_biased_logistic,
    "ksd score": ksd_score,
    "ksd median": ksd_median,
    "aggregate_log_density uniform": densities("uniform"),
    "aggregate_log_density mws": densities("mws"),
    "aggregate_log_density mss": densities("mss"),
    "aggregate_log_density reference": densities("mss", backend="reference"),
    "latent_information": information("uniform"),
    "latent_information mss": information("mss"),
    "latent_information reference": information("mws", backend="reference"),
    "total_correlation": total_correlation("uniform"),
    "total_correlation mss": total_correlation("mss"),
    "total_correlation reference": total_correlation("mws", backend="reference"),
    "TotalCorrelation": total_correlation_module,
}


def evaluate(statistic, x, group=None):
    """The statistic, and the parameter gradients of a mean reconstruction with the statistic beside it."""
    model, share = Model(), 1.0
    if group is not None:
        model = torch.nn.parallel.DistributedDataParallel(model, process_group=group)
        world = dist.get_world_size(group)
        # DDP averages over ranks: with different n, a mean over all samples is W / N times the sum of a rank's own.
        share = world * x.shape[-2] / sum(inputs(rank).shape[-2] for rank in range(world))
    *made, error = model(x)
    value = statistic(*made, group)
    rows = isinstance(value, Rows)
    value = value.values if rows else value
    weight = torch.arange(1.0, 1 + BATCH[0], dtype=torch.float64)
    loss = (weight * (share * value.mean(-1) if rows else value)).sum()
    if loss.requires_grad:
        loss = 0.7 * loss
    (share * error.mean() + loss).backward()
    return value.detach(), rows, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def refuses_second_derivatives(group):
    made = [t.detach().requires_grad_() for t in Model()(inputs(dist.get_rank(group)))[:4]]
    for name, statistic in STATISTICS.items():
        value = statistic(*made, group)
        value = value.values if isinstance(value, Rows) else value
        if not value.requires_grad:
            continue
        gradients = torch.autograd.grad(value.sum(), made, create_graph=True, allow_unused=True)
        total = sum(g.square().sum() for g in gradients if g is not None)
        if name in ("stein_loss", "stein_loss median", "SteinLoss"):  # linear in z
            assert not total.requires_grad
            continue
        with pytest.raises(RuntimeError, match=r"first derivatives? only|a first derivative, not"):
            torch.autograd.grad(total, made, allow_unused=True)


def refuses_ranks_that_differ(group):
    rank = dist.get_rank(group)
    differ = "ranks differ in more than the number of samples: rank 0 has .*, rank 1 has "
    one, two = (
        torch.randn(5, 3 + rank),
        torch.randn(5, 3, dtype=(torch.float32, torch.float64)[rank > 0]),
    )
    for call in (
        lambda: vk.mmd(one, one, group=group),
        lambda: vk.ksd(one, group=group),
        lambda: vk.stein_loss(two, group=group),
        lambda: vk.stein_gradient(one, group=group),
        lambda: vk.mmd_test(two, "normal", group=group),
        lambda: vk.total_correlation(one, one, one, group=group),
        lambda: vk.mmd(two.float(), "normal", ("imq", "rbf")[rank > 0], group=group),
        lambda: (vk.ksd if rank else vk.stein_loss)(two.float(), group=group),
    ):
        with pytest.raises(ValueError, match=differ):
            call()
    # What one refuses, all are told; and the group is as good as before.
    with pytest.raises(
        (RuntimeError, ValueError)[rank == 1],
        match=r"rank 1 raised ValueError: z has shape|^z has shape \(3,\)",
    ):
        vk.stein_loss(torch.randn(3) if rank == 1 else torch.randn(3, 3), group=group)
    with pytest.raises((RuntimeError, TypeError)[rank == 0], match="z is of type int"):
        vk.ksd(3 if rank == 0 else torch.randn(3, 3), group=group)
    with pytest.raises(ValueError, match="parameters that need a gradient"):
        loc = torch.zeros(3, requires_grad=True)
        vk.mmd(torch.randn(5, 3), torch.distributions.Normal(loc, 1.0), group=group)


class RaisesOnRankOne(torch.distributions.Normal):
    """A distribution that looks like any other until it is drawn from."""

    def __init__(self, rank):
        super().__init__(0.0, 1.0)
        self.rank = rank

    def rsample(self, shape=()):
        if self.rank == 1:
            raise OSError("no samples left")
        return super().rsample(shape)

    sample = rsample


def refuses_what_raises_late(group):
    """A prior that raises when it is drawn from, on one rank: the others are told, and do not wait for it."""
    rank, z = dist.get_rank(group), torch.randn(4, 3)
    kind, message = (
        (OSError, "no samples left")
        if rank == 1
        else (RuntimeError, "rank 1 raised OSError: no samples left")
    )
    for statistic in (vk.mmd, vk.mmd_test):
        with pytest.raises(kind, match=message):
            statistic(z, RaisesOnRankOne(rank), group=group)
        statistic(z, "normal", group=group)


def refuses_transforms(group):
    z = torch.randn(2, 4, 3)
    for transformed in (
        torch.func.grad(lambda z: vk.mmd(z, "normal", group=group).sum()),
        torch.func.vmap(lambda z: vk.ksd(z, group=group)),
        lambda z: torch.func.jvp(lambda z: vk.stein_loss(z, group=group), (z,), (z,)),
    ):
        with pytest.raises(
            RuntimeError, match="with group= runs inside no transform of torch.func"
        ):
            transformed(z)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(z, z)
        with pytest.raises(RuntimeError, match="vimae_kernels.ksd with group= has no forward-mode"):
            vk.ksd(dual, group=group)


def compiles(group):
    z = torch.randn(4, 3, requires_grad=True)

    def loss(z):
        return vk.ksd(2 * z, group=group) + vk.total_correlation(z, z, z, group=group)

    (expected,) = torch.autograd.grad(loss(z), z)
    (found,) = torch.autograd.grad(torch.compile(loss, backend="aot_eager")(z), z)
    torch.testing.assert_close(found, expected)
    torch.compiler.reset()
    with pytest.raises(Exception, match="group= runs between graphs"):
        torch.compile(loss, backend="aot_eager", fullgraph=True)(z)


def medians_are_those_of_one_process(group):
    """To the rounding of a square root, whatever the points: the parts of ranks are counts, which add up exactly."""
    ranks = Ranks("mmd", group, {})
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        for n, d in ((2, 1), (3, 2), (65, 3), (130, 8), (200, 1)):
            x = torch.randn(4, n, d, generator=generator, dtype=dtype)
            x[1] = x[1].sign()
            x[2] = 1e-30
            x[3] *= 1e20
            x[3, 0, 0] = (float("inf"), float("nan"), 1.0)[n % 3]
            x[3, -1, 0] = x[3, 0, 0]
            for backend in ("native", "reference"):
                torch.testing.assert_close(
                    median_unit(x, backend, ranks).median,
                    median_unit(x, backend).median,
                    # torch's square root is not always the nearest.
                    rtol=2 * torch.finfo(dtype).eps,
                    atol=0,
                    equal_nan=True,
                )


def one_sample_on_a_rank(group):
    rank = dist.get_rank(group)
    z = torch.randn(1 + 2 * rank, 3, dtype=torch.float64)
    assert all(
        t.isfinite().all()
        for t in (
            vk.mmd(z, z + 1, group=group),
            vk.ksd(z, group=group),
            *vk.mmd_test(z, z, group=group),
        )
    )


def work(rank, world, folder):
    torch.set_num_threads(1 + rank % 2)  # Which adds in another order.
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    group = dist.group.WORLD
    found = {name: evaluate(s, inputs(rank), group) for name, s in STATISTICS.items()}
    torch.save((found, scaling.count(N, D)), folder / f"{rank}.pt")
    if world == 2:
        refuses_second_derivatives(group)
        refuses_ranks_that_differ(group)
        refuses_what_raises_late(group)
        refuses_transforms(group)
        one_sample_on_a_rank(group)
        medians_are_those_of_one_process(group)
        compiles(group)
    dist.destroy_process_group()


def check_counts(world, count):
    """Pairs computed and bytes received by one rank of so many, with N samples each, as docs/scaling.md has them."""
    pairs = {name: pairs for name, (pairs, _) in count.items()}
    one, all_pairs = N * N, (world * N) * (world * N - 1) // 2
    assert pairs["mmd"] == (4 * world - 1) * one - N
    assert pairs["mmd to a fixed sample"] == (3 * world - 1) * one - N
    assert pairs["mmd of a name"] == (3 * world - 1) * one - N
    assert 2 * pairs["mmd closed_form"] == (2 * world - 1) * one - N
    assert pairs["aggregate_log_density"] == pairs["latent_information"] == 2 * world * one
    assert pairs["total_correlation"] == world * one
    # Not divided: on every rank.
    assert pairs["ksd"] == pairs["stein_loss"] == all_pairs
    # Divided by tiles, of which no rank has two more than another.
    side = -(-2 * world * N // scaling.TILE)
    most = -(-side * (side + 1) // 2 // world) * scaling.TILE**2
    assert pairs["mmd_test"] <= most
    assert pairs["mmd median"] - pairs["mmd"] <= 3 * most
    control = 40 * (world - 1)
    received = {name: received - control for name, (_, received) in count.items()}
    z = (world - 1) * N * D * 4
    assert received["ksd"] == z
    for name in ("mmd", "mmd to a fixed sample"):
        assert received[name] == 2 * z + 8 * (world - 1)
    # Counts by 11, 11 and 9 bits, and of pairs that coincide.
    median = 8 * (2**11 + 2**11 + 2**9 + 3) * (world - 1)
    assert received["mmd median"] - received["mmd"] == median
    assert received["mmd closed_form"] == z + 8 * (world - 1)
    assert received["aggregate_log_density"] == 4 * z


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_are_one_process(world, tmp_path):
    multiprocessing.spawn(work, (world, tmp_path), nprocs=world)
    every, counts = zip(
        *(torch.load(tmp_path / f"{rank}.pt") for rank in range(world)), strict=True
    )
    for count in counts:
        check_counts(world, count)
    # All ranks together have met all pairs once, and those of the median once in each of its passes.
    pooled = 2 * world * N * (2 * world * N - 1) // 2
    assert sum(count["mmd_test"][0] for count in counts) == pooled
    assert sum(count["mmd median"][0] - count["mmd"][0] for count in counts) == 3 * pooled
    x = torch.cat([inputs(rank) for rank in range(world)], -2)
    for name, statistic in STATISTICS.items():
        expected, rows, gradients = evaluate(statistic, x)
        values = [found[name][0] for found in every]
        if not rows:
            assert all(torch.equal(value, values[0]) for value in values), name
        together = torch.cat(values, -1) if rows else values[0]
        torch.testing.assert_close(
            together, expected, rtol=1e-12, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}"
        )
        for *_, own in (found[name] for found in every):
            assert len(own) == len(gradients)
            for g, one in zip(own, gradients, strict=True):
                assert one.any()
                torch.testing.assert_close(
                    g, one, rtol=1e-12, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}"
                )


def test_bad_groups_are_refused():
    z = torch.randn(4, 2)
    for statistic in (vk.mmd, vk.mmd_test):
        with pytest.raises(TypeError, match="group is of type str; it must be a torch.distributed"):
            statistic(z, z, group="world")
    for statistic in (vk.stein_gradient, vk.stein_loss, vk.ksd):
        with pytest.raises(TypeError, match="group is of type str; it must be a torch.distributed"):
            statistic(z, group="world")
    for statistic in (vk.aggregate_log_density, vk.latent_information, vk.total_correlation):
        with pytest.raises(TypeError, match="group is of type str; it must be a torch.distributed"):
            statistic(z, z, z, group="world")
