"""Images for tests, made from a seed, and their files."""

import io
import random
from typing import Any

from PIL import Image


def picture(width: int = 128, height: int = 96, seed: int = 0) -> Image.Image:
    """Returns an RGB image of smooth random colours, the same for the same seed."""
    coarse = Image.frombytes("RGB", (4, 4), random.Random(seed).randbytes(4 * 4 * 3))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Returns the bytes of an image file. `options` go to PIL's `Image.save`."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int = 128, height: int = 96, seed: int = 0) -> bytes:
    """Returns the PNG file of `picture`."""
    return encoded(picture(width, height, seed))


def solid_png(colour: tuple[int, int, int], width: int = 128, height: int = 128) -> bytes:
    """Returns a PNG file of one colour."""
    return encoded(Image.new("RGB", (width, height), colour))
