"""Metrics of codes and likelihoods where the answer is known: mostly linear Gaussian models."""

import math

import pytest
import torch
from torch import nn

from vimae_models import build, data, evaluation
from vimae_models.autoencoder import Autoencoder
from vimae_models.data import Split
from vimae_models.joint import JointAutoencoder
from vimae_models.metrics import information, latent, likelihood
from vimae_models.vae import GaussianAutoencoder

SHAPE = (1, 2, 3)
PIXELS = math.prod(SHAPE)
NOISE = 0.4


class Linear:
    """N(theta, NOISE^2 I)."""

    def log_prob(self, theta, x):
        normal = torch.distributions.Normal(theta, theta.new_tensor(NOISE))
        return normal.log_prob(x).flatten(1).sum(1)


def linear(weight, bias=None):
    layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
    layer.weight.data = weight.double()
    layer.bias.data = torch.zeros(len(weight)).double() if bias is None else bias.double()
    return layer


def gaussian(weight, log_var, decoder=None):
    """q(z|x) = N(weight x, exp(log_var)) and p(x|z) = N(decoder z, NOISE^2), of x (B, 1, 2, 3)."""
    d = len(weight)
    to_mean = torch.cat([weight, torch.zeros_like(weight)])
    bias = torch.cat([torch.zeros(d), torch.as_tensor(log_var).expand(d)])
    decoder = torch.zeros(PIXELS, d) if decoder is None else decoder
    model = GaussianAutoencoder(
        nn.Sequential(nn.Flatten(), linear(to_mean, bias)),
        nn.Sequential(linear(decoder), nn.Unflatten(1, SHAPE)),
        data_shape=SHAPE,
        latent_dim=d,
        likelihood="gaussian",
    )
    model.p_x = Linear()
    return model.double().eval()


def point(encoder, d=2):
    return Autoencoder(
        nn.Sequential(nn.Flatten(), linear(encoder)),
        nn.Sequential(linear(torch.zeros(PIXELS, d)), nn.Unflatten(1, SHAPE)),
        data_shape=SHAPE,
        latent_dim=d,
        likelihood="bernoulli",
    ).double()


def noise(n, seed=0):
    # Not the noise that metrics draw with these seeds.
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)


def whitened(n):
    """Images whose sample covariance is the identity, exactly, and whose mean is not 0."""
    x = noise(n).flatten(1)
    x = x - x.mean(0)
    chol = torch.linalg.cholesky(x.T @ x / (n - 1))
    return (torch.linalg.solve_triangular(chol, x.T, upper=False).T + 3).view(n, *SHAPE)


def eye(*diagonal):
    """(d, PIXELS): coordinate k of the code is the k-th pixel times diagonal[k]."""
    weight = torch.zeros(len(diagonal), PIXELS)
    weight[:, : len(diagonal)] = torch.diag(torch.tensor(diagonal))
    return weight


# Probabilistic PCA with orthogonal loadings, so that its posterior is diagonal.
LOADINGS = torch.linalg.qr(noise(2, seed=5).flatten(1).T).Q * torch.tensor([1.5, 0.7])
PRECISION = 1 + LOADINGS.square().sum(0) / NOISE**2
TO_MEAN = LOADINGS.T / NOISE**2 / PRECISION[:, None]


def ppca(shift=1.0, log_var=0.0):
    return gaussian(TO_MEAN * shift, -PRECISION.log() + log_var, LOADINGS)


def ppca_images(n):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return (z @ LOADINGS.T).view(n, *SHAPE) + NOISE * noise(n, seed=2)


