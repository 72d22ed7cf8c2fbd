"""Reads the orientation and the comment of EXIF data (CIPA DC-008). Damaged data has no values; nothing here fails."""

import struct
from collections.abc import Iterator

MAX_METADATA_BYTES = 2 << 20
"""Bytes of one text, profile or EXIF structure of an image file that are read, before and after decompression. Longer
ones are cut. The provenance of a PNG has up to 1 MiB of prompts and labels beside its other values."""
_ORIENTATION, _EXIF_IFD, _USER_COMMENT = 0x0112, 0x8769, 0x9286
_INTEGERS = {3: "H", 4: "I", 8: "h", 9: "i"}
"""Format of one integer by TIFF type."""
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""Bytes of one value by TIFF type (TIFF 6.0, section 2)."""
_PREFIX = b"Exif\0\0"


def read_orientation(exif: bytes) -> int | None:
    """Returns the orientation, 1 to 8, None if there is none. A tag of another type, count or value is ignored.

    Writers use SHORT with one value. Other integers count too, and so does the first of two SHORT values.
    """
    tiff = _tiff(exif)
    found = None
    for tag, kind, count, value in _entries(tiff, _first_directory(tiff)):
        if tag == _ORIENTATION and kind in _INTEGERS and 1 <= count <= 4 // _TYPE_SIZES[kind]:
            (number,) = struct.unpack_from(_order(tiff) + _INTEGERS[kind], value)
            found = number if 1 <= number <= 8 else found
    return found


def read_user_comment(exif: bytes) -> bytes | None:
    """Returns the bytes of the UserComment, None if there is none.

    Its first eight bytes name its character code, if the writer follows the standard.
    """
    tiff = _tiff(exif)
    # Only the first directory counts: many entries that point to one long directory would take quadratic time.
    found = (value for tag, _, _, value in _entries(tiff, _first_directory(tiff)) if tag == _EXIF_IFD)
    if (place := next(found, None)) is None:
        return None
    (at,) = struct.unpack(_order(tiff) + "I", place)
    for tag, kind, count, place in _entries(tiff, at):
        size = count * _TYPE_SIZES.get(kind, 1)
        if tag == _USER_COMMENT and size > 4:
            (start,) = struct.unpack(_order(tiff) + "I", place)
            return tiff[start : start + size]
    return None


def _tiff(exif: bytes) -> bytes:
    """Returns the TIFF structure. Some writers put the prefix of a JPEG segment before it, or put it there twice."""
    data = exif[:MAX_METADATA_BYTES]
    return data.removeprefix(_PREFIX).removeprefix(_PREFIX)


def _order(tiff: bytes) -> str:
    return ">" if tiff[:2] == b"MM" else "<"


def _first_directory(tiff: bytes) -> int:
    """Returns the offset of the first directory, or the end of the data if it has no TIFF header."""
    if len(tiff) < 8 or tiff[:2] not in (b"II", b"MM") or tiff[2:4] not in (b"*\0", b"\0*"):
        return len(tiff)
    return int(struct.unpack_from(_order(tiff) + "I", tiff, 4)[0])


def _entries(tiff: bytes, at: int) -> Iterator[tuple[int, int, int, bytes]]:
    """Yields (tag, type, count, value or offset) of the whole entries of a directory (TIFF 6.0, section 2)."""
    if at + 2 > len(tiff):
        return
    (count,) = struct.unpack_from(_order(tiff) + "H", tiff, at)
    whole = min(count, (len(tiff) - at - 2) // 12)
    for index in range(whole):
        yield struct.unpack_from(_order(tiff) + "HHI4s", tiff, at + 2 + 12 * index)
