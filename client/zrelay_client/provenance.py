"""Reads the settings that an image file was made with, from PNG, JPEG or WebP, without an imaging library."""

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from zrelay_shared.errors import InvalidArgument

_KEYWORD = b"zrelay"
_MAX_BYTES = 1 << 20
"""Larger provenance is refused, since compressed text may expand to any size. A few kB are usual."""
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_EXIF = b"Exif\0\0"
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_STANDALONE = {0x01, *range(0xD0, 0xD9)}
"""JPEG markers without a length."""


def read_provenance(data: bytes) -> dict[str, Any] | None:
    """Returns the provenance of an image file that zrelay wrote, None if the file has none.

    Raises:
        InvalidArgument: IMAGE_INVALID, the file is no PNG, JPEG or WebP, or it is damaged.
    """
    try:
        if data.startswith(_PNG):
            text = _of_png(data)
        elif data.startswith(_JPEG):
            text = _of_jpeg(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            text = _of_webp(data)
        else:
            raise _refusal("a PNG, JPEG or WebP file", "something else")
        provenance = json.loads(text) if text else None
    except (struct.error, zlib.error, ValueError, IndexError) as error:
        raise _refusal("a complete image file", "a damaged one") from error
    return provenance if isinstance(provenance, dict) else None


def _of_png(data: bytes) -> bytes:
    """Returns the text of the iTXt chunk "zrelay" (PNG, third edition, 11.3.3.4)."""
    at = len(_PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        at += length + 12
        if kind == b"IEND":
            break
        if kind == b"iTXt" and body.startswith(_KEYWORD + b"\0"):
            compressed, rest = body[len(_KEYWORD) + 1], body[len(_KEYWORD) + 3 :]
            text = rest.split(b"\0", 2)[2]
            return _inflate(text) if compressed else text
    return b""


def _inflate(text: bytes) -> bytes:
    decoder = zlib.decompressobj()
    plain = decoder.decompress(text, _MAX_BYTES)
    if decoder.unconsumed_tail:
        raise ValueError(f"expected at most {_MAX_BYTES} bytes of text")
    return plain


def _of_jpeg(data: bytes) -> bytes:
    """Returns the UserComment of the first Exif segment (JPEG, B.1.1; Exif 2.3, 4.7.2)."""
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:  # the image data begins
            break
        if marker in _STANDALONE:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        body = data[at + 4 : at + 2 + length]
        if marker == 0xE1 and body.startswith(_EXIF):
            return _user_comment(body.removeprefix(_EXIF))
        at += 2 + length
    return b""


def _of_webp(data: bytes) -> bytes:
    """Returns the UserComment of the EXIF chunk (RFC 9649, 2.7.1.5)."""
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            return _user_comment(data[at + 8 : at + 8 + length].removeprefix(_EXIF))
        at += 8 + length + length % 2
    return b""


def _user_comment(tiff: bytes) -> bytes:
    order = {b"II": "<", b"MM": ">"}[tiff[:2]] if tiff[:2] in (b"II", b"MM") else ""
    if not order:
        raise ValueError("expected a TIFF header")
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    for tag, _, inner in _entries(tiff, order, first):
        if tag == _EXIF_IFD:
            for exif_tag, count, offset in _entries(tiff, order, inner):
                if exif_tag == _USER_COMMENT:
                    return tiff[offset + 8 : offset + count]  # the first eight bytes name the character code
    return b""


def _entries(tiff: bytes, order: str, at: int) -> Iterator[tuple[int, int, int]]:
    """Yields (tag, count, value or offset) of an image file directory (TIFF 6.0, 2)."""
    (count,) = struct.unpack_from(f"{order}H", tiff, at)
    for index in range(count):
        tag, _, items, offset = struct.unpack_from(f"{order}HHII", tiff, at + 2 + 12 * index)
        yield tag, items, offset


def _refusal(expected: str, got: str) -> InvalidArgument:
    return InvalidArgument(
        f"image: expected {expected}, got {got}: name an image that `zrelay generate` wrote",
        field="image",
        reason="IMAGE_INVALID",
    )
