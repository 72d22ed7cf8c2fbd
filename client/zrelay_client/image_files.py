"""Image files that the client sends: checked by size and first bytes, measured by their header, never decoded."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from zrelay_shared.errors import InvalidArgument
from zrelay_shared.image_container import HEAD_BYTES, ByteWindow, DamagedImageError, format_of, read_header

ImageSource: TypeAlias = str | os.PathLike[str] | bytes
"""The path of an image file, or its bytes."""
MAX_IMAGE_BYTES = 48 * 1024 * 1024
"""The largest image that fits into one message. A service may accept less, and reports its limit."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """The bytes of an image file, and a name for messages."""

    name: str
    data: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the file."""
        return hashlib.sha256(self.data).hexdigest()


def read_image(source: ImageSource, *, max_bytes: int = MAX_IMAGE_BYTES) -> ImageFile:
    """Reads an image file.

    Raises:
        InvalidArgument: IMAGE_BYTES, the file is larger than `max_bytes`; IMAGE_FORMAT, it is no PNG, JPEG or WebP.
        OSError: The file cannot be read.
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
    """Checks the size and the first bytes of an image without reading all of it. A pipe is not opened.

    Raises:
        InvalidArgument, OSError: As `read_image`.
    """
    if isinstance(source, bytes):
        _check("image", source[:HEAD_BYTES], len(source), max_bytes)
        return
    path = Path(source)
    found = path.stat()
    if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
        with path.open("rb") as file:
            _check(path.name, file.read(HEAD_BYTES), found.st_size, max_bytes)


def looks_like_image(data: bytes) -> bool:
    """Returns whether the first bytes are those of a PNG, JPEG or WebP."""
    return format_of(data[:HEAD_BYTES]) is not None


def image_size(source: ImageSource) -> tuple[int, int]:
    """Reads width and height of an image in pixels, after its EXIF orientation is applied.

    Reads the header and the places where an orientation may stand, not the pixels. A path must be that of a regular
    file; of a pipe, pass the bytes.

    Raises:
        InvalidArgument: IMAGE_FORMAT, the file is no PNG, JPEG or WebP; IMAGE_UNREADABLE, its header is damaged.
        OSError: The file cannot be read.
    """
    if isinstance(source, bytes):
        return _size_in("image", ByteWindow.of_bytes(source))
    path = Path(source)
    with path.open("rb") as file:
        return _size_in(path.name, ByteWindow.of_file(file))


def _size_in(name: str, window: ByteWindow) -> tuple[int, int]:
    _check_format(name, window.read(0, HEAD_BYTES))
    try:
        return read_header(window).upright_size
    except DamagedImageError as error:
        got = f"one with a damaged header: {error}"
        raise _refusal(
            "IMAGE_UNREADABLE", f"{name}: expected a whole image file", got, "save it again", "image"
        ) from error


def _check(name: str, head: bytes, size: int, max_bytes: int) -> None:
    """Checks the first bytes and the size in bytes of an image. Raises InvalidArgument (IMAGE_BYTES, IMAGE_FORMAT)."""
    if size > max_bytes:
        expected = f"{name}: expected an image of at most {max_bytes} bytes"
        raise _refusal("IMAGE_BYTES", expected, f"{size}", "make it smaller")
    _check_format(name, head)


def _check_format(name: str, head: bytes) -> None:
    if not head:
        raise _refusal(
            "IMAGE_FORMAT", f"{name}: expected an image (PNG, JPEG or WebP)", "an empty file", "copy it again"
        )
    if not looks_like_image(head):
        raise _refusal("IMAGE_FORMAT", f"{name}: expected an image (PNG, JPEG or WebP)", "another file", "convert it")


def _refusal(reason: str, expected: str, got: str, remedy: str, field: str = "images") -> InvalidArgument:
    return InvalidArgument(f"{expected}, got {got}: {remedy}", field=field, reason=reason, metadata={"got": got})
