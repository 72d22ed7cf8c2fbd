"""Decodes image files of requests to tensors."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from zrelay_shared.pictures import Picture, open_picture, resized
from zrelay_shared.service.decoding import Decoding


def read_image(
    data: bytes, width: int, height: int, max_pixels: int, *, field: str, decoding: Decoding | None = None
) -> Tensor:
    """Decodes an image file and resizes it by Lanczos as diffusers' VaeImageProcessor does.

    Args:
        data: The file.
        width, height: Size of the result in pixels.
        max_pixels: Greatest area of the file's picture.
        field: Path in the request, for refusals.
        decoding: That of the caller; None for one without other callers.

    Returns:
        [3, height, width] uint8 RGB.

    Raises:
        InvalidArgument, Cancelled: As `decode_picture`.
    """
    with decoded(data, max_pixels, field=field, decoding=decoding) as picture:
        return pixels_of(picture if picture.size == (width, height) else resized(picture, width, height))


@contextmanager
def decoded(data: bytes, max_pixels: int, *, field: str, decoding: Decoding | None = None) -> Iterator[Picture]:
    """Decodes an image file once its pixels fit beside those of other callers, and holds them for the `with` block.

    Arguments and errors are those of `read_image`.
    """
    file, decoding = open_picture(data, max_pixels=max_pixels, field=field), decoding or Decoding()
    with decoding.reserved(file.cost):
        yield file.decode(decoding.cancelled)


def pixels_of(picture: Picture) -> Tensor:
    """Returns an RGB picture as [3, height, width] uint8."""
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1).contiguous()
