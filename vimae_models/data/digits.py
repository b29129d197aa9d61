"""The digits of scikit-learn: 1797 images of 8x8, in the package, no files needed."""

from __future__ import annotations

import torch

from .base import ImageData, Source, shuffled


def load(source: Source) -> ImageData:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images).float().div_(16).unsqueeze(1)
    labels = torch.from_numpy(raw.target).long()
    # The file is ordered by writer; the split must not depend on the seed of a run.
    return ImageData(source.name, *shuffled(images, labels, (1200, 197, 400)))
