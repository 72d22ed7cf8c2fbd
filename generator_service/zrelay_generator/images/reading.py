"""An image file of a request to pixels, bounded before anything is decoded. Beside images.py the one owner of PIL."""

import io
import struct

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP")


def read_image(data: bytes, width: int, height: int, max_pixels: int) -> Tensor:
    """PNG, JPEG or WebP -> [3, height, width] uint8 RGB as `open_picture`, resized by Lanczos as diffusers'
    VaeImageProcessor does.

    Raises as `open_picture`.
    """
    picture = open_picture(data, max_pixels)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, 3).permute(2, 0, 1).contiguous()


def open_picture(data: bytes, max_pixels: int) -> Image.Image:
    """PNG, JPEG or WebP -> an RGB picture of its own size, EXIF orientation honoured, what is transparent laid on
    white: the vision service reads a reference in the same way.

    Raises ValueError for anything else, for a damaged file, and for more than `max_pixels`.
    """
    try:
        _check_area(_webp_size(data), max_pixels)  # PIL allocates a WebP's canvas when it opens the file
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check_area(opened.size, max_pixels)
            opened.load()
            return _rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise ValueError(f"expected a {', '.join(FORMATS)} file, got {len(data)} bytes that are none") from None
    except Image.DecompressionBombError:
        raise ValueError(f"expected at most {max_pixels} pixels, got far more") from None
    except (OSError, SyntaxError, EOFError, struct.error, IndexError, TypeError, KeyError, OverflowError) as error:
        # What PIL's readers raise on files that are cut off or damaged.
        said = (str(error) or type(error).__name__).splitlines()[0][:80]
        raise ValueError(f"expected a whole image file, got a damaged one ({said}); save it again") from None


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits of grey, which PIL would clip instead of scaling
        return picture.convert("I").point(lambda value: value * (255 / 65535)).convert("L").convert("RGB")
    if picture.has_transparency_data:
        laid = picture.convert("RGBA")
        white = Image.new("RGBA", laid.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, laid).convert("RGB")
    return picture.convert("RGB")


def _check_area(size: tuple[int, int] | None, max_pixels: int) -> None:
    if size is not None and size[0] * size[1] > max_pixels:
        raise ValueError(f"expected at most {max_pixels} pixels, got {size[0]} x {size[1]}; make it smaller")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) that a WebP file's header tells, None for anything else (RFC 9649)."""
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
