"""Judge by pixel analysis whether a picture shows a scene; knows the world, learns nothing."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .captions import parse
from .outlines import box
from .render import line_width
from .seen import Seen, see
from .world import Object, Scene, nominal, radii, unit

_FAR = 10.0
"""Pixels that the middle of an object's box may stand off its nominal place, on each axis, in the default frame."""


@dataclass(frozen=True)
class Verdict:
    """Which attributes of the picture are right; those of objects hold for every object."""

    background: bool
    count: bool
    colour: bool
    shape: bool
    style: bool
    place: bool
    size: bool

    @property
    def all_right(self) -> bool:
        return all(vars(self).values())


def judge(image: Image.Image, prompt: str) -> Verdict:
    """Check a picture against a canonical prompt; ValueError when the prompt's wording is another one."""
    return check(image, parse(prompt))


def check(image: Image.Image, scene: Scene) -> Verdict:
    """Check a picture against what the scene's words say; its jitter plays no part."""
    wanted = nominal(scene)
    if image.size != (wanted.width, wanted.height):
        raise ValueError(f"image: expected {wanted.width} x {wanted.height} pixels, got {image.width} x {image.height}")
    background, things = see(np.asarray(image.convert("RGB")))
    pairs = _match(wanted.objects, things)
    whole = len(pairs) == len(wanted.objects)
    return Verdict(
        background=background == wanted.background,
        count=len(things) == len(wanted.objects),
        colour=whole and all(thing.colour == item.colour for item, thing in pairs),
        shape=whole and all(thing.shape == item.shape for item, thing in pairs),
        style=whole and all(thing.style == item.style for item, thing in pairs),
        place=whole and all(_distance(item, thing) <= _FAR * unit(wanted.frame) for item, thing in pairs),
        size=whole and all(_size(wanted, item, thing) == item.size for item, thing in pairs),
    )


def _match(objects: tuple[Object, ...], things: list[Seen]) -> list[tuple[Object, Seen]]:
    """Each object with the nearest thing not taken yet; fewer pairs when things are missing."""
    left, pairs = list(things), []
    for item in objects:
        if left:
            nearest = min(left, key=lambda thing: _distance(item, thing))
            left.remove(nearest)
            pairs.append((item, nearest))
    return pairs


def _distance(item: Object, thing: Seen) -> float:
    left, top, right, bottom = box(item.shape, item.cx, item.cy, item.r)
    return max(abs(thing.cx - (left + right) / 2), abs(thing.cy - (top + bottom) / 2))


def _size(scene: Scene, item: Object, thing: Seen) -> str:
    """The size word whose nominal extent of the wanted shape is nearest to the seen extent."""
    table = radii(scene.kind, scene.frame)
    return min(table, key=lambda word: abs(_extent(item, table[word]) - thing.extent))


def _extent(item: Object, r: float) -> float:
    left, top, right, bottom = box(item.shape, 0, 0, r)
    return max(right - left, bottom - top) + (line_width(r) if item.style == "outlined" else 0)
