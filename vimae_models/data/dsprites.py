"""dSprites: a white square, ellipse or heart on black, rendered; or its official file if it is there.

Six latents make an image: color (1: white), shape (3: square, ellipse, heart), scale (6: 0.5 to 1),
orientation (40: 0 to 2 pi, both ends), position x and position y (32 each: 0 to 1). Every combination
is there once, 737,280 binary images of 64x64, ordered by the latents, the last changing fastest.

That is all the specification says. The sizes of the shapes in pixels and the outline of the heart are
ours, so no pixel here is claimed to be that of the official file, which was drawn by another program
and was not at hand to compare with: positions go from centre 16.5 to 47.5 pixels, one pixel a step, x
to the right and y down; orientations turn clockwise; at scale 1 the square has sides of 20.5 pixels,
the ellipse axes of 28.5 and 14.5, the heart is 25 wide. A pixel is white if its centre is inside; at
this resolution some squares look the same at orientations about a quarter turn apart.

Source: Matthey, Higgins, Hassabis, Lerchner, dSprites: Disentanglement testing Sprites dataset (2017).
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from .base import DataError, ImageData, Lazy, Source, shuffled

FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
LATENTS = ("color", "shape", "scale", "orientation", "position x", "position y")
SIZES = (1, 3, 6, 40, 32, 32)
_N = math.prod(SIZES)
_SIDE, _STEPS = 64, 32
_AT_ONCE = 4096


def classes(index: Tensor) -> Tensor:
    """The classes (N, 6) of the latents of images, int64, from their indices (N,) in 0..737,279."""
    return torch.stack(torch.unravel_index(index, SIZES), 1)


def values(classes: Tensor) -> Tensor:
    """The values (N, 6) of latents, float64, from their classes (N, 6), as in the official file.

    Color is 1 and shape 1, 2 or 3 there; orientation is in radians.
    """
    last = (1.0, 3.0, 1.0, 2 * math.pi, 1.0, 1.0)
    first = (1.0, 1.0, 0.5, 0.0, 0.0, 0.0)
    columns = [
        torch.linspace(a, b, n, dtype=torch.float64)[column]
        for a, b, n, column in zip(first, last, SIZES, classes.unbind(1), strict=True)
    ]
    return torch.stack(columns, 1)


def load(source: Source) -> ImageData:
    """20,000 images test and 10,000 validate, drawn in the same way every time; label: the shape."""
    path = source.look(FILE)
    if path is None:
        images: Lazy = Sprites()
        latents = classes(torch.arange(_N))
    else:
        images, latents = _official(source, path)
    n = len(latents)
    tests, validates = (20_000, 10_000) if n == _N else (n // 10, n // 10)
    sizes = (n - tests - validates, validates, tests)
    partial = f"partial: {n:,} of {_N:,} images" if n < _N else ""
    train, validation, test = shuffled(images, latents[:, 1], sizes, latents)
    return ImageData(source.name, train, validation, test, partial)


class Sprites(Lazy):
    """The 737,280 images, rendered: none is held, any can be had by its index."""

    shape = (_N, 1, _SIDE, _SIDE)

    def __init__(self) -> None:
        # A sprite on a canvas that a window of 64x64 can move over: a position is a window. By
        # numpy, which copies windows 10 to 100 times as fast as torch.
        table = _table().numpy()
        self.windows = np.lib.stride_tricks.sliding_window_view(table, (_SIDE, _SIDE), (1, 2))

    def make(self, index: Tensor) -> Tensor:
        i = index.cpu().numpy()
        x, y = i // _STEPS % _STEPS, i % _STEPS
        images = self.windows[i // _STEPS**2, _STEPS - 1 - y, _STEPS - 1 - x]
        return torch.from_numpy(images).unsqueeze(1)


def _table() -> Tensor:
    """Bytes (720, 95, 95): every shape, scale and orientation, centred, 0 or 255."""
    reach = (_SIDE + _STEPS - 2) // 2
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    down, right = torch.meshgrid(offsets, offsets, indexing="ij")
    scale = torch.linspace(0.5, 1, 6, dtype=torch.float64)[:, None, None, None]
    angle = torch.linspace(0, 2 * math.pi, 40, dtype=torch.float64)[:, None, None]
    # Pixels in the frame of the unrotated shape, (6, 40, 95, 95).
    x = (angle.cos() * right + angle.sin() * down) / scale
    y = (angle.cos() * down - angle.sin() * right) / scale
    square = (x.abs() <= 10.25) & (y.abs() <= 10.25)
    ellipse = (x / 14.25).square() + (y / 7.25).square() <= 1
    # (X^2 + Y^2 - 1)^3 = X^2 Y^3 with Y up, its box centred: |X| <= 1.139, -1 <= Y <= 1.236.
    u, v = x / 11, 0.118 - y / 11
    heart = (u.square() + v.square() - 1) ** 3 <= u.square() * v**3
    shapes = torch.stack([square, ellipse, heart]).flatten(0, 2)
    return shapes.to(torch.uint8).mul_(255)


class Packed(Lazy):
    """Binary images of 64x64 held as bits (N, 512), 512 bytes each."""

    def __init__(self, bits: np.ndarray) -> None:
        self.bits = bits
        self.shape = (len(bits), 1, _SIDE, _SIDE)

    def make(self, index: Tensor) -> Tensor:
        images = np.unpackbits(self.bits[index.cpu().numpy()], 1) * np.uint8(255)
        return torch.from_numpy(images).view(-1, 1, _SIDE, _SIDE)


def _official(source: Source, path: Path) -> tuple[Packed, Tensor]:
    """The images and classes of the official file; its pickled metadata is not touched."""
    try:
        with zipfile.ZipFile(path) as archive:
            with archive.open("imgs.npy") as file:
                images = _packed(file)
            with archive.open("latents_classes.npy") as file:
                latents = np.lib.format.read_array(file, allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, OSError) as error:
        raise source.damaged(path, error) from error
    if latents.dtype.kind != "i" or latents.shape != (len(images), 6):
        raise source.damaged(
            path, f"its latents_classes are {latents.dtype} {latents.shape}, not ({len(images)}, 6)"
        )
    if len(images) < 20:
        raise DataError(f"{source.name}: {path} has {len(images)} images; it must have 20 or more")
    return Packed(images), torch.from_numpy(latents.astype(np.int64))


def _packed(file: IO[bytes]) -> np.ndarray:
    """Bits (N, 512) of a .npy file of N x 64 x 64 bytes 0 or 1, which unpacked are 3 GB."""
    header: dict[Any, Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, fortran, dtype = header[np.lib.format.read_magic(file)](file)
    if fortran or dtype != np.uint8 or len(shape) != 3 or shape[1:] != (_SIDE, _SIDE):
        raise ValueError(f"its imgs are {dtype} {shape}, not uint8 (N, 64, 64)")
    bits = np.empty((shape[0], _SIDE * _SIDE // 8), np.uint8)
    for start in range(0, shape[0], _AT_ONCE):
        n = min(_AT_ONCE, shape[0] - start)
        raw = np.frombuffer(file.read(n * _SIDE * _SIDE), np.uint8)
        if len(raw) != n * _SIDE * _SIDE:
            raise ValueError(f"its imgs end before image {start + n}")
        if raw.max() > 1:
            raise ValueError(f"its imgs have the value {raw.max()}, not 0 or 1")
        bits[start : start + n] = np.packbits(raw.reshape(n, -1), 1)
    return bits
