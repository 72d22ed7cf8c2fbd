"""Decodes image files to upright RGB pixels, for all services. Format and size are checked before pixels are allocated.

The decoder sees only the parts of a file that decide its pixels (`without_side_data`).
"""

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image

from zrelay_shared.errors import Cancelled, InvalidArgument, invalid
from zrelay_shared.image_container import (
    FORMATS,
    ByteWindow,
    DamagedImageError,
    ImageHeader,
    format_of,
    most_code_sets,
    read_header,
    without_side_data,
)

Picture: TypeAlias = Image.Image
"""An image in memory."""
BYTES_PER_PIXEL = 17
"""Memory for one pixel while a file is decoded, at most: libwebp holds two copies and PIL two. A JPEG of several scans
needs 12 to 16, a PNG 4 to 8."""
_CODE_SET_PIXELS = 1200
"""Pixels that take as much memory as one set of Huffman codes of a lossless WebP, 20 KiB. A file of 295 KB with a set
for each block of a picture of one megapixel takes 369 MiB; the most are 1.3 GiB."""
_BAND_PIXELS = 1 << 20
"""Pixels converted at a time, so that no third copy exists beside the pixels of the file and of the result."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the transposition that makes the image upright (CIPA DC-008, tag 0112)."""
_FROM_THE_END = (3, 4, 6, 7)
"""Orientations whose first row becomes the last row or column of the upright image."""
_SIDEWAYS = (5, 6, 7, 8)
"""Orientations whose rows become columns."""

# The size is checked by `open_picture`. PIL would warn of large pictures, and a filter for its warnings is not safe in
# several threads.
Image.MAX_IMAGE_PIXELS = None
# PIL describes every part of a file at DEBUG.
logging.getLogger("PIL").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True, eq=False)
class PictureFile:
    """An image file whose header is sound and whose size is allowed.

    Attributes:
        data: The file.
        header: Its header.
        max_pixels: Pixels that the image may have.
        field: Path in the request, for refusals.
    """

    data: bytes
    header: ImageHeader
    max_pixels: int
    field: str

    @property
    def pixels(self) -> int:
        """Pixels of the image."""
        return self.header.width * self.header.height

    @property
    def cost(self) -> int:
        """Pixels that take as much memory as the file while it is decoded, at `BYTES_PER_PIXEL`."""
        return self.pixels + _CODE_SET_PIXELS * most_code_sets(self.data, self.header)

    def decode(self, cancelled: Callable[[], bool] = lambda: False) -> Picture:
        """Decodes the file. Arguments, result and errors are those of `decode_picture`."""
        format = self.header.format
        try:
            file = _CheckedFile(without_side_data(self.data).getvalue(), cancelled)
            image = Image.open(file, formats=[format.upper()])
            _check_area(image.width, image.height, self.max_pixels, self.field)
            image.load()
            return _upright(image, self.header.orientation, cancelled)
        except (InvalidArgument, Cancelled, MemoryError):
            raise
        except DamagedImageError as error:
            raise _unreadable(self.field, format, f": {error}") from error
        except Exception as error:  # decoders raise many types for damaged files
            raise _unreadable(self.field, format) from error


def decode_picture(
    data: bytes, *, max_pixels: int, field: str, cancelled: Callable[[], bool] = lambda: False
) -> Picture:
    """Decodes an image file.

    Transparent pixels are blended with white. Colour profiles and other side data are ignored, whatever state they are
    in. A JPEG is always decoded at full size: a reduced size would change the embeddings of large photographs. Memory:
    the file once more, and at most `BYTES_PER_PIXEL` for each pixel.

    Args:
        data: The file.
        max_pixels: Pixels that the image may have.
        field: Path in the request, for refusals.
        cancelled: Returns whether the result is no longer needed. Decoding ends after the present 64 KiB of the file.

    Returns:
        An 8-bit RGB image, upright by its EXIF orientation.

    Raises:
        InvalidArgument: IMAGE_FORMAT, IMAGE_TOO_MANY_PIXELS (before pixels are allocated), IMAGE_ANIMATED,
            IMAGE_UNREADABLE.
        Cancelled: The result is no longer needed.
    """
    return open_picture(data, max_pixels=max_pixels, field=field).decode(cancelled)


