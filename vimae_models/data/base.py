"""What every data set is made of: images, labels, splits; and where its files are looked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


class DataError(Exception):
    """A data set that is missing, damaged or unknown; the message is meant for the user."""


class MissingError(DataError):
    """A file of a data set that is not there."""


class Lazy:
    """Images (N, C, H, W) made when they are asked for; used like a tensor of images.

    `images[index]` for a slice or an integer tensor of indices is a tensor, uint8 in 0..255.
    """

    shape: tuple[int, int, int, int]
    device = torch.device("cpu")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        if isinstance(index, slice):
            index = torch.arange(len(self), device=self.device)[index]
        return self.make(index)

    def make(self, index: Tensor) -> Tensor:
        """The images of these indices, 0 <= index < N."""
        raise NotImplementedError

    def to(self, device: torch.device) -> Lazy:
        """The same images, made on `device` if they can be; files are always read on the CPU."""
        return self


Images = Tensor | Lazy


class Part(Lazy):
    """Some of the images, in an order of their own."""

    def __init__(self, images: Lazy, index: Tensor) -> None:
        self.images, self.index = images, index
        self.shape = (len(index), *images.shape[1:])

    def make(self, index: Tensor) -> Tensor:
        return self.images[self.index[index]]


class Rotated(Lazy):
    """All images, then all of them turned by 90 degrees anticlockwise, by 180 and by 270.

    Source: VIMAE (ICLR version), appendix "MNIST and Omniglot".
    """

    def __init__(self, images: Images) -> None:
        self.images = images
        self.shape = (4 * len(images), *images.shape[1:])
        self.device = images.device

    def make(self, index: Tensor) -> Tensor:
        x = self.images[index % len(self.images)]
        turns = index // len(self.images)
        for turn in (1, 2, 3):
            chosen = turns == turn
            x[chosen] = x[chosen].rot90(turn, (2, 3))
        return x

    def to(self, device: torch.device) -> Rotated:
        return Rotated(self.images.to(device))


class Binarized(Lazy):
    """Pixels that are 1 with the probability of their intensity, else 0, drawn from torch's generator.

    Args:
        images: images with intensities.
        fixed: draw each image the same every time, instead of anew.

    Source: InfoVAE, sec. 4.2 (stochastically binarised MNIST).
    """

    def __init__(self, images: Images, fixed: bool) -> None:
        self.images, self.fixed = images, fixed
        self.shape = (len(images), *images.shape[1:])
        self.device = images.device

    def make(self, index: Tensor) -> Tensor:
        p = pixels(self.images[index])
        if self.fixed:
            noise = torch.empty(p.shape)
            for row, i in zip(noise, index.tolist(), strict=True):
                row.uniform_(generator=torch.Generator().manual_seed(i))
            noise = noise.to(p.device)
        else:
            noise = torch.rand_like(p)
        return (noise < p).to(torch.uint8).mul_(255)

    def to(self, device: torch.device) -> Binarized:
        return Binarized(self.images.to(device), self.fixed)


@dataclass(frozen=True)
class Split:
    """images (N, C, H, W), uint8 in 0..255 or float32 in [0, 1], and their labels (N,), int64.

    `latents` (N, F), int64, are the classes of the factors the images were made from, where these
    are known (dSprites).
    """

    images: Images
    labels: Tensor
    latents: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """A data set in its three splits; `partial` says what is missing of the official set, if so."""

    name: str
    train: Split
    validation: Split
    test: Split
    partial: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def pixels(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1]: bytes are divided by 255, anything else is taken as it is."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def shuffled(
    images: Images, labels: Tensor, sizes: tuple[int, int, int], latents: Tensor | None = None
) -> tuple[Split, Split, Split]:
    """Splits of these sizes, from an order that is the same every time."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, validation, test = (
        Split(
            images[part] if isinstance(images, Tensor) else Part(images, part),
            labels[part],
            None if latents is None else latents[part],
        )
        for part in order.split(list(sizes))
    )
    return train, validation, test


@dataclass(frozen=True)
class Source:
    """Where the files of a data set are looked for.

    Args:
        name: of the data set.
        folders: to look in, in this order; none if the user named none.
        how: how to get the files, for error messages.
        size: height and width the images are to have, where that can be chosen.
    """

    name: str
    folders: tuple[Path, ...]
    how: str
    size: int | None = None

    def look(self, *names: str) -> Path | None:
        """The first of these files or folders that exists."""
        for folder in self.folders:
            for name in names:
                if (folder / name).exists():
                    return folder / name
        return None

    def find(self, *names: str) -> Path:
        """The same; MissingError if there is none."""
        path = self.look(*names)
        if path is None:
            others = f" (or {', '.join(names[1:])})" if names[1:] else ""
            raise self.missing(f"{names[0]}{others}")
        return path

    def missing(self, what: str) -> MissingError:
        if not self.folders:
            return MissingError(
                f"{self.name} is read from its official files: give their folder with --data-dir "
                f"or the environment variable VIMAE_DATA. {self.how}"
            )
        places = ", ".join(map(str, self.folders))
        return MissingError(f"{self.name}: {what} is missing; looked in {places}. {self.how}")

    def damaged(self, path: Path | str, why: object) -> DataError:
        return DataError(f"{self.name}: {path} is damaged: {why}. {self.how}")

    def read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.name}: {path} cannot be read: {error.strerror}") from error
