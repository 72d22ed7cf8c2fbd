"""The size of a picture from its header, and the size of an image that starts from it."""

import io
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.images import encoded, picture
from tests.helpers.refusals import refused
from zrelay_client.image_files import image_size
from zrelay_client.info import Limits
from zrelay_client.start_size import start_size
from zrelay_shared.image_container import ByteWindow, read_header

LIMITS = Limits(
    size_multiple=16, min_side=64, max_side=2048, max_pixels=2048 * 2048, max_steps=100, max_images=4, text_limit=512,
    embeds_width=2560,
)  # fmt: skip


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_after_orientation(format: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(40, 24), format, exif=exif.tobytes())
    path = tmp_path / "picture"
    path.write_bytes(data)
    assert image_size(data) == image_size(path) == ((24, 40) if orientation >= 5 else (40, 24))


def test_only_what_is_needed_is_read() -> None:
    clean = encoded(picture(900, 700), "JPEG", quality=100)
    large = clean[:2] + (b"\xff\xe5\xff\xff" + bytes(65_533)) * 200 + clean[2:]
    for data in (large, encoded(picture(900, 700)), encoded(picture(900, 700), "WEBP", quality=100)):
        read, window = [0], ByteWindow.of_file(io.BytesIO(data))

        def counted(at: int, size: int, window: ByteWindow = window, read: list[int] = read) -> bytes:
            read[0] += size
            return window.read(at, size)

        assert read_header(ByteWindow(counted, window.length)).upright_size == (900, 700)
        assert read[0] < 20_000


def test_what_has_no_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(b"GIF89a" + bytes(20))
    refused(lambda: image_size(path), reason="IMAGE_FORMAT", match="a.gif")
    for format in ("PNG", "JPEG", "WEBP"):
        refused(partial(image_size, encoded(picture(), format)[:24]), reason="IMAGE_UNREADABLE")


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ((512, 128), (512, 128)),
        ((1024, 1024), (1024, 1024)),
        ((500, 300), (496, 304)),
        ((4000, 3000), (1184, 880)),
        ((3000, 4000), (880, 1184)),
        ((5000, 3000), (1312, 784)),  # rounding both sides up would exceed the area
        ((100, 20), (320, 64)),  # the short side is moved to the limit, with the same shape
        ((10_000, 100), (2048, 64)),  # too narrow for both limits
        ((1, 1), (64, 64)),
    ],
)
def test_size_of_an_image_that_starts_from_a_picture(picture: tuple[int, int], expected: tuple[int, int]) -> None:
    assert start_size(picture, (1024, 1024), LIMITS) == expected


@given(
    picture=st.tuples(st.integers(1, 70_000), st.integers(1, 70_000)),
    multiple=st.sampled_from([8, 16, 32]),
    least=st.integers(1, 300),
    most=st.integers(512, 4096),
    max_pixels=st.integers(512 * 512, 4096 * 4096),
    default=st.sampled_from([(128, 128), (1024, 1024), (1280, 720)]),
)
def test_a_size_is_within_the_limits(
    picture: tuple[int, int], multiple: int, least: int, most: int, max_pixels: int, default: tuple[int, int]
) -> None:
    limits = Limits(multiple, least, most, max_pixels, 100, 4, 512, 2560)
    width, height = start_size(picture, default, limits)
    assert width % multiple == height % multiple == 0
    assert least <= min(width, height) and max(width, height) <= most and width * height <= max_pixels
    lowest = -(-least // multiple) * multiple
    if min(width, height) > lowest + multiple:
        assert width * height <= max(default[0] * default[1], (picture[0] + multiple) * (picture[1] + multiple))
