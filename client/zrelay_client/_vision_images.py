"""Image files on their way to a service: looked at before they are sent, never decoded."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from zrelay_shared.errors import InvalidArgument

ImageSource: TypeAlias = str | os.PathLike[str] | bytes
"""A path of an image file, or its bytes."""
FORMATS = "PNG, JPEG or WebP"
MAX_IMAGE_BYTES = 48 * 1024 * 1024
"""What one message carries beside the rest; a service may take less, and says so."""
_HEAD = 12


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file's bytes, and its name for people."""

    name: str
    data: bytes

    @property
    def sha256(self) -> str:
        """Hex digest of the file."""
        return hashlib.sha256(self.data).hexdigest()


def read_image(source: ImageSource, *, max_bytes: int = MAX_IMAGE_BYTES) -> ImageFile:
    """The file at a path, or bytes of one; at most `max_bytes`, and by its first bytes a PNG, JPEG or WebP.

    Raises OSError, InvalidArgument (IMAGE_BYTES, IMAGE_FORMAT).
    """
    if isinstance(source, bytes):
        name, data, size = "image", source, len(source)
    else:
        path = Path(source)
        name = path.name
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
            size = max(len(data), os.fstat(file.fileno()).st_size)
    _check(name, data, size, max_bytes)
    return ImageFile(name, data)


def check_image(source: ImageSource, *, max_bytes: int = MAX_IMAGE_BYTES) -> None:
    """Looks at size and first bytes alone, for a refusal before anything slow. A pipe is left to `read_image`.

    Raises as `read_image`.
    """
    if isinstance(source, bytes):
        _check("image", source[:_HEAD], len(source), max_bytes)
        return
    path = Path(source)
    found = path.stat()
    if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
        with path.open("rb") as file:
            _check(path.name, file.read(_HEAD), found.st_size, max_bytes)


def looks_like_image(data: bytes) -> bool:
    """Whether the first bytes are those of a PNG, JPEG or WebP."""
    head = data[:_HEAD]
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or webp


def _check(name: str, head: bytes, size: int, max_bytes: int) -> None:
    """`head` are the first bytes at least, `size` is in bytes. Raises InvalidArgument (IMAGE_BYTES, IMAGE_FORMAT)."""
    if size > max_bytes:
        expected = f"{name}: expected an image of at most {max_bytes} bytes"
        raise _refusal("IMAGE_BYTES", expected, f"{size}", "make it smaller")
    if not looks_like_image(head):
        raise _refusal("IMAGE_FORMAT", f"{name}: expected an image ({FORMATS})", "another file", "convert it")


def _refusal(reason: str, expected: str, got: str, remedy: str) -> InvalidArgument:
    return InvalidArgument(f"{expected}, got {got}: {remedy}", field="images", reason=reason, metadata={"got": got})
