"""A classifier of the images of a data set, to judge generated images by."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import encoding, files
from ..data import ImageData, Images, pixels
from ..data.base import Binarized
from ..networks import Shape, infovae_encoder
from ..pixelcnn import Progress

STEPS = 600
_BATCH = 100
_FEATURES = 64
_WIDTH = 0.25


class Classifier(nn.Module):
    """p(class|x): four convolutions (those of `networks.infovae_encoder` at a quarter of their
    width), 64 features with ReLU, one linear layer.

    Args:
        data_shape: (C, H, W).
        classes: the labels (K,) it tells apart, in ascending order.

    Attributes:
        test_accuracy: fraction of the images it was tested on that it classifies rightly.
    """

    classes: Tensor

    def __init__(self, data_shape: Shape, classes: Tensor) -> None:
        super().__init__()
        self.trunk = nn.Sequential(infovae_encoder(data_shape, (_FEATURES,), _WIDTH), nn.ReLU())
        self.last = nn.Linear(_FEATURES, len(classes))
        self.register_buffer("classes", classes)
        self.test_accuracy = float("nan")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images x (B, C, H, W) with pixels in [0, 1]."""
        return self.last(self.trunk(x))  # type: ignore[no-any-return]

    @torch.no_grad()
    def probabilities(self, images: Images) -> Tensor:
        """p(class|x) of images (N, C, H, W), bytes or floats: (N, K), float64, on the CPU."""
        parts = [self(x) for x in encoding.inputs(self, images)]
        return torch.cat(parts).cpu().double().softmax(1)

    @torch.no_grad()
    def features(self, images: Images) -> Tensor:
        """What the last layer sees of images (N, C, H, W): (N, 64), float64, on the CPU."""
        return torch.cat([self.trunk(x) for x in encoding.inputs(self, images)]).cpu().double()


def load_or_train(
    data: ImageData,
    path: Path,
    seed: int = 0,
    *,
    steps: int = STEPS,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Classifier:
    """The classifier in a file, or, where there is none, one trained on the training set and put there.

    Adam on the cross entropy of batches of 100, drawn with replacement, the learning rate rising to
    0.004 and falling to 0. It is tested on the test set, or, where no class of that is in the
    training set (Omniglot), on the validation set.

    Args:
        data: a data set whose training images are of two classes or more.
        path: of the file; loading it runs no code.
        seed: of the first weights and of the batches.
        steps: batches.
        device: where it is trained and used.
        progress: called with the steps done and all, while it is trained.

    Raises:
        ValueError: the training images are all of one class.
        FileError: the file is damaged, or is not the classifier that would be trained; it is left
            as it is.
        OSError: the file cannot be written.
    """
    classes = data.train.labels.unique()
    if len(classes) < 2:
        raise ValueError(f"data is {data.name}, of one class; it must have two or more")
    settings = {
        "data": data.name,
        "shape": list(data.shape),
        "binarized": isinstance(data.train.images, Binarized),
        "images": len(data.train),
        "classes": len(classes),
        "seed": seed,
        "steps": steps,
    }
    # The generator of the caller stays as it is.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(data.shape, classes)
        if path.exists():
            _load(classifier, path, settings)
            return classifier.to(device)
        classifier.to(device)
        _train(classifier, data, steps, progress)
    known = torch.isin(data.test.labels, classes).any()
    split = data.test if known else data.validation
    guessed = classes[classifier.probabilities(split.images).argmax(1)]
    classifier.test_accuracy = float((guessed == split.labels).double().mean())
    buffer = io.BytesIO()
    kept = {
        "settings": settings,
        "weights": {name: weight.cpu() for name, weight in classifier.state_dict().items()},
        "test_accuracy": classifier.test_accuracy,
    }
    torch.save(kept, buffer)
    files.write(path, buffer.getbuffer())
    return classifier


def _train(classifier: Classifier, data: ImageData, steps: int, progress: Progress | None) -> None:
    optimizer = torch.optim.Adam(classifier.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    at = next(classifier.parameters())
    targets = torch.searchsorted(classifier.classes.cpu(), data.train.labels)
    classifier.train()
    for step in range(steps):
        chosen = torch.randint(len(data.train), (_BATCH,))
        x = pixels(data.train.images[chosen]).to(at)
        loss = F.cross_entropy(classifier(x), targets[chosen].to(at.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, steps)
    classifier.eval()


def _load(classifier: Classifier, path: Path, settings: dict[str, Any]) -> None:
    kept = files.load(path)
    if not isinstance(kept, dict) or set(kept) != {"settings", "weights", "test_accuracy"}:
        raise files.FileError(f"{path} does not hold a classifier")
    if kept["settings"] != settings:
        raise files.FileError(
            f"{path} holds the classifier of {kept['settings']}; needed is that of {settings}: "
            "name another file, or remove this one"
        )
    try:
        classifier.load_state_dict(kept["weights"])
        classifier.test_accuracy = float(kept["test_accuracy"])
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise files.FileError(
            f"{path} is damaged: it has not the weights of a classifier"
        ) from error
    classifier.eval()
