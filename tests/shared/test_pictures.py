"""Side data never makes a picture unreadable, and costs bounded memory and time."""

import functools
import io
import logging
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.hostile_pictures import jpeg_of_scans, png_chunk, segment
from tests.helpers.images import encoded, picture
from tests.helpers.refusals import refused
from zrelay_shared.errors import Cancelled
from zrelay_shared.image_container import MAX_SCANS, ByteWindow, read_header, without_side_data
from zrelay_shared.pictures import decode_picture, open_picture

pytestmark = pytest.mark.hostile

FORMATS = ("PNG", "JPEG", "WEBP")
MANY = 1 << 24
MIB = 1 << 20


def read(data: bytes) -> Image.Image:
    return decode_picture(data, max_pixels=MANY, field="image")


def same(data: bytes, clean: bytes) -> bool:
    return np.array_equal(np.asarray(read(data)), np.asarray(read(clean)))


def riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def split(data: bytes, format: str) -> list[bytes]:
    """Returns the head of a file and its parts, the image data of a JPEG with all that follows as one part."""
    return list(_split(data, format))


def _split(data: bytes, format: str) -> Iterator[bytes]:
    at = {"PNG": 8, "JPEG": 2, "WEBP": 12}[format]
    yield data[:at]
    while at < len(data):
        if format == "PNG":
            end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        elif format == "WEBP":
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            end = at + 8 + size + size % 2
        else:
            end = len(data) if data[at + 1] == 0xDA else at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at:end]
        at = end


def joined(parts: list[bytes], format: str) -> bytes:
    data = b"".join(parts)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:] if format == "WEBP" else data


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


CLEAN = {
    "PNG": [encoded(picture(40, 24)), encoded(picture(40, 24).convert("P"), transparency=3)],
    "JPEG": [encoded(picture(40, 24), "JPEG", progressive=kind, subsampling=0) for kind in (False, True)]
    + [encoded(picture(40, 24).convert("CMYK"), "JPEG"), encoded(picture(40, 24), "JPEG", keep_rgb=True)],
    "WEBP": [
        encoded(picture(40, 24), "WEBP", exif=turned(1)),
        encoded(picture(40, 24).convert("RGBA"), "WEBP", lossless=True),
        encoded(picture(40, 24), "WEBP"),
    ],
}
BODIES = st.one_of(
    st.binary(max_size=60),
    st.builds(lambda keyword, rest: keyword + b"\0" + rest, st.binary(max_size=20), st.binary(max_size=40)),
    st.sampled_from(
        [
            b"",
            b"zrelay\0",
            b"Exif\0\0",
            b"Exif\0\0II*\0\xff\xff\xff\xff",
            b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
            b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\2\0\1\0\0\0\6\0\0\0",
            b"ICC_PROFILE\0\1\xff",
            b"Photoshop 3.0\x008BIM\4\4\xff",
            b"MPF\0II*\0\x08\0\0\0",
            b"JFIF",
            b"JFIF\0\1",
            b"Adobe",
            b"http://ns.adobe.com/xap/1.0/\0<broken",
            b"XML:com.adobe.xmp\0\1\0\0\0not zlib",
            b"icc\0\0" + zlib.compress(bytes(2 * MIB)),
            b"comment\0\0" + zlib.compress(bytes(2 * MIB)),
            b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  4\nzz"),
        ]
    ),
)
PNG_KINDS = st.sampled_from(
    [
        b"tEXt",
        b"zTXt",
        b"iTXt",
        b"iCCP",
        b"eXIf",
        b"gAMA",
        b"cHRM",
        b"sRGB",
        b"pHYs",
        b"tIME",
        b"fcTL",
        b"fdAT",
        b"abCd",
    ]
)
WEBP_KINDS = st.sampled_from([b"EXIF", b"XMP ", b"ICCP", b"abcd", b"\0\1\2\3"])


