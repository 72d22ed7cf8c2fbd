"""Image files of one colour, written without an imaging library.

Each writer takes width and height in pixels, the colour as (red, green, blue), and provenance as ASCII JSON, "" for
none. The provenance stands where the generator writes it: in an iTXt chunk of a PNG, else in the EXIF UserComment.
"""

import struct
import zlib

Colour = tuple[int, int, int]

_PNG = b"\x89PNG\r\n\x1a\n"
_KEYWORD = b"zrelay"
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_ASCII = b"ASCII\0\0\0"


def png(width: int, height: int, colour: Colour, provenance: str) -> bytes:
    """Returns a PNG file (PNG, third edition)."""
    row = b"\0" + bytes(colour) * width
    text = _KEYWORD + b"\0\0\0\0\0" + provenance.encode("ascii")  # not compressed, no language, no translated keyword
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    chunks += [(b"iTXt", text)] if provenance else []
    chunks += [(b"IDAT", zlib.compress(row * height, 1)), (b"IEND", b"")]
    return _PNG + b"".join(_png_chunk(kind, body) for kind, body in chunks)


def jpeg(width: int, height: int, colour: Colour, provenance: str = "") -> bytes:
    """Returns a baseline JPEG file (ITU-T T.81).

    The first block of each component holds its mean; all other coefficients and differences are 0. The Huffman tables
    are the smallest that can say so: a DC category takes four bits, "end of block" one.
    """
    exif = _segment(0xE1, b"Exif\0\0" + _exif(provenance)) if provenance else b""
    quantisation = _segment(0xDB, b"\0" + b"\1" * 64)
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    frame = _segment(0xC0, struct.pack(">BHHB", 8, height, width, 3) + components)
    dc_table = _segment(0xC4, b"\x00" + bytes((0, 0, 0, 12, *[0] * 12)) + bytes(range(12)))
    ac_table = _segment(0xC4, b"\x10" + bytes((1, *[0] * 15)) + b"\0")
    scan = _segment(0xDA, b"\3" + b"".join(bytes((number, 0)) for number in (1, 2, 3)) + b"\x00\x3f\x00")
    blocks = -(-width // 8) * -(-height // 8)
    bits = "".join(_dc_bits(8 * (value - 128)) + "0" for value in _ycbcr(colour)) + "00000" * 3 * (blocks - 1)
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return b"\xff\xd8" + exif + quantisation + frame + dc_table + ac_table + scan + data + b"\xff\xd9"


def webp(width: int, height: int, colour: Colour, provenance: str) -> bytes:
    """Returns a lossless WebP file (RFC 9649): each prefix code has one symbol, so that pixels take no bits."""
    red, green, blue = colour
    fields = [(width - 1, 14), (height - 1, 14), (0, 1), (0, 3), (0, 1), (0, 1), (0, 1)]
    for symbol in (green, red, blue, 255, 0):
        fields += [(1, 1), (0, 1), (1, 1), (symbol, 8)]  # a simple code of one symbol of 8 bits
    at = value = 0
    for number, size in fields:
        value |= number << at
        at += size
    lossless = b"\x2f" + value.to_bytes(-(-at // 8), "little")
    flags = 0x08 if provenance else 0
    extended = struct.pack("<I", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = [(b"VP8X", extended), (b"VP8L", lossless), *([(b"EXIF", _exif(provenance))] if provenance else [])]
    body = b"WEBP" + b"".join(_riff_chunk(kind, content) for kind, content in chunks)
    return _riff_chunk(b"RIFF", body)


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _ycbcr(colour: Colour) -> tuple[int, int, int]:
    """Returns luma and chroma, 0 to 255 (ITU-T T.871)."""
    red, green, blue = colour
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    blueness, redness = 128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402
    return round(luma), min(255, round(blueness)), min(255, round(redness))


def _dc_bits(difference: int) -> str:
    """Returns the code of a DC difference: its category in four bits, then as many bits of its value."""
    size = abs(difference).bit_length()
    value = difference if difference >= 0 else difference + (1 << size) - 1
    return f"{size:04b}" + (f"{value:0{size}b}" if size else "")


def _exif(provenance: str) -> bytes:
    """Returns a TIFF structure with a UserComment (Exif 2.3)."""
    comment = _ASCII + provenance.encode("ascii")
    first = struct.pack("<HHHIII", 1, _EXIF_IFD, 4, 1, 26, 0)
    inner = struct.pack("<HHHIII", 1, _USER_COMMENT, 7, len(comment), 44, 0)
    return b"II*\0" + struct.pack("<I", 8) + first + inner + comment
