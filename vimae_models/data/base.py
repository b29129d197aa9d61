"""What every data set is made of: images, labels, splits; and where its files are looked for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
from torch import Tensor

from .. import distributed

_T = TypeVar("_T")

# What Synology and QNAP, macOS, Windows, Linux and Python leave beside the files of users.
_SYSTEM = {
    "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot",
    "__macosx", "icon\r", "network trash folder", "temporary items",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information",
    "lost+found", "__pycache__",
}  # fmt: skip


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left by an editor or a system."""
    return name.startswith(".") or name.lower() in _SYSTEM


def printable(text: str) -> str:
    """A text of one line that any stream takes: bytes of names that are not UTF-8, and characters that
    would not show, are escaped as in Python."""

    def escaped(c: str) -> str:
        if "\udc80" <= c <= "\udcff":  # how Python reads such bytes
            return f"\\x{ord(c) - 0xDC00:02x}"
        return c if c.isprintable() else c.encode("unicode_escape").decode()

    return "".join(map(escaped, text))


class DataError(Exception):
    """A data set that is missing, damaged or unknown; the message is meant for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


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
            noise = distributed.rows(lambda n: p.new_empty(n, *p.shape[1:]).uniform_(), len(p))
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
    """A data set in its three splits.

    `partial` says what is missing of the official set, if so; `notes`, a line each, how many files
    were used and ignored and why, and what was done to them.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    partial: str = ""
    notes: tuple[str, ...] = ()

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
        notes: what the user is to be told; reading adds to them.
    """

    name: str
    folders: tuple[Path, ...]
    how: str
    size: int | None = None
    notes: list[str] = field(default_factory=list)

    def look(self, *names: str) -> Path | None:
        """The first of these files or folders that exists."""
        for folder in self.folders:
            for name in names:
                if (folder / name).exists():
                    return folder / name
        return None

    def files(self, *names: str) -> list[Path]:
        """All files of these names, the first choice first.

        Kaggle packs a file into a folder of its own name; there it is looked for too.
        """
        found = []
        for folder in self.folders:
            for path in (folder / name for name in names):
                inside = [path / name for name in names] if path.is_dir() else [path]
                found += [file for file in inside if file.is_file()]
        return found

    def unpacked(self, name: str) -> list[Path]:
        """All folders of this name, the first choice first."""
        return [folder / name for folder in self.folders if (folder / name).is_dir()]

    def first_whole(self, ways: Sequence[tuple[Path, Callable[[Path], _T]]]) -> _T:
        """What is read in the first of these ways, a path each, that finds nothing damaged; what is
        damaged before it is said.

        Raises:
            DataError: that of the first, if all are damaged.
        """
        errors = []
        for path, read in ways:
            try:
                content = read(path)
            except DataError as error:
                errors.append(error)
                continue
            for damage in errors:
                why = str(damage).removeprefix(f"{self.name}: ").removesuffix(f" {self.how}")
                self.notes.append(printable(f"{why} {path} is used instead."))
            return content
        raise errors[0]

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
            raise self.unreadable(path, error) from error

    def unreadable(self, path: Path | str, error: OSError) -> DataError:
        return DataError(f"{self.name}: {path} cannot be read: {error.strerror}")


HIDDEN = "hidden or of the system"


class Ignored:
    """Files that are not used, counted by the reason, with examples."""

    def __init__(self) -> None:
        self.reasons: dict[str, Counter[str]] = {}

    def add(self, reason: str, example: str, n: int = 1) -> None:
        if n:
            self.reasons.setdefault(reason, Counter())[example] += n

    def __str__(self) -> str:
        parts = []
        for reason, examples in self.reasons.items():
            named = ", ".join(sorted(examples)[:3]) + (", ..." if len(examples) > 3 else "")
            parts.append(f"{examples.total():,} {reason} ({named})")
        total = sum(examples.total() for examples in self.reasons.values())
        return f"{total:,} ignored" + (f": {', '.join(parts)}" if parts else "")


def files_below(source: Source, folder: Path, ignored: Ignored | None = None) -> list[str]:
    """The files below a folder, by their paths from it, in no order.

    Links to folders are entered, after the folders that lie there themselves; each folder is read once,
    and none that `folder` is in, so that a loop ends and no image is in two classes. What is hidden is
    left out.

    Args:
        ignored: is told what is left out.

    Raises:
        DataError: a folder cannot be read.
    """

    def fail(error: OSError) -> NoReturn:
        raise source.unreadable(error.filename, error)

    ignored = Ignored() if ignored is None else ignored
    names: list[str] = []
    above = (*folder.absolute().parents, *folder.resolve().parents)
    links, read = [str(folder)], set(map(os.path.realpath, above))
    while links:
        for where, folders, files in os.walk(links.pop(0), onerror=fail):
            below = os.path.relpath(where, folder)
            if (real := os.path.realpath(where)) in read:
                ignored.add("linked to a folder that is read elsewhere", below)
                folders.clear()
                continue
            read.add(real)
            for name in files:
                if hidden(name):
                    ignored.add(HIDDEN, name)
                else:
                    names.append(name if below == "." else os.path.join(below, name))
            for name in sorted(folders):
                path = os.path.join(where, name)
                if hidden(name):
                    ignored.add(HIDDEN, name, count_below(path))
                    folders.remove(name)
                elif os.path.islink(path):
                    links.append(path)
            folders.sort()
    return names


def count_below(path: str) -> int:
    """How many files a folder has, without those behind links; a file is one."""
    if os.path.islink(path) or not os.path.isdir(path):
        return 1
    return sum(len(files) for _, _, files in os.walk(path))
