"""Reference images of an Omni job: which are taken, and how large they are read."""

import math

import torch
from PIL import Image
from torch import Tensor

from zrelay_generator.images.reading import open_picture

RESIZED_ABOVE = 1024 * 1024
"""Pixels above which a reference is resized to the area of the picture that is painted."""
LEAST_SIDE = 64
MOST_ASPECT = 8


def read_reference(data: bytes, target_area: int, multiple: int, max_side: int, max_pixels: int) -> Tensor:
    """A PNG, JPEG or WebP file -> [3, h, w] uint8 RGB, h and w divisible by `multiple`, at most `max_side`.

    As ZImageOmniPipeline has it: above 1024 * 1024 pixels resized to `target_area` by Lanczos, then cropped in the
    middle. Raises ValueError for a file of more than `max_pixels`, sides below 64 pixels or more than 8 to 1 (the
    pipeline's `check_image_input`), and where a side would be more than `max_side`.
    """
    picture = open_picture(data, max_pixels)
    if min(picture.size) < LEAST_SIDE or max(picture.size) > MOST_ASPECT * min(picture.size):
        raise ValueError(
            f"expected sides of at least {LEAST_SIDE} pixels, one at most {MOST_ASPECT} times the other, got "
            f"{_sides(picture)}; crop it"
        )
    if picture.width * picture.height > RESIZED_ABOVE:
        scale = math.sqrt(target_area / (picture.width * picture.height))
        size = (int(picture.width * scale), int(picture.height * scale))
        if multiple > min(size) or max(size) >= max_side + multiple:
            raise ValueError(
                f"expected sides of {multiple} to {max_side} pixels once it has the picture's {target_area} pixels, "
                f"got {size[0]} x {size[1]}; send it with at most {RESIZED_ABOVE} pixels, which are not resized"
            )
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    width, height = (side // multiple * multiple for side in picture.size)
    if max(width, height) > max_side:
        raise ValueError(f"expected sides of at most {max_side} pixels, got {_sides(picture)}; make it smaller")
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    cropped = picture.crop((left, top, left + width, top + height))
    pixels = torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, 3).permute(2, 0, 1).contiguous()


def _sides(picture: Image.Image) -> str:
    return f"{picture.width} x {picture.height}"
