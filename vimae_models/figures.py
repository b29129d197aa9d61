"""Figures of a trained model, as PNG files."""

from __future__ import annotations

import io
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

from . import corruptions, encoding, evaluation, files
from .autoencoder import Autoencoder
from .data import ImageData, pixels
from .pixelcnn import Progress

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
    "axes.formatter.useoffset": False,
}
_POINTS = 10_000
_AT_ONCE = 256
_GREY = "0.45"


@contextmanager
def figure(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[Any]:
    """The axes of a figure of this size in inches, in the style of all, saved as PNG at the end."""
    with plt.rc_context(_STYLE):
        drawn, axes = plt.subplots(rows, columns, figsize=size, layout="constrained")
        yield axes
        picture = io.BytesIO()
        drawn.savefig(picture)
        plt.close(drawn)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, picture.getbuffer())


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
    """Draws of z for the test set coloured by class, beside as many samples of the prior.

    With more than two dimensions, the first two: the coordinates of the prior are independent, so
    any two of them should look alike.
    """
    images = data.test.images[:_POINTS]
    z = encoding.draws(model, images).float().cpu()
    labels = data.test.labels[:_POINTS]
    classes = len(labels.unique())
    generator = torch.Generator(next(model.parameters()).device).manual_seed(1)
    prior = model.sample_prior(len(z), generator)[:, : model.latent_dim].float().cpu()
    mmd = evaluation.summary(model, images)["mmd"]
    if z.shape[1] == 1:  # a little height, so that points do not hide each other
        height = torch.Generator().manual_seed(2)
        z, prior = (
            torch.cat([t, 0.1 * torch.randn(t.shape, generator=height)], 1) for t in (z, prior)
        )
    limit = 1.1 * max(float(t[:, :2].abs().quantile(0.998)) for t in (z, prior))
    step = 2 if limit < 8 else 5
    size = 1.5 if len(z) > 2000 else 9.0
    with figure(path, 1, 2, (7.0, 3.35)) as (left, right):
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
            if limit < 50:
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
    x = pixels(data.test.images[chosen]).cpu()
    masked = corruptions.mask(x, 0.5, torch.Generator().manual_seed(0))
    rows = [
        ("original", x),
        ("reconstruction", _reconstruct(model, x)),
        ("half masked", masked),
        ("reconstruction", _reconstruct(model, masked)),
    ]
    with figure(path, len(rows), 1, (7.0, 7.0 * len(rows) / len(x) + 0.1)) as axes:
        for axis, (name, images) in zip(axes, rows, strict=True):
            show(axis, images, len(images))
            axis.text(-0.008, 0.5, name, transform=axis.transAxes, ha="right", va="center")


def _examples(labels: Tensor) -> Tensor:
    """Indices of the first image of each of the first ten classes, filled up to ten from the front."""
    first = [int((labels == label).nonzero()[0, 0]) for label in labels.unique()[:10]]
    others = [i for i in range(min(len(labels), 10)) if i not in first]
    return torch.tensor((first + others)[:10])


@torch.no_grad()
def _reconstruct(model: Autoencoder, x: Tensor) -> Tensor:
    model.eval()
    codes = model.encode(x.to(next(model.parameters())))
    return model.decode(codes, torch.Generator(codes.device).manual_seed(3)).cpu()


