"""What a trained model is judged by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import vimae_kernels as vk

from . import corruptions
from .autoencoder import Autoencoder
from .data import ImageData, Images, Split, pixels
from .joint import JointAutoencoder

LABELS = 1000
# The papers' corruptions: name, function, strength.
CORRUPTIONS = {
    "gaussian 0.2": (corruptions.gaussian, 0.2),
    "gaussian 0.4": (corruptions.gaussian, 0.4),
    "mask 0.2": (corruptions.mask, 0.2),
    "mask 0.5": (corruptions.mask, 0.5),
    "gaussian 0.3": (corruptions.gaussian, 0.3),
}
_AT_ONCE = 1000


@torch.no_grad()
def codes(
    model: Autoencoder, images: Images, corrupt: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Codes (N, code_dim) of images (N, C, H, W), bytes or floats, without training noise.

    `corrupt`, if given, is what is done to the pixels of every part before.
    """
    return torch.cat([model.encode(x) for x in inputs(model, images, corrupt)])


@torch.no_grad()
def draws(model: Autoencoder, images: Images, seed: int = 0) -> Tensor:
    """One draw (N, d) of z from the posterior of every image: samples of q(z)."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    parts = [model.sample_posterior(x, generator) for x in inputs(model, images)]
    return torch.cat(parts)[:, : model.latent_dim]


def inputs(
    model: Autoencoder, images: Images, corrupt: Callable[[Tensor], Tensor] | None = None
) -> Iterator[Tensor]:
    """Images part by part, as pixels on the device and in the type of the model, in evaluation mode."""
    at = next(model.parameters())
    training = model.training
    model.eval()
    for start in range(0, len(images), _AT_ONCE):
        x = pixels(images[start : start + _AT_ONCE])
        yield (corrupt(x) if corrupt is not None else x).to(at)
    model.train(training)


@torch.no_grad()
def summary(model: Autoencoder, images: Images) -> dict[str, float]:
    """How well a model reconstructs images, and how close their codes are to the prior.

    Args:
        model: any system.
        images: (N, C, H, W), N >= 2.

    Returns:
        "reconstruction", the mean of -log p(x|z) at the code of x (of a mean, where there is a
        posterior; ||x - g(z)||^2 in squared pixel units where the likelihood is "l2"), and "mmd",
        the unbiased squared MMD between N draws from q(z) and N samples of the prior, the same draws
        and samples at every call. Of a joint code, that of its continuous part.
    """
    error = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
    for x in inputs(model, images):
        error -= model.log_likelihood(x, model.encode(x)).sum()
    z = draws(model, images)
    generator = torch.Generator(z.device).manual_seed(1)
    prior = model.sample_prior(len(z), generator)[:, : model.latent_dim]
    return {"reconstruction": float(error) / len(images), "mmd": float(vk.mmd(z, prior))}


@torch.no_grad()
def categories(model: JointAutoencoder, split: Split) -> dict[str, float]:
    """What the categorical code y of a joint model says about the classes of a labelled set.

    Args:
        model: a system with a categorical code of K categories.
        split: N labelled images.

    Returns:
        "accuracy": fraction of images whose most probable category is the one matched to their
        class, each category being matched to one class at most so that the fraction is largest (the
        Hungarian algorithm); "kl": mean KL(q(y|x) || uniform), at most log K; "entropy": that of the
        mean of q(y|x); "information": I(x; y) = entropy - mean H(q(y|x)); all in nats.

    Source: VMI-VAE, sec. 4; IMAE, sec. 5.
    """
    from scipy.optimize import linear_sum_assignment

    p = torch.cat([model.classify(x) for x in inputs(model, split.images)]).double().cpu()
    classes, labels = split.labels.unique(return_inverse=True)
    counts = torch.zeros(p.shape[1], len(classes), dtype=torch.long)
    counts.index_put_((p.argmax(1), labels), torch.ones_like(labels), accumulate=True)
    matched = counts[linear_sum_assignment(counts.numpy(), maximize=True)]
    conditional = torch.special.entr(p).sum(1).mean()
    entropy = torch.special.entr(p.mean(0)).sum()
    return {
        "accuracy": float(matched.sum()) / len(labels),
        "kl": math.log(p.shape[1]) - float(conditional),
        "entropy": float(entropy),
        "information": float(entropy - conditional),
    }


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
    """All of the above on the test set: "images", "reconstruction", "mmd", "svm", "categories"."""
    results = {
        "images": len(data.test),
        **summary(model, data.test.images),
        "svm": svm_accuracy(model, data),
    }
    if isinstance(model, JointAutoencoder):
        results["categories"] = categories(model, data.test)
    return results
