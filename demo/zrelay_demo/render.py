"""Renders a scene as an image."""

import numpy as np
from PIL import Image, ImageDraw

from .outlines import outline
from .scenes import COLOURS, RGB, Object, Scene

_OVERSAMPLE = 3
"""Scenes are drawn this many times larger and then reduced, for smooth edges."""


def render(scene: Scene) -> Image.Image:
    """Returns the scene as an RGB image of its resolution."""
    size = (scene.width * _OVERSAMPLE, scene.height * _OVERSAMPLE)
    canvas = Image.new("RGB", size, COLOURS[scene.background])
    for item in scene.objects:
        _draw(canvas, item)
    return canvas.reduce(_OVERSAMPLE)


def shade(colour: str) -> RGB:
    """Returns the second colour of stripes and dots: a darker one, or grey for black."""
    if colour == "black":
        return (110, 110, 110)
    red, green, blue = (int(value * 0.55) for value in COLOURS[colour])
    return red, green, blue


def line_width(r: float) -> float:
    """Returns the line width in pixels of an outlined shape with radius `r`."""
    return max(3.5, 0.17 * r)


def period(r: float) -> float:
    """Returns the distance in pixels between stripes or dots for radius `r`."""
    return max(10.0, 0.5 * r)


def _draw(canvas: Image.Image, item: Object) -> None:
    corners = [(x * _OVERSAMPLE, y * _OVERSAMPLE) for x, y in outline(item.shape, item.cx, item.cy, item.r)]
    pen = ImageDraw.Draw(canvas)
    if item.style == "solid":
        pen.polygon(corners, fill=COLOURS[item.colour])
    elif item.style == "outlined":
        width = round(_OVERSAMPLE * line_width(item.r))
        pen.line(corners + corners[:2], fill=COLOURS[item.colour], width=width, joint="curve")
    else:
        mask = Image.new("L", canvas.size, 0)
        ImageDraw.Draw(mask).polygon(corners, fill=255)
        left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
        pattern = _pattern(item, left, top, right, bottom)
        canvas.paste(pattern, (left, top), mask.crop((left, top, right, bottom)))


def _pattern(item: Object, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """Returns the stripes or dots of an object within a box, in oversampled pixels.

    The pattern is aligned with the object's centre.
    """
    x = np.arange(left, right, dtype=np.float32)[None, :] / _OVERSAMPLE - item.cx
    y = np.arange(top, bottom, dtype=np.float32)[:, None] / _OVERSAMPLE - item.cy
    step = period(item.r)
    if item.style == "striped":
        dark = np.broadcast_to((y / step) % 1 < 0.5, (bottom - top, right - left))
    else:
        dark = _wrap(x, step) ** 2 + _wrap(y, step) ** 2 < (0.33 * step) ** 2
    colours = np.array([COLOURS[item.colour], shade(item.colour)], dtype=np.uint8)
    return Image.fromarray(colours[dark.astype(np.int8)])


def _wrap(offset: np.ndarray, step: float) -> np.ndarray:
    """Wraps offsets to [-step / 2, step / 2)."""
    folded: np.ndarray = (offset + step / 2) % step - step / 2
    return folded
