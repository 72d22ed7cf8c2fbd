"""The structure of PNG, JPEG and WebP files: their parts, size, orientation and frames, without decoding pixels.

Side data (text, colour profiles, EXIF, unknown parts) may be large, compressed, damaged or foreign. It never makes a
file unreadable here: what is not needed is skipped without being read, and what is needed is read up to a limit.

Sources: PNG, third edition; JPEG, ITU-T T.81, annex B; WebP, RFC 9649.
"""

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from zrelay_shared.exif import MAX_METADATA_BYTES, read_orientation

FORMATS = ("PNG", "JPEG", "WebP")
"""The formats that all services and the client accept."""
HEAD_BYTES = 12
"""First bytes of a file that `format_of` needs."""
MAX_PARTS = 1 << 17
"""Parts of one file. It bounds the time: a part takes a few microseconds. The largest file that a service accepts
(48 MiB) has 6,144 chunks of image data in the usual size."""
MAX_SCANS = 1000
"""Scans of one JPEG. Encoders write 10 to 18, and no more than about 100 in unusual settings."""
MAX_SCANNED_BLOCKS = 1 << 26
"""Blocks of 8 x 8 values in all scans of one JPEG. Each scan passes over all blocks of its components, whatever few
bytes it has. A photograph of 50 megapixels with the usual scans has 12 million; this many take about 2 s."""
_MAX_TABLES = 1 << 10
"""Segments of a JPEG before its first scan, without side data. A usual file has fewer than 20."""
_PNG = b"\x89PNG\r\n\x1a\n"
_RAW_EXIF, _XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0"
_EXIF_SEGMENT = b"Exif\0\0"
_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
"""A marker that begins a segment, the image or its end. Restart and reserved markers are none."""
_SOI, _EOI, _SOS = b"\xd8", b"\xd9", b"\xda"
_APP0, _APP1, _APP14 = b"\xe0", b"\xe1", b"\xee"
_FRAME_HEADERS = frozenset(bytes((marker,)) for marker in range(0xC0, 0xD0)) - {b"\xc4", b"\xc8", b"\xcc"}
_PROGRESSIVE = b"\xc2"
_HUFFMAN_FRAMES = (b"\xc0", b"\xc1", _PROGRESSIVE)
"""Frames that are decoded: baseline, extended and progressive with Huffman coding, as all browsers accept. With
arithmetic coding a few bytes can stand for any number of values, so that no number of scans bounds the time."""
_TABLES = frozenset(bytes((marker,)) for marker in (*range(0xC0, 0xD0), *range(0xDA, 0xE0)))
"""Segments that a decoder needs: frame headers, tables, restart intervals, scans."""
_WEBP_KINDS = frozenset((b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP "))
_WEBP_ALPHA, _WEBP_EXIF, _WEBP_XMP, _WEBP_ANIMATION = 0x10, 0x08, 0x04, 0x02
_TRANSPARENCY_BYTES = {0: (2, 1 << 31), 2: (6, 1 << 31), 3: (1, 256)}
"""Least and greatest size of a tRNS chunk by PNG colour type."""


class DamagedImageError(ValueError):
    """A part that is needed for the pixels is missing or damaged. The message names it."""


@dataclass(frozen=True, slots=True)
class ByteWindow:
    """Random access to the bytes of a file.

    Attributes:
        read: Takes an offset and a number of bytes. Returns these bytes, fewer at the end of the file.
        length: Bytes of the file.
    """

    read: Callable[[int, int], bytes]
    length: int

    @classmethod
    def of_bytes(cls, data: bytes) -> "ByteWindow":
        """Returns a window on a file in memory."""
        return cls(lambda at, size: data[at : at + size], len(data))

    @classmethod
    def of_file(cls, file: BinaryIO) -> "ByteWindow":
        """Returns a window on an open file, of which only what is needed is read."""

        def read(at: int, size: int) -> bytes:
            file.seek(at)
            return file.read(size)

        return cls(read, file.seek(0, io.SEEK_END))


class ImagePart(NamedTuple):
    """The place of one part of an image file: a chunk of a PNG or WebP, or a segment of a JPEG.

    Attributes:
        kind: Chunk type, or the second byte of the marker.
        start: Offset of the part.
        body: Offset of its content.
        size: Bytes of its content as the file states them. The file may end before.
    """

    kind: bytes
    start: int
    body: int
    size: int


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an image file states about its picture.

    Attributes:
        format: PNG, JPEG or WebP.
        width, height: Size in pixels as stored.
        frames: Number of frames, 1 for a still picture.
        orientation: EXIF orientation, 1 to 8.
    """

    format: str
    width: int
    height: int
    frames: int
    orientation: int

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height after the orientation is applied."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def format_of(head: bytes) -> str | None:
    """Returns PNG, JPEG or WebP by the first 12 bytes of a file, None for anything else."""
    if head.startswith(_PNG):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "WebP" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def read_parts(window: ByteWindow, format: str) -> Iterator[ImagePart]:
    """Yields the parts of a file in their order, until its end or until something that is no part.

    The last part of a PNG is IEND. The last part of a JPEG is its first start of scan.

    Raises:
        DamagedImageError: The file has more than `MAX_PARTS` parts, or a JPEG begins again within its header.
    """
    walk = {"PNG": _png_parts, "JPEG": _jpeg_parts, "WebP": _webp_parts}[format]
    for count, part in enumerate(walk(window)):
        if count == MAX_PARTS:
            raise DamagedImageError(f"more than {MAX_PARTS} parts")
        yield part


def read_header(window: ByteWindow) -> ImageHeader:
    """Reads size, frames and orientation of a PNG, JPEG or WebP.

    Further images behind a JPEG are not frames: phones append a depth or a gain map (MPO).

    Raises:
        DamagedImageError: A part that is needed for the pixels is missing or damaged.
    """
    format = format_of(window.read(0, HEAD_BYTES))
    if format is None:
        raise DamagedImageError(f"not a {', '.join(FORMATS)} file")
    header = {"PNG": _png_header, "JPEG": _jpeg_header, "WebP": _webp_header}[format](window)
    if not header.width or not header.height:
        raise DamagedImageError(f"a size of {header.width} x {header.height}")
    return header


def without_side_data(data: bytes) -> io.BytesIO:
    """Returns the file with only the parts that decide its pixels, in the form that decoders expect.

    A damaged part that is needed is copied as it is, so that the decoder refuses it. What is kept is copied once.

    Raises:
        DamagedImageError: As `read_header`, or a JPEG has more than 1024 tables, `MAX_SCANS` scans or
            `MAX_SCANNED_BLOCKS` blocks in them, or is coded in another way than all browsers accept.
    """
    format = format_of(data)
    if format is None:
        raise DamagedImageError(f"not a {', '.join(FORMATS)} file")
    kept = {"PNG": _png_kept, "JPEG": _jpeg_kept, "WebP": _webp_kept}[format](data, ByteWindow.of_bytes(data))
    kept.seek(0)
    return kept


def most_code_sets(data: bytes, header: ImageHeader) -> int:
    """Returns the most sets of Huffman codes that the decoder of a file may hold; 0 unless it is a lossless WebP.

    A set belongs to at least one block of 4 x 4 pixels, takes at least 20 bits and has a number of 16 bits (RFC 9649,
    sections 3.7.2 and 3.8). Transparency of a lossy WebP may be coded without loss as well.
    """
    if header.format != "WebP":
        return 0
    if not any(part.kind in (b"VP8L", b"ALPH") for part in read_parts(ByteWindow.of_bytes(data), "WebP")):
        return 0
    blocks = -(-header.width // 4) * -(-header.height // 4)
    return min(blocks, 8 * len(data) // 20, 1 << 16)


def read_text(window: ByteWindow, part: ImagePart) -> bytes:
    """Returns the text of a tEXt, zTXt or iTXt chunk, b"" if it is damaged. A long text is cut."""
    body = window.read(part.body, min(part.size, MAX_METADATA_BYTES))
    _, _, rest = body.partition(b"\0")
    compressed = part.kind == b"zTXt"
    if compressed:
        rest = rest[1:]  # the compression method
    elif part.kind == b"iTXt":
        compressed = rest[:1] == b"\1"
        _, _, rest = rest[2:].partition(b"\0")  # flag and method, language
        _, _, rest = rest.partition(b"\0")  # translated keyword
    if not compressed:
        return rest
    try:
        return zlib.decompressobj().decompress(rest, MAX_METADATA_BYTES)
    except zlib.error:
        return b""


def keyword_of(window: ByteWindow, part: ImagePart) -> bytes:
    """Returns the keyword of a PNG's text chunk, b"" for any other part."""
    if part.kind not in (b"tEXt", b"zTXt", b"iTXt"):
        return b""
    keyword, end, _ = window.read(part.body, min(part.size, 80)).partition(b"\0")
    return keyword if end else b""


# PNG


def _png_parts(window: ByteWindow) -> Iterator[ImagePart]:
    at = len(_PNG)
    while at + 8 <= window.length:
        size, kind = struct.unpack(">I4s", window.read(at, 8))
        if not kind.isalpha():
            return
        yield ImagePart(kind, at, at + 8, size)
        if kind == b"IEND":
            return
        at += 12 + size


def _png_header(window: ByteWindow) -> ImageHeader:
    width = height = 0
    frames, first_is_frame, pixels = 0, False, False
    exif = raw_exif = xmp = None
    for part in read_parts(window, "PNG"):
        if not width:
            width, height = struct.unpack(">II", _png_ihdr(window, part)[:8])
        if part.kind == b"IDAT":
            pixels = True
        elif part.kind == b"acTL" and not pixels:
            number = int.from_bytes(window.read(part.body, min(part.size, 4)), "big")
            frames = number if number < 1 << 31 else frames
        elif part.kind == b"fcTL":
            first_is_frame = first_is_frame or not pixels
        elif part.kind == b"eXIf":
            exif = part
        elif (keyword := keyword_of(window, part)) == _RAW_EXIF:
            raw_exif = part
        elif keyword == _XMP:
            xmp = part
    if not pixels:
        raise DamagedImageError("no image data (IDAT)")
    found = None
    if exif is not None:
        found = read_orientation(window.read(exif.body, min(exif.size, MAX_METADATA_BYTES)))
    elif raw_exif is not None:
        found = read_orientation(_raw_profile(read_text(window, raw_exif)))
    if found is None and xmp is not None:
        found = _xmp_orientation(read_text(window, xmp))
    # The image data is a frame more if the animation does not contain it.
    count = frames + (not first_is_frame) if frames else 1
    return ImageHeader("PNG", width, height, count, found or 1)


def _png_ihdr(window: ByteWindow, part: ImagePart) -> bytes:
    body = window.read(part.body, 13)
    if part.kind != b"IHDR" or part.size != 13 or len(body) != 13:
        raise DamagedImageError("no whole header (IHDR)")
    return body


def _raw_profile(text: bytes) -> bytes:
    """Returns the bytes of a profile that ImageMagick wrote as text: a name, a length, and hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def _png_kept(data: bytes, window: ByteWindow) -> io.BytesIO:
    """Keeps IHDR, PLTE, tRNS and IDAT, and joins the image data to one chunk.

    Like other ancillary chunks, a damaged tRNS is ignored.
    """
    kept, view = io.BytesIO(), memoryview(data)
    kept.write(_PNG)
    header: bytes | None = None
    palette: ImagePart | None = None
    transparency: ImagePart | None = None
    pixels_at, checksum = 0, zlib.crc32(b"IDAT")
    for part in read_parts(window, "PNG"):
        if header is None:
            header = _png_ihdr(window, part)
            kept.write(view[part.start : part.body + part.size + 4])
        elif part.kind == b"IDAT":
            if not pixels_at:
                for earlier in filter(None, (palette, transparency)):
                    kept.write(view[earlier.start : earlier.body + earlier.size + 4])
                pixels_at = kept.tell()
                kept.write(b"\0\0\0\0IDAT")
            body = view[part.body : part.body + part.size]
            checksum = zlib.crc32(body, checksum)
            kept.write(body)
        elif part.kind == b"PLTE":
            palette = part
        elif part.kind == b"tRNS" and _is_sound_transparency(view, part, header[9]):
            transparency = part
    if not pixels_at:
        raise DamagedImageError("no image data (IDAT)")
    size = kept.tell() - pixels_at - 8
    kept.write(struct.pack(">I", checksum))
    kept.write(b"\0\0\0\0IEND\xae\x42\x60\x82")
    kept.seek(pixels_at)
    kept.write(struct.pack(">I", size))
    return kept


def _is_sound_transparency(view: memoryview, part: ImagePart, colour_type: int) -> bool:
    least, most = _TRANSPARENCY_BYTES.get(colour_type, (1, 0))
    end = part.body + part.size
    stored = int.from_bytes(view[end : end + 4], "big")
    return least <= part.size <= most and zlib.crc32(view[part.start + 4 : end]) == stored


# JPEG


def _jpeg_parts(window: ByteWindow) -> Iterator[ImagePart]:
    at = _next_segment(window, 2)
    while at is not None:
        head = window.read(at, 4)
        kind = head[1:2]
        if kind == _SOI:
            raise DamagedImageError("a second start of image (SOI)")
        if kind == _EOI:
            return
        size = max(0, int.from_bytes(head[2:4], "big") - 2)
        yield ImagePart(kind, at, at + 4, size)
        if kind == _SOS:
            return
        at = _next_segment(window, at + 4 + size)


def _next_segment(window: ByteWindow, at: int) -> int | None:
    """Returns the offset of the next segment, None at the end. Decoders skip what stands between two segments."""
    size = 64
    while True:
        block = window.read(at, size)
        if (found := _SEGMENT.search(block)) is not None:
            return at + found.start()
        if len(block) < 2:
            return None
        at += len(block) - 1  # the last byte may begin a marker
        size = min(2 * size, 1 << 16)


def _jpeg_header(window: ByteWindow) -> ImageHeader:
    width = height = 0
    scan, exif, xmp = False, bytearray(), b""
    for part in read_parts(window, "JPEG"):
        if part.kind in _FRAME_HEADERS and not width:
            body = window.read(part.body, min(part.size, 5))
            if len(body) != 5:
                raise DamagedImageError("no whole frame header (SOF)")
            _, height, width = struct.unpack(">BHH", body)
        elif part.kind == _APP1:
            body = window.read(part.body, part.size)
            if body.startswith(_EXIF_SEGMENT) and len(exif) < MAX_METADATA_BYTES:
                exif += body.removeprefix(_EXIF_SEGMENT)  # a further segment continues the first
            elif body.startswith(_XMP_SEGMENT):
                xmp = body
        scan = scan or part.kind == _SOS
    if not scan:
        raise DamagedImageError("no image data (SOS)")
    found = read_orientation(bytes(exif))
    return ImageHeader("JPEG", width, height, 1, found or _xmp_orientation(xmp) or 1)


def _jpeg_kept(data: bytes, window: ByteWindow) -> io.BytesIO:
    """Returns a JPEG with only what decides the pixels: frame headers, tables, scans, and JFIF and Adobe segments.

    JFIF and Adobe segments decide the colour space. Decoders recognise a JFIF segment of at least 14 bytes and an Adobe
    segment of at least 12.
    """
    view, jfif, adobe = memoryview(data), b"", b""
    tables: list[bytes | memoryview] = []
    frame: ImagePart | None = None
    for part in read_parts(window, "JPEG"):
        if part.kind in _FRAME_HEADERS:
            frame = frame or part
        if part.kind == _SOS:
            _check_scans(window, frame, part)
            tables.append(view[part.start :])
        elif part.kind in _TABLES:
            tables.append(view[part.start : part.body + part.size])
        elif part.kind == _APP0 and part.size >= 14 and window.read(part.body, 5) == b"JFIF\0":
            jfif = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
        elif part.kind == _APP14 and part.size >= 12 and window.read(part.body, 5) == b"Adobe":
            adobe = b"\xff\xee\0\x0e" + window.read(part.body, 12)
        if len(tables) > _MAX_TABLES:
            raise DamagedImageError(f"more than {_MAX_TABLES} tables")
    kept = io.BytesIO()
    for piece in (b"\xff" + _SOI, jfif, adobe, *tables):
        kept.write(piece)
    return kept


def _check_scans(window: ByteWindow, header: ImagePart | None, first: ImagePart) -> None:
    """Refuses a JPEG that takes far longer to decode than its size suggests.

    Args:
        window: The file.
        header: The frame header, None if there is none before the first scan.
        first: The first start of scan.

    Raises:
        DamagedImageError: The frame header is damaged or of a kind that is not decoded, or the scans exceed a limit.
    """
    if header is None:
        raise DamagedImageError("no frame header (SOF) before the image data (SOS)")
    if header.kind not in _HUFFMAN_FRAMES:
        raise DamagedImageError(f"arithmetic, lossless or hierarchical coding (SOF{header.kind[0] - 0xC0})")
    blocks = _blocks_of_components(window, header)
    if header.kind != _PROGRESSIVE and set(_scanned_components(window, first)) == set(blocks):
        return  # decoders read no further scan
    scans = scanned = parts = 0
    at: int | None = first.start
    while at is not None:
        head = window.read(at, 4)
        if head[1:2] == _EOI:
            return
        size = max(0, int.from_bytes(head[2:4], "big") - 2)
        parts += 1
        if head[1:2] == _SOS:
            scans += 1
            of_scan = _scanned_components(window, ImagePart(_SOS, at, at + 4, size))
            if not blocks.keys() >= set(of_scan):
                raise DamagedImageError("a scan (SOS) of a component that the frame does not have")
            scanned += sum(blocks[component] for component in of_scan)
        if parts > MAX_PARTS:
            raise DamagedImageError(f"more than {MAX_PARTS} parts")
        if scans > MAX_SCANS:
            raise DamagedImageError(f"more than {MAX_SCANS} scans")
        if scanned > MAX_SCANNED_BLOCKS:
            raise DamagedImageError(f"more than {MAX_SCANNED_BLOCKS} blocks in {scans} scans")
        at = _next_segment(window, at + 4 + size)


def _blocks_of_components(window: ByteWindow, header: ImagePart) -> dict[int, int]:
    """Returns the number of blocks of each component of a frame, rounded up to whole units (T.81, A.1.1 and A.2).

    Raises:
        DamagedImageError: The header is cut off or invalid, or two components have the same identifier. Decoders
            disagree about which of the two a scan means.
    """
    body = window.read(header.body, min(header.size, 6 + 3 * 255))
    components = [body[at : at + 2] for at in range(6, len(body) - 2, 3)][: body[5] if len(body) > 5 else 0]
    sampling = [(each[0], each[1] >> 4, each[1] & 15) for each in components]
    if not sampling or any(not 1 <= factor <= 4 for each in sampling for factor in each[1:]):
        raise DamagedImageError("no whole frame header (SOF)")
    if len({component for component, _, _ in sampling}) != len(sampling):
        raise DamagedImageError("a frame (SOF) with two components of the same identifier")
    height, width = struct.unpack(">HH", body[1:5])
    columns = -(-width // (8 * max(across for _, across, _ in sampling)))
    rows = -(-height // (8 * max(down for _, _, down in sampling)))
    return {component: columns * across * rows * down for component, across, down in sampling}


def _scanned_components(window: ByteWindow, scan: ImagePart) -> bytes:
    """Returns the identifiers of the components of a scan."""
    body = window.read(scan.body, min(scan.size, 1 + 2 * 4))
    return body[1::2][: body[0]] if body else b""


# WebP


def _webp_parts(window: ByteWindow) -> Iterator[ImagePart]:
    at, end = HEAD_BYTES, min(window.length, 8 + int.from_bytes(window.read(4, 4), "little"))
    while at + 8 <= end:
        kind, size = struct.unpack("<4sI", window.read(at, 8))
        yield ImagePart(kind, at, at + 8, size)
        at += 8 + size
        # Some writers leave out the byte that pads a chunk to an even size.
        if size % 2 and window.read(at, 4) not in _WEBP_KINDS:
            at += 1


def _webp_header(window: ByteWindow) -> ImageHeader:
    canvas = picture = exif = xmp = None
    frames = flags = 0
    for part in read_parts(window, "WebP"):
        if part.kind == b"VP8X" and canvas is None and picture is None and part.size >= 10:
            body = window.read(part.body, 10)
            flags = body[0] if body else 0
            canvas = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
        elif part.kind in (b"VP8 ", b"VP8L"):
            picture = picture or _webp_picture_size(window, part)
        elif part.kind == b"ANMF":
            frames += 1
        elif part.kind == b"EXIF":
            exif = exif or part
        elif part.kind == b"XMP ":
            xmp = xmp or part
    if picture is None and not (canvas and frames):
        raise DamagedImageError("no image data (VP8, VP8L)")
    width, height = canvas or picture or (0, 0)
    found = None
    if exif is not None and flags & _WEBP_EXIF:
        found = read_orientation(window.read(exif.body, min(exif.size, MAX_METADATA_BYTES)))
    if found is None and xmp is not None and flags & _WEBP_XMP:
        found = _xmp_orientation(window.read(xmp.body, min(xmp.size, MAX_METADATA_BYTES)))
    return ImageHeader("WebP", width, height, max(1, frames), found or 1)


def _webp_picture_size(window: ByteWindow, part: ImagePart) -> tuple[int, int]:
    body = window.read(part.body, min(part.size, 10))
    if part.kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if part.kind == b"VP8 " and len(body) == 10 and body[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise DamagedImageError("no whole image header (VP8, VP8L)")


def _webp_kept(data: bytes, window: ByteWindow) -> io.BytesIO:
    """Keeps the canvas, transparency and the picture, or the canvas and the frame of an animation of one frame."""
    view = memoryview(data)
    canvas = alpha = picture = loop = frame = None
    for part in read_parts(window, "WebP"):
        if part.kind == b"VP8X" and picture is None:
            canvas = canvas or part
        elif part.kind == b"ALPH" and picture is None:
            alpha = part
        elif part.kind in (b"VP8 ", b"VP8L"):
            picture = picture or part
        elif part.kind == b"ANIM":
            loop = loop or part
        elif part.kind == b"ANMF":
            frame = frame or part
    kept = io.BytesIO()
    kept.write(b"RIFF\0\0\0\0WEBP")
    if canvas is not None and canvas.size >= 10 and canvas.body + 10 <= len(data):
        flags = view[canvas.body] & _WEBP_ALPHA | (_WEBP_ANIMATION if picture is None else 0)
        kept.write(b"VP8X\x0a\0\0\0" + bytes((flags, 0, 0, 0)) + bytes(view[canvas.body + 4 : canvas.body + 10]))
    if canvas is None or (picture is not None and picture.kind == b"VP8L"):
        alpha = None  # a lossless picture holds its transparency itself
    for needed in (alpha, picture) if picture is not None else (loop, frame):
        if needed is not None:
            kept.write(view[needed.start : needed.body + needed.size])
            kept.write(b"\0" * (needed.size % 2))
    size = kept.tell() - 8
    kept.seek(4)
    kept.write(struct.pack("<I", size))
    return kept


def _xmp_orientation(xmp: bytes) -> int | None:
    """Returns the orientation of XMP, which counts where EXIF has none."""
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found is not None else None