@torch.no_grad()
def samples(model: Autoencoder, path: Path) -> None:
    """Images decoded from samples of the prior."""
    model.eval()
    generator = torch.Generator(next(model.parameters()).device).manual_seed(2)
    # Those drawn pixel by pixel take their time.
    n = 16 if model.autoregressive else 64
    with figure(path, 1, 1, (7.0, 7.0 * (n // 16) / 16)) as axis:
        show(axis, model.sample(n, generator).cpu(), 16)


def show(axis: Any, images: Tensor, columns: int) -> None:
    """Images (N, C, H, W) as a grid on an axis of a figure."""
    axis.imshow(grid(images, columns).numpy(), cmap="gray_r", vmin=0, vmax=1)
    axis.set_axis_off()


def grid(images: Tensor, columns: int) -> Tensor:
    """Images (N, C, H, W) in rows of `columns`, with gaps: (rows, columns) pixels, or RGB ones.

    One channel gives intensities, for ink on white; two or more than three show their mean.
    """
    n, channels, height, width = images.shape
    if channels not in (1, 3):
        images, channels = images.mean(1, keepdim=True), 1
    gap = max(1, height // 14)
    white = 0.0 if channels == 1 else 1.0
    padded = torch.nn.functional.pad(images.float(), (0, gap, 0, gap), value=white)
    blank = padded.new_full((-n % columns, *padded.shape[1:]), white)
    tiles = torch.cat([padded, blank]).unflatten(0, (-1, columns))
    picture: Tensor = tiles.permute(0, 3, 1, 4, 2).reshape(-1, columns * (width + gap), channels)
    picture = picture[:-gap, :-gap].clamp(0, 1)
    return picture if channels == 3 else picture.squeeze(2)


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """A PNG of nothing but images (N, C, H, W), each pixel of small ones as a square of several."""
    scale = max(1, 56 // images.shape[2])
    large = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    picture = io.BytesIO()
    plt.imsave(picture, grid(large, columns).numpy(), cmap="gray_r", vmin=0, vmax=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, picture.getbuffer())


@torch.no_grad()
def traversals(
    model: Autoencoder,
    image: Tensor,
    folder: Path,
    *,
    reach: float = 3.0,
    steps: int = 11,
    progress: Progress | None = None,
) -> list[Path]:
    """What each coordinate of the code of an image does, and the plane of codes where d = 2.

    One row of images for every coordinate, which goes from -reach to reach in `steps` steps while the
    others stay. Of a joint model one picture for every category. All coordinates have variance 1
    under the prior.

    Args:
        model: any system.
        image: (1, C, H, W), bytes or pixels in [0, 1].
        folder: where traverse.png, or traverse-category-<y>.png, and manifold.png, or
            manifold-category-<y>.png, are written.
        reach: in units of the code.
        steps: images in a row, >= 2.
        progress: called with the pixels done of all, for decoders that draw pixel by pixel.

    Returns:
        The paths.
    """
    model.eval()
    at = next(model.parameters())
    d = model.latent_dim
    start = model.encode(pixels(image).to(at))[:, :d]
    values = torch.linspace(-reach, reach, steps, dtype=at.dtype, device=at.device)
    rows = start.repeat(d * steps, 1)
    rows.view(d, steps, d).diagonal(dim1=0, dim2=2).copy_(values[:, None].expand(-1, d))
    pictures = {"traverse": rows}
    if d == 2:
        # z_1 to the right, z_2 upwards.
        pictures["manifold"] = torch.cartesian_prod(values.flip(0), values).flip(1)
    paths = []
    for name, z in pictures.items():
        for category in range(model.code_dim - d) or [None]:
            codes, suffix = z, ""
            if category is not None:
                y = torch.nn.functional.one_hot(torch.tensor(category), model.code_dim - d).to(z)
                codes, suffix = torch.cat([z, y.expand(len(z), -1)], 1), f"-category-{category}"
            generator = torch.Generator(at.device).manual_seed(0)
            parts = codes.split(_AT_ONCE)
            images = torch.cat([model.decode(part, generator, progress) for part in parts])
            paths.append(folder / f"{name}{suffix}.png")
            save_grid(paths[-1], images.cpu(), steps)
    return paths


def training(history: list[dict[str, float]], path: Path) -> None:
    """Every term of the loss, and the MMD to the prior, against epochs."""
    names = dict.fromkeys(name.partition("/")[2] for name in history[0] if "/" in name)
    columns = 3
    rows = -(-len(names) // columns)
    epochs = [row["epoch"] for row in history]
    with figure(path, rows, columns, (7.0, 1.9 * rows)) as panels:
        for axis, name in zip(panels.flat, names, strict=False):
            for split, color in (("train", "0.6"), ("validation", "C0")):
                if f"{split}/{name}" in history[0]:
                    values = [row[f"{split}/{name}"] for row in history]
                    axis.plot(epochs, values, color=color, lw=1.2, label=split)
            axis.set(title=name.replace("_", " "))
        for axis in panels.flat[len(names) :]:
            axis.set_axis_off()
        for axis in panels.flat[max(0, len(names) - columns) : len(names)]:
            axis.set_xlabel("epoch")
        # The last of the names may be on one split alone.
        shared = next((i for i, n in enumerate(names) if f"validation/{n}" in history[0]), 0)
        panels.flat[shared].legend(frameon=False)
