"""Stores contents under their SHA-256, as files in a folder or bytes in memory. Methods block; any thread may call."""

import contextlib
import hashlib
import os
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

Buffer = bytes | bytearray | memoryview
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PARTIAL = re.compile(r"\..+\.part")


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

    def put(self, sha256: str, data: Buffer, *, anew: bool = False) -> None:
        """Stores a content, durable when this returns.

        Args:
            sha256: The digest of `data`.
            data: The content.
            anew: Write it even if it is stored: how long this takes then does not tell whether it was.
        """

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

    def sweep_partial(self) -> int:
        """Removes what broken-off writes left, but not what is being received. Returns the number of files removed."""


class ContentClaims:
    """Contents that are being stored: their files may exist already, and their rows do not. `remove` spares them.

    Any thread may call it, `remove` one at a time.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._claims: Counter[str] = Counter()
        self._removing = ""

    @contextlib.contextmanager
    def claiming(self) -> Iterator[Callable[[str], None]]:
        """Yields a function that claims a content until the end of the block. It waits while the file is removed."""
        names: list[str] = []

        def claim(sha256: str) -> None:
            with self._changed:
                self._changed.wait_for(lambda: self._removing != sha256)
                self._claims[sha256] += 1
                names.append(sha256)

        try:
            yield claim
        finally:
            with self._changed:
                self._claims -= Counter(names)  # drops what reaches 0

    def remove(self, sha256: str, delete: Callable[[str], None]) -> None:
        """Calls `delete` with the content, unless it is claimed."""
        with self._changed:
            if sha256 in self._claims:
                return
            self._removing = sha256
        try:
            delete(sha256)
        finally:
            with self._changed:
                self._removing = ""
                self._changed.notify_all()


class FolderBlobs:
    """One file for each content. A killed process leaves at most hidden `.part` files, which `sweep` removes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._unreadable: set[str] = set()
        self._partial: set[str] = set()

    def has(self, sha256: str) -> bool:
        return (self._folder / sha256).is_file()

    def put(self, sha256: str, data: Buffer, *, anew: bool = False) -> None:
        path = self._folder / sha256
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == len(data) and sha256 not in self._unreadable and not anew:
                return
        incoming = self.incoming()
        try:
            incoming.write(data)
            incoming.keep(sha256)
        finally:
            incoming.drop()
        self._unreadable.discard(sha256)

    def incoming(self) -> IncomingContent:
        return _IncomingFile(self._folder, self._partial, self._sync_names)

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
        return self._files(_SHA256)

    def sweep_partial(self) -> int:
        found = self._files(_PARTIAL)
        # Listed before `_partial` is read: a name that is not in it by now is one that nobody writes, or gone.
        broken_off = found - self._partial
        for name in broken_off:
            (self._folder / name).unlink(missing_ok=True)
        return len(broken_off)

    def sweep(self, known: Collection[str]) -> int:
        """Removes what a killed process left: partial files, and contents that no row of the database names.

        Files with other names are not changed.

        Returns:
            The number of files removed.
        """
        unnamed = self.names() - set(known)
        for sha256 in unnamed:
            self.delete(sha256)
        return len(unnamed) + self.sweep_partial()

    def _files(self, names: re.Pattern[str]) -> set[str]:
        with os.scandir(self._folder) as entries:
            return {entry.name for entry in entries if names.fullmatch(entry.name) and entry.is_file()}

    def _sync_names(self) -> None:
        """Makes new file names durable, which requires an fsync of the folder."""
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class _IncomingFile:
    """A file that is created by the first write, so that an upload without data leaves no file."""

    def __init__(self, folder: Path, partial: set[str], sync_names: Callable[[], None]) -> None:
        """Creates no file yet.

        Args:
            folder: Where the content is stored.
            partial: The names of partial files in use, to which this one is added while it exists.
            sync_names: Makes new names in the folder durable.
        """
        self._folder, self._partial, self._sync_names = folder, partial, sync_names
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
            with contextlib.suppress(OSError):  # a full disk refuses the bytes that are still buffered
                self._file.close()
            self._path.unlink(missing_ok=True)
        self._partial.discard(self._path.name)

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._partial.add(self._path.name)
            self._file = self._path.open("xb")
        return self._file


class MemoryBlobs:
    """Contents in memory; they are lost when the process ends."""

    def __init__(self) -> None:
        self._known: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def has(self, sha256: str) -> bool:
        return sha256 in self._known

    def put(self, sha256: str, data: Buffer, *, anew: bool = False) -> None:
        with self._lock:
            if anew or sha256 not in self._known:
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

    def sweep_partial(self) -> int:
        return 0


class _IncomingBytes:
    def __init__(self, blobs: MemoryBlobs) -> None:
        self._blobs, self._data = blobs, bytearray()

    def write(self, data: Buffer) -> None:
        self._data += data

    def keep(self, sha256: str) -> None:
        self._blobs.put(sha256, self._data)

    def drop(self) -> None:
        self._data = bytearray()
