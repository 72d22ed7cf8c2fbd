"""Atomic writes: a file appears complete, or not at all."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(partial):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes `data` to a file, as `writing` does."""
    with writing(path) as file:
        file.write(data)
