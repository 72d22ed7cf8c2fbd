"""Decodes reference images of Omni and resizes them."""

import math

from torch import Tensor

from zrelay_generator.images.reading import decoded, pixels_of
from zrelay_shared.pictures import Picture, resized
from zrelay_shared.service.decoding import Decoding

RESIZED_ABOVE = 1024 * 1024
"""Pixels above which a reference is resized to the area of the generated image."""
MIN_SIDE = 64
MAX_ASPECT = 8


def read_reference(
    data: bytes,
    target_area: int,
    multiple: int,
    max_side: int,
    max_pixels: int,
    *,
    field: str,
    decoding: Decoding | None = None,
) -> Tensor:
    """Decodes an image file as ZImageOmniPipeline prepares a reference.

    A picture above 1024 * 1024 pixels is resized by Lanczos, then it is cropped in the middle.

    Args:
        data: The file.
        target_area: Area in pixels after resizing.
        multiple: Divisor of both sides of the result.
        max_side: Greatest side of the result in pixels.
        max_pixels: Greatest area of the file's picture.
        field: Path in the request, for refusals of the file.
        decoding: That of the caller; None for one without other callers.

    Returns:
        [3, h, w] uint8 RGB.

    Raises:
        InvalidArgument, Cancelled: As `decode_picture`.
        ValueError: A side is below 64 pixels, the aspect ratio is above 8 (the pipeline's `check_image_input`), or a
            side of the result would exceed `max_side`.
    """
    with decoded(data, max_pixels, field=field, decoding=decoding) as picture:
        return pixels_of(_prepared(picture, target_area, multiple, max_side))


def _prepared(picture: Picture, target_area: int, multiple: int, max_side: int) -> Picture:
    """Resizes and crops a picture. Arguments and errors are those of `read_reference`."""
    if min(picture.size) < MIN_SIDE or max(picture.size) > MAX_ASPECT * min(picture.size):
        raise ValueError(
            f"expected sides of at least {MIN_SIDE} pixels, one at most {MAX_ASPECT} times the other, got "
            f"{_sides(picture)}; crop it"
        )
    if picture.width * picture.height > RESIZED_ABOVE:
        scale = math.sqrt(target_area / (picture.width * picture.height))
        size = (int(picture.width * scale), int(picture.height * scale))
        if multiple > min(size) or max(size) >= max_side + multiple:
            raise ValueError(
                f"expected sides of {multiple} to {max_side} pixels once it is resized to {target_area} pixels, "
                f"got {size[0]} x {size[1]}; send it with at most {RESIZED_ABOVE} pixels, then it is not resized"
            )
        picture = resized(picture, *size)
    width, height = (side // multiple * multiple for side in picture.size)
    if max(width, height) > max_side:
        raise ValueError(f"expected sides of at most {max_side} pixels, got {_sides(picture)}; make it smaller")
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _sides(picture: Picture) -> str:
    return f"{picture.width} x {picture.height}"
