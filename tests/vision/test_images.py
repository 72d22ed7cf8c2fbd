"""Decodes image files of every allowed form to upright RGB, and refuses everything else early."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.helpers.hostile_pictures import jpeg_of_scans
from tests.helpers.images import encoded, picture
from tests.helpers.refusals import refused
from zrelay_shared.errors import Cancelled, InvalidArgument, NotFound
from zrelay_shared.pictures import decode_picture
from zrelay_vision.images.cache import ByteCache
from zrelay_vision.images.store import ImageRef, ImageStore

KINDS = ("PNG", "JPEG", "WEBP")
MAX = 100_000


def read(data: bytes, max_pixels: int = MAX) -> Image.Image:
    return decode_picture(data, max_pixels=max_pixels, field="images[0].data")


def refusal(data: bytes, max_pixels: int = MAX) -> InvalidArgument:
    return refused(lambda: read(data, max_pixels), field="images[0].data")


@pytest.mark.parametrize("kind", KINDS)
def test_formats(kind: str) -> None:
    image = picture(40, 24)
    got = read(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert (got.mode, got.size) == ("RGB", (40, 24))
    most = 0 if kind != "JPEG" else 40
    assert np.abs(np.asarray(got).astype(int) - np.asarray(image)).max() <= most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(40, 24), kind, exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    got = read(data)
    assert got.size == ((24, 40) if orientation > 4 else (40, 24)) == upright.size
    assert np.array_equal(np.asarray(got), np.asarray(upright))


def test_what_is_transparent_lies_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 255, 0))
    assert [read(encoded(image)).getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([10, 20, 30])
    assert read(encoded(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    grey = Image.new("LA", (1, 1), (0, 128))
    assert read(encoded(grey)).getpixel((0, 0)) == (127, 127, 127)


def test_sixteen_bits_of_grey_are_scaled() -> None:
    deep = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    assert [read(encoded(deep)).getpixel((x, 0))[0] for x in range(3)] == [0, 127, 255]  # type: ignore[index]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes(mode: str) -> None:
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    assert read(encoded(picture(8, 8).convert(mode), kind)).mode == "RGB"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"hello, this is no image",
        encoded(picture(4, 4), "GIF"),
        encoded(picture(4, 4), "BMP"),
        encoded(picture(4, 4), "TIFF"),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"RIFF\x00\x00\x00\x00WAVE",
    ],
)
def test_what_is_no_image_of_ours(data: bytes) -> None:
    error = refusal(data)
    assert error.reason == "IMAGE_FORMAT" and "PNG, JPEG, WebP" in error.message


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_damaged_files_are_refused_or_read_but_never_crash(kind: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(picture(40, 24), kind))
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(12, len(whole) - 1)) :]
    else:
        for at in data.draw(st.lists(st.integers(12, len(whole) - 1), min_size=1, max_size=8)):
            whole[at] ^= data.draw(st.integers(1, 255))
    try:
        got = read(bytes(whole))
    except InvalidArgument as error:
        assert error.reason in {"IMAGE_UNREADABLE", "IMAGE_TOO_MANY_PIXELS", "IMAGE_ANIMATED"}
    else:
        assert got.mode == "RGB" and got.width * got.height <= MAX


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short(kind: str) -> None:
    whole = encoded(picture(64, 64), kind)
    assert refusal(whole[: len(whole) // 2]).reason == "IMAGE_UNREADABLE"


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is that large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\x00" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [4_000, 20_000, 2_000_000_000])
def test_a_bomb_is_refused_before_it_is_allocated(side: int) -> None:
    data = bomb(side, side)
    tracemalloc.start()
    error = refusal(data, 1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.reason in {"IMAGE_TOO_MANY_PIXELS", "IMAGE_UNREADABLE"} and peak < 2_000_000
    if side < 2_000_000_000:
        assert error.reason == "IMAGE_TOO_MANY_PIXELS" and "at most 1000000 pixels" in error.message


WEBPS: dict[str, dict[str, Any]] = {"lossy": {}, "lossless": {"lossless": True}, "alpha": {"lossless": False}}


@pytest.mark.parametrize("form", ["PNG", "JPEG", *WEBPS])
def test_the_bound_is_exact(form: str) -> None:
    image = picture(100, 50).convert("RGBA" if form == "alpha" else "RGB")
    if form == "alpha":
        image.putalpha(100)
    data = encoded(image, "WEBP" if form in WEBPS else form, **WEBPS.get(form, {}))
    assert read(data, 5000).size == (100, 50)
    assert refusal(data, 4999).reason == "IMAGE_TOO_MANY_PIXELS"


def test_a_webp_bomb_is_refused_before_its_canvas_is_allocated() -> None:
    """16383 pixels a side, which WebP allows, are a GiB of canvas: PIL makes it when it opens the file."""
    lossy = bytearray(encoded(picture(16, 16), "WEBP"))
    lossy[26:30] = struct.pack("<HH", 16383, 16383)
    lossless = bytearray(encoded(picture(16, 16), "WEBP", lossless=True))
    lossless[21:25] = ((16382 | 16382 << 14) | lossless[24] >> 4 << 28).to_bytes(4, "little")
    for data in (lossy, lossless):
        error = refusal(bytes(data), 50_000_000)
        assert error.reason == "IMAGE_TOO_MANY_PIXELS" and "16383 x 16383" in error.message


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_refused(kind: str) -> None:
    data = encoded(picture(8, 8), kind, save_all=True, append_images=[picture(8, 8, 1)])
    error = refusal(data)
    assert error.reason == "IMAGE_ANIMATED" and "2 frames" in error.message


def test_a_phones_picture_with_a_map_behind_it_is_the_picture() -> None:
    """Phones write JPEGs of several frames (MPO): a depth or a gain map follows the picture."""
    first = picture(40, 24)
    data = encoded(first, "MPO", save_all=True, append_images=[Image.new("L", (10, 6), 200)])
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
    assert np.array_equal(np.asarray(read(data)), np.asarray(Image.open(io.BytesIO(encoded(first, "JPEG")))))


def test_a_file_is_named_by_its_digest_while_it_is_held() -> None:
    small, other = encoded(picture(20, 10)), encoded(picture(20, 10, 1))
    store = ImageStore(len(small) + len(other), MAX)
    stored, decoded = store.open(ImageRef("image", small))
    assert decoded is not None and decoded.image.size == (stored.width, stored.height) == (20, 10)
    again, none = store.open(ImageRef("image", None, stored.sha256, len(small)))
    assert (again, none) == (stored, None)
    assert np.array_equal(np.asarray(store.decode(again, "image").image), np.asarray(decoded.image))
    wrong_size = ImageRef("image", None, stored.sha256, 1)
    refused(lambda: store.open(wrong_size), reason="CONTENT_SIZE", match="another file")
    store.open(ImageRef("image", other))
    store.open(ImageRef("image", encoded(picture(20, 10, 2))))
    dropped = ImageRef("image", None, stored.sha256)
    refused(lambda: store.open(dropped), NotFound, reason="CONTENT_UNKNOWN", match=stored.sha256)


def test_a_cache_is_bounded_in_bytes() -> None:
    cache: ByteCache[str, int] = ByteCache(10)
    cache.put("a", 1, 4)
    cache.put("b", 2, 4)
    assert cache.get("a") == 1
    cache.put("c", 3, 4)  # b was used longest ago
    assert (cache.get("a"), cache.get("b"), cache.get("c"), cache.nbytes) == (1, None, 3, 8)
    cache.put("d", 4, 11)
    assert cache.get("d") is None and cache.nbytes == 8
    cache.put("a", 5, 10)
    assert (cache.get("a"), cache.get("c"), cache.nbytes) == (5, None, 10)


def test_values_are_of_their_owner_and_the_greediest_loses_its_own() -> None:
    cache: ByteCache[str, int] = ByteCache(10)
    cache.put("a", 1, 3, "modest")
    for number in range(5):
        cache.put(f"{number}", number, 3, "greedy")
    cache.put("a", 2, 3, "greedy")
    assert (cache.get("a", "modest"), cache.get("a", "greedy"), cache.get("a")) == (1, 2, None)
    assert (cache.get("3", "greedy"), cache.get("4", "greedy"), cache.nbytes) == (None, 4, 9)


def test_a_file_is_of_those_that_sent_it() -> None:
    store, data = ImageStore(1 << 20, MAX), encoded(picture(20, 10))
    stored, _ = store.open(ImageRef("image", data), owner="a")
    by_digest, unknown = ImageRef("image", None, stored.sha256), ImageRef("image", None, "0" * 64)
    messages = []
    for ref in (by_digest, unknown):
        with pytest.raises(NotFound) as caught:
            store.open(ref, owner="b")
        messages.append(caught.value.message)
    assert messages[0].replace(stored.sha256, "0" * 64) == messages[1]
    _, decoded = store.open(ImageRef("image", data), owner="b")
    assert decoded is not None and decoded.owner == "b", "it is decoded again: the time does not tell that it was there"
    assert store.open(by_digest, owner="b")[0].owner == "b" and store.open(by_digest, owner="a")[0] == stored


def test_no_path_of_the_machine_in_a_refusal() -> None:
    assert str(Path.cwd()) not in refusal(b"\x89PNG\r\n\x1a\n" + b"x" * 50).message


def test_a_caller_that_has_left_costs_no_decoding() -> None:
    store, data = ImageStore(MAX, 1 << 25), jpeg_of_scans(5760, 4)
    with pytest.raises(Cancelled):
        store.open(ImageRef("image", data), lambda: True)
    stored, _ = store.open(ImageRef("image", encoded(picture(20, 10))))
    with pytest.raises(Cancelled):
        store.decode(stored, "image", lambda: True)
