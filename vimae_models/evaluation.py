"""What a trained model is judged by: a few measures in seconds, or all that apply to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import checks, encoding
from .autoencoder import Autoencoder
from .data import ImageData, Images
from .data.base import Binarized
from .joint import JointAutoencoder
from .metrics import classifier, images, information, labels, latent, likelihood
from .pixelcnn import Progress
from .vae import GaussianAutoencoder

Report = Callable[[str, int, int], None]
"""Called with the name of a measure, and what is done of it and all; 0, 0 when it begins."""

SAMPLES = 10_000
"""Generated images, as many as the papers take; of a decoder that draws pixel by pixel:"""
AUTOREGRESSIVE_SAMPLES = 64
_VALIDATION = 1000


@torch.no_grad()
def reconstruction(model: Autoencoder, images: Images) -> float:
    """The mean over images of -log p(x|z) at the code of x, in nats: the distortion.

    The code is the mean where there is a posterior. Where the likelihood is "l2" this is
    ||x - g(z)||^2, in squared pixel units.

    Args:
        model: any system.
        images: (N, C, H, W).

    Source: VIMAE (ICLR version), sec. 2.
    """
    error = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
    for x in encoding.inputs(model, images):
        error -= model.log_likelihood(x, model.encode(x)).sum()
    return float(error) / len(images)


def summary(model: Autoencoder, images: Images) -> dict[str, float]:
    """What training watches: "reconstruction" and "mmd" (`latent.mmd`) of images (N, C, H, W), N >= 2."""
    return {"reconstruction": reconstruction(model, images), "mmd": latent.mmd(model, images)}


def evaluate(model: Autoencoder, data: ImageData) -> dict[str, Any]:
    """What takes seconds, of the test set: "images", "reconstruction", "mmd", "svm", "categories"."""
    results = {
        "images": len(data.test),
        **summary(model, data.test.images),
        "svm": labels.svm_accuracy(model, data),
    }
    if isinstance(model, JointAutoencoder):
        results["categories"] = labels.categories(model, data.test)
    return results


def evaluate_all(
    model: Autoencoder,
    data: ImageData,
    classifier_path: Path,
    *,
    inception: Any = None,
    samples: int | None = None,
    likelihood_images: int = 500,
    likelihood_samples: int = 100,
    seed: int = 0,
    report: Report = lambda name, done, total: None,
) -> dict[str, Any]:
    """Every measure of the papers that applies to a model, of the test set; minutes.

    Args:
        model: any system.
        data: the data set it was trained on.
        classifier_path: file of the classifier of that data set, which is trained if there is none;
            see `classifier.load_or_train`.
        inception: of `images.load_inception`, for the FID.
        samples: generated images, >= 2; None is `SAMPLES`, or `AUTOREGRESSIVE_SAMPLES`.
        likelihood_images, likelihood_samples: test images whose likelihood is estimated, the first
            ones, >= 2, and samples of z for each, >= 1.
        seed: of all draws.
        report: called as the measures go on.

    Returns:
        The results of `evaluate` and, by the names of functions in `metrics`, theirs. All can be
        written as JSON: what does not apply, or is not finite, is None, and "skipped" has the reason
        by name. "samples" is the number of generated images, which "class_cross_entropy",
        "classifier_distance", "fid" and "sample_nll" judge; "classifier" has the accuracy of that
        network. The first 1000 validation images choose the bandwidth of "sample_nll".

    Raises:
        ValueError: `samples` or a number of the likelihood out of range.
        FileError, OSError: as `classifier.load_or_train`.
    """
    samples = samples or (AUTOREGRESSIVE_SAMPLES if model.autoregressive else SAMPLES)
    checks.integer(2, samples=samples, likelihood_images=likelihood_images)
    checks.integer(1, likelihood_samples=likelihood_samples)
    skipped = _not_applicable(model, data, inception)
    judge: Any = None
    # First, since its file may be refused.
    if "classifier" not in skipped:
        report("classifier", 0, 0)
        device = next(model.parameters()).device
        progress = partial(report, "classifier")
        judge = classifier.load_or_train(
            data, classifier_path, seed, device=device, progress=progress
        )
    report("samples", 0, 0)
    generated = images.generate(model, samples, seed, partial(report, "samples"))
    if isinstance(data.test.images, Binarized):
        # Decoders of grey pixels: these are the probabilities of binary ones.
        generated = Binarized(generated, fixed=True)[:]

    test = data.test.images
    few = test[:likelihood_images]
    joint: Any = model
    measures: dict[str, Callable[[Progress], Any]] = {
        "reconstruction": lambda _: reconstruction(model, test),
        "rate": lambda _: latent.rate(model, test),
        "mmd": lambda _: latent.mmd(model, test, seed),
        "log_det_covariance": lambda _: latent.log_det_covariance(model, test, seed),
        "total_correlation": lambda _: latent.total_correlation(model, test, seed),
        "mutual_information": lambda _: information.mutual_information(model, test, seed),
        "coordinates": lambda _: information.coordinates(model, test, seed),
        "mutual_information_gap": lambda _: information.mutual_information_gap(
            model, data.test, seed=seed
        ),
        "log_likelihood": lambda progress: {
            "images": len(few),
            "samples": likelihood_samples,
            **likelihood.log_likelihood(
                model, few, likelihood_samples, seed=seed, progress=progress
            ),
        },
        "svm": lambda _: labels.svm_accuracy(model, data, seed),
        "categories": lambda _: labels.categories(joint, data.test),
        "classifier": lambda _: {"test_accuracy": judge.test_accuracy},
        "class_cross_entropy": lambda _: images.class_cross_entropy(
            judge, generated, data.train.labels
        ),
        "classifier_distance": lambda _: images.classifier_distance(judge, test, generated),
        "fid": lambda progress: images.fid(test, generated, inception, progress),
        "sample_nll": lambda _: likelihood.sample_nll(
            generated, data.validation.images[:_VALIDATION], test
        ),
    }
    results: dict[str, Any] = {"images": len(data.test), "samples": samples}
    for name, measure in measures.items():
        if name in skipped:
            results[name] = None
        else:
            report(name, 0, 0)
            results[name] = _finite(name, measure(partial(report, name)), skipped)
    return results | {"skipped": skipped}


def _not_applicable(model: Autoencoder, data: ImageData, inception: Any) -> dict[str, str]:
    """The measures that cannot be, by name, and why."""
    skipped: dict[str, str] = {}
    if not isinstance(model, GaussianAutoencoder):
        of_posterior = (
            "rate",
            "total_correlation",
            "mutual_information",
            "coordinates",
            "mutual_information_gap",
        )
        skipped |= dict.fromkeys(of_posterior, "the encoder is deterministic")
    if data.test.latents is None:
        skipped["mutual_information_gap"] = "the factors of the images are not known"
    if model.likelihood == "l2":
        skipped["log_likelihood"] = "the likelihood, 'l2', is no density of images"
    if len(data.train.labels.unique()) < 2:
        of_classes = "svm", "classifier", "class_cross_entropy", "classifier_distance"
        skipped |= dict.fromkeys(of_classes, "the images have no classes")
    if not isinstance(model, JointAutoencoder):
        skipped["categories"] = "the code has no category"
    elif len(data.test.labels.unique()) < 2:
        skipped["categories"] = "the images have no classes"
    if inception is None:
        skipped["fid"] = "the weights of Inception were not given"
    elif data.shape[0] not in (1, 3):
        skipped["fid"] = f"Inception takes images of 1 or 3 channels; these have {data.shape[0]}"
    return skipped


def _finite(name: str, value: Any, skipped: dict[str, str]) -> Any:
    """A result with None for every number that is not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(f"{name}.{key}", item, skipped) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(f"{name}.{i}", item, skipped) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        skipped[name] = f"it is {value}"
        return None
    return value
