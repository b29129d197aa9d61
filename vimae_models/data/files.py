"""Images in files of their own, read when they are asked for; and CelebA, which is such a set."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .base import HIDDEN, ImageData, Lazy, Part, Source, Split, hidden

Picture = Image.Image
_T = TypeVar("_T")
_ENDINGS = [
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".pbm", ".pgm", ".ppm",
    ".pnm", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".jxl", ".heic", ".heif",
]  # fmt: skip


@cache
def formats() -> dict[str, str]:
    """The endings of images that Pillow, with what plugins it has here, reads, and their formats.

    Not all it could: some (EPS) start other programs.
    """
    known = Image.registered_extensions()
    return {ending: known[ending] for ending in _ENDINGS if ending in known}


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
        return opened(self.source, path, lambda picture: np.asarray(self.prepare(picture)))


def opened(source: Source, path: Path, prepare: Callable[[Picture], _T]) -> _T:
    """What is made of the picture in a file."""
    try:
        # Pillow maps a file that it opens itself, and then turns TIFF of 8 bits wrongly.
        with (
            path.open("rb") as file,
            Image.open(file, formats=sorted(set(formats().values()))) as picture,
        ):
            return prepare(picture)
    except FileNotFoundError as error:
        raise source.missing(str(path)) from error
    except UnidentifiedImageError as error:
        what = "no image that Pillow reads here" if path.stat().st_size else "empty"
        raise source.damaged(path, f"it is {what}") from error
    except Exception as error:  # a damaged image can raise anything
        if isinstance(error, OSError) and error.errno is not None:
            raise source.unreadable(path, error) from error
        raise source.damaged(path, error) from error


def load_celeba(source: Source) -> ImageData:
    """CelebA: the 140x140 in the centre, resized (Lanczos) to 64x64 or `size`; no labels (all 0).

    The last 20,000 of the 202,599 images test, as in the paper, and the 20,000 before them
    validate; list_eval_partition.txt is not used. Of fewer images it is the last tenths.

    Source: VIMAE (ICLR version), appendix.
    """
    size = source.size or 64
    folder, names = _celeba_files(source)
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


def _celeba_files(source: Source) -> tuple[Path, list[str]]:
    """The folder that has the images, as torchvision, Kaggle or Google lays it out, and their names."""
    name = "img_align_celeba"
    folders = [folder for outer in source.unpacked(name) for folder in (outer, outer / name)]
    for folder in filter(Path.is_dir, folders):
        jpegs = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".jpg"))
        names = [name for name in jpegs if not hidden(name)]
        if names:
            if len(names) < len(jpegs):
                source.notes.append(
                    f"{len(names):,} images used, {len(jpegs) - len(names):,} ignored: {HIDDEN}"
                )
            return folder, names
    if folders:
        return folders[0], []
    raise source.missing(name)
