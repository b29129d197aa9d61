"""What a trained model is judged by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import vimae_kernels as vk

from . import corruptions, objectives
from .autoencoder import Autoencoder
from .data import ImageData, Split, pixels

LABELS = 1000
# The papers' corruptions of MNIST: name, function, strength.
CORRUPTIONS = {
    "gaussian 0.2": (corruptions.gaussian, 0.2),
    "gaussian 0.4": (corruptions.gaussian, 0.4),
    "mask 0.2": (corruptions.mask, 0.2),
    "mask 0.5": (corruptions.mask, 0.5),
}
_AT_ONCE = 1000


@torch.no_grad()
def codes(model: Autoencoder, images: Tensor) -> Tensor:
    """Codes (N, d) of images (N, C, H, W), bytes or floats, without training noise."""
    return torch.cat([part for _, part in _encoded(model, images)])


def _encoded(model: Autoencoder, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Images as pixels and their codes, part by part."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    for part in images.split(_AT_ONCE):
        x = pixels(part.to(device))
        yield x, model.encode(x)
    model.train(training)


@torch.no_grad()
def summary(model: Autoencoder, images: Tensor) -> dict[str, float]:
    """How well a model reconstructs images, and how close their codes are to the prior.

    Args:
        model: any system.
        images: (N, C, H, W), N >= 2.

    Returns:
        "reconstruction", the mean of ||x - g(z)||^2 in squared pixel units, and "mmd", the unbiased
        squared MMD between all N codes and N samples of the prior, the same samples at every call.
    """
    error = torch.zeros((), device=next(model.parameters()).device)
    parts = []
    for x, z in _encoded(model, images):
        error += objectives.squared_error(x, model.decode(z)) * len(x)
        parts.append(z)
    z = torch.cat(parts)
    generator = torch.Generator(z.device).manual_seed(0)
    prior = model.sample_prior(len(z), generator)
    return {"reconstruction": float(error) / len(images), "mmd": float(vk.mmd(z, prior))}


def svm_accuracy(model: Autoencoder, data: ImageData, seed: int = 0) -> dict[str, float]:
    """Test accuracy of a support vector machine on the codes, for clean and corrupted test images.

    It is trained once, on the codes of `LABELS` clean training images with the classes in the
    proportions of the training set, and tested on the codes of all test images with each
    corruption: RBF kernel, scikit-learn's defaults. The papers name the transductive M1+TSVM; this
    one sees no unlabelled codes.

    Args:
        model: any system.
        data: a labelled data set.
        seed: of the choice of labels and of the corruptions.

    Returns:
        Fractions by name: "clean" and those of `CORRUPTIONS`.

    Source: VIMAE preprint, sec. 5.2 and table 1.
    """
    from sklearn.svm import SVC

    labelled = _labelled(data.train, seed)
    machine = SVC().fit(codes(model, labelled.images).cpu(), labelled.labels)
    clean = pixels(data.test.images)
    generator = torch.Generator().manual_seed(seed)
    inputs = {"clean": clean} | {
        name: corrupt(clean, strength, generator)
        for name, (corrupt, strength) in CORRUPTIONS.items()
    }
    return {
        name: float(machine.score(codes(model, x).cpu(), data.test.labels))
        for name, x in inputs.items()
    }


def _labelled(train: Split, seed: int) -> Split:
    from sklearn.model_selection import train_test_split

    if len(train) <= LABELS:
        return train
    chosen, _ = train_test_split(
        torch.arange(len(train)), train_size=LABELS, stratify=train.labels, random_state=seed
    )
    return Split(train.images[chosen], train.labels[chosen])


def evaluate(model: Autoencoder, data: ImageData) -> dict[str, Any]:
    """All of the above on the test set: "images", "reconstruction", "mmd" and "svm"."""
    return {
        "images": len(data.test),
        **summary(model, data.test.images),
        "svm": svm_accuracy(model, data),
    }
