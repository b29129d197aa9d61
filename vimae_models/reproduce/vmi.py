"""What the targets of VMI share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autoencoder import Autoencoder
from ..data import ImageData, Split, pixels
from ..metrics import classifier

CHANGED = 200  # test images whose codes are changed


def impact(changed: Tensor) -> float:
    """E_n Var_v g / Var g: the share of the variance of images that is due to what is changed.

    Args:
        changed: images (N, V, C, H, W), of N codes with V values each of a part of it.
    """
    flat = changed.flatten(2).double()
    of_all = flat.flatten(0, 1).var(0, correction=0).sum()
    return float(flat.var(1, correction=0).mean(0).sum() / of_all)


def agreement(judge: classifier.Classifier, changed: Tensor) -> tuple[Tensor, Tensor]:
    """For each of V values the share of N images that are of the most frequent class, and that class.

    Args:
        judge: says of what class an image is.
        changed: images (N, V, C, H, W).
    """
    seen = judge.probabilities(changed.flatten(0, 1)).argmax(1)
    counts = F.one_hot(seen.unflatten(0, changed.shape[:2]), len(judge.classes)).sum(0)
    return counts.amax(1) / len(changed), counts.argmax(1)


def shared_classifier(data: ImageData, folder: Path) -> classifier.Classifier:
    """The classifier of a target; few images are not shown more than 25 times."""
    steps = min(classifier.STEPS, len(data.train) // 4)
    return classifier.load_or_train(data, folder / "classifier.pt", steps=steps)


def percent(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]


def negated(verdict: bool | None) -> bool | None:
    return None if verdict is None else not verdict


@torch.no_grad()
def decoded(model: Autoencoder, codes: Tensor) -> Tensor:
    """Images (N, V, C, H, W) of codes (N, V, code_dim), on the CPU."""
    parts = codes.flatten(0, 1).split(1000)
    return torch.cat([model.decode(part).cpu() for part in parts]).view(
        *codes.shape[:2], *model.data_shape
    )


def one_of_each(split: Split) -> Tensor:
    """The first image of every class, as pixels."""
    first = [int((split.labels == label).nonzero()[0, 0]) for label in split.labels.unique()]
    return pixels(split.images[torch.tensor(first)])


def with_originals(images: Tensor, rows: Tensor) -> Tensor:
    """Tiles of rows (R, V, C, H, W), each behind its image (R, C, H, W) and a gap: (R (V + 2), C, H, W)."""
    originals = images[:, None]
    return torch.cat([originals, torch.zeros_like(originals), rows], 1).flatten(0, 1)
