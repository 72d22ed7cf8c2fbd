"""Detects objects in an image: connected regions that differ from the background, each with its attributes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .outlines import outline
from .regions import Mask, eroded, filled, label, regions
from .render import line_width, shade
from .scenes import COLOURS, SHAPES

_FOREGROUND = 60.0
"""RGB distance from the background above which a pixel belongs to an object."""
_MIN_PIXELS = 40
"""Smallest region in pixels that counts as an object."""
_NAMES = list(COLOURS)
_MAIN = np.array([COLOURS[name] for name in _NAMES], dtype=np.float64)
"""RGB of each colour [colours, 3]."""
_SHADE = np.array([shade(name) for name in _NAMES], dtype=np.float64)
"""RGB of each colour's stripes and dots [colours, 3]."""
_GRID = 32
"""Side of the grid on which shapes are compared, in pixels."""
_MIN_HOLE_SHARE = 0.15
"""Share of the filled region above which its largest hole makes it "outlined"."""
_SMALL_EXTENT = 40
"""Longer side in pixels up to which an outlined region is compared with the templates of small shapes."""
Templates = dict[str, tuple[Mask, float]]
"""Shape -> its silhouette on the grid, and its width divided by its height."""


@dataclass(frozen=True)
class DetectedRegion:
    """One object that was found in an image.

    Attributes:
        shape: One of `SHAPES`.
        colour: One of `COLOURS`.
        style: One of `STYLES`.
        cx: x of the centre of its box in pixels.
        cy: y of the centre of its box in pixels.
        extent: Longer side of its box in pixels.
    """

    shape: str
    colour: str
    style: str
    cx: float
    cy: float
    extent: float


def detect(picture: NDArray[np.uint8]) -> tuple[str, list[DetectedRegion]]:
    """Returns the background colour and the objects of an RGB image, uint8 [h, w, 3]."""
    pixels = picture.astype(np.float64)
    border = np.concatenate(
        [strip.reshape(-1, 3) for strip in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:])]
    )
    background = np.median(border, axis=0)
    name = _NAMES[int(np.square(_MAIN - background).sum(1).argmin())]
    differs = np.sqrt(np.square(pixels - background).sum(-1)) > _FOREGROUND
    return name, [_describe(pixels, mask) for mask in regions(differs, _MIN_PIXELS)]


def _describe(pixels: NDArray[np.float64], mask: Mask) -> DetectedRegion:
    """Returns the attributes of one region."""
    whole = filled(mask)
    ys, xs = np.nonzero(whole)
    width, height = int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1
    colour, style = _colour_and_texture(pixels, mask)
    if _largest_hole(mask, whole) > _MIN_HOLE_SHARE:
        style = "outlined"
    shape = _shape(whole, _OUTLINED[max(width, height) > _SMALL_EXTENT] if style == "outlined" else _SOLID)
    cx, cy = (xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2
    return DetectedRegion(shape, colour, style, float(cx), float(cy), float(max(width, height)))


def _largest_hole(mask: Mask, whole: Mask) -> float:
    """Returns the size of the largest hole as a share of the filled region."""
    holes = np.bincount(label(whole & ~mask).ravel())[1:]
    return float(holes.max(initial=0) / whole.sum())


def _shape(whole: Mask, templates: Templates) -> str:
    """Returns the shape whose template is most similar: overlap minus a penalty for a different aspect ratio."""
    region, ratio = _stretch(whole)
    scores = {}
    for name, (template, expected) in templates.items():
        overlap = (region & template).sum() / (region | template).sum()
        scores[name] = overlap - 0.25 * abs(np.log(ratio / expected))
    return max(scores, key=lambda name: scores[name])


def _stretch(mask: Mask) -> tuple[Mask, float]:
    """Returns the region's box stretched to the grid, and its width divided by its height."""
    ys, xs = np.nonzero(mask)
    crop = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    square = Image.fromarray(crop.astype(np.uint8) * 255).resize((_GRID, _GRID), Image.Resampling.BILINEAR)
    return np.asarray(square) > 127, crop.shape[1] / crop.shape[0]


def _colour_and_texture(pixels: NDArray[np.float64], mask: Mask) -> tuple[str, str]:
    """Returns the colour and texture of a region from its inner pixels."""
    once = _inner(mask)
    twice = _inner(once)
    to_main, to_shade = (np.square(pixels[twice][:, None] - palette).sum(-1) for palette in (_MAIN, _SHADE))
    cost = np.minimum(to_main, to_shade).mean(0) + 0.02 * to_main.min(0)
    best = int(cost.argmin())
    near_main, near_shade = (np.square(pixels - palette[best]).sum(-1) for palette in (_MAIN, _SHADE))
    return _NAMES[best], _texture(near_shade < near_main, once)


def _inner(mask: Mask) -> Mask:
    """Returns the mask without its outermost pixels, whose colour is blended with the background.

    A mask of which fewer than 25 pixels would remain is returned unchanged.
    """
    smaller = eroded(mask)
    return smaller if smaller.sum() >= 25 else mask


def _texture(dark: Mask, inner: Mask) -> str:
    """Returns "solid", "striped" or "dotted".

    A region without a second colour is solid. It is striped if each row has one colour, else dotted.
    """
    share = dark[inner].mean()
    if share <= 0.08:
        return "solid"
    rows = [dark[y][inner[y]] for y in np.nonzero(inner.sum(1) > 3)[0]]
    within = np.mean([row.var() for row in rows]) if rows else 0.0
    return "striped" if within / (share * (1 - share) + 1e-6) < 0.45 else "dotted"


def _templates(line: float) -> Templates:
    """Returns the template of each shape.

    Args:
        line: Width of the outline as a share of the radius; 0 for filled shapes.
    """
    stretched = {}
    for name in SHAPES:
        canvas = Image.new("L", (256, 256), 0)
        pen, corners = ImageDraw.Draw(canvas), outline(name, 128, 128, 100)
        pen.polygon(corners, fill=255)
        if line:
            pen.line(corners + corners[:2], fill=255, width=round(100 * line), joint="curve")
        stretched[name] = _stretch(np.asarray(canvas) > 127)
    return stretched


_SOLID = _templates(0)
_OUTLINED = {False: _templates(line_width(14) / 14), True: _templates(line_width(30) / 30)}
"""Templates of outlined shapes; the key is whether the region is larger than `_SMALL_EXTENT`."""
