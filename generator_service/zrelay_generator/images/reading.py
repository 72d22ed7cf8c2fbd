"""Decodes image files of requests to tensors."""

import torch
from torch import Tensor

from zrelay_shared.pictures import Picture, decode_picture, resized


def read_image(data: bytes, width: int, height: int, max_pixels: int, *, field: str) -> Tensor:
    """Decodes an image file and resizes it by Lanczos as diffusers' VaeImageProcessor does.

    Args:
        data: The file.
        width, height: Size of the result in pixels.
        max_pixels: Greatest area of the file's picture.
        field: Path in the request, for refusals.

    Returns:
        [3, height, width] uint8 RGB.

    Raises:
        InvalidArgument: As `decode_picture`.
    """
    picture = decode_picture(data, max_pixels=max_pixels, field=field)
    return pixels_of(picture if picture.size == (width, height) else resized(picture, width, height))


def pixels_of(picture: Picture) -> Tensor:
    """Returns an RGB picture as [3, height, width] uint8."""
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1).contiguous()