@given(data=st.data())
def test_png_chunks_are_ignored(data: st.DataObject) -> None:
    clean = data.draw(st.sampled_from(CLEAN["PNG"]))
    parts = split(clean, "PNG")
    for _ in range(data.draw(st.integers(1, 6))):
        checksum = data.draw(st.one_of(st.none(), st.integers(0, (1 << 32) - 1)))
        chunk = png_chunk(data.draw(PNG_KINDS), data.draw(BODIES), checksum)
        parts.insert(data.draw(st.integers(2, len(parts) - 1)), chunk)
    assert same(joined(parts, "PNG"), clean)


@given(data=st.data())
def test_jpeg_segments_are_ignored(data: st.DataObject) -> None:
    clean = data.draw(st.sampled_from(CLEAN["JPEG"]))
    parts = split(clean, "JPEG")
    for _ in range(data.draw(st.integers(1, 6))):
        marker = data.draw(st.sampled_from([*range(0xE0, 0xF0), 0xFE]))
        fill = b"\xff" * data.draw(st.integers(0, 3))
        parts.insert(data.draw(st.integers(1, len(parts) - 1)), fill + segment(marker, data.draw(BODIES)))
    assert same(joined(parts, "JPEG"), clean)


@given(data=st.data())
def test_webp_chunks_are_ignored(data: st.DataObject) -> None:
    clean = data.draw(st.sampled_from(CLEAN["WEBP"]))
    parts = split(clean, "WEBP")
    for _ in range(data.draw(st.integers(1, 6))):
        chunk = riff_chunk(data.draw(WEBP_KINDS), data.draw(BODIES))
        parts.insert(data.draw(st.integers(2 if b"VP8X" in clean[:16] else 1, len(parts))), chunk)
    if data.draw(st.booleans()):  # the last chunk states a wrong size
        parts.append(b"EXIF" + struct.pack("<I", data.draw(st.integers(0, (1 << 32) - 1))) + b"Exif")
    assert same(joined(parts, "WEBP"), clean)


def test_chunks_between_the_image_data_of_a_png_are_ignored() -> None:
    clean = encoded(picture(40, 24))
    head, header, pixels, end = split(clean, "PNG")
    body = pixels[8:-4]
    pieces = [png_chunk(b"IDAT", body[:50]), png_chunk(b"tEXt", b"a\0b"), png_chunk(b"IDAT", body[50:])]
    assert same(b"".join([head, header, *pieces, end]), clean)


def test_a_damaged_transparency_chunk_is_ignored() -> None:
    clean = encoded(picture(40, 24))
    head, header, *rest = split(clean, "PNG")
    for chunk in (png_chunk(b"tRNS", b"\0"), png_chunk(b"tRNS", bytes(6), 1)):
        assert same(b"".join([head, header, chunk, *rest]), clean)


@pytest.mark.parametrize("kind", [b"PLTE", b"IHDR", b"IDAT"])
def test_a_damaged_critical_chunk_is_refused_in_the_terms_of_the_format(kind: bytes) -> None:
    clean = encoded(picture(40, 24).convert("P"))
    at = clean.index(kind) + 7
    damaged = clean[:at] + bytes((clean[at] ^ 0x55,)) + clean[at + 1 :]
    error = refused(lambda: read(damaged[: at + 20] if kind == b"IDAT" else damaged), reason="IMAGE_UNREADABLE")
    assert "Plugin" not in error.message and "PIL" not in error.message and "MAX_" not in error.message


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_animations_are_refused(format: str) -> None:
    data = encoded(picture(8, 8), format, save_all=True, append_images=[picture(8, 8, 1)])
    refused(lambda: read(data), reason="IMAGE_ANIMATED", field="image", match="2 frames")


@pytest.mark.parametrize("lossless", [False, True])
def test_an_animation_of_one_frame_is_a_still(lossless: bool) -> None:
    data = encoded(picture(40, 24), "WEBP", lossless=lossless, save_all=True, append_images=[picture(40, 24, 1)])
    parts = split(data, "WEBP")
    parts.remove([part for part in parts if part.startswith(b"ANMF")][1])
    one = joined(parts, "WEBP")
    assert np.array_equal(np.asarray(read(one)), np.asarray(Image.open(io.BytesIO(one)).convert("RGB")))


