"""Encodes images as PNG, JPEG or WebP with provenance inside, and previews as JPEG."""

import hashlib
import io
from dataclasses import dataclass
from enum import StrEnum

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

PROVENANCE_KEY = "zrelay"
"""Keyword of the PNG iTXt chunk. The other formats carry the same JSON as EXIF UserComment."""
PREVIEW_BYTES = 32 * 1024
"""Greatest size of a preview."""
_USER_COMMENT = 0x9286
_EXIF_IFD = 0x8769
_ASCII = b"ASCII\0\0\0"
_EXIF_BYTES = 60_000
"""Limit of the provenance in EXIF. EXIF is one JPEG segment, which holds 65,533 bytes."""
_PNG_LEVEL = 3
"""zlib level. It takes a third of the time of the default, 6; files are a few percent larger."""


class ImageFormat(StrEnum):
    """File format of a result."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


@dataclass(frozen=True, slots=True)
class WrittenImage:
    """An encoded image.

    Attributes:
        data: The file.
        sha256: SHA-256 (hex) of the file.
    """

    data: bytes
    sha256: str


def pixels_sha256(pixels: Tensor) -> str:
    """Returns the SHA-256 (hex) of pixels [H, W, 3] uint8, RGB, row-major."""
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()


def write_image(pixels: Tensor, format: ImageFormat, quality: int, provenance: str) -> WrittenImage:
    """Encodes an image.

    Args:
        pixels: [H, W, 3] uint8.
        format: File format.
        quality: 1 to 100 for lossy formats. WebP is lossless at 100.
        provenance: JSON in ASCII, "" for none.

    Raises:
        ValueError: The provenance does not fit into the format.
    """
    image = Image.fromarray(pixels.numpy(), "RGB")
    buffer = io.BytesIO()
    if format is ImageFormat.PNG:
        chunks = PngInfo()
        if provenance:
            chunks.add_itxt(PROVENANCE_KEY, provenance)
        image.save(buffer, "PNG", compress_level=_PNG_LEVEL, pnginfo=chunks)
    elif format is ImageFormat.JPEG:
        image.save(buffer, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2, exif=_exif(provenance))
    else:
        image.save(buffer, "WEBP", quality=quality, lossless=quality == 100, exif=_exif(provenance))
    data = buffer.getvalue()
    return WrittenImage(data, hashlib.sha256(data).hexdigest())


def write_preview(pixels: Tensor) -> bytes:
    """Encodes a preview [h, w, 3] uint8 as a JPEG of at most 32 KiB, with less quality first, then smaller."""
    image = Image.fromarray(pixels.numpy(), "RGB")
    while True:
        for quality in (80, 60, 40):
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= PREVIEW_BYTES:
                return buffer.getvalue()
        image = image.reduce(2)


def _exif(provenance: str) -> Image.Exif:
    exif = Image.Exif()
    if provenance:
        if len(provenance) > _EXIF_BYTES:
            raise ValueError(f"provenance: expected at most {_EXIF_BYTES} bytes for this format, got {len(provenance)}")
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _ASCII + provenance.encode("ascii")
    return exif
