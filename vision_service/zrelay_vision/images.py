"""Image files to upright RGB pixels: format and size looked at before anything is decoded."""

import io
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from zrelay_shared.errors import InvalidArgument

FORMATS = ("PNG", "JPEG", "WebP")
_BAND_PIXELS = 1 << 20
"""How much is converted at a time: beside the file's own pixels and the picture made of them there is no third copy."""
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what makes the picture upright (CIPA DC-008, tag 0112)."""
_FROM_THE_END = (3, 4, 6, 7)
"""Orientations whose first row becomes the last row or column of the upright picture."""
_SIDEWAYS = (5, 6, 7, 8)
"""Orientations whose rows become columns."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An upright RGB image and the SHA-256 (hex) of the file that it came from."""

    sha256: str
    width: int
    height: int
    image: Image.Image


def format_of(data: bytes) -> str | None:
    """PNG, JPEG or WEBP by the first bytes, as PIL spells them; None for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def decode(data: bytes, *, max_pixels: int, field: str) -> Image.Image:
    """The picture in `data` as 8-bit RGB, upright by its EXIF orientation, what is transparent laid on white.

    Colours are taken as they stand: a colour profile is not applied. A JPEG is decoded whole, not at a fraction of its
    size: that would change the embeddings of large photographs. At 4 bytes a pixel, PNG and JPEG cost their pixels
    once, or twice where they are converted or turned; libwebp holds twice as much again while it decodes. `field` is
    the path in the request, for refusals.
    Raises InvalidArgument: IMAGE_FORMAT, IMAGE_TOO_MANY_PIXELS (before pixels are allocated), IMAGE_ANIMATED,
    IMAGE_UNREADABLE.
    """
    kind = format_of(data)
    if kind is None:
        raise _refusal(field, "IMAGE_FORMAT", f"an image file ({', '.join(FORMATS)})", f"{len(data)} bytes of another")
    if kind == "WEBP" and (size := _webp_size(data)) is not None and size[0] * size[1] > max_pixels:
        raise _too_many(field, max_pixels, f"{size[0]} x {size[1]}")  # PIL allocates the canvas when it opens the file
    try:
        with warnings.catch_warnings():  # the bound below is ours, whatever PIL thinks of a size
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=[kind])
        width, height = image.size
        # A JPEG's further frames are no animation: phones put a depth or gain map behind the picture (MPO).
        frames = 1 if kind == "JPEG" else int(getattr(image, "n_frames", 1))
    except Image.DecompressionBombError as error:
        raise _too_many(field, max_pixels, "more than twice what any picture here has") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, KeyError, IndexError, OverflowError) as error:
        raise _unreadable(field, kind) from error
    if width * height > max_pixels:
        raise _too_many(field, max_pixels, f"{width} x {height}")
    if frames > 1:
        raise _refusal(field, "IMAGE_ANIMATED", "a still picture", f"{frames} frames; send one of them")
    try:
        image.load()
        return _upright(image, image.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # decoders of damaged files fail in any way they like
        raise _unreadable(field, kind) from error


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """A loaded file as upright RGB, made band by band."""
    turn = _UPRIGHT.get(orientation)
    # A WebP's decoder lives as long as its picture, and holds two more of its size.
    if turn is None and image.mode == "RGB" and not image.has_transparency_data and image.format != "WEBP":
        return image
    width, height = image.size
    plain = Image.new("RGB", (height, width) if orientation in _SIDEWAYS else (width, height), None)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = _rgb(image.crop((0, top, width, bottom)))
        at = height - bottom if orientation in _FROM_THE_END else top
        plain.paste(band if turn is None else band.transpose(turn), (at, 0) if orientation in _SIDEWAYS else (0, at))
    return plain


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height by the header of a WebP's first chunk (RFC 9649, sections 2.5 to 2.7); None for an unknown one,
    which PIL refuses."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little")

    match data[12:16]:
        case b"VP8X":
            return number(24, 3) + 1, number(27, 3) + 1
        case b"VP8L":
            return (number(21, 4) & 0x3FFF) + 1, (number(21, 4) >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            return number(26, 2) & 0x3FFF, number(28, 2) & 0x3FFF
    return None


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a band, what is transparent laid on white."""
    if image.mode.startswith("I"):  # 16 bits of grey, which PIL would clip instead of scaling
        return image.convert("I").point(lambda value: value * (255 / 65535)).convert("L").convert("RGB")
    if image.has_transparency_data:
        laid = image.convert("RGBA")
        white = Image.new("RGBA", laid.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, laid).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _too_many(field: str, max_pixels: int, got: str) -> InvalidArgument:
    return _refusal(field, "IMAGE_TOO_MANY_PIXELS", f"at most {max_pixels} pixels", f"{got}; make it smaller")


def _unreadable(field: str, kind: str) -> InvalidArgument:
    return _refusal(
        field, "IMAGE_UNREADABLE", f"a whole {kind} file", "one that is damaged or cut short; send it again"
    )


def _refusal(field: str, reason: str, expected: str, got: str) -> InvalidArgument:
    return InvalidArgument(
        f"{field}: expected {expected}, got {got}",
        field=field,
        reason=reason,
        metadata={"expected": expected, "got": got},
    )