def open_picture(data: bytes, *, max_pixels: int, field: str) -> PictureFile:
    """Reads the header of an image file. Arguments and errors are those of `decode_picture`. Allocates no pixels."""
    format = format_of(data)
    if format is None:
        raise invalid(
            field,
            f"an image file ({', '.join(FORMATS)})",
            f"{len(data)} bytes in another format" if data else "an empty one",
            reason="IMAGE_FORMAT",
            remedy="convert it" if data else "copy it again",
        )
    try:
        header = read_header(ByteWindow.of_bytes(data))
    except DamagedImageError as error:
        raise _unreadable(field, format, f": {error}") from error
    _check_area(header.width, header.height, max_pixels, field)
    if header.frames > 1:
        raise invalid(
            field, "a still image", f"{header.frames} frames", reason="IMAGE_ANIMATED", remedy="send one of them"
        )
    return PictureFile(data, header, max_pixels, field)


def plain_picture(width: int, height: int, colour: tuple[int, int, int] = (0, 0, 0)) -> Picture:
    """Returns an RGB picture of one colour, which is (red, green, blue)."""
    return Image.new("RGB", (width, height), colour)


def resized(picture: Picture, width: int, height: int) -> Picture:
    """Returns the picture in another size in pixels, by Lanczos."""
    return picture.resize((width, height), Image.Resampling.LANCZOS)


class _CheckedFile(io.BytesIO):
    """A file in memory, for a decoder that ends once its result is no longer needed."""

    def __init__(self, data: bytes, cancelled: Callable[[], bool]) -> None:
        super().__init__(data)
        self._cancelled = cancelled

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads bytes. Raises Cancelled."""
        _check(self._cancelled)
        return super().read(size)


def _check(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("the caller left while its image was decoded")


def _upright(image: Picture, orientation: int, cancelled: Callable[[], bool]) -> Picture:
    """Converts a loaded file to upright RGB, band by band."""
    turn = _UPRIGHT.get(orientation)
    # The decoder of a WebP lives as long as its image and holds two more copies of it.
    if turn is None and image.mode == "RGB" and not image.has_transparency_data and image.format != "WEBP":
        return image
    width, height = image.size
    plain = Image.new("RGB", (height, width) if orientation in _SIDEWAYS else (width, height), None)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        _check(cancelled)
        bottom = min(top + rows, height)
        band = _rgb(image.crop((0, top, width, bottom)))
        at = height - bottom if orientation in _FROM_THE_END else top
        plain.paste(band if turn is None else band.transpose(turn), (at, 0) if orientation in _SIDEWAYS else (0, at))
    return plain


def _rgb(image: Picture) -> Picture:
    """Converts a band to 8-bit RGB, with transparent pixels blended with white."""
    if image.mode.startswith("I"):  # 16-bit grey: PIL would clip it instead of scaling
        return image.convert("I").point(lambda value: value * (255 / 65535)).convert("L").convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_area(width: int, height: int, max_pixels: int, field: str) -> None:
    if width * height > max_pixels:
        raise _too_many(field, max_pixels, f"{width} x {height}")


def _too_many(field: str, max_pixels: int, got: str) -> InvalidArgument:
    return invalid(
        field, f"at most {max_pixels} pixels", got, reason="IMAGE_TOO_MANY_PIXELS", remedy="make the image smaller"
    )


def _unreadable(field: str, format: str, detail: str = "") -> InvalidArgument:
    return invalid(
        field,
        f"a whole {format} file",
        f"one that is damaged, truncated or of an unusual kind{detail}",
        reason="IMAGE_UNREADABLE",
        remedy="save it again",
    )
