"""Atomic writes: a file appears complete, or not at all."""

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from zrelay_shared import private as private_files

_ATTEMPTS = 20 if os.name == "nt" else 1
_RETRY_S = 0.05


@contextmanager
def writing(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """Opens a temporary binary file, and renames it to `path` when the block ends without an exception.

    The bytes are on disk (fsync) before the rename. After an exception nothing is left; a process that is killed may
    leave a hidden `.part` file, but never an incomplete `path`. A device or pipe (`/dev/null`) is never replaced. Where
    `path` is a symbolic link, its target is replaced and the link stays. A file that exists keeps its permissions.

    Args:
        path: The file.
        private: Whether it is a file of zrelay's own state: it gets the mode 0600, and replaces a symbolic link.

    Raises:
        OSError: The file cannot be written; `filename` is `path`.
    """
    target = path if private else target_of(path)
    partial = target.parent / f".{target.name[:40]}.{secrets.token_hex(4)}.part"  # short: names end at 255 bytes
    try:
        with private_files.open_file(partial, "xb") if private else partial.open("xb") as file:
            if not private:
                with suppress(FileNotFoundError):
                    partial.chmod(stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        _replace(partial, target)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(partial):
            where = f" (a symbolic link to {target})" if target != path else ""
            raise OSError(error.errno, f"{error.strerror}{where}", str(path)) from None
        raise


def target_of(path: Path) -> Path:
    """Returns the file that a write to `path` replaces: `path` itself, or the target of a symbolic link.

    Raises:
        OSError: `path` is a folder, a device or a pipe, or a link to one, to itself or to nothing.
    """
    target = path
    if path.is_symlink():
        try:
            target = Path(os.path.realpath(path, strict=True))
        except FileNotFoundError:
            message = f"a symbolic link to {path.readlink()}, which does not exist: remove it, or name another file"
            raise FileNotFoundError(errno.ENOENT, message, str(path)) from None
        except OSError as error:
            loop = error.errno == errno.ELOOP
            reason = "that leads back to itself" if loop else f"that cannot be followed: {error.strerror}"
            raise OSError(error.errno, f"a symbolic link {reason}: name another file", str(path)) from None
    link = f"a symbolic link to {target}, which is " if target != path else ""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{link}a folder: name a file in it", str(path))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, f"{link or 'exists and is '}not a regular file: choose another name", str(path))
    return target


def _replace(partial: Path, path: Path) -> None:
    """Renames `partial` to `path`. On Windows this fails while another process reads `path`: it is tried again."""
    for _ in range(_ATTEMPTS - 1):
        with suppress(PermissionError):
            partial.replace(path)
            return
        time.sleep(_RETRY_S)
    partial.replace(path)


def write_bytes(path: Path, data: bytes | memoryview, *, private: bool = False) -> None:
    """Writes `data` to a file, as `writing` does."""
    with writing(path, private=private) as file:
        file.write(data)
