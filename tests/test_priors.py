"""Priors by name and as distributions, and the logistic distribution itself."""

from __future__ import annotations

import math
import re
import threading
import warnings

import numpy as np
import pytest
import scipy.stats
import torch
import torch.distributions as td
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal

import vimae_kernels as vk
from vimae_kernels.priors import sample_prior


def test_logistic_matches_scipy():
    loc, scale = (
        torch.tensor([0.5, -2.0], dtype=torch.float64),
        torch.tensor([0.3, 4.0], dtype=torch.float64),
    )
    ours, theirs = vk.Logistic(loc, scale), scipy.stats.logistic(loc.numpy(), scale.numpy())
    x = torch.linspace(-60, 60, 41, dtype=torch.float64)[:, None]
    u = torch.linspace(0.01, 0.99, 21, dtype=torch.float64)[:, None]
    np.testing.assert_allclose(ours.log_prob(x), theirs.logpdf(x.numpy()), rtol=1e-12)
    np.testing.assert_allclose(ours.cdf(x), theirs.cdf(x.numpy()), rtol=1e-12)
    np.testing.assert_allclose(ours.icdf(u), theirs.ppf(u.numpy()), rtol=1e-12)
    np.testing.assert_allclose(ours.entropy(), theirs.entropy(), rtol=1e-12)
    np.testing.assert_allclose(ours.mean, theirs.mean(), rtol=1e-12)
    np.testing.assert_allclose(ours.variance, theirs.var(), rtol=1e-12)


