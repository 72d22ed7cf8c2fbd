"""Stores contents under their SHA-256, as files in a folder or bytes in memory. Methods block; any thread may call."""

import contextlib
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import BinaryIO, Protocol

from zrelay_shared import atomic

Buffer = bytes | bytearray | memoryview
_OUR_NAMES = re.compile(r"[0-9a-f]{64}|\..+\.part")


class ContentMissing(Exception):
    """The content is not stored, or was deleted; `args[0]` is its digest."""


class ContentDamaged(Exception):
    """The bytes of the content do not match its digest, which is `args[0]`."""


class IncomingContent(Protocol):
    """A content that is being received. It is removed unless `keep` is called."""

    def write(self, data: Buffer) -> None:
        """Appends bytes."""

    def keep(self, sha256: str) -> None:
        """Stores it under the name `sha256`; durable when this returns."""

    def drop(self) -> None:
        """Removes it if it was not kept."""


class Blobs(Protocol):
    """The stored contents. Methods raise OSError if the disk fails."""

    def has(self, sha256: str) -> bool:
        """Whether a content is stored."""

    def put(self, sha256: str, data: Buffer) -> None:
        """Stores a content, durable when this returns. `sha256` must be that of `data`."""

    def incoming(self) -> IncomingContent:
        """Starts to receive a content whose digest is known only at its end."""

    def read(self, sha256: str) -> bytes:
        """Returns a content after comparing its bytes with its digest.

        Raises:
            ContentMissing: It is not stored.
            ContentDamaged: The bytes do not match; the content was deleted.
        """

    def delete(self, sha256: str) -> None:
        """Removes a content if it is stored."""

    def names(self) -> set[str]:
        """Returns the name of every stored content."""


class FolderBlobs:
    """One file for each content. A killed process leaves at most hidden `.part` files, which `sweep` removes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._unreadable: set[str] = set()

    def has(self, sha256: str) -> bool:
        return (self._folder / sha256).is_file()

    def put(self, sha256: str, data: Buffer) -> None:
        path = self._folder / sha256
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == len(data) and sha256 not in self._unreadable:
                return
        atomic.write_bytes(path, data if isinstance(data, bytes | memoryview) else bytes(data))
        self._sync_names()
        self._unreadable.discard(sha256)

    def incoming(self) -> IncomingContent:
        return _IncomingFile(self._folder, self._sync_names)

    def read(self, sha256: str) -> bytes:
        try:
            data = (self._folder / sha256).read_bytes()
        except FileNotFoundError as error:
            if not self._folder.is_dir():
                raise  # a problem of the disk: the content may come back
            raise ContentMissing(sha256) from error
        except OSError:
            self._unreadable.add(sha256)  # when it is sent again it is written again
            raise
        if hashlib.sha256(data).hexdigest() != sha256:
            self.delete(sha256)
            raise ContentDamaged(sha256)
        return data

    def delete(self, sha256: str) -> None:
        (self._folder / sha256).unlink(missing_ok=True)

    def names(self) -> set[str]:
        return {path.name for path in self._folder.iterdir() if not path.name.startswith(".")}

    def sweep(self, known: Collection[str]) -> int:
        """Removes what a killed process left: partial files, and contents that no row of the database names.

        Files with other names are not changed.

        Returns:
            The number of files removed.
        """
        files = [path for path in self._folder.iterdir() if _OUR_NAMES.fullmatch(path.name) and path.is_file()]
        unnamed = [path for path in files if path.name not in known]
        for path in unnamed:
            path.unlink(missing_ok=True)
        return len(unnamed)

    def _sync_names(self) -> None:
        """Makes new file names durable, which requires an fsync of the folder."""
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class _IncomingFile:
    """A file that is created by the first write, so that an upload without data leaves no file."""

    def __init__(self, folder: Path, sync_names: Callable[[], None]) -> None:
        self._folder, self._sync_names = folder, sync_names
        self._path = folder / f".{secrets.token_hex(8)}.part"
        self._file: BinaryIO | None = None

    def write(self, data: Buffer) -> None:
        self._opened().write(data)

    def keep(self, sha256: str) -> None:
        file = self._opened()
        file.flush()
        os.fsync(file.fileno())
        file.close()
        self._path.replace(self._folder / sha256)
        self._sync_names()

    def drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._file = self._path.open("xb")
        return self._file


class MemoryBlobs:
    """Contents in memory; they are lost when the process ends."""

    def __init__(self) -> None:
        self._known: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def has(self, sha256: str) -> bool:
        return sha256 in self._known

    def put(self, sha256: str, data: Buffer) -> None:
        with self._lock:
            if sha256 not in self._known:
                self._known[sha256] = bytes(data)

    def incoming(self) -> IncomingContent:
        return _IncomingBytes(self)

    def read(self, sha256: str) -> bytes:
        data = self._known.get(sha256)
        if data is None:
            raise ContentMissing(sha256)
        return data

    def delete(self, sha256: str) -> None:
        with self._lock:
            self._known.pop(sha256, None)

    def names(self) -> set[str]:
        with self._lock:
            return set(self._known)


class _IncomingBytes:
    def __init__(self, blobs: MemoryBlobs) -> None:
        self._blobs, self._data = blobs, bytearray()

    def write(self, data: Buffer) -> None:
        self._data += data

    def keep(self, sha256: str) -> None:
        self._blobs.put(sha256, self._data)

    def drop(self) -> None:
        self._data = bytearray()
