"""The size of an image that starts from a picture, if the caller chooses none."""

import math

from zrelay_client.events import Notice
from zrelay_client.image_files import image_size
from zrelay_client.info import GeneratorInfo, Limits
from zrelay_client.options import GenerateOptions


def with_size(options: GenerateOptions, generator: GeneratorInfo) -> tuple[GenerateOptions, Notice | None]:
    """Returns options whose image to start from decides about the size, if they do not set it.

    With a width or a height alone, the other side keeps the picture's shape as far as the limits allow.

    Args:
        options: The options of a generation.
        generator: The generator that reports its default size and its limits.

    Returns:
        The options with a size, and a notice if the image has another size than its picture; without an image to start
        from the options as they are.

    Raises:
        InvalidArgument: IMAGE_FORMAT, IMAGE_UNREADABLE, the picture has no size that can be read.
    """
    given, limits = (options.width, options.height), generator.limits
    if options.image is None or None not in given or limits.size_multiple == 0:  # 0: an older generator
        return options, None
    picture = image_size(options.image)
    if given == (None, None):
        width, height = start_size(picture, (generator.defaults.width, generator.defaults.height), limits)
    else:
        width, height = (_other_side(picture, given, index, limits) for index in (0, 1))
    sized = options.replaced(width=width, height=height)
    if (width, height) == picture:
        return sized, None
    message = (
        f"the image to start from has {picture[0]} x {picture[1]} pixels: the new image is {width} x {height}, in the "
        "same shape as far as possible; set width and height to choose another size"
    )
    return sized, Notice("size", message)


def _other_side(picture: tuple[int, int], given: tuple[int | None, int | None], index: int, limits: Limits) -> int:
    """Returns the side that is given, or the one that keeps the shape of the picture, within the limits."""
    side, other = given[index], given[1 - index]
    if side is not None or other is None:
        return side or 0
    least, most = _range(limits)
    fitting = round(other * picture[index] / picture[1 - index] / limits.size_multiple) * limits.size_multiple
    if 0 < other <= limits.max_pixels:
        most = max(least, min(most, limits.max_pixels // other // limits.size_multiple * limits.size_multiple))
    return min(max(fitting, least), most)


def start_size(picture: tuple[int, int], default: tuple[int, int], limits: Limits) -> tuple[int, int]:
    """Returns the size in pixels of an image that starts from a picture, if the caller chooses none.

    It has the picture's shape, rounded to the multiple, and is no larger than the default area. A side that would be
    outside the limits is moved to the limit: the image of a narrow picture is larger than the default area if its short
    side would be too short, and the shape changes only where the picture is too narrow for both limits.

    Args:
        picture: Upright width and height of the picture.
        default: Default width and height of the checkpoint (`GeneratorInfo.defaults`).
        limits: Limits of the generator (`GeneratorInfo.limits`).

    Returns:
        Width and height, multiples of `limits.size_multiple`. They differ from `picture` where the caller should be
        notified.
    """
    multiple = limits.size_multiple
    least, most = _range(limits)
    area = min(default[0] * default[1], limits.max_pixels)
    scale = min(1.0, math.sqrt(area / (picture[0] * picture[1])))
    scale = min(max(scale, least / min(picture)), most / max(picture))
    width, height = (min(max(round(side * scale / multiple) * multiple, least), most) for side in picture)
    if scale < 1.0 and width * height > area:
        width, height = _rounded_down(picture, scale, multiple, least, area) or (width, height)
    if width * height > limits.max_pixels:  # a short side at its limit: the long side alone becomes smaller
        short = max(multiple, min(width, height))
        fitting = max(short, limits.max_pixels // short // multiple * multiple)
        width, height = min(width, fitting), min(height, fitting)
    while width * height > limits.max_pixels and max(width, height) > least:  # rounding
        width, height = (width - multiple, height) if width >= height else (width, height - multiple)
    return width, height


def _rounded_down(
    picture: tuple[int, int], scale: float, multiple: int, least: int, area: int
) -> tuple[int, int] | None:
    """Returns the multiples around the scaled sides that keep the shape best within an area; None if none does."""
    around = [[math.floor(side * scale / multiple) * multiple + more for more in (0, multiple)] for side in picture]
    fitting = [(w, h) for w in around[0] for h in around[1] if min(w, h) >= least and w * h <= area]
    shape = picture[0] / picture[1]
    return min(fitting, key=lambda size: (abs(math.log(size[0] / size[1] / shape)), -size[0] * size[1]), default=None)


def _range(limits: Limits) -> tuple[int, int]:
    """Returns the smallest and the largest side that are multiples of `limits.size_multiple`."""
    multiple = limits.size_multiple
    return -(-limits.min_side // multiple) * multiple, limits.max_side // multiple * multiple
