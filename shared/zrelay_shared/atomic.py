"""Files that appear whole or not at all."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes `path`'s place when the block ends well, and leaves nothing when it does not.

    The bytes are on disk (fsync) before the name changes. Raises OSError as writing does, with `path` as its filename.
    A process that is killed in the middle may leave a hidden `.part` file beside it, never a half file under the name.
    A device or pipe (`/dev/null`) is never replaced.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "is there and no ordinary file: name another", str(path))
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
    """Writes a whole file at once, as `writing` does."""
    with writing(path) as file:
        file.write(data)
