"""How far generated images are from real ones, as a network sees them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import files
from ..autoencoder import Autoencoder
from ..data import Images, pixels
from ..pixelcnn import Progress
from .classifier import Classifier

_AT_ONCE = 256
_INCEPTION = "pt_inception-2015-12-05-6726825d.pth"


@torch.no_grad()
def generate(model: Autoencoder, n: int, seed: int = 0, progress: Progress | None = None) -> Tensor:
    """n images of a model, as bytes (n, C, H, W) on the CPU: `model.sample`, rounded.

    Args:
        model: any system.
        n: number of images.
        seed: of the codes and, where there is any, of the noise of the pixels.
        progress: called with what is done, and all.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    parts = []
    for start in range(0, n, _AT_ONCE):
        size = min(_AT_ONCE, n - start)

        def step(done: int, total: int, start: int = start, size: int = size) -> None:
            if progress is not None:
                progress(start * total + size * done, n * total)

        images = model.sample(size, generator, step)
        step(1, 1)
        parts.append(to_bytes(images))
    return torch.cat(parts)


def class_cross_entropy(classifier: Classifier, samples: Images, labels: Tensor) -> float:
    """-sum_k c_k (log chat_k - log c_k), in nats: KL(c || chat) of the classes of images.

    c are the fractions of the classes among the training images, chat the mean over the samples of
    the probabilities a classifier gives them. 0 if the distributions are the same; infinite if a
    class has no probability in any sample.

    Args:
        classifier: of that data set.
        samples: (N, C, H, W), generated.
        labels: of the training images, (M,); all are classes of the classifier.

    Source: InfoVAE, sec. 4.2.1 (2) and figure 3 (C).
    """
    counts = (labels[:, None] == classifier.classes.cpu()).sum(0)
    c = counts.double() / counts.sum()
    estimate = classifier.probabilities(samples).mean(0)
    return float(torch.special.xlogy(c, c / estimate).sum())


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """||m - m'||^2 + Tr(S + S' - 2 (S S')^(1/2)) of the means and covariances of features.

    That is the squared 2-Wasserstein distance of two Gaussians with these moments. It is computed
    by torchmetrics, in float64. With few images it is biased upwards: numbers compare only at equal
    numbers of images.

    Args:
        real: (N, F), N >= 2.
        generated: (M, F), M >= 2.

    Source: Heusel et al. (2017), eq. 6.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    # Its "network" gives the features it is given.
    passed_on = nn.Identity()
    passed_on.num_features = real.shape[1]  # type: ignore[assignment]
    metric = FrechetInceptionDistance(feature=passed_on)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return float(metric.compute())


def classifier_distance(classifier: Classifier, real: Images, generated: Images) -> float:
    """`frechet_distance` of the features of a classifier of the data set. It is not the FID.

    Args:
        classifier: of the data set, see `classifier.load_or_train`.
        real: (N, C, H, W), N >= 2, images the classifier was not trained on.
        generated: (M, C, H, W), M >= 2.
    """
    return frechet_distance(classifier.features(real), classifier.features(generated))


def fid(real: Images, generated: Images, inception: Any, progress: Progress | None = None) -> float:
    """The Fréchet inception distance: `frechet_distance` of the 2048 features of Inception v3.

    Args:
        real: (N, C, H, W), N >= 2, C = 1 (shown as grey) or 3, bytes or floats in [0, 1].
        generated: (M, C, H, W), M >= 2; 10^4 in the papers.
        inception: the network, of `load_inception`; on its device this runs.
        progress: called with the images done and all.

    Raises:
        ValueError: images of other than 1 or 3 channels.

    Source: Heusel et al. (2017), eq. 6; VIMAE (ICLR version), table 5.
    """
    done, total = 0, len(real) + len(generated)
    for images, are_real in ((real, True), (generated, False)):
        if images.shape[1] not in (1, 3):
            raise ValueError(f"the images have {images.shape[1]} channels; they must have 1 or 3")
        for start in range(0, len(images), _AT_ONCE):
            x = to_bytes(pixels(images[start : start + _AT_ONCE]))
            inception.update(x.expand(-1, 3, -1, -1).to(inception.device), real=are_real)
            done += len(x)
            if progress is not None:
                progress(done, total)
    return float(inception.compute())


def load_inception(path: Path) -> Any:
    """torchmetrics' FrechetInceptionDistance, on the CPU, with the weights of a file.

    Network and resizing to 299x299 are those of torch-fidelity, which follow the original code, the
    weights the original ones. This was run with random weights in that network, and never with the
    original file, which was not at hand: no published figure was reproduced with it.

    Args:
        path: pt_inception-2015-12-05-6726825d.pth, of the releases of
            https://github.com/toshas/torch-fidelity; loading it runs no code.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
        FileError: the file is missing, damaged, or holds other weights.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if find_spec("torch_fidelity") is None:
        raise ModuleNotFoundError(
            "the network of the FID is that of torch-fidelity: pip install 'vimae-kernels[fid]', "
            f"and give {_INCEPTION} of the releases of https://github.com/toshas/torch-fidelity"
        )
    if not path.is_file():
        raise files.FileError(f"{path} is missing; it must be {_INCEPTION}")
    try:
        # torch-fidelity would run what is pickled in the file.
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise files.FileError(f"{path} is damaged: {why}") from error
    try:
        return FrechetInceptionDistance(
            feature=2048, feature_extractor_weights_path=str(path), antialias=False
        )
    except (RuntimeError, TypeError, AttributeError) as error:
        raise files.FileError(f"{path} does not hold the weights of {_INCEPTION}") from error


def to_bytes(x: Tensor) -> Tensor:
    """Pixels in [0, 1] as the nearest bytes, on the CPU."""
    return x.mul(255).round().clamp(0, 255).byte().cpu()
