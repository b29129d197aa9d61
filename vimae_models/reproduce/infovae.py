"""What the targets of InfoVAE share."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..autoencoder import Autoencoder
from ..data import ImageData, Images
from ..metrics import classifier, images, likelihood
from .statistics import Difference, difference
from .target import Trained, Values

# The paper's names of the systems.
NAMES = {
    "vae": "ELBO",
    "mmd-vae": "MMD",
    "stein-vae": "Stein",
    "aae": "adversarial",
    "ae": "unregularised",
}
# Factors on the standard deviations of q(z|x) among which the proposal of importance sampling is chosen.
WIDTHS = tuple(2 ** (k / 2) for k in range(11))
_AT_ONCE = 500


def log_likelihood(model: Autoencoder, test: Images, samples: int) -> Values:
    """-log p(x) by importance sampling from q(z|x), widened by that factor which does best.

    All of the estimates are too low in expectation, so that the highest is the nearest. The factor is
    chosen on the first images.
    """

    def estimate(widen: float) -> float:
        found = likelihood.log_likelihood(model, test[:32], 32, widen=widen)
        return float(found["log_likelihood"])

    widen = max(WIDTHS, key=estimate)
    found = likelihood.log_likelihood(model, test, samples, widen=widen)
    return {"nll": -found.pop("log_likelihood"), **found, "widen": widen}


def margin(values: list[float], threshold: float, below: bool = False) -> Difference:
    """How far values are above a number, or below it."""
    constant = [threshold] * len(values)
    return difference(constant, values) if below else difference(values, constant)


def shared_classifier(data: ImageData, folder: Path) -> classifier.Classifier:
    """The classifier that the runs on images of a size share, trained on fewer batches if there are few images."""
    steps = min(classifier.STEPS, len(data.train) // 4)
    return classifier.load_or_train(data, folder / f"classifier-{data.shape[1]}.pt", steps=steps)


def images_trained_on(trained: Trained) -> int | None:
    """How many images a run was trained on, if it was a part: then it is judged on few images too."""
    images: int | None = trained.config.get("images")
    return images


@torch.no_grad()
def draw_images(model: Autoencoder, n: int, steps: int = 0, seed: int = 0) -> Tensor:
    """n images x ~ p(x|z), z from the prior and then `steps` times from q(z|x): bytes, on the CPU."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    parts = []
    for start in range(0, n, _AT_ONCE):
        x = model.draw(model.sample_prior(min(_AT_ONCE, n - start), generator), generator)
        for _ in range(steps):
            x = model.draw(model.sample_posterior(x, generator), generator)
        parts.append(images.to_bytes(x))
    return torch.cat(parts)


def draw_curve(
    axis: Any, at: Sequence[float], values: Sequence[Sequence[float]], color: str, label: str = ""
) -> None:
    """Mean and range over seeds, at each of some points."""
    axis.plot(at, [statistics.fmean(v) for v in values], color=color, lw=1.2, marker="o", ms=2.5,
              label=label or None)  # fmt: skip
    axis.fill_between(
        at, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.2, lw=0
    )
