"""Files of zrelay that only their owner may read: jobs, logs, locks and records in a state folder.

They are created with mode 0600, in folders of mode 0700, whatever the umask is, and are never opened through a symbolic
link. Files that a user names with `--output` are not among them: they get the user's umask. On Windows, where these
modes do not exist, a file has the rights of its folder; those of the user's profile are private.
"""

import errno
import os
import re
import stat
from pathlib import Path
from typing import IO

from zrelay_shared import paths

FOLDER_MODE, FILE_MODE = 0o700, 0o600
UMASK = 0o077
"""The umask of every service."""
_OTHERS = 0o077
_SHARED = stat.S_ISGID | stat.S_ISVTX
"""Bits that an operator sets on a folder that several users share."""
_OURS = re.compile(r"jobs\.(db.*|lock|owner)|blobs|cache|references|logs|profiles|stack\.(json|lock)|[a-z]+\.address")
"""Names of what zrelay keeps in a state folder."""
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)


def make_folder(folder: Path, remedy: str) -> None:
    """Creates a private folder, unless it exists. Raises OSError as `paths.make_folder`."""
    paths.make_folder(folder, remedy, mode=FOLDER_MODE)


def open_file(path: Path, mode: str) -> IO[bytes]:
    """Opens a file as `open` does; a new one is private.

    Args:
        path: The file.
        mode: A binary mode, for example "wb".

    Raises:
        OSError: It cannot be opened, or is a symbolic link.
    """
    refuse_link(path)
    return open(path, mode, opener=_opened)


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file. Errors are those of `open_file`, and UnicodeDecodeError."""
    with open_file(path, "rb") as file:
        return file.read().decode()


def refuse_link(path: Path) -> None:
    """Checks that a path is no symbolic link, for libraries that open files themselves. Raises OSError."""
    if path.is_symlink():
        message = f"{path.name} is a symbolic link, through which zrelay keeps no state: remove it"
        raise OSError(errno.ELOOP, message, str(path))


def tighten(folder: Path) -> str:
    """Makes the state of an older zrelay private: takes the rights of other users from it.

    This concerns a state folder and what zrelay keeps there, as far as it belongs to this user. Other files of the
    folder are left alone, and a folder that is shared on purpose, with the setgid or the sticky bit, keeps its own
    mode. What lies in a folder that was private already cannot be reached by others, and is not examined.

    Args:
        folder: The state folder, which need not exist.

    Returns:
        A message for the log, "" where nothing was open to others.

    Raises:
        OSError: The folder cannot be read.
    """
    if os.name == "nt" or not folder.is_dir():
        return ""
    folder = folder.resolve()  # the folder itself may be a link to another disk
    closed = 0 if folder.stat().st_mode & _SHARED else _close(folder)
    for entry in folder.iterdir():
        if _OURS.fullmatch(entry.name):
            closed += _close_all(entry)
    if not closed:
        return ""
    return f"{folder} was open to other users of this machine: {closed} folders and files are private now"


def _close_all(path: Path) -> int:
    """Closes a file, or a folder and what is in it, and returns how many were open."""
    closed = _close(path)
    if closed and path.is_dir():
        closed += sum(_close_all(entry) for entry in path.iterdir())
    return closed


def _close(path: Path) -> int:
    """Takes the rights of other users from one file or folder of this user; returns 1 where it had any, else 0."""
    try:
        if not _is_open(path.lstat()):
            return 0
        entry = os.open(path, os.O_RDONLY | _NOFOLLOW | _NONBLOCK)
    except OSError:  # removed or replaced by a link just now, or not readable
        return 0
    try:
        found = os.fstat(entry)
        if not _is_open(found):
            return 0
        os.chmod(entry, stat.S_IMODE(found.st_mode) & ~_OTHERS)  # noqa: PTH101  # a descriptor
        return 1
    except OSError:  # a file system that has no modes
        return 0
    finally:
        os.close(entry)


def _is_open(found: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user, and others have rights to it."""
    known = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
    return known and bool(found.st_mode & _OTHERS) and hasattr(os, "geteuid") and found.st_uid == os.geteuid()


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | _NOFOLLOW, FILE_MODE)