def test_a_phones_picture_with_a_map_behind_it_is_a_still() -> None:
    data = encoded(picture(40, 24), "MPO", save_all=True, append_images=[Image.new("L", (10, 6), 200)])
    assert same(data, encoded(picture(40, 24), "JPEG"))


def test_a_second_image_within_a_jpeg_header_is_refused() -> None:
    """A segment with too small a length would otherwise give the thumbnail behind it."""
    clean = encoded(picture(40, 24), "JPEG")
    thumbnail = encoded(picture(8, 8), "JPEG")
    exif = b"\xff\xe1\0\x08Exif\0\0" + thumbnail
    refused(lambda: read(clean[:2] + exif + clean[2:]), reason="IMAGE_UNREADABLE")


@functools.cache
def zeros() -> bytes:
    """Returns 64 MiB of zeros as a zlib stream of 64 KiB."""
    return zlib.compress(bytes(64 * MIB), 9)


def with_parts(format: str, *added: bytes) -> bytes:
    """Returns a picture with further parts before its image data."""
    head, *rest = split(encoded(picture(40, 24), format), format)
    at = 1 if format == "PNG" else 0
    return joined([head, *rest[:at], *added, *rest[at:]], format)


def with_endless_image_data() -> bytes:
    """Returns a PNG whose compressed image data goes on for 64 MiB behind its last row."""
    head, header, pixels, end = split(encoded(picture(40, 24)), "PNG")
    rows = zlib.decompress(pixels[8:-4])
    return b"".join([head, header, png_chunk(b"IDAT", zlib.compress(rows + bytes(64 * MIB), 9)), end])


EXIF = b"MM\0*\0\0\0\x08\xff\xff"
"""EXIF data whose first directory states 65,535 entries."""
BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG, large text": lambda: with_parts("PNG", png_chunk(b"tEXt", b"a\0" + bytes(20 * MIB))),
    "PNG, text that expands": lambda: with_parts("PNG", *[png_chunk(b"zTXt", b"a\0\0" + zeros())] * 16),
    "PNG, XMP that expands": lambda: with_parts(
        "PNG", *[png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros())] * 16
    ),
    "PNG, profile that expands": lambda: with_parts("PNG", png_chunk(b"iCCP", b"a\0\0" + zeros())),
    "PNG, raw EXIF that expands": lambda: with_parts("PNG", png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zeros())),
    "PNG, large EXIF": lambda: with_parts("PNG", png_chunk(b"eXIf", EXIF + bytes(20 * MIB))),
    "PNG, image data that expands": lambda: with_endless_image_data(),
    "PNG, many chunks": lambda: with_parts("PNG", png_chunk(b"tEXt", b"a\0b") * 10_000),
    "JPEG, many segments": lambda: with_parts("JPEG", segment(0xE5, b"a") * 10_000),
    "JPEG, many EXIF segments": lambda: with_parts("JPEG", segment(0xE1, b"Exif\0\0" + EXIF) * 10_000),
    "JPEG, large segments": lambda: with_parts("JPEG", segment(0xE1, b"Exif\0\0" + EXIF + bytes(65_000)) * 300),
    "JPEG, fill bytes": lambda: with_parts("JPEG", b"\xff" * (20 * MIB)),
    "JPEG, markers without a segment": lambda: with_parts("JPEG", b"\xff\xd0" * (10 * MIB)),
    "WebP, many chunks": lambda: with_parts("WEBP", riff_chunk(b"abcd", b"") * 10_000),
    "WebP, large chunk": lambda: with_parts("WEBP", riff_chunk(b"XMP ", bytes(20 * MIB))),
}


@pytest.mark.parametrize("name", BOMBS)
def test_huge_side_data_costs_bounded_memory_and_time(name: str) -> None:
    data = BOMBS[name]()
    started = time.process_time()
    tracemalloc.start()
    got = read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - started < 20, "tracemalloc makes it some times slower than it is"
    assert peak < 8 * MIB
    clean = encoded(picture(40, 24), name.partition(",")[0].upper())
    assert np.array_equal(np.asarray(got), np.asarray(read(clean)))


