"""Atomic writes: a file appears complete, or not at all."""

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_ATTEMPTS = 20 if os.name == "nt" else 1
_RETRY_S = 0.05


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary binary file, and renames it to `path` when the block ends without an exception.

    The bytes are on disk (fsync) before the rename. After an exception nothing is left; a process that is killed may
    leave a hidden `.part` file, but never an incomplete `path`. A device or pipe (`/dev/null`) is never replaced.

    Raises:
        OSError: The file cannot be written; `filename` is `path`.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "exists and is not a regular file: choose another name", str(path))
    partial = path.parent / f".{path.name[:40]}.{secrets.token_hex(4)}.part"  # short: names end at 255 bytes
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(partial):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def _replace(partial: Path, path: Path) -> None:
    """Renames `partial` to `path`. On Windows this fails while another process reads `path`: it is tried again."""
    for _ in range(_ATTEMPTS - 1):
        with suppress(PermissionError):
            partial.replace(path)
            return
        time.sleep(_RETRY_S)
    partial.replace(path)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes `data` to a file, as `writing` does."""
    with writing(path) as file:
        file.write(data)