def ppca_log_p(x):
    cov = LOADINGS @ LOADINGS.T + NOISE**2 * torch.eye(PIXELS)
    zero = torch.zeros(PIXELS, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(zero, cov).log_prob(x.flatten(1))


def test_mmd_is_that_of_the_summary_and_zero_for_codes_from_the_prior():
    images = noise(3000)
    near, far = gaussian(eye(0.8, 0.8), 2 * math.log(0.6)), gaussian(eye(2.0, 2.0), 0.0)
    # Over seeds the estimate has a standard deviation of 1e-4 here.
    assert abs(latent.mmd(near, images)) < 4e-4
    assert abs(latent.mmd(joint([1.0, 2.0]), images)) < 4e-4
    assert latent.mmd(far, images) > 0.1
    assert latent.mmd(far, images) == evaluation.summary(far, images)["mmd"]
    assert latent.mmd(far, images, seed=1) != latent.mmd(far, images)
    assert latent.mmd(point(eye(2.0, 2.0)), images) > 0.05


def test_log_det_covariance():
    images = whitened(50)
    expected = (math.log(4) + math.log(0.25**2)) / 2
    assert latent.log_det_covariance(point(eye(2.0, 0.25)), images) == pytest.approx(expected)
    assert latent.log_det_covariance(point(eye(1.0), 1), images) == pytest.approx(0, abs=1e-12)
    # The noise of a posterior counts.
    model = gaussian(eye(2.0, 0.25), math.log(5.0))
    many = latent.log_det_covariance(model, whitened(20_000))
    assert many == pytest.approx((math.log(9) + math.log(5 + 1 / 16)) / 2, abs=0.02)
    twice = torch.cat([eye(1.0), eye(0.3)])
    assert latent.log_det_covariance(point(twice), images) == -math.inf
    assert latent.log_det_covariance(point(eye(1.0, 0.0)), images) == -math.inf
    for n in (1, 2):
        assert latent.log_det_covariance(point(eye(1.0, 1.0)), images[:n]) == -math.inf
    # Narrow is not singular.
    thin = latent.log_det_covariance(point(eye(1.0, 1e-9)), images)
    assert thin == pytest.approx(math.log(1e-9))


def test_rate():
    images = noise(1500)
    model = gaussian(eye(2.0, 0.0), torch.tensor([-2.0, 0.0]))
    of_mean = images.flatten(1)[:, 0].square().mean().item() * 4
    expected = 0.5 * (of_mean + math.exp(-2) - 1 + 2)
    assert latent.rate(model, images) == {"kl_z": pytest.approx(expected)}


def joint(logits, decoder=None):
    """q(z|x) = p(z), d = 1, and q(y|x) with fixed logits or, (K, PIXELS), linear ones."""
    logits = torch.as_tensor(logits)
    k = len(logits)
    heads = torch.zeros(2 + k, PIXELS)
    bias = torch.zeros(2 + k)
    if logits.ndim == 1:
        bias[2:] = logits
    else:
        heads[2:] = logits
    decoder = torch.zeros(PIXELS, 1 + k) if decoder is None else decoder
    model = JointAutoencoder(
        nn.Sequential(nn.Flatten(), linear(heads, bias)),
        nn.Sequential(linear(decoder), nn.Unflatten(1, SHAPE)),
        data_shape=SHAPE,
        latent_dim=1,
        likelihood="gaussian",
        categories=k,
        tau=0.5,
    )
    model.p_x = Linear()
    return model.double().eval()


def test_rate_of_a_category():
    p = torch.tensor([0.7, 0.2, 0.1])
    expected = math.log(3) - torch.special.entr(p).sum().item()
    found = latent.rate(joint(p.log()), noise(7))
    assert found == {"kl_z": pytest.approx(0), "kl_y": pytest.approx(expected, rel=1e-6)}


def test_total_correlation_of_correlated_codes():
    # z has variances 1 + 1/4 and covariance 0.8 1.
    weight = torch.zeros(2, PIXELS)
    weight[0, 0], weight[1, 0], weight[1, 1] = 1.0, 0.8, 0.6
    model = gaussian(weight, math.log(0.25))
    expected = -0.5 * math.log(1 - (0.8 / 1.25) ** 2)
    assert latent.total_correlation(model, whitened(5000)) == pytest.approx(expected, abs=0.03)
    apart = gaussian(eye(1.0, 1.0), math.log(0.25))
    assert abs(latent.total_correlation(apart, whitened(5000))) < 0.03


def test_mutual_information_of_a_gaussian_channel():
    model = gaussian(eye(2.0, 0.5), 0.0)
    expected = 0.5 * (math.log(5) + math.log(1.25))
    found = information.mutual_information(model, noise(5000))
    assert found["information"] == pytest.approx(expected, abs=0.03)
    assert found["bound"] == math.log(5000)


def test_there_is_no_information_in_codes_that_are_the_same_for_all_images():
    found = information.mutual_information(gaussian(eye(0.0, 0.0), 1.0), noise(9))
    assert found["information"] == pytest.approx(0, abs=1e-12)


def test_mutual_information_is_never_above_its_bound():
    sharp = gaussian(eye(1.0, 1.0), -20.0)
    found = information.mutual_information(sharp, noise(50))
    assert found["information"] == pytest.approx(math.log(50), abs=1e-9)
    assert max(information.coordinates(sharp, noise(50))["information"]) < math.log(50) + 1e-9


def test_coordinates_and_proposition_1():
    images = whitened(5000) - 3
    model = gaussian(eye(2.0, 0.5, 0.0), torch.tensor([0.0, 1.0, -1.0]))
    found = information.coordinates(model, images)
    # With one variance for all images and Gaussian means the bounds meet, at the information.
    m = 5000 / 4999  # whitened() divides by N - 1
    expected = [0.5 * math.log1p(4 / m), 0.5 * math.log1p(0.25 / m / math.e), 0.0]
    assert found["upper"] == pytest.approx(expected, abs=1e-9)
    assert found["lower"] == pytest.approx(expected, abs=1e-9)
    assert found["information"] == pytest.approx(expected, abs=0.03)
    assert found["mean_spread"] == pytest.approx([4 / m, 0.25 / m, 0])
    assert found["mean_variance"] == pytest.approx([1, math.e, 1 / math.e])
    kl = [0.5 * 4 / m, 0.5 * (0.25 / m + math.e - 1 - 1), 0.5 * (1 / math.e - 1 + 1)]
    assert found["kl"] == pytest.approx(kl)
    assert sum(found["kl"]) == pytest.approx(latent.rate(model, images)["kl_z"])


def test_proposition_1_where_variances_differ():
    """Two values of x: I(x; z) = log 2 if they are far apart; log var of -4 and 0."""
    model = gaussian(eye(50.0), 0.0)
    with torch.no_grad():
        model.encoder[1].weight[1, 1] = 4.0  # log var = 4 x_1
    images = torch.zeros(200, *SHAPE, dtype=torch.float64)
    images[::2, 0, 0, 0] = 1
    images[::2, 0, 0, 1] = -1
    found = information.coordinates(model, images)
    sigma2 = (1 + math.exp(-4)) / 2
    assert found["information"] == [pytest.approx(math.log(2))]
    assert found["upper"] == [pytest.approx(0.5 * math.log(sigma2 + 625) - 0.5 * -2)]
    assert found["lower"] == [pytest.approx(0.5 * math.log1p(625 / sigma2))]
    # The lower bound is one for Gaussian q(z) only, which this is not.
    assert found["information"][0] < found["lower"][0] < found["upper"][0]


def factorial():
    """Images whose pixels are three independent factors of 2, 3 and 4 values, and a constant one."""
    latents = torch.cartesian_prod(*map(torch.arange, (2, 3, 4))).repeat(5, 1)
    latents = torch.cat([latents, torch.zeros(len(latents), 1, dtype=torch.long)], 1)
    images = torch.zeros(len(latents), PIXELS, dtype=torch.float64)
    images[:, :4] = latents.double()
    return Split(images.view(-1, *SHAPE), latents[:, 0], latents)


SHARP = -12.0


def test_gap_of_codes_that_are_the_factors():
    found = information.mutual_information_gap(gaussian(eye(1.0, 1.0, 1.0), SHARP), factorial())
    assert found["images"] == 120
    assert found["factors"] == [0, 1, 2]
    entropies = [math.log(2), math.log(3), math.log(4)]
    assert found["entropy"] == pytest.approx(entropies)
    for row, (values, entropy) in enumerate(zip(found["information"], entropies, strict=True)):
        expected = [entropy if column == row else 0 for column in range(3)]
        assert values == pytest.approx(expected, abs=0.05)
        assert max(values) == pytest.approx(entropy)
    # Of 120 images some values are a little too likely, by chance.
    assert found["gap"] == pytest.approx([1, 1, 1], abs=0.05)
    assert found["mig"] == pytest.approx(sum(found["gap"]) / 3)
    weighted = sum(g * h for g, h in zip(found["gap"], entropies, strict=True)) / math.log(24)
    assert found["weighted"] == pytest.approx(weighted)


def test_no_gap_for_a_factor_that_two_codes_know_or_none():
    twice = torch.cat([eye(1.0), eye(1.0), eye(0.0, 1.0)])
    found = information.mutual_information_gap(gaussian(twice, SHARP), factorial())
    assert found["gap"][0] == pytest.approx(0, abs=0.05)
    assert found["gap"][1] == pytest.approx(1, abs=0.05)
    assert found["gap"][2] == pytest.approx(0, abs=0.05)
    assert found["weighted"] < found["mig"] + 0.05
    # One code alone is compared with none.
    alone = information.mutual_information_gap(gaussian(eye(1.0), SHARP), factorial(), factors=[0])
    assert alone["factors"] == [0]
    assert alone["mig"] == pytest.approx(1)


def test_gap_of_a_code_with_two_factors():
    """z = v_0 + 2 v_1 knows both: I(z; v) = H(v) of each."""
    both = eye(1.0) + 2 * eye(1.0, 1.0)[1:]
    found = information.mutual_information_gap(gaussian(both, SHARP), factorial(), factors=[0, 1])
    assert found["information"][0] == pytest.approx([math.log(2)])
    assert found["information"][1] == pytest.approx([math.log(3)])


def test_estimates_below_zero_count_as_nothing():
    estimates = torch.tensor([[-0.2, -0.1], [-0.1, 0.3]])
    found = information._gaps(estimates, torch.tensor([0.5, 0.6]))
    assert found["gap"] == pytest.approx([0, 0.5])


def test_gap_with_the_category():
    """z knows nothing and y is the factor of 2 values."""
    logits = torch.zeros(2, PIXELS)
    logits[1, 0] = 60.0
    model = joint(logits)
    model.encoder[1].bias.data[3] = -30
    found = information.mutual_information_gap(model, factorial())
    assert found["mig"] == pytest.approx(0, abs=0.05)
    assert found["with_y"]["gap"] == pytest.approx([1, 0, 0], abs=0.05)
    assert found["with_y"]["information"][0][-1] == pytest.approx(math.log(2))
    assert found["with_y"]["information"][1][-1] == pytest.approx(0, abs=1e-9)


def test_gap_on_some_of_the_images():
    model = gaussian(eye(1.0, 1.0, 1.0), SHARP)
    few = information.mutual_information_gap(model, factorial(), n=40)
    assert few["images"] == 40
    assert few == information.mutual_information_gap(model, factorial(), n=40)
    assert few != information.mutual_information_gap(model, factorial(), n=40, seed=1)
    # The most that can be known of the frequencies drawn.
    for values, entropy in zip(few["information"], few["entropy"], strict=True):
        assert max(values) <= entropy + 1e-9


def test_gap_refuses():
    model, split = gaussian(eye(1.0), 0.0), factorial()
    with pytest.raises(ValueError, match="split.latents is None"):
        information.mutual_information_gap(model, Split(split.images, split.labels))
    with pytest.raises(ValueError, match="factors has 4; it must be of 0 to 3"):
        information.mutual_information_gap(model, split, factors=[4])
    with pytest.raises(ValueError, match="none of the factors varies over the 120 images"):
        information.mutual_information_gap(model, split, factors=[3])
    with pytest.raises(ValueError, match="n must be at least 2; got 1"):
        information.mutual_information_gap(model, split, n=1)


@pytest.mark.parametrize(
    "metric",
    [
        latent.rate,
        latent.total_correlation,
        information.mutual_information,
        information.coordinates,
        lambda model, images: information.mutual_information_gap(model, factorial()),
    ],
)
def test_a_deterministic_encoder_is_refused(metric):
    with pytest.raises(TypeError, match="model is of type Autoencoder.* every system but vimae-n"):
        metric(point(eye(1.0, 1.0)), noise(5))


def test_importance_sampling_with_the_exact_posterior_is_exact():
    images = ppca_images(1100)  # more than are taken at once
    expected = ppca_log_p(images)
    seen = []
    found = likelihood.log_likelihood(
        ppca(), images, samples=7, progress=lambda *at: seen.append(at)
    )
    assert found["log_likelihood"] == pytest.approx(expected.mean().item(), rel=1e-9)
    assert found["standard_error"] == pytest.approx(expected.std().item() / math.sqrt(1100))
    assert found["effective_samples"] == pytest.approx(7)
    assert seen[-1] == (7700, 7700)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert found["warning"].startswith(
        "100% of the images have fewer than 10 effective samples of 7"
    )
    assert likelihood.log_likelihood(ppca(), images[:50], samples=20)["warning"] == ""


def test_importance_sampling_with_another_proposal():
    images = ppca_images(50)
    expected = ppca_log_p(images).mean().item()
    wide = likelihood.log_likelihood(ppca(0.8, 1.0), images, samples=4000)
    assert wide["log_likelihood"] == pytest.approx(expected, abs=0.01)
    assert 100 < wide["effective_samples"] < 3900
    assert wide["warning"] == ""
    # Far too narrow and beside it: too low, and it says so.
    narrow = ppca(0.8, -8.0)
    bad = likelihood.log_likelihood(narrow, images, samples=1000)
    assert bad["log_likelihood"] < expected - 1
    assert bad["warning"].endswith(
        "of the images have fewer than 10 effective samples of 1000: the estimate is too low"
    )
    # Widened it is the proposal before.
    widened = likelihood.log_likelihood(narrow, images, samples=4000, widen=math.exp(4.5))
    assert widened == pytest.approx(wide)


def test_importance_sampling_from_the_prior():
    """A deterministic encoder: the mean of p(x|z) over the prior, here of a decoder with one code."""
    model = point(eye(1.0))
    model.decoder[0].weight.data[:] = 0
    model.decoder[0].bias.data[:] = 0.5
    images = (noise(20) > 0).double()
    p = torch.tensor(0.5).sigmoid().item()
    white = images.sum((1, 2, 3)).mean().item()
    expected = white * math.log(p) + (PIXELS - white) * math.log(1 - p)
    found = likelihood.log_likelihood(model, images, samples=12)
    assert found["log_likelihood"] == pytest.approx(expected)
    assert found["warning"] == ""
    model.prior = "logistic"
    assert likelihood.log_likelihood(model, images, samples=12) == found


def test_importance_sampling_sums_over_the_category():
    """z is ignored; p(x) is the mixture of N(m_y, NOISE^2) with equal weights, whatever q(y|x) is."""
    means = noise(3, seed=9).flatten(1)
    decoder = torch.cat([torch.zeros(PIXELS, 1), means.T], 1)
    model = joint([5.0, 0.0, -5.0], decoder)
    images = noise(30) * NOISE + means.repeat(10, 1).view(-1, *SHAPE)
    normals = torch.distributions.Normal(means, torch.tensor(NOISE, dtype=torch.float64))
    log_p = normals.log_prob(images.flatten(1)[:, None]).sum(2).logsumexp(1) - math.log(3)
    found = likelihood.log_likelihood(model, images, samples=10)
    assert found["log_likelihood"] == pytest.approx(log_p.mean().item())
    assert found["effective_samples"] == pytest.approx(10)


def test_importance_sampling_of_an_autoregressive_model():
    """With a decoder that ignores z and q(z|x) = p(z) every weight is p(x)."""
    torch.manual_seed(0)
    model = build(
        "vae", data_shape=(1, 8, 8), latent_dim=2, network="pixelcnn", width=0.05,
        likelihood="bernoulli",
    ).eval()  # fmt: skip
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.condition.weight.zero_()
        *_, last = (m for m in model.encoder.modules() if isinstance(m, nn.Linear))
        last.weight.zero_()
        last.bias.zero_()
    images = data.base.Binarized(data.load("digits").test.images[:120], fixed=True)
    x = images[:].float() / 255
    with torch.no_grad():
        expected = model.log_likelihood(x, torch.zeros(120, 2))
    found = likelihood.log_likelihood(model, images, samples=3)
    assert found["log_likelihood"] == pytest.approx(expected.mean().item(), rel=1e-5)
    assert found["effective_samples"] == pytest.approx(3, rel=1e-5)


def test_log_likelihood_says_that_grey_pixels_have_no_bernoulli_density():
    grey = likelihood.log_likelihood(point(eye(1.0, 1.0)), torch.full((2, *SHAPE), 0.5), 10)
    assert grey["warning"] == "pixels are grey: 'bernoulli' is a density of binary images"


def test_log_likelihood_refuses():
    with pytest.raises(TypeError, match="the likelihood of model, a VAE, is 'l2'"):
        likelihood.log_likelihood(build("vae", data_shape=SHAPE, latent_dim=2), noise(3))
    with pytest.raises(ValueError, match="samples must be at least 1"):
        likelihood.log_likelihood(ppca(), noise(3), samples=0)
    with pytest.raises(ValueError, match="widen is 0"):
        likelihood.log_likelihood(ppca(), noise(3), widen=0)
    with pytest.raises(ValueError, match="images are 1; they must be at least 2"):
        likelihood.log_likelihood(ppca(), noise(1))


def test_sample_nll_is_that_of_a_kernel_density_estimate():
    from sklearn.neighbors import KernelDensity

    samples, validation, test = noise(40) * 0.3, noise(30, 1) * 0.3, noise(1200, 2) * 0.3
    found = likelihood.sample_nll(samples, validation, test)
    scores = {
        h: KernelDensity(bandwidth=h).fit(samples.flatten(1)).score(validation.flatten(1))
        for h in likelihood.BANDWIDTHS
    }
    best = max(scores, key=scores.__getitem__)
    assert found["bandwidth"] == best
    assert 0.1 < best < 1
    density = KernelDensity(bandwidth=best).fit(samples.flatten(1))
    log_p = torch.from_numpy(density.score_samples(test.flatten(1)))
    assert found["nll"] == pytest.approx(-log_p.mean().item())
    assert found["standard_error"] == pytest.approx(log_p.std().item() / math.sqrt(1200))
    assert found["warning"] == ""


def test_sample_nll_of_bytes_and_its_warning():
    """One black sample and white images: a distance of 1 in every pixel."""
    black = torch.zeros(1, *SHAPE)
    white = torch.full((3, *SHAPE), 255, dtype=torch.uint8)
    found = likelihood.sample_nll(black, white, white, bandwidths=[0.1, 0.5])
    expected = PIXELS * (0.5 * math.log(2 * math.pi) + math.log(0.5) + 0.5 / 0.25)
    assert found["nll"] == pytest.approx(expected)
    assert found["warning"] == "the best bandwidth, 0.5, is at an end of those tried"
    assert likelihood.sample_nll(black, white, white, bandwidths=[0.5])["warning"] == ""


def test_sample_nll_refuses():
    with pytest.raises(ValueError, match=r"test has shape \(4, 1, 3, 2\); .* \(4, 1, 2, 3\)"):
        likelihood.sample_nll(noise(4), noise(4), torch.zeros(4, 1, 3, 2))
    with pytest.raises(ValueError, match="0 samples, 4 validation and 4 test"):
        likelihood.sample_nll(noise(0), noise(4), noise(4))
    with pytest.raises(ValueError, match="bandwidths is empty"):
        likelihood.sample_nll(noise(4), noise(4), noise(4), bandwidths=[])
    with pytest.raises(ValueError, match="bandwidths is -1"):
        likelihood.sample_nll(noise(4), noise(4), noise(4), bandwidths=[-1])
