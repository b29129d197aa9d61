"""How probable test images are: under a model, and beside the images it generates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checks, densities, encoding
from ..autoencoder import Autoencoder
from ..data import Images, pixels
from ..joint import JointAutoencoder
from ..vae import GaussianAutoencoder

ENOUGH = 10
"""Effective samples below which the log of an importance-sampled mean is not to be trusted."""
BANDWIDTHS = tuple(10 ** (-1 + k / 9) for k in range(10))
_AT_ONCE = 1000


@torch.no_grad()
def log_likelihood(
    model: Autoencoder,
    images: Images,
    samples: int = 1000,
    *,
    widen: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """log p(x) by importance sampling, in nats per image, mean over images.

        log p(x) ~ log 1/S sum_s w_s,  w_s = p(x|z_s) p(z_s) / q(z_s|x),  z_s ~ q(z|x)

    Of a joint code the sum over the category is exact: p(x|z) = 1/K sum_y p(x|z, y). A deterministic
    encoder has no density, and the samples are those of the prior: w_s = p(x|z_s).

    The estimate is too low by about (1/ESS - 1/S) / 2 nats, ESS = (sum w)^2 / sum w^2 being the
    effective samples of an image, and that grows exponentially harder with d (the paper has d = 5).
    Samples from a posterior that is narrower than it should be miss codes that explain x, and a
    few of them carry the sum: see `widen`.

    Args:
        model: a system whose likelihood is a density of images. "bernoulli" is one of binary images:
            see `data.base.Binarized`.
        images: (N, C, H, W), N >= 2.
        samples: S, of every image; each is a pass of the decoder, or K.
        widen: factor on the standard deviations of q(z|x), where the samples are drawn; the paper
            prints none. The expectation of the mean of w does not depend on it.
        seed: of the samples.
        progress: called with the pairs of image and sample done and in all.

    Returns:
        "log_likelihood"; "standard_error" of it, as a mean over images that were drawn from many;
        "effective_samples", the mean of ESS; "warning", empty, or one line that says why the figure
        is not to be trusted: more than a tenth of the images have an ESS below 10, or "bernoulli" was
        given grey pixels.

    Raises:
        TypeError: likelihood "l2", which is no density; `samples` or `widen` not a number.
        ValueError: fewer than two images, `samples` < 1, `widen` not > 0.

    Source: InfoVAE, sec. 4.2.1 (5) and table 1 (which shows -log p(x)).
    """
    if model.likelihood == "l2":
        raise TypeError(
            f"the likelihood of model, a {type(model).__name__}, is 'l2', a squared error; it must be "
            "a density of images, such as 'bernoulli' or 'gaussian'"
        )
    checks.integer(1, samples=samples)
    checks.positive(widen=widen)
    if len(images) < 2:
        raise ValueError(f"images are {len(images)}; they must be at least 2")
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    # An autoregressive decoder holds many channels of every pixel.
    pairs = 100 if model.autoregressive else _AT_ONCE
    means, effective, grey, done = [], [], False, 0
    for part in encoding.inputs(model, images):
        grey |= model.likelihood == "bernoulli" and bool(((part != 0) & (part != 1)).any())
        for x in part.split(pairs):
            columns = []
            at_once = pairs // len(x)
            for count in [at_once] * (samples // at_once) + [samples % at_once]:
                if count:
                    columns.append(_log_weights(model, x, count, widen, generator))
                    done += len(x) * count
                    if progress is not None:
                        progress(done, len(images) * samples)
            log_w = torch.cat(columns, 1)
            total = log_w.logsumexp(1)
            means.append(total - math.log(samples))
            effective.append((2 * total - (2 * log_w).logsumexp(1)).exp())
    log_p, ess = torch.cat(means), torch.cat(effective)
    warnings = []
    if (few := float((ess < ENOUGH).double().mean())) > 0.1:
        warnings.append(
            f"{few:.0%} of the images have fewer than {ENOUGH} effective samples of {samples}: the "
            "estimate is too low"
        )
    if grey:
        warnings.append("pixels are grey: 'bernoulli' is a density of binary images")
    return {
        "log_likelihood": float(log_p.mean()),
        "standard_error": float(log_p.std()) / math.sqrt(len(log_p)),
        "effective_samples": float(ess.mean()),
        "warning": "; ".join(warnings),
    }


def _log_weights(
    model: Autoencoder, x: Tensor, samples: int, widen: float, generator: torch.Generator
) -> Tensor:
    """log w of `samples` fresh samples for every image of x (B, C, H, W): (B, samples), float64."""
    repeated = x.repeat_interleave(samples, 0)
    if isinstance(model, GaussianAutoencoder):
        mean, log_var = (t.repeat_interleave(samples, 0) for t in model.posterior(x))
        log_var = log_var + 2 * math.log(widen)
        z = densities.draw_normal(mean, log_var, generator)
        log_w = densities.prior_log_density(z, model.prior).double()
        log_w -= densities.normal_log_density(z, mean, log_var)
    else:
        z = model.sample_prior(len(repeated), generator)
        log_w = z.new_zeros(len(z), dtype=torch.float64)
    if isinstance(model, JointAutoencoder):
        every = [
            model.log_likelihood(repeated, torch.cat([z, y.to(z).expand(len(z), -1)], 1)).double()
            for y in F.one_hot(torch.arange(model.categories))
        ]
        log_w += torch.stack(every).logsumexp(0) - math.log(model.categories)
    else:
        log_w += model.log_likelihood(repeated, z)
    return log_w.view(len(x), samples)


def sample_nll(
    samples: Tensor,
    validation: Images,
    test: Images,
    *,
    bandwidths: Sequence[float] = BANDWIDTHS,
) -> dict[str, Any]:
    """Negative log density of test images beside generated ones, in nats per image.

        -log 1/n sum_j N(x; s_j, h^2 I), mean over test images x

    a Parzen window on the samples s_j, its bandwidth h the one of `bandwidths` under which the
    validation images are most probable. Pixels are in [0, 1]; the density is continuous, so that the
    figure can be negative. It says little about images of many pixels (Theis et al. 2016), and may only
    be compared at equal n.

    VIMAE prints the "NLL for generated samples" of Omniglot without saying what it is; this, with which
    the papers on adversarial training judged samples, is our choice.

    Args:
        samples: n generated images (n, C, H, W).
        validation, test: real images (N, C, H, W), bytes or floats.
        bandwidths: the h to choose from, in pixel units; 10 from 0.1 to 1, in geometric progression, are
            those of the code of Goodfellow et al.

    Returns:
        "nll"; "standard_error" of it over test images; "bandwidth"; "warning", empty, or one line that
        says that the best bandwidth is the first or the last of several.

    Raises:
        ValueError: images of different shapes, fewer than two test images, no bandwidth or one that
            is not > 0.

    Source: VIMAE (ICLR version), table 1, for the name; Goodfellow et al., Generative Adversarial Nets
    (2014), sec. 5; Makhzani et al., Adversarial Autoencoders (2015), sec. 3.
    """
    for name, images in (("validation", validation), ("test", test)):
        if images.shape[1:] != samples.shape[1:]:
            raise ValueError(
                f"{name} has shape {tuple(images.shape)}; its images must be those of samples, "
                f"{tuple(samples.shape)}"
            )
    if len(samples) < 1 or len(validation) < 1 or len(test) < 2:
        raise ValueError(
            f"there are {len(samples)} samples, {len(validation)} validation and {len(test)} test "
            "images; there must be at least 1, 1 and 2"
        )
    if not bandwidths:
        raise ValueError("bandwidths is empty; it must have at least one number > 0")
    for h in bandwidths:
        checks.positive(bandwidths=h)
    s = pixels(samples).flatten(1).double()
    of_validation = _parzen(s, validation, bandwidths).mean(1)
    best = bandwidths[int(of_validation.argmax())]
    log_p = _parzen(s, test, (best,))[0]
    edge = len(bandwidths) > 1 and best in (min(bandwidths), max(bandwidths))
    return {
        "nll": -float(log_p.mean()),
        "standard_error": float(log_p.std()) / math.sqrt(len(log_p)),
        "bandwidth": best,
        "warning": f"the best bandwidth, {best:.3g}, is at an end of those tried" if edge else "",
    }


def _parzen(s: Tensor, images: Images, bandwidths: Sequence[float]) -> Tensor:
    """log density (H, N) of images under windows of H widths on samples s (n, pixels), in float64.

    The kernels of `vimae_kernels` would take an exponential per pixel of every pair; pixels are in
    [0, 1], so that the squares of differences can be had from a product of matrices in float64.
    """
    parts = []
    for start in range(0, len(images), _AT_ONCE):
        x = pixels(images[start : start + _AT_ONCE]).flatten(1).to(s)
        squares = x.square().sum(1, keepdim=True) + s.square().sum(1) - 2 * x @ s.T
        log_sums = [(squares / (-2 * h**2)).logsumexp(1) for h in bandwidths]
        parts.append(torch.stack(log_sums))
    h = s.new_tensor(bandwidths)[:, None]
    normaliser = math.log(len(s)) + s.shape[1] * (0.5 * math.log(2 * math.pi) + h.log())
    return torch.cat(parts, 1) - normaliser