def test_logistic_gradients():
    loc = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([-30.0, -1.0, 0.3, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: vk.Logistic(a, b).log_prob(x + 0.01), (loc, scale))
    assert torch.autograd.gradgradcheck(lambda a, b: vk.Logistic(a, b).log_prob(x), (loc, scale))
    sample = vk.Logistic(loc, scale).rsample((1000,))
    g = torch.autograd.grad(sample.sum(), (loc, scale))
    assert g[0] == 1000 and torch.allclose(g[1], ((sample - loc) / scale).sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logistic_in_half_types_has_its_variance(dtype):
    unit = torch.tensor(math.sqrt(3) / math.pi, dtype=dtype)
    samples = vk.Logistic(torch.zeros_like(unit), unit).sample((200_000,)).float()
    assert abs(samples.mean()) < 0.02 and abs(samples.var() - 1) < 0.03


def test_logistic_is_a_distribution():
    wide = vk.Logistic(0.0, 2.0).expand((3, 2))
    assert wide.sample((5,)).shape == (5, 3, 2) and wide.has_rsample
    with pytest.raises(ValueError, match="value"):
        vk.Logistic(0.0, 1.0, validate_args=True).log_prob(torch.tensor(math.nan))


@pytest.mark.parametrize(
    ("prior", "cdf"),
    [
        ("normal", scipy.stats.norm.cdf),
        ("logistic", scipy.stats.logistic(0, math.sqrt(3) / math.pi).cdf),
        (vk.Logistic(1.0, 0.2), scipy.stats.logistic(1.0, 0.2).cdf),
        (Normal(-1.0, 3.0), scipy.stats.norm(-1, 3).cdf),
        (Normal(torch.tensor([-1.0] * 4), 3.0), scipy.stats.norm(-1, 3).cdf),
        (Independent(Laplace(torch.zeros(4), torch.ones(4)), 1), scipy.stats.laplace.cdf),
        (MultivariateNormal(torch.zeros(4), torch.eye(4)), scipy.stats.norm.cdf),
    ],
    ids=[
        "normal",
        "logistic",
        "Logistic",
        "Normal",
        "Normal of 4",
        "Laplace",
        "MultivariateNormal",
    ],
)
def test_samples_follow_the_prior(prior, cdf):
    z = torch.empty(3, 2000, 4)
    first, again = (sample_prior(prior, z, torch.Generator().manual_seed(s)) for s in (5, 5))
    assert first.shape == z.shape and torch.equal(first, again)
    assert scipy.stats.kstest(first.flatten().numpy(), cdf).pvalue > 1e-3
    # Batch entries are independent draws.
    assert (first[0] != first[1]).all()


def test_a_generator_leaves_the_global_one_alone():
    z = torch.randn(10, 3)
    state = torch.get_rng_state()
    for prior in ("normal", "logistic", Normal(0.0, 1.0)):
        vk.mmd(z, prior, generator=torch.Generator().manual_seed(1))
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(1)
        a = vk.mmd(z, prior)
        torch.manual_seed(1)
        assert torch.equal(a, vk.mmd(z, prior))
        torch.set_rng_state(state)


def test_unit_variance_by_name():
    z = torch.empty(400_000, 1, dtype=torch.float64)
    for prior in ("normal", "logistic"):
        samples = sample_prior(prior, z, torch.Generator().manual_seed(0))
        assert samples.dtype == torch.float64
        assert abs(samples.mean()) < 0.01 and abs(samples.var() - 1) < 0.02


def test_mmd_tells_priors_apart():
    z = torch.randn(4000, 2)
    same, other = vk.mmd(z, "normal"), vk.mmd(z, Normal(0.5, 1.0))
    assert abs(same) < 2e-3 < 1e-2 < other


def test_distribution_parameters_are_trained():
    z = torch.randn(2000, 2) + 1
    loc = torch.zeros(2, requires_grad=True)
    vk.mmd(z, Normal(loc, 1.0)).backward()
    assert (loc.grad < 0).all()


three = torch.ones(3)
OF_TORCH = [
    Normal(0.0, 1.0),
    td.Uniform(0.0, 1.0),
    Laplace(0.0, 1.0),
    td.Cauchy(0.0, 1.0),
    td.Exponential(1.0),
    td.Gamma(2.0, 1.0),
    td.Beta(1.0, 2.0),
    td.StudentT(3.0),
    td.HalfNormal(1.0),
    td.LogNormal(0.0, 1.0),
    td.Gumbel(0.0, 1.0),
    td.Weibull(1.0, 1.0),
    td.Pareto(1.0, 1.0),
    td.Poisson(2.0),
    td.Bernoulli(0.3),
    td.Binomial(4, torch.tensor(0.3)),
    td.Geometric(0.3),
    td.NegativeBinomial(3.0, 0.4),
    td.OneHotCategorical(three),
    td.Dirichlet(three),
    td.Multinomial(5, three),
    MultivariateNormal(torch.zeros(3), torch.eye(3)),
    td.LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1), three),
    td.VonMises(torch.zeros(3), three),
    td.RelaxedOneHotCategorical(torch.tensor(1.0), three),
    td.LogisticNormal(torch.zeros(2), torch.ones(2)),
    td.MixtureSameFamily(td.Categorical(three), Normal(torch.zeros(3), three)),
    td.TransformedDistribution(Normal(torch.zeros(3), 1.0), [td.TanhTransform()]),
    Independent(Normal(torch.zeros(3), three), 1),
    vk.Logistic(torch.zeros(3), 1.0),
]


