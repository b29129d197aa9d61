"""Writing files of a run."""

from __future__ import annotations

import os
from pathlib import Path


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
