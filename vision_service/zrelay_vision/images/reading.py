"""Decodes image files to upright RGB pixels. Format and size are checked before pixels are allocated."""

import io
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from zrelay_shared.errors import InvalidArgument, invalid

FORMATS = ("PNG", "JPEG", "WebP")
_BAND_PIXELS = 1 << 20
"""Pixels converted at a time, so that no third copy exists beside the pixels of the file and of the result."""
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
"""EXIF orientation to the transposition that makes the image upright (CIPA DC-008, tag 0112)."""
_FROM_THE_END = (3, 4, 6, 7)
"""Orientations whose first row becomes the last row or column of the upright image."""
_SIDEWAYS = (5, 6, 7, 8)
"""Orientations whose rows become columns."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An upright RGB image, and the SHA-256 (hex) of its file."""

    sha256: str
    width: int
    height: int
    image: Image.Image


def format_of(data: bytes) -> str | None:
    """Detects PNG, JPEG or WEBP (as PIL spells them) by the first bytes. Returns None for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def decode(data: bytes, *, max_pixels: int, field: str) -> Image.Image:
    """Decodes an image file.

    Transparent pixels are blended with white. Colour profiles are ignored. A JPEG is always decoded at full size: a
    reduced size would change the embeddings of large photographs. Memory: 4 bytes per pixel once, or twice if the image
    is converted or turned; libwebp needs twice as much again while it decodes.

    Args:
        data: The file.
        max_pixels: Pixels that the image may have.
        field: Path in the request, for refusals.

    Returns:
        An 8-bit RGB image, upright by its EXIF orientation.

    Raises:
        InvalidArgument: IMAGE_FORMAT, IMAGE_TOO_MANY_PIXELS (before pixels are allocated), IMAGE_ANIMATED,
            IMAGE_UNREADABLE.
    """
    kind = format_of(data)
    if kind is None:
        raise invalid(
            field,
            f"an image file ({', '.join(FORMATS)})",
            f"{len(data)} bytes in another format",
            reason="IMAGE_FORMAT",
        )
    if kind == "WEBP" and (size := _webp_size(data)) is not None and size[0] * size[1] > max_pixels:
        raise _too_many(field, max_pixels, f"{size[0]} x {size[1]}")  # PIL allocates the canvas when it opens a WebP
    try:
        with warnings.catch_warnings():  # max_pixels is the only limit
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=[kind])
        width, height = image.size
        # Further frames of a JPEG are not an animation: phones append a depth or gain map (MPO).
        frames = 1 if kind == "JPEG" else int(getattr(image, "n_frames", 1))
    except Image.DecompressionBombError as error:
        raise _too_many(field, max_pixels, "more than twice the largest allowed size") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, KeyError, IndexError, OverflowError) as error:
        raise _unreadable(field, kind) from error
    if width * height > max_pixels:
        raise _too_many(field, max_pixels, f"{width} x {height}")
    if frames > 1:
        raise invalid(field, "a still image", f"{frames} frames", reason="IMAGE_ANIMATED", remedy="send one of them")
    try:
        image.load()
        return _upright(image, image.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # decoders raise many types for damaged files
        raise _unreadable(field, kind) from error


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Converts a loaded file to upright RGB, band by band."""
    turn = _UPRIGHT.get(orientation)
    # The decoder of a WebP lives as long as its image and holds two more copies of it.
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
    """Reads width and height from the first chunk of a WebP (RFC 9649, sections 2.5 to 2.7).

    Returns None for an unknown chunk, which PIL refuses.
    """

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
    """Converts a band to 8-bit RGB, with transparent pixels blended with white."""
    if image.mode.startswith("I"):  # 16-bit grey: PIL would clip it instead of scaling
        return image.convert("I").point(lambda value: value * (255 / 65535)).convert("L").convert("RGB")
    if image.has_transparency_data:
        laid = image.convert("RGBA")
        white = Image.new("RGBA", laid.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, laid).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _too_many(field: str, max_pixels: int, got: str) -> InvalidArgument:
    return invalid(
        field, f"at most {max_pixels} pixels", got, reason="IMAGE_TOO_MANY_PIXELS", remedy="make the image smaller"
    )


def _unreadable(field: str, kind: str) -> InvalidArgument:
    return invalid(
        field,
        f"a whole {kind} file",
        "a damaged or truncated one",
        reason="IMAGE_UNREADABLE",
        remedy="send it again",
    )
