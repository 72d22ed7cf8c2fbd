"""The size of an image that starts from a picture, if the caller chooses none."""

import math

from zrelay_client.info import Limits


def start_size(picture: tuple[int, int], default: tuple[int, int], limits: Limits) -> tuple[int, int]:
    """Returns the size in pixels of an image that starts from a picture, if the caller chooses none.

    It has the picture's shape and is no larger than the default area. A side that would be outside the limits is moved
    to the limit, then the shape changes only where the picture is too narrow for both limits.

    Args:
        picture: Upright width and height of the picture.
        default: Default width and height of the checkpoint (`GeneratorInfo.defaults`).
        limits: Limits of the generator (`GeneratorInfo.limits`).

    Returns:
        Width and height, multiples of `limits.size_multiple`. They differ from `picture` where the caller should be
        notified.
    """
    multiple = limits.size_multiple
    least, most = -(-limits.min_side // multiple) * multiple, limits.max_side // multiple * multiple
    area = min(default[0] * default[1], limits.max_pixels)
    scale = min(1.0, math.sqrt(area / (picture[0] * picture[1])))
    scale = min(max(scale, least / min(picture)), most / max(picture))
    width, height = (min(max(round(side * scale / multiple) * multiple, least), most) for side in picture)
    while width * height > limits.max_pixels and max(width, height) > least:  # rounding, or a short side at its limit
        width, height = (width - multiple, height) if width >= height else (width, height - multiple)
    return width, height
