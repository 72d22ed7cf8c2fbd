"""Image files of requests: what they become, and what is refused before memory is taken for it."""

import struct
import zlib

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.images import encoded, picture
from tests.helpers.refusals import refused
from zrelay_generator.images.reading import read_image
from zrelay_generator.images.writing import ImageFormat
from zrelay_shared.errors import InvalidArgument

MANY = 1 << 24


IMAGE = picture(60, 40)


@pytest.mark.parametrize(("width", "height"), [(60, 40), (64, 48), (32, 96)])
def test_pixels_are_those_that_diffusers_resizes_to(width: int, height: int) -> None:
    theirs = VaeImageProcessor(vae_scale_factor=1).preprocess(IMAGE, height=height, width=width)[0]
    ours = read_image(encoded(IMAGE), width, height, MANY, field="image")
    torch.testing.assert_close(ours.float() / 127.5 - 1.0, theirs, rtol=0, atol=1e-6)


MODES = {
    "PNG": ("RGB", "L", "RGBA", "P", "1", "I;16"),
    "JPEG": ("RGB", "L", "1", "CMYK"),
    "WEBP": ("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16"),
}


@pytest.mark.parametrize(("format", "mode"), [(format, mode) for format, modes in MODES.items() for mode in modes])
def test_formats_and_modes(format: ImageFormat, mode: str) -> None:
    image = Image.fromarray(np.zeros((40, 60), np.uint16)) if mode == "I;16" else IMAGE.convert(mode)
    assert read_image(encoded(image, format), 60, 40, MANY, field="image").shape == (3, 40, 60)


def test_a_turned_photograph_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = read_image(encoded(IMAGE, exif=exif), 40, 60, MANY, field="image")
    turned = torch.from_numpy(np.array(IMAGE.transpose(Image.Transpose.ROTATE_270)).copy())
    assert torch.equal(upright, turned.permute(2, 0, 1))


def png_of(width: int, height: int) -> bytes:
    """A PNG's header alone, which may lie."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def webp_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(IMAGE, "WEBP", lossless=True, exif=b"Exif\0\0II*\0"))
    assert data[12:16] == b"VP8X"
    data[24:27], data[27:30] = (width - 1).to_bytes(3, "little"), (height - 1).to_bytes(3, "little")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        (b"", "IMAGE_FORMAT", r"expected an image file \(PNG, JPEG, WebP\), got an empty one"),
        (b"GIF89a" + bytes(30), "IMAGE_FORMAT", "expected an image file"),
        (png_of(5000, 5000), "IMAGE_TOO_MANY_PIXELS", "expected at most 16777216 pixels, got 5000 x 5000"),
        (png_of(1 << 30, 1 << 30), "IMAGE_TOO_MANY_PIXELS", "expected at most 16777216 pixels"),
        (png_of(100, 100), "IMAGE_UNREADABLE", "expected a whole PNG file, got one that is damaged"),
        (webp_of(1 << 14, 1 << 14), "IMAGE_TOO_MANY_PIXELS", "expected at most 16777216 pixels, got 16384 x 16384"),
        (encoded(IMAGE)[:200], "IMAGE_UNREADABLE", "expected a whole PNG file"),
        (encoded(IMAGE, "JPEG")[:300], "IMAGE_UNREADABLE", "expected a whole JPEG file"),
        (encoded(IMAGE, "WEBP")[:60], "IMAGE_UNREADABLE", "expected a whole WebP file"),
        (
            encoded(IMAGE, "PNG")[:11] + b"\0" + encoded(IMAGE, "PNG")[12:],
            "IMAGE_UNREADABLE",
            "expected a whole PNG file",
        ),
    ],
)
def test_files_that_are_none(data: bytes, reason: str, message: str) -> None:
    refused(lambda: read_image(data, 64, 64, MANY, field="image"), reason=reason, match=message, field="image")


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        [
            encoded(IMAGE, format, **options)
            for format, options in [("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})]
        ]
    ),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=8),
    st.integers(0, 1 << 16),
)
def test_damage_is_refused_or_read_and_nothing_else(data: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        pixels = read_image(bytes(damaged[: cut % len(damaged)] or damaged), 64, 64, MANY, field="image")
    except InvalidArgument as error:
        assert error.reason in {"IMAGE_FORMAT", "IMAGE_UNREADABLE", "IMAGE_TOO_MANY_PIXELS", "IMAGE_ANIMATED"}
    else:
        assert pixels.shape == (3, 64, 64)


def test_what_is_transparent_is_laid_on_white() -> None:
    pixels = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    pixels.paste((200, 0, 0, 255), (0, 0, 4, 4))
    pixels.putpixel((7, 3), (0, 0, 0, 128))
    for data in (encoded(pixels), encoded(pixels, "WEBP", lossless=True), encoded(pixels.quantize(8))):
        seen = read_image(data, 8, 4, MANY, field="image")
        assert seen[:, 0, 0].tolist() == [200, 0, 0] and seen[:, 0, 5].tolist() == [255] * 3
        assert 120 <= int(seen[0, 3, 7]) <= 135


def test_16_bits_of_grey_are_scaled_and_not_clipped() -> None:
    grey = Image.fromarray(np.full((4, 8), 0x8000, np.uint16))
    assert set(read_image(encoded(grey), 8, 4, MANY, field="image").flatten().tolist()) <= {127, 128}
