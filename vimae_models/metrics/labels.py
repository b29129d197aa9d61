"""What codes say about the classes of labelled images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import corruptions, encoding
from ..autoencoder import Autoencoder
from ..data import ImageData, Split
from ..joint import JointAutoencoder

LABELS = 1000
# The papers' corruptions: name, function, strength. MNIST has no sigma of 0.3, CIFAR10 has no other.
CORRUPTIONS = {
    "gaussian 0.2": (corruptions.gaussian, 0.2),
    "gaussian 0.3": (corruptions.gaussian, 0.3),
    "gaussian 0.4": (corruptions.gaussian, 0.4),
    "mask 0.2": (corruptions.mask, 0.2),
    "mask 0.5": (corruptions.mask, 0.5),
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
        seed: of the choice of labels, and of each corruption.

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
    machine = SVC().fit(encoding.codes(model, labelled.images).cpu(), labelled.labels)

    def accuracy(corrupt: Callable[[Tensor], Tensor] | None = None) -> float:
        codes = encoding.codes(model, test.images, corrupt)
        return float(machine.score(codes.cpu(), test.labels))

    def corrupted(corrupt: Callable[..., Tensor], strength: float) -> float:
        generator = torch.Generator().manual_seed(seed)
        return accuracy(lambda x: corrupt(x, strength, generator))

    return {"clean": accuracy(), **{name: corrupted(*how) for name, how in CORRUPTIONS.items()}}


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


def digits_per_category(model: JointAutoencoder, split: Split) -> Tensor:
    """How many images of each class have each category as their most probable one.

    Args:
        model: a system with a categorical code of K categories.
        split: N labelled images of L classes.

    Returns:
        Counts (K, L), int64, summing to N; the columns are the classes in the order of their labels.

    Source: VMI-VAE, figures 9 and 10.
    """
    return _counts(_probabilities(model, split), split.labels)


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

    p = _probabilities(model, split)
    counts = _counts(p, split.labels)
    matched = counts[linear_sum_assignment(counts.numpy(), maximize=True)]
    conditional = torch.special.entr(p).sum(1).mean()
    entropy = torch.special.entr(p.mean(0)).sum()
    return {
        "accuracy": float(matched.sum()) / len(split),
        "kl": math.log(p.shape[1]) - float(conditional),
        "entropy": float(entropy),
        "information": float(entropy - conditional),
    }


@torch.no_grad()
def _probabilities(model: JointAutoencoder, split: Split) -> Tensor:
    """q(y|x) of all images, (N, K), float64."""
    parts = [model.classify(x) for x in encoding.inputs(model, split.images)]
    return torch.cat(parts).double().cpu()


def _counts(p: Tensor, labels: Tensor) -> Tensor:
    classes, labels = labels.unique(return_inverse=True)
    counts = torch.zeros(p.shape[1], len(classes), dtype=torch.long)
    return counts.index_put_((p.argmax(1), labels), torch.ones_like(labels), accumulate=True)