@pytest.mark.parametrize("format", FORMATS)
def test_the_work_grows_with_the_number_of_parts_alone(format: str) -> None:
    part = {
        "PNG": png_chunk(b"eXIf", EXIF),
        "JPEG": segment(0xE1, b"Exif\0\0" + EXIF),
        "WEBP": riff_chunk(b"EXIF", b""),
    }
    reads = asked = 0

    def read(at: int, size: int) -> bytes:
        nonlocal reads, asked
        reads, asked = reads + 1, asked + len(data[at : at + size])
        return data[at : at + size]

    data = with_parts(format, part[format] * 100_000)
    assert read_header(ByteWindow(read, len(data))).width == 40
    assert reads < 4 * 100_000 and asked < 100_000 * 200


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_of_too_many_parts_is_refused(format: str) -> None:
    part = {"PNG": png_chunk(b"abCd", b""), "JPEG": segment(0xE5, b""), "WEBP": riff_chunk(b"abcd", b"")}[format]
    head, *rest = split(encoded(picture(8, 8), format), format)
    data = joined([head, rest[0], part * ((1 << 17) + 1), *rest[1:]], format)
    refused(lambda: read(data), reason="IMAGE_UNREADABLE", match="more than 131072 parts")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_header_has_the_size_of_the_decoded_picture(format: str, orientation: int) -> None:
    data = encoded(picture(40, 24), format, exif=turned(orientation))
    header = read_header(ByteWindow.of_file(io.BytesIO(data)))
    assert header.orientation == orientation and header.upright_size == read(data).size


