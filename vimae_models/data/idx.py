"""MNIST and Fashion-MNIST: IDX files, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .base import DataError, ImageData, Source, Split

_PARTS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_AT_ONCE = 10_000
_GZIP = b"\x1f\x8b"
FILES = [f"{file}.gz" for part in _PARTS.values() for file in part]


def load(source: Source) -> ImageData:
    """The last sixth of the training file validates: 50k / 10k of the 60k."""
    (path, images, labels), (test_path, test_images, test_labels) = (
        _part(source, *files) for files in _PARTS.values()
    )
    images, test_images = _sized(source, images), _sized(source, test_images)
    kept = len(labels) - len(labels) // 6
    # The MMD takes two.
    for file, n, least in ((path, len(labels), 12), (test_path, len(test_labels), 2)):
        if n < least:
            raise DataError(
                f"{source.name}: {file} has too few images, {n}; it must have {least} or more"
            )
    if images.shape[1:] != test_images.shape[1:]:
        (height, width), (test_height, test_width) = images.shape[2:], test_images.shape[2:]
        raise DataError(
            f"{source.name}: the images of {test_path} are {test_height} x {test_width}, those of "
            f"{path} {height} x {width}; they must be of one size"
        )
    partial = ""
    if len(labels) < 60_000 or len(test_labels) < 10_000:
        partial = (
            f"partial: {len(labels):,} of 60,000 training images, {len(test_labels):,} of 10,000 "
            "test images"
        )
    return ImageData(
        source.name,
        Split(images[:kept], labels[:kept]),
        Split(images[kept:], labels[kept:]),
        Split(test_images, test_labels),
        partial,
    )


def _sized(source: Source, images: Tensor) -> Tensor:
    """Images of the height and width that are asked for, by the mean of squares of pixels."""
    height, width = images.shape[2:]
    if source.size is None:
        return images
    if height != width or height % source.size:
        raise DataError(
            f"{source.name}: image_size is {source.size}; it must divide the {height} x {width} pixels"
        )
    parts = images.split(_AT_ONCE)
    means = [torch.nn.functional.avg_pool2d(part.float(), height // source.size) for part in parts]
    return torch.cat([mean.round().byte() for mean in means])


def _part(source: Source, image_file: str, label_file: str) -> tuple[Path, Tensor, Tensor]:
    path, images = _read(source, image_file, dims=3)
    label_path, labels = _read(source, label_file, dims=1)
    if len(images) != len(labels):
        raise source.damaged(
            label_path, f"it has {len(labels)} labels for the {len(images)} images of {path}"
        )
    return path, images.unsqueeze(1), labels.long()


def _read(source: Source, file: str, dims: int) -> tuple[Path, Tensor]:
    """The entries of a file, and where it is: with a dash or a dot, gzipped or not."""
    stems = file, file.replace("-idx", ".idx")
    names = [f"{stem}{ending}" for stem in stems for ending in (".gz", "")]
    paths = source.files(*names)
    if not paths:
        raise source.missing(f"{names[0]} (or {', '.join(names[1:])})")
    return source.first_whole(
        [(path, lambda path: (path, _entries(source, path, dims))) for path in paths]
    )


def _entries(source: Source, path: Path, dims: int) -> Tensor:
    """The entries of an IDX file: a magic number, `dims` big-endian sizes, one byte per entry."""
    magic = 0x800 + dims
    raw = read_gzip(source, path, magic.to_bytes(4, "big"))
    start = 4 * (1 + dims)
    if len(raw) < start:
        raise source.damaged(path, f"it has {len(raw)} bytes, less than an IDX header")
    found, *sizes = (int(word) for word in np.frombuffer(raw, ">u4", 1 + dims))
    if found != magic:
        raise source.damaged(path, f"its magic number is {found}, not {magic}")
    if len(raw) - start != math.prod(sizes):
        raise source.damaged(
            path,
            f"its header says {' x '.join(map(str, sizes))} entries but {len(raw) - start} follow",
        )
    # frombuffer would share read-only memory with `raw`.
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=start).reshape(sizes).copy())


def read_gzip(source: Source, path: Path, start: bytes = b"") -> bytes:
    """The bytes of a file, unpacked if they are gzip's, whatever the name of the file says.

    A browser may have unpacked a .gz on its way, or packed it twice. What is not gzip's under a name
    in .gz must begin with `start`.
    """
    raw = source.read(path)
    if path.suffix == ".gz" and not raw.startswith((_GZIP, start)):
        raise source.damaged(path, "it is not a whole gzip file, nor the unpacked one")
    try:
        while raw.startswith(_GZIP):
            raw = gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise source.damaged(path, f"it is not a whole gzip file ({error})") from error
    return raw
