"""Images in files of their own, read when they are asked for: CelebA and any folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .base import ImageData, Lazy, MissingError, Part, Source, Split, shuffled

Picture = Image.Image
_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp"}


class Files(Lazy):
    """Images read from files by several threads.

    Args:
        source: for error messages.
        folder: of the files.
        names: of the files, relative to `folder`.
        prepare: what makes every picture one of the same mode and size, or raises ValueError.
        shape: (C, H, W) of that, C = 1 or 3.
    """

    def __init__(
        self,
        source: Source,
        folder: Path,
        names: list[str],
        prepare: Callable[[Picture], Picture],
        shape: tuple[int, int, int],
    ) -> None:
        self.source, self.folder, self.names, self.prepare = source, folder, names, prepare
        self.shape = (len(names), *shape)

    def make(self, index: Tensor) -> Tensor:
        if len(index) == 0:
            return torch.empty(0, *self.shape[1:], dtype=torch.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = list(pool.map(self._read, index.tolist()))
        _, channels, height, width = self.shape
        stacked = torch.from_numpy(np.stack(images)).view(-1, height, width, channels)
        return stacked.permute(0, 3, 1, 2).contiguous()

    def _read(self, i: int) -> np.ndarray:
        path = self.folder / self.names[i]
        return np.asarray(opened(self.source, path, self.prepare))


def opened(source: Source, path: Path, prepare: Callable[[Picture], Picture]) -> Picture:
    """The prepared picture of a file."""
    try:
        with Image.open(path) as picture:
            return prepare(picture)
    except FileNotFoundError as error:
        raise source.missing(str(path)) from error
    # A damaged PNG is a SyntaxError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise source.damaged(path, error) from error


def load_celeba(source: Source) -> ImageData:
    """CelebA: the 140x140 in the centre, resized (Lanczos) to 64x64 or `size`; no labels (all 0).

    The last 20,000 of the 202,599 images test, as in the paper, and the 20,000 before them
    validate; list_eval_partition.txt is not used. Of fewer images it is the last tenths.

    Source: VIMAE (ICLR version), appendix.
    """
    size = source.size or 64
    folder = source.find("img_align_celeba")
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".jpg"))
    n, held = len(names), 20_000 if len(names) == 202_599 else len(names) // 10
    if held < 2:
        raise source.missing(f"{folder}/000001.jpg ... 202599.jpg ({n} found)")

    def prepare(picture: Picture) -> Picture:
        if picture.size != (178, 218):
            raise ValueError(f"it is {picture.width} x {picture.height}, not 178 x 218")
        face = picture.convert("RGB").crop((19, 39, 159, 179))
        return face.resize((size, size), Image.Resampling.LANCZOS)

    images = Files(source, folder, names, prepare, (3, size, size))
    parts = torch.arange(n).split([n - 2 * held, held, held])
    train, validation, test = (
        Split(Part(images, part), torch.zeros(len(part)).long()) for part in parts
    )
    partial = f"partial: {n:,} of 202,599 images" if n < 202_599 else ""
    return ImageData(source.name, train, validation, test, partial)


def load_folder(folder: Path, size: int | None) -> ImageData:
    """All images below a folder; the label is the sub-folder, in the order of their names.

    A tenth tests and a tenth validates, drawn in the same way every time. Grey or RGB as the first
    image is.

    Args:
        folder: of images, or of one sub-folder of images for each class.
        size: height and width to crop (the largest square in the centre) and resize (Lanczos) to;
            None takes images as they are, which must all be of one size.
    """
    name = folder.resolve().name
    source = Source(
        name,
        (folder,),
        "A data set is a folder of images (png, jpg, ...), or one of sub-folders, one for each "
        "class",
    )
    names = sorted(
        os.path.relpath(os.path.join(where, file), folder)
        for where, _, files in os.walk(folder)
        for file in files
        if Path(file).suffix.lower() in _ENDINGS and not file.startswith(".")
    )
    if len(names) < 20:
        raise MissingError(
            f"{name}: {folder} has {len(names)} images; it must have 20 or more. {source.how}"
        )
    first = opened(source, folder / names[0], lambda picture: picture.copy())
    mode = "L" if first.mode in ("1", "L", "LA") else "RGB"
    width, height = first.size if size is None else (size, size)

    def prepare(picture: Picture) -> Picture:
        if picture.mode.startswith(("I", "F")):
            raise ValueError("its pixels have more than 8 bits")
        if size is not None:
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            square = picture.convert(mode).crop((left, top, left + side, top + side))
            return square.resize((size, size), Image.Resampling.LANCZOS)
        if picture.size != (width, height):
            raise ValueError(
                f"it is {picture.width} x {picture.height}, but {names[0]} {width} x {height}; "
                "--image-size makes all images of one size"
            )
        return picture.convert(mode)

    images = Files(source, folder, names, prepare, (1 if mode == "L" else 3, height, width))
    classes = [Path(file).parts[0] if len(Path(file).parts) > 1 else "" for file in names]
    number = {label: i for i, label in enumerate(sorted(set(classes)))}
    labels = torch.tensor([number[label] for label in classes])
    held = len(names) // 10
    return ImageData(name, *shuffled(images, labels, (len(names) - 2 * held, held, held)))