@pytest.mark.parametrize("prior", OF_TORCH, ids=lambda p: type(p).__name__)
def test_every_distribution_draws_through_the_generator(prior):
    z = torch.empty(2, 8, 3)
    state = torch.get_rng_state()
    first, again, other = (
        sample_prior(prior, z, torch.Generator().manual_seed(s)) for s in (5, 5, 6)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == z.shape and first.dtype == torch.float32
    # And with the numbers that the default generator would have given from there.
    torch.manual_seed(5)
    assert torch.equal(sample_prior(prior, z, None), first)
    torch.set_rng_state(state)
    vk.mmd(z, prior, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_advances_and_another_thread_draws_on():
    z, prior = torch.empty(4, 3), Normal(torch.zeros(3), 1.0)
    generator = torch.Generator().manual_seed(1)
    assert not torch.equal(sample_prior(prior, z, generator), sample_prior(prior, z, generator))

    drawn: list[float] = []
    stop = threading.Event()

    def other():
        while not stop.is_set() and len(drawn) < 20_000:
            drawn.append(torch.rand(()).item() + torch.rand(()).item() * 1e-3)

    thread = threading.Thread(target=other)
    thread.start()
    points = torch.randn(5, 3)
    while thread.is_alive() and len(drawn) < 5000:
        vk.mmd(points, prior, generator=generator)
    stop.set()
    thread.join()
    # 24-bit numbers, two at a time: no pair repeats by chance.
    assert len(set(drawn)) == len(drawn)


def test_gradients_of_what_a_generator_draws():
    z = torch.randn(40, 2)
    for make in (
        lambda p: Normal(p, 1.0),
        lambda p: td.Gamma(p, 1.0),
        lambda p: td.Dirichlet(p.expand(2)),
        lambda p: td.StudentT(p),
        lambda p: vk.Logistic(p, 1.0),
    ):
        p = torch.tensor(2.0, requires_grad=True)
        vk.mmd(z, make(p), generator=torch.Generator().manual_seed(1)).backward()
        got, p.grad = p.grad, None
        torch.manual_seed(1)
        vk.mmd(z, make(p)).backward()
        assert got == p.grad != 0


class Own(td.Distribution):
    """A user's, which draws as it likes."""

    arg_constraints: dict = {}
    has_rsample = False

    def __init__(self, draw, batch_shape=()):
        self.draw = draw
        super().__init__(torch.Size(batch_shape), validate_args=False)

    def sample(self, sample_shape=()):
        return self.draw(self._extended_shape(sample_shape))


@pytest.mark.parametrize(
    "draw",
    [
        torch.randn,
        torch.rand,
        lambda shape: torch.randint(7, shape).float(),
        lambda shape: torch.randint(3, 7, shape).float(),
        lambda shape: torch.randn_like(torch.empty(shape)),
        lambda shape: torch.empty(shape).cauchy_(),
        lambda shape: torch.randperm(shape.numel()).reshape(shape).float(),
        lambda shape: torch.nn.functional.gumbel_softmax(torch.zeros(shape)),
    ],
)
def test_distributions_of_users_draw_through_the_generator(draw):
    z, state = torch.empty(6, 4), torch.get_rng_state()
    first, again, other = (
        sample_prior(Own(draw), z, torch.Generator().manual_seed(s)) for s in (5, 5, 6)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_takes_no_generator_is_refused():
    z = torch.randn(6, 4)
    prior = Own(lambda shape: torch.native_dropout(torch.ones(shape), 0.5, True)[0])
    with pytest.raises(ValueError, match="prior is Own, which draws by .*dropout.* no generator"):
        vk.mmd(z, prior, generator=torch.Generator())
    vk.mmd(z, prior)


@pytest.mark.parametrize(
    ("prior", "error", "message"),
    [
        (
            td.Categorical(three),
            TypeError,
            "prior is Categorical, with samples of dtype torch.int64",
        ),
        (
            Own(torch.randn, (1,)),
            ValueError,
            "prior is Own, which has no expand() from its batch_shape",
        ),
        (
            Normal(torch.tensor(0), torch.tensor(1)),
            ValueError,
            "prior has parameters of dtype torch.int64; they must be floating-point",
        ),
        (
            Normal(
                torch.zeros(3, device="meta"), torch.ones(3, device="meta"), validate_args=False
            ),
            ValueError,
            "prior has parameters on meta but z is on cpu; they must be on one device",
        ),
        (
            Independent(Normal(torch.zeros(4), 1.0), 1),
            ValueError,
            "prior has event_shape (4,); for z of shape (6, 3) it must be () or (3,)",
        ),
        (td.Wishart(torch.tensor(4.0), torch.eye(3)), ValueError, "prior has event_shape (3, 3)"),
        (
            Normal(torch.zeros(2, 3), 1.0),
            ValueError,
            "prior has batch_shape (2, 3), which does not",
        ),
        ("gaussian", ValueError, "prior is 'gaussian'; known names are ['logistic', 'normal']"),
        (np.zeros((5, 3)), TypeError, "'normal' or 'logistic': write torch.from_numpy(prior)"),
        (Normal, TypeError, "prior is of type type; it must be a tensor of samples"),
    ],
    ids=str,
)
def test_priors_of_no_use(prior, error, message):
    z = torch.randn(6, 3)
    for generator in (None, torch.Generator()):
        with pytest.raises(error, match=re.escape(message)):
            vk.mmd(z, prior, generator=generator)
    with pytest.raises(error, match=re.escape(message)):
        torch.func.grad(lambda z: vk.mmd(z, prior))(z)
    with pytest.raises(error, match=re.escape(message)):
        torch.func.vmap(lambda z: vk.mmd(z, prior), randomness="different")(z.expand(2, 6, 3))
    message = message.replace("prior", "x", 1).replace("(prior)", "(x)")
    with pytest.raises(error, match=re.escape(message)):
        vk.mmd_test(z, prior, permutations=10)


def test_numbers_as_parameters_say_nothing_of_the_device():
    z = torch.empty(6, 3, device="meta")
    assert sample_prior(Normal(0.0, 1.0), z, None).device.type == "meta"


@pytest.mark.parametrize("prior", ["normal", "logistic", Normal(0.0, 1.0), vk.Logistic()], ids=str)
def test_priors_drawn_by_compiled_code_at_every_size(prior):
    torch._dynamo.reset()
    count = [0]

    def backend(graph, _):
        count[0] += 1
        return graph.forward

    compiled = torch.compile(
        lambda z: sample_prior(prior, z, None), fullgraph=True, backend=backend
    )
    for n in (64, 32, 7, 100):
        z = torch.empty(n, 8)
        torch.manual_seed(n)
        got = compiled(z)
        torch.manual_seed(n)
        assert torch.equal(got, sample_prior(prior, z, None))
    assert count[0] <= 2


def test_compiled_code_draws_through_a_generator_between_two_graphs():
    torch._dynamo.reset()
    z, prior = torch.randn(9, 3), Normal(torch.zeros(3), 1.0)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    compiled = torch.compile(lambda z, g: 2 * vk.mmd(z, prior, generator=g), backend="eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*Dynamo does not know.*")
        for _ in range(2):
            got = compiled(z, generators[0])
            torch.testing.assert_close(got, 2 * vk.mmd(z, prior, generator=generators[1]))


def test_logistic_defaults_are_the_prior_of_that_name():
    prior = vk.Logistic()
    assert prior.mean == 0 and abs(prior.variance - 1) < 1e-6
    z = torch.empty(50, 3)
    first, again = (
        sample_prior(p, z, torch.Generator().manual_seed(1)) for p in ("logistic", prior)
    )
    torch.testing.assert_close(first, again)
    assert vk.Logistic(2.0).mean == 2 and vk.Logistic(scale=3.0).scale == 3
    z = torch.randn(20, 3)
    torch.testing.assert_close(vk.ksd(z, prior), vk.ksd(z, "logistic"))


def test_divergence_of_the_logistic_from_a_normal():
    p = vk.Logistic(torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([0.3, 2.0]))
    q = Normal(torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([1.0, 3.0]))
    got = td.kl_divergence(p, q)
    for i in range(2):
        x = torch.linspace(-100, 100, 400_001, dtype=torch.float64)
        one, other = vk.Logistic(p.loc[i], p.scale[i]), Normal(q.loc[i], q.scale[i])
        integrand = one.log_prob(x).exp() * (one.log_prob(x) - other.log_prob(x))
        assert abs(torch.trapezoid(integrand, x) - got[i]) < 1e-8
    expanded = td.kl_divergence(Independent(p, 1), Independent(q, 1))
    torch.testing.assert_close(expanded, got.sum())
