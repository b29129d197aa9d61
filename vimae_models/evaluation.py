"""What a trained model is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import vimae_kernels as vk

from . import corruptions, objectives
from .autoencoder import Autoencoder
from .data import ImageData, Images, Split, pixels

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
def codes(
    model: Autoencoder, images: Images, corrupt: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Codes (N, d) of images (N, C, H, W), bytes or floats, without training noise.

    `corrupt`, if given, is what is done to the pixels of every part before.
    """
    return torch.cat([part for _, part in _encoded(model, images, corrupt)])


def _encoded(
    model: Autoencoder, images: Images, corrupt: Callable[[Tensor], Tensor] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images as pixels and their codes, part by part."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    for start in range(0, len(images), _AT_ONCE):
        x = pixels(images[start : start + _AT_ONCE])
        x = (corrupt(x) if corrupt is not None else x).to(device)
        yield x, model.encode(x)
    model.train(training)


@torch.no_grad()
def summary(model: Autoencoder, images: Images) -> dict[str, float]:
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

    Where no class of the test set is in the training set (Omniglot), it is trained on three quarters
    of the test images of five classes and tested on the last quarter, as in the paper.

    Args:
        model: any system.
        data: a labelled data set.
        seed: of the choice of labels and of the corruptions.

    Returns:
        Fractions by name: "clean" and those of `CORRUPTIONS`; nothing if there is only one class.

    Source: VIMAE preprint, sec. 5.2 and table 1; VIMAE (ICLR version), sec. 5.3 (Omniglot).
    """
    from sklearn.svm import SVC

    if torch.isin(data.test.labels, data.train.labels).any():
        chosen, _ = _choose(data.train.labels, LABELS, seed)
        # Binarised training images are drawn from torch's generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            labelled, test = _at(data.train, chosen), data.test
    else:
        five = _five_classes(data.test.labels, seed)
        chosen, others = _choose(data.test.labels[five], len(five) * 3 // 4, seed)
        labelled, test = _at(data.test, five[chosen]), _at(data.test, five[others])
    if len(labelled.labels.unique()) < 2:
        return {}
    machine = SVC().fit(codes(model, labelled.images).cpu(), labelled.labels)
    generator = torch.Generator().manual_seed(seed)
    ways: dict[str, Callable[[Tensor], Tensor] | None] = {"clean": None}
    for name, (corrupt, strength) in CORRUPTIONS.items():
        ways[name] = lambda x, f=corrupt, s=strength: f(x, s, generator)  # type: ignore[misc]
    return {
        name: float(machine.score(codes(model, test.images, way).cpu(), test.labels))
        for name, way in ways.items()
    }


def _choose(labels: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of n labels, with the classes in proportion if n is enough for that, and the others."""
    from sklearn.model_selection import train_test_split

    everything = torch.arange(len(labels))
    if len(labels) <= n:
        return everything, everything[:0]
    counts = labels.unique(return_counts=True)[1]
    proportionate = len(counts) <= min(n, len(labels) - n) and counts.min() >= 2
    chosen, others = train_test_split(
        everything, train_size=n, stratify=labels if proportionate else None, random_state=seed
    )
    return chosen, others


def _five_classes(labels: Tensor, seed: int) -> Tensor:
    """Indices of all images of five classes."""
    classes = labels.unique()
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
    return torch.isin(labels, classes[order[:5]]).nonzero()[:, 0]


def _at(split: Split, index: Tensor) -> Split:
    return Split(split.images[index], split.labels[index])


def evaluate(model: Autoencoder, data: ImageData) -> dict[str, Any]:
    """All of the above on the test set: "images", "reconstruction", "mmd" and "svm"."""
    return {
        "images": len(data.test),
        **summary(model, data.test.images),
        "svm": svm_accuracy(model, data),
    }
