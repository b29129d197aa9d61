"""Figures of a trained model, as PNG files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import MultipleLocator
from torch import Tensor

from . import corruptions, evaluation
from .autoencoder import Autoencoder
from .data import ImageData, pixels

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": "0.35",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "0.35",
    "ytick.color": "0.35",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "savefig.dpi": 180,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.05,
}
_POINTS = 10_000
_GREY = "0.45"


@contextmanager
def _figure(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[Any]:
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained")
        yield axes
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        plt.close(figure)


def save_all(
    model: Autoencoder, data: ImageData, history: list[dict[str, float]], folder: Path
) -> list[Path]:
    """Every figure of a model into `folder`; returns their paths."""
    paths = [folder / f"{name}.png" for name in ("latent", "reconstructions", "samples")]
    latent(model, data, paths[0])
    reconstructions(model, data, paths[1])
    samples(model, paths[2])
    if len(history) > 1:
        paths.append(folder / "training.png")
        training(history, paths[3])
    return paths


def latent(model: Autoencoder, data: ImageData, path: Path) -> None:
    """Codes of the test set coloured by class, beside as many samples of the prior.

    With more than two dimensions, the first two: the coordinates of the prior are independent, so
    any two of them should look alike.
    """
    z = evaluation.codes(model, data.test.images[:_POINTS]).cpu()
    labels = data.test.labels[:_POINTS]
    classes = len(labels.unique())
    generator = torch.Generator(next(model.parameters()).device).manual_seed(1)
    prior = model.sample_prior(len(z), generator).cpu()
    mmd = evaluation.summary(model, data.test.images)["mmd"]
    if z.shape[1] == 1:  # a little height, so that points do not hide each other
        z, prior = (torch.cat([t, torch.randn_like(t) * 0.1], 1) for t in (z, prior))
    limit = 1.1 * max(float(t[:, :2].abs().quantile(0.998)) for t in (z, prior))
    step = 2 if limit < 8 else 5
    size = 1.5 if len(z) > 2000 else 9.0
    with _figure(path, 1, 2, (7.0, 3.35)) as (left, right):
        # One call for all classes, in the order of the data: none is painted over by the others.
        points = left.scatter(
            *z[:, :2].T.numpy(),
            s=size,
            c=labels.numpy(),
            # Beyond ten classes colours only say which are near each other in their order.
            cmap="tab10" if classes <= 10 else "viridis",
            vmin=0 if classes <= 10 else None,
            vmax=9 if classes <= 10 else None,
            lw=0,
            alpha=0.8,
        )
        right.scatter(*prior[:, :2].T.numpy(), s=size, color=_GREY, lw=0, alpha=0.8)
        left.set_title(f"codes of {len(z)} test images, MMD² = {mmd:.4f}")
        right.set_title(f"samples of the prior ({model.prior})")
        for axes in (left, right):
            axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel="$z_1$")
            axes.xaxis.set_major_locator(MultipleLocator(step))
            axes.yaxis.set_major_locator(MultipleLocator(step))
        left.set_ylabel("$z_2$")
        if 1 < classes <= 10:
            left.legend(
                *points.legend_elements(num=None, markersize=5, markeredgewidth=0),
                loc="center left",
                bbox_to_anchor=(1.0, 0.5),
                frameon=False,
                handletextpad=0.0,
                borderpad=0.0,
            )


def reconstructions(model: Autoencoder, data: ImageData, path: Path) -> None:
    """One test image a column: itself, reconstructed, half masked, reconstructed from that."""
    chosen = _examples(data.test.labels)
    x = pixels(data.test.images[chosen])
    masked = corruptions.mask(x, 0.5, torch.Generator().manual_seed(0))
    rows = [
        ("original", x),
        ("reconstruction", _reconstruct(model, x)),
        ("half masked", masked),
        ("reconstruction", _reconstruct(model, masked)),
    ]
    with _figure(path, len(rows), 1, (7.0, 7.0 * len(rows) / len(x) + 0.1)) as axes:
        for axis, (name, images) in zip(axes, rows, strict=True):
            _tiles(axis, images, len(images))
            axis.text(-0.008, 0.5, name, transform=axis.transAxes, ha="right", va="center")


def _examples(labels: Tensor) -> Tensor:
    """Indices of the first image of each of the first ten classes, filled up to ten from the front."""
    first = [int((labels == label).nonzero()[0, 0]) for label in labels.unique()[:10]]
    others = [i for i in range(min(len(labels), 10)) if i not in first]
    return torch.tensor((first + others)[:10])


@torch.no_grad()
def _reconstruct(model: Autoencoder, x: Tensor) -> Tensor:
    model.eval()
    return model.reconstruct(x.to(next(model.parameters()).device)).cpu()


@torch.no_grad()
def samples(model: Autoencoder, path: Path) -> None:
    """Images decoded from samples of the prior."""
    model.eval()
    generator = torch.Generator(next(model.parameters()).device).manual_seed(2)
    with _figure(path, 1, 1, (7.0, 7.0 * 4 / 16)) as axis:
        _tiles(axis, model.sample(64, generator).cpu(), 16)


def _tiles(axis: Any, images: Tensor, columns: int) -> None:
    """Images (N, C, H, W) in rows of `columns`, dark on white where they have one channel."""
    n, channels, height, width = images.shape
    gap = max(1, height // 14)
    padded = torch.nn.functional.pad(images, (0, gap, 0, gap), value=0.0 if channels == 1 else 1.0)
    grid = padded.reshape(n // columns, columns, channels, height + gap, width + gap)
    picture = grid.permute(0, 3, 1, 4, 2).reshape(-1, columns * (width + gap), channels)
    picture = picture[: -gap or None, : -gap or None].clamp(0, 1)
    shown = picture if channels == 3 else picture[..., 0]
    axis.imshow(shown.numpy(), cmap="gray_r", vmin=0, vmax=1)
    axis.set_axis_off()


def training(history: list[dict[str, float]], path: Path) -> None:
    """Reconstruction error and MMD to the prior against epochs."""
    epochs = [row["epoch"] for row in history]
    with _figure(path, 1, 2, (7.0, 2.4)) as panels:
        for axis, term, title in zip(
            panels,
            ("reconstruction", "mmd"),
            ("$\\|x - g(z)\\|^2$ per image", "MMD² to the prior"),
            strict=True,
        ):
            for split, color in (("train", "0.6"), ("validation", "C0")):
                values = [row[f"{split}/{term}"] for row in history]
                axis.plot(epochs, values, color=color, lw=1.2, label=split)
            axis.set(title=title, xlabel="epoch")
        panels[0].legend(frameon=False)
