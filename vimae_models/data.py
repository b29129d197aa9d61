"""Image data sets, each held in memory as one tensor per split."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class DataError(Exception):
    """A data set that is missing, damaged or unknown; the message is meant for the user."""


@dataclass(frozen=True)
class Split:
    """images (N, C, H, W), uint8 in 0..255 or float32 in [0, 1], and their labels (N,), int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """A data set in its three splits."""

    name: str
    train: Split
    validation: Split
    test: Split

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def pixels(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1]: bytes are divided by 255, anything else is taken as it is."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def names() -> list[str]:
    """The names `load` knows."""
    return ["digits", *_IDX]


def load(name: str, data_dir: str | Path | None = None) -> ImageData:
    """A data set by name.

    Args:
        name: one of `names()`. "digits" (8x8, 1797 images) comes with scikit-learn.
        data_dir: folder of the official files, DIR/<name>/ or DIR itself or torchvision's layout;
            None is the environment variable VIMAE_DATA.

    Raises:
        DataError: an unknown name; a missing or damaged file, with where it was looked for and how
            to get it.
    """
    if name == "digits":
        return _digits()
    if name not in _IDX:
        raise DataError(f"data set is {name!r}; known data sets are {names()}")
    given = data_dir if data_dir is not None else os.environ.get("VIMAE_DATA")
    if given is None:
        raise DataError(
            f"{name} is read from its official files: give their folder with --data-dir or the "
            f"environment variable VIMAE_DATA. {_how_to_get(name)}"
        )
    return _idx_data(name, Path(given))


def _digits() -> ImageData:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images).float().div_(16).unsqueeze(1)
    labels = torch.from_numpy(raw.target).long()
    # The file is ordered by writer; the split must not depend on the seed of a run.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, validation, test = (
        Split(images[part], labels[part]) for part in order.split((1200, 197, 400))
    )
    return ImageData("digits", train, validation, test)


@dataclass(frozen=True)
class _Source:
    folder: str  # torchvision's name for the folder
    url: str


_IDX = {
    "mnist": _Source("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "fashion_mnist": _Source(
        "FashionMNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    ),
}
_PARTS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def _how_to_get(name: str) -> str:
    files = ", ".join(f"{file}.gz" for part in _PARTS.values() for file in part)
    return f"The files are {files}, from {_IDX[name].url} (gzipped or not)."


def _idx_data(name: str, root: Path) -> ImageData:
    folders = [root / name, root, root / _IDX[name].folder / "raw"]
    (images, labels), (test_images, test_labels) = (
        _idx_part(name, folders, *files) for files in _PARTS.values()
    )
    path, test_path = (_find(name, folders, image_file) for image_file, _ in _PARTS.values())
    # The last sixth validates: 50k / 10k of the 60k.
    kept = len(labels) - len(labels) // 6
    # The MMD takes two.
    for file, n, least in ((path, len(labels), 12), (test_path, len(test_labels), 2)):
        if n < least:
            raise DataError(f"{name}: {file} has too few images, {n}; it must have {least} or more")
    if images.shape[1:] != test_images.shape[1:]:
        (height, width), (test_height, test_width) = images.shape[2:], test_images.shape[2:]
        raise DataError(
            f"{name}: the images of {test_path} are {test_height} x {test_width}, those of {path} "
            f"{height} x {width}; they must be of one size"
        )
    return ImageData(
        name,
        Split(images[:kept], labels[:kept]),
        Split(images[kept:], labels[kept:]),
        Split(test_images, test_labels),
    )


def _idx_part(
    name: str, folders: list[Path], image_file: str, label_file: str
) -> tuple[Tensor, Tensor]:
    image_path = _find(name, folders, image_file)
    label_path = _find(name, folders, label_file)
    images = _read_idx(name, image_path, dims=3)
    labels = _read_idx(name, label_path, dims=1)
    if len(images) != len(labels):
        raise _damaged(
            name,
            label_path,
            f"it has {len(labels)} labels for the {len(images)} images of {image_path}",
        )
    return images.unsqueeze(1), labels.long()


def _find(name: str, folders: list[Path], file: str) -> Path:
    for folder in folders:
        for path in (folder / f"{file}.gz", folder / file):
            if path.is_file():
                return path
    places = ", ".join(str(folder) for folder in folders)
    raise DataError(
        f"{name}: {file}.gz (or {file}) is missing; looked in {places}. {_how_to_get(name)}"
    )


def _read_idx(name: str, path: Path, dims: int) -> Tensor:
    """The entries of an IDX file: a magic number, `dims` big-endian sizes, one byte per entry."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(name, path, f"it is not a whole gzip file ({error})") from error
    except OSError as error:
        raise DataError(f"{name}: {path} cannot be read: {error.strerror}") from error
    start = 4 * (1 + dims)
    if len(raw) < start:
        raise _damaged(name, path, f"it has {len(raw)} bytes, less than an IDX header")
    magic, *sizes = (int(word) for word in np.frombuffer(raw, ">u4", 1 + dims))
    if magic != 0x800 + dims:
        raise _damaged(name, path, f"its magic number is {magic}, not {0x800 + dims}")
    if len(raw) - start != math.prod(sizes):
        raise _damaged(
            name,
            path,
            f"its header says {' x '.join(map(str, sizes))} entries but {len(raw) - start} follow",
        )
    # frombuffer would share read-only memory with `raw`.
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=start).reshape(sizes).copy())


def _damaged(name: str, path: Path, why: str) -> DataError:
    return DataError(f"{name}: {path} is damaged: {why}. {_how_to_get(name)}")
