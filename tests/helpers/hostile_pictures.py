"""Image files that cost far more than their size suggests."""

import struct
import zlib
from collections.abc import Sequence


def png_chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    """Returns a chunk of a PNG."""
    stored = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", stored)


def segment(marker: int, body: bytes) -> bytes:
    """Returns a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def flat_png(side: int) -> bytes:
    """Returns a black RGBA picture of `side` x `side` pixels in a few kilobytes."""
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    packer = zlib.compressobj(1)
    rows = b"".join([*(packer.compress(bytes(1 + 4 * side)) for _ in range(side)), packer.flush()])
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def jpeg_of_scans(
    side: int, scans: int, *, frame: int = 0xC2, components: Sequence[tuple[int, int]] = ((1, 0x11),)
) -> bytes:
    """Returns a grey JPEG of `side` x `side` pixels with so many scans of 10 bytes each.

    Args:
        side: Width and height in pixels.
        scans: Number of scans, at least 1. Each passes over all blocks.
        frame: Second byte of the frame header's marker; the default is that of a progressive JPEG.
        components: Identifier and sampling factors of the components. The scans are of identifier 1.
    """
    one_code = b"\1" + bytes(15)
    head = segment(0xDB, b"\0" + b"\1" * 64)
    table = b"".join(struct.pack(">BBB", identifier, sampling, 0) for identifier, sampling in components)
    head += segment(frame, struct.pack(">BHHB", 8, side, side, len(components)) + table)
    head += segment(0xC4, b"\0" + one_code + b"\0") + segment(0xC4, b"\x10" + one_code + b"\xe0")
    first, other = (segment(0xDA, b"\1\1\0" + bytes(band)) for band in ((0, 0, 0), (1, 63, 0)))
    return b"\xff\xd8" + head + first + other * (scans - 1) + b"\xff\xd9"
