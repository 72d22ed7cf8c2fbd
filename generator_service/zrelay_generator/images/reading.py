"""Decodes image files of requests. Sizes are checked before anything is decoded."""

import io
import struct

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP")


class ImageAreaError(ValueError):
    """A picture has too many pixels."""


def read_image(data: bytes, width: int, height: int, max_pixels: int) -> Tensor:
    """Decodes a PNG, JPEG or WebP file and resizes it by Lanczos as diffusers' VaeImageProcessor does.

    Args:
        data: The file.
        width, height: Size of the result in pixels.
        max_pixels: Greatest area of the file's picture.

    Returns:
        [3, height, width] uint8 RGB.

    Raises:
        ValueError: As `open_picture`.
    """
    picture = open_picture(data, max_pixels)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, 3).permute(2, 0, 1).contiguous()


def open_picture(data: bytes, max_pixels: int) -> Image.Image:
    """Decodes a PNG, JPEG or WebP file to RGB, with EXIF orientation applied and transparency on white.

    The vision service decodes references in the same way.

    Raises:
        ValueError: The file has another format, is damaged, or has more than `max_pixels` pixels.
    """
    try:
        _check_area(_webp_size(data), max_pixels)  # PIL allocates the canvas of a WebP when it opens the file
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check_area(opened.size, max_pixels)
            opened.load()
            return _rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise ValueError(f"expected a {', '.join(FORMATS)} file, got {len(data)} bytes of another format") from None
    except ImageAreaError:
        raise
    except Image.DecompressionBombError:
        raise ValueError(f"expected at most {max_pixels} pixels, got far more") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, LookupError, TypeError, OverflowError) as error:
        # PIL raises these for truncated and damaged files.
        reason = (str(error) or type(error).__name__).splitlines()[0][:80]
        raise ValueError(f"expected a whole image file, got a damaged one ({reason}); save it again") from None


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # PIL clips 16 bits of grey instead of scaling them
        return picture.convert("I").point(lambda value: value * (255 / 65535)).convert("L").convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def _check_area(size: tuple[int, int] | None, max_pixels: int) -> None:
    if size is not None and size[0] * size[1] > max_pixels:
        raise ImageAreaError(f"expected at most {max_pixels} pixels, got {size[0]} x {size[1]}; make it smaller")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Returns (width, height) from the header of a WebP file, None for any other file (RFC 9649)."""
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None
