"""Checks by pixel analysis whether an image shows a scene; no learned model is involved."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .captions import parse
from .detection import DetectedRegion, detect
from .outlines import box
from .render import line_width
from .scenes import Object, Scene, nominal, pixel_scale, radii

_MAX_DISTANCE = 10.0
"""Largest distance of an object's box centre from its nominal place, in pixels per axis at the default resolution."""


@dataclass(frozen=True)
class CheckResult:
    """Which attributes of an image are correct.

    An attribute of objects (colour, shape, style, place, size) is correct only if it is correct for every object.

    Attributes:
        background: The background has the expected colour.
        count: The number of objects is correct.
        colour: Every object has the expected colour.
        shape: Every object has the expected shape.
        style: Every object has the expected style.
        place: Every object is near its nominal place.
        size: Every object has the expected size.
    """

    background: bool
    count: bool
    colour: bool
    shape: bool
    style: bool
    place: bool
    size: bool

    @property
    def all_right(self) -> bool:
        """Whether every attribute is correct."""
        return all(vars(self).values())


def check_prompt(image: Image.Image, prompt: str) -> CheckResult:
    """Checks an image against a canonical prompt. Raises ValueError if the prompt has another wording."""
    return check(image, parse(prompt))


def check(image: Image.Image, scene: Scene) -> CheckResult:
    """Checks an image against a scene without its jitter. Raises ValueError if the image has another resolution."""
    expected = nominal(scene)
    if image.size != (expected.width, expected.height):
        raise ValueError(
            f"image: expected {expected.width} x {expected.height} pixels, got {image.width} x {image.height}"
        )
    background, regions = detect(np.asarray(image.convert("RGB")))
    pairs = _match(expected.objects, regions)
    all_found = len(pairs) == len(expected.objects)
    return CheckResult(
        background=background == expected.background,
        count=len(regions) == len(expected.objects),
        colour=all_found and all(region.colour == item.colour for item, region in pairs),
        shape=all_found and all(region.shape == item.shape for item, region in pairs),
        style=all_found and all(region.style == item.style for item, region in pairs),
        place=all_found
        and all(_distance(item, region) <= _MAX_DISTANCE * pixel_scale(expected.resolution) for item, region in pairs),
        size=all_found and all(_size(expected, item, region) == item.size for item, region in pairs),
    )


def _match(objects: tuple[Object, ...], regions: list[DetectedRegion]) -> list[tuple[Object, DetectedRegion]]:
    """Pairs each object with the nearest region that is not paired yet. Returns fewer pairs if regions are missing."""
    unpaired, pairs = list(regions), []
    for item in objects:
        if unpaired:
            nearest = min(unpaired, key=lambda region: _distance(item, region))
            unpaired.remove(nearest)
            pairs.append((item, nearest))
    return pairs


def _distance(item: Object, region: DetectedRegion) -> float:
    """Returns the distance of the two box centres in pixels: the larger of the x and the y distance."""
    left, top, right, bottom = box(item.shape, item.cx, item.cy, item.r)
    return max(abs(region.cx - (left + right) / 2), abs(region.cy - (top + bottom) / 2))


def _size(scene: Scene, item: Object, region: DetectedRegion) -> str:
    """Returns the word of `SIZES` whose extent for this shape is nearest to the region's extent."""
    table = radii(scene.kind, scene.resolution)
    return min(table, key=lambda word: abs(_extent(item, table[word]) - region.extent))


def _extent(item: Object, r: float) -> float:
    """Returns the longer side of the object's box in pixels at radius `r`, with its line if it is outlined."""
    left, top, right, bottom = box(item.shape, 0, 0, r)
    return max(right - left, bottom - top) + (line_width(r) if item.style == "outlined" else 0)