@given(st.binary(max_size=80), st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\xff\xff\0\0WEBPVP8X"]))
def test_any_bytes_are_read_or_refused(rest: bytes, head: bytes) -> None:
    refused(lambda: read(head + rest), reason="IMAGE_UNREADABLE")


@pytest.mark.parametrize("format", FORMATS)
def test_side_data_is_left_out(format: str) -> None:
    exif = turned(1) + b"a secret place"
    data = encoded(picture(40, 24), format, exif=exif)
    assert b"a secret place" in data
    assert b"a secret place" not in without_side_data(data).getvalue()


def test_a_jpeg_of_few_scans_is_read() -> None:
    assert read(jpeg_of_scans(64, MAX_SCANS)).size == (64, 64)


@pytest.mark.parametrize("scans", [MAX_SCANS + 1, 200_000])
def test_a_jpeg_of_too_many_scans_is_refused(scans: int) -> None:
    """Each scan is 10 bytes and passes over all blocks: 2 MB would take hours at 32 megapixels."""
    refused(lambda: read(jpeg_of_scans(64, scans)), reason="IMAGE_UNREADABLE", match=f"more than {MAX_SCANS} scans")


def test_a_large_jpeg_may_have_fewer_scans() -> None:
    data = jpeg_of_scans(4096, 257)
    refused(lambda: read(data), reason="IMAGE_UNREADABLE", match="more than 67108864 blocks in 257 scans")


@pytest.mark.parametrize("frame", [0xC0, 0xC2], ids=["sequential", "progressive"])
def test_components_of_the_same_identifier_are_refused(frame: int) -> None:
    """Decoders take the first of them, so that neither the scans nor their blocks could be counted."""
    data = jpeg_of_scans(4000, 1000, frame=frame, components=((1, 0x44), (1, 0x11), (1, 0x11)))
    refused(lambda: read(data), reason="IMAGE_UNREADABLE", match="two components of the same identifier")


def test_a_scan_of_an_unknown_component_is_refused() -> None:
    data = jpeg_of_scans(64, 3, components=((2, 0x11),))
    refused(lambda: read(data), reason="IMAGE_UNREADABLE", match="a component that the frame does not have")


def test_restart_markers_are_no_scans() -> None:
    clean = encoded(picture(400, 240), "JPEG", progressive=True)
    markers = encoded(picture(400, 240), "JPEG", progressive=True, restart_marker_blocks=1)
    assert same(markers, clean) and markers.count(b"\xff\xd0") > 100


@pytest.mark.parametrize("frame", [0xC3, 0xC5, 0xC9, 0xCA, 0xCF])
def test_a_jpeg_that_browsers_do_not_read_is_refused_by_name(frame: int) -> None:
    """With arithmetic coding a scan of a few bytes takes 50 times as long as one with Huffman coding."""
    coding = rf"arithmetic, lossless or hierarchical coding \(SOF{frame - 0xC0}\)"
    refused(lambda: read(jpeg_of_scans(64, 1, frame=frame)), reason="IMAGE_UNREADABLE", match=coding)


@pytest.mark.parametrize(
    "frame", [b"", segment(0xC2, b"\x08\0\x40\0\x40\1"), segment(0xC2, b"\x08\0\x40\0\x40\1\1\x01\0")]
)
def test_a_jpeg_without_a_whole_frame_header_is_refused(frame: bytes) -> None:
    data = jpeg_of_scans(64, 3)
    at = data.index(b"\xff\xc2")
    refused(lambda: read(data[:at] + frame + data[at + 13 :]), reason="IMAGE_UNREADABLE")


def test_the_codes_of_a_lossless_webp_count_as_pixels() -> None:
    """A file of 295 KB in one megapixel may take 369 MiB for its Huffman codes."""
    image = picture(1024, 1024)
    lossless = encoded(image, "WEBP", lossless=True)
    transparent = image.copy()
    transparent.putalpha(image.convert("L"))
    for data in (lossless, encoded(transparent, "WEBP")):
        file = open_picture(data, max_pixels=MANY, field="image")
        assert file.cost - file.pixels == 1200 * min(1 << 16, len(data) * 8 // 20)
    tiny = encoded(picture(10, 9), "WEBP", lossless=True)
    assert open_picture(tiny, max_pixels=MANY, field="image").cost == 90 + 1200 * 9
    for format in FORMATS:
        file = open_picture(encoded(image, format), max_pixels=MANY, field="image")
        assert file.cost == file.pixels == 1 << 20


@pytest.mark.parametrize(
    ("depth", "colour", "samples"), [(8, 2, 3), (16, 2, 3), (16, 6, 4), (16, 0, 1), (16, 4, 2), (1, 0, 1)]
)
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_of_every_depth_interlaced_or_not(depth: int, colour: int, samples: int, interlaced: bool) -> None:
    """White in all of them. A picture of 8 x 8 has 15 rows in its seven passes."""
    widths = [1, 1, 2, 2, 2, 4, 4, 4, 4, 4, 4, 8, 8, 8, 8] if interlaced else [8] * 8
    rows = b"".join(b"\0" + b"\xff" * -(-width * samples * depth // 8) for width in widths)
    header = struct.pack(">IIBBBBB", 8, 8, depth, colour, 0, 0, interlaced)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    assert read(b"\x89PNG\r\n\x1a\n" + chunks).getcolors() == [(64, (255, 255, 255))]


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_decoding_ends_soon_after_its_caller_has_left(format: str) -> None:
    noise = Image.effect_noise((2000, 1000), 80).convert("RGB")
    data, questions = encoded(noise, format, **({"compress_level": 0} if format == "PNG" else {"quality": 100})), 0

    def left() -> bool:
        nonlocal questions
        questions += 1
        return questions > 8

    with pytest.raises(Cancelled):
        decode_picture(data, max_pixels=MANY, field="image", cancelled=left)
    assert questions == 9, "the file is read in pieces of 64 KiB"


def test_decoding_logs_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """One message for each part of a file would fill a disk."""
    root = logging.getLogger()
    level, handler, thread = root.level, logging.StreamHandler(), threading.get_ident()
    handler.addFilter(lambda record: record.thread == thread)  # event loops of earlier tests log in theirs
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            for data in [*(make() for make in BOMBS.values()), *(file for files in CLEAN.values() for file in files)]:
                read(data)
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
    assert capfd.readouterr() == ("", "")
