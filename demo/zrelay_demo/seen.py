"""See objects in a picture: regions against the background, each with its shape, colours, style and box."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .outlines import outline
from .regions import Mask, eroded, filled, label, regions
from .render import line_width, shade
from .world import COLOURS, SHAPES

_FOREGROUND = 60.0
"""RGB distance from the background at which a pixel belongs to an object."""
_LEAST_PIXELS = 40
_NAMES = list(COLOURS)
_MAIN = np.array([COLOURS[name] for name in _NAMES], dtype=np.float64)
_SHADE = np.array([shade(name) for name in _NAMES], dtype=np.float64)
_GRID = 32
_HOLLOW = 0.15
"""Share of a filled region from which one hole makes it outlined."""
_THIN_LINE = 40
"""Extent in pixels up to which an outline's line is broad for its shape."""
Templates = dict[str, tuple[Mask, float]]


@dataclass(frozen=True)
class Seen:
    """One region of the picture; centre of its box and longer side of it in pixels."""

    shape: str
    colour: str
    style: str
    cx: float
    cy: float
    extent: float


def see(picture: NDArray[np.uint8]) -> tuple[str, list[Seen]]:
    """Background colour and objects of an RGB picture uint8 [h, w, 3]."""
    pixels = picture.astype(np.float64)
    border = np.concatenate(
        [strip.reshape(-1, 3) for strip in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:])]
    )
    ground = np.median(border, axis=0)
    name = _NAMES[int(np.square(_MAIN - ground).sum(1).argmin())]
    differs = np.sqrt(np.square(pixels - ground).sum(-1)) > _FOREGROUND
    return name, [_describe(pixels, mask) for mask in regions(differs, _LEAST_PIXELS)]


def _describe(pixels: NDArray[np.float64], mask: Mask) -> Seen:
    whole = filled(mask)
    ys, xs = np.nonzero(whole)
    width, height = int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1
    colour, style = _paint(pixels, mask)
    if _largest_hole(mask, whole) > _HOLLOW:
        style = "outlined"
    shape = _shape(whole, _OUTLINED[max(width, height) > _THIN_LINE] if style == "outlined" else _SOLID)
    cx, cy = (xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2
    return Seen(shape, colour, style, float(cx), float(cy), float(max(width, height)))


def _largest_hole(mask: Mask, whole: Mask) -> float:
    """Share of the filled region that its largest hole takes."""
    holes = np.bincount(label(whole & ~mask).ravel())[1:]
    return float(holes.max(initial=0) / whole.sum())


def _shape(whole: Mask, templates: Templates) -> str:
    """The shape whose template covers the region best, less a penalty for other proportions."""
    region, ratio = _stretch(whole)
    scores = {}
    for name, (template, expected) in templates.items():
        overlap = (region & template).sum() / (region | template).sum()
        scores[name] = overlap - 0.25 * abs(np.log(ratio / expected))
    return max(scores, key=lambda name: scores[name])


def _stretch(mask: Mask) -> tuple[Mask, float]:
    """The mask's box stretched to a square grid, and its width over its height."""
    ys, xs = np.nonzero(mask)
    crop = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    square = Image.fromarray(crop.astype(np.uint8) * 255).resize((_GRID, _GRID), Image.Resampling.BILINEAR)
    return np.asarray(square) > 127, crop.shape[1] / crop.shape[0]


def _paint(pixels: NDArray[np.float64], mask: Mask) -> tuple[str, str]:
    """Colour and texture of a region, from its inner pixels."""
    once = _inner(mask)
    twice = _inner(once)
    to_main, to_shade = (np.square(pixels[twice][:, None] - palette).sum(-1) for palette in (_MAIN, _SHADE))
    cost = np.minimum(to_main, to_shade).mean(0) + 0.02 * to_main.min(0)
    best = int(cost.argmin())
    near_main, near_shade = (np.square(pixels - palette[best]).sum(-1) for palette in (_MAIN, _SHADE))
    return _NAMES[best], _texture(near_shade < near_main, once)


def _inner(mask: Mask) -> Mask:
    """The mask without its blended edge, unless too little would be left."""
    smaller = eroded(mask)
    return smaller if smaller.sum() >= 25 else mask


def _texture(dark: Mask, inner: Mask) -> str:
    """Solid without a second colour; striped when the rows are of one colour each; else dotted."""
    share = dark[inner].mean()
    if share <= 0.08:
        return "solid"
    rows = [dark[y][inner[y]] for y in np.nonzero(inner.sum(1) > 3)[0]]
    within = np.mean([row.var() for row in rows]) if rows else 0.0
    return "striped" if within / (share * (1 - share) + 1e-6) < 0.45 else "dotted"


def _templates(line: float) -> Templates:
    """Stretched silhouettes; `line` is the width of an outline's line as a share of the radius, 0 without one."""
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
"""By whether the outlined thing is larger than `_THIN_LINE`."""
