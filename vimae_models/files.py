"""Writing and reading files of a run."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch


class FileError(Exception):
    """A file that cannot be used; the message is meant for the user."""


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a file beside `path`, then put it in its place: a failure leaves the file that was there.

    Raises:
        OSError: it cannot be written, with the path.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def load(path: Path) -> Any:
    """What `torch.save` put into a file, on the CPU, loaded without running code from it.

    Raises:
        FileError: it is damaged, or holds more than tensors and plain values.
    """
    try:
        # torch reads past a wrong checksum.
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
        if wrong is not None:
            raise ValueError(f"the checksum of {wrong} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileError(f"{path} is damaged: {why}") from error
