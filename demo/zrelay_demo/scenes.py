"""The synthetic scenes that the demo model can draw, and the combinations that are held out of training."""

import hashlib
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Literal

Kind = Literal["one", "count", "two"]
RGB = tuple[int, int, int]
Resolution = tuple[int, int]
"""Width and height of an image in pixels."""

COLOURS: dict[str, RGB] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "orange": (245, 130, 25),
    "purple": (140, 55, 190),
    "pink": (245, 140, 195),
    "cyan": (70, 205, 220),
    "black": (20, 20, 20),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "moon")
STYLES = ("solid", "striped", "dotted", "outlined")
SIZES = ("small", "medium", "large")
PLACES: dict[str, tuple[int, int]] = {
    "center": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
"""Place word -> direction from the image's centre: x to the right, y downwards."""
RELATIONS = ("left of", "above")
COUNTS = (2, 3, 4)
DEFAULT_RESOLUTION: Resolution = (128, 128)
"""Radii and distances in this module are pixels at this resolution; they scale with an image's shorter side."""
RESOLUTIONS: tuple[Resolution, ...] = (DEFAULT_RESOLUTION, (192, 128), (128, 192), (192, 192), (256, 256))

_RADIUS_ALONE = {"small": 15.0, "medium": 25.0, "large": 40.0}
_RADIUS_IN_GROUP = {"small": 13.0, "medium": 18.0, "large": 23.0}
_LEFT, _RIGHT, _MIDDLE = -30.0, 30.0, 0.0
_POSITION_JITTER = 1.0
"""Largest random shift of all objects of a scene, in pixels per axis.

It is small, so that a prompt determines its image nearly completely and 8 steps without guidance suffice.
"""
_SIZE_JITTER = 0.025
"""Largest random change of an object's radius, as a share of the radius."""
_GROUP_OFFSETS = {
    2: ((_LEFT, _MIDDLE), (_RIGHT, _MIDDLE)),
    3: ((_MIDDLE, _LEFT), (_LEFT, _RIGHT), (_RIGHT, _RIGHT)),
    4: ((_LEFT, _LEFT), (_RIGHT, _LEFT), (_LEFT, _RIGHT), (_RIGHT, _RIGHT)),
}
"""Number of objects -> offset (x, y) of each object from the image's centre in pixels."""


@dataclass(frozen=True)
class Object:
    """One drawn shape.

    Attributes:
        shape: One of `SHAPES`.
        colour: One of `COLOURS`.
        style: One of `STYLES`.
        size: One of `SIZES`.
        cx: x of the centre in pixels.
        cy: y of the centre in pixels, downwards.
        r: Radius in pixels.
    """

    shape: str
    colour: str
    style: str
    size: str
    cx: float
    cy: float
    r: float


@dataclass(frozen=True)
class Scene:
    """The content of one image.

    Attributes:
        kind: "one" object, a "count" of equal objects, or "two" different objects.
        background: One of `COLOURS`; no object has this colour.
        objects: The drawn shapes.
        place: One of `PLACES`; used for kind "one".
        relation: One of `RELATIONS` for kind "two" (first object to second object), else empty.
        width: Image width in pixels.
        height: Image height in pixels.
    """

    kind: Kind
    background: str
    objects: tuple[Object, ...]
    place: str = "center"
    relation: str = ""
    width: int = 128
    height: int = 128

    @property
    def resolution(self) -> Resolution:
        """Width and height in pixels."""
        return self.width, self.height

    def to_json(self) -> dict[str, Any]:
        """Returns the scene as a dictionary of JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(fields: dict[str, Any]) -> "Scene":
        """Returns the scene that `to_json` wrote."""
        return Scene(**{**fields, "objects": tuple(Object(**item) for item in fields["objects"])})


@dataclass(frozen=True)
class Appearance:
    """The attributes of an object apart from its position."""

    shape: str
    colour: str
    style: str = "solid"
    size: str = "medium"


@dataclass(frozen=True)
class SceneMix:
    """Probabilities with which `sample` draws attributes; the defaults are those of the evaluation.

    Attributes:
        kinds: Weights of "one", "count" and "two".
        styles: Weights in the order of `STYLES`.
        sizes: Weights in the order of `SIZES`.
        centred: Probability that a single object is in the centre. Otherwise all places are equally likely.
    """

    kinds: tuple[float, float, float] = (0.50, 0.25, 0.25)
    styles: tuple[float, float, float, float] = (0.46, 0.18, 0.18, 0.18)
    sizes: tuple[float, float, float] = (0.3, 0.4, 0.3)
    centred: float = 0.4


def held_out(shape: str, colour: str, background: str) -> bool:
    """Returns whether training never uses this combination; about one in eight, selected by MD5."""
    return hashlib.md5(f"{shape}|{colour}|{background}".encode(), usedforsecurity=False).digest()[0] < 26


def pixel_scale(resolution: Resolution) -> float:
    """Returns by how much this resolution is larger than the default one, measured on the shorter side."""
    return min(resolution) / min(DEFAULT_RESOLUTION)


def radii(kind: Kind, resolution: Resolution = DEFAULT_RESOLUTION) -> dict[str, float]:
    """Returns the radius in pixels, without jitter, for each word of `SIZES`."""
    return {
        word: r * pixel_scale(resolution) for word, r in (_RADIUS_ALONE if kind == "one" else _RADIUS_IN_GROUP).items()
    }


def one_object(
    appearance: Appearance, background: str, place: str = "center", resolution: Resolution = DEFAULT_RESOLUTION
) -> Scene:
    """Returns a scene with one object, without jitter."""
    return _one_object(appearance, background, place, radii("one", resolution)[appearance.size], (0.0, 0.0), resolution)


def equal_objects(
    appearance: Appearance, count: int, background: str, resolution: Resolution = DEFAULT_RESOLUTION
) -> Scene:
    """Returns a scene with `count` equal objects, without jitter."""
    return _equal_objects(
        appearance, count, background, radii("count", resolution)[appearance.size], (0.0, 0.0), resolution
    )


def two_objects(
    first: Appearance, second: Appearance, relation: str, background: str, resolution: Resolution = DEFAULT_RESOLUTION
) -> Scene:
    """Returns a scene with two different objects, without jitter; `relation` is that of the first to the second."""
    sizes = radii("two", resolution)
    return _two_objects(
        first, second, relation, background, (sizes[first.size], sizes[second.size]), (0.0, 0.0), resolution
    )


def nominal(scene: Scene) -> Scene:
    """Returns the same scene without the random jitter of positions and sizes."""
    appearances = [Appearance(item.shape, item.colour, item.style, item.size) for item in scene.objects]
    if scene.kind == "one":
        return one_object(appearances[0], scene.background, scene.place, scene.resolution)
    if scene.kind == "count":
        return equal_objects(appearances[0], len(appearances), scene.background, scene.resolution)
    return two_objects(appearances[0], appearances[1], scene.relation, scene.background, scene.resolution)


def sample(
    rng: Random, mix: SceneMix | None = None, *, unseen: bool = False, resolution: Resolution = DEFAULT_RESOLUTION
) -> Scene:
    """Draws a random scene.

    Args:
        rng: Source of randomness.
        mix: Probabilities of the attributes; the evaluation's by default.
        unseen: If true, the first object's combination of shape, colour and background is a held-out one. If false,
            no object's combination is.
        resolution: Image width and height in pixels.
    """
    mix = mix or SceneMix()
    kind: Kind = rng.choices(("one", "count", "two"), mix.kinds)[0]
    shape, colour, background = _triple(rng, unseen)
    appearance = Appearance(shape, colour, rng.choices(STYLES, mix.styles)[0], rng.choices(SIZES, mix.sizes)[0])
    jitter = _POSITION_JITTER * pixel_scale(resolution)
    shift = (rng.uniform(-jitter, jitter), rng.uniform(-jitter, jitter))
    r = radii(kind, resolution)[appearance.size] * rng.uniform(1 - _SIZE_JITTER, 1 + _SIZE_JITTER)
    if kind == "one":
        place = "center" if rng.random() < mix.centred else rng.choice(list(PLACES))
        return _one_object(appearance, background, place, r, shift, resolution)
    if kind == "count":
        return _equal_objects(appearance, rng.choice(COUNTS), background, r, shift, resolution)
    other = _other(rng, colour, background, mix, unseen)
    r_other = radii(kind, resolution)[other.size] * rng.uniform(1 - _SIZE_JITTER, 1 + _SIZE_JITTER)
    return _two_objects(appearance, other, rng.choice(RELATIONS), background, (r, r_other), shift, resolution)


def _triple(rng: Random, unseen: bool) -> tuple[str, str, str]:
    """Draws a shape, a colour and a background, from the held-out combinations if `unseen`, else from the others."""
    while True:
        shape, colour, background = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(COLOURS))
        if colour != background and held_out(shape, colour, background) == unseen:
            return shape, colour, background


def _other(rng: Random, colour: str, background: str, mix: SceneMix, unseen: bool) -> Appearance:
    """Draws the second object of a scene with two different objects."""
    style, size = rng.choices(STYLES, mix.styles)[0], rng.choices(SIZES, mix.sizes)[0]
    while True:
        appearance = Appearance(rng.choice(SHAPES), rng.choice(list(COLOURS)), style, size)
        known = unseen or not held_out(appearance.shape, appearance.colour, background)
        if appearance.colour not in (background, colour) and known:
            return appearance


def _one_object(
    appearance: Appearance, background: str, place: str, r: float, shift: tuple[float, float], resolution: Resolution
) -> Scene:
    edge = 1.1 * r + 4 * pixel_scale(resolution)
    share = 1.0 if appearance.size == "large" else 0.92
    x, y = (direction * (side / 2 - edge) * share for direction, side in zip(PLACES[place], resolution, strict=True))
    return _scene("one", background, (_place_object(appearance, r, x, y, shift, resolution),), resolution, place=place)


def _equal_objects(
    appearance: Appearance, count: int, background: str, r: float, shift: tuple[float, float], resolution: Resolution
) -> Scene:
    offsets = (_group_offset(offset, resolution) for offset in _GROUP_OFFSETS[count])
    return _scene(
        "count",
        background,
        tuple(_place_object(appearance, r, x, y, shift, resolution) for x, y in offsets),
        resolution,
    )


def _two_objects(
    a: Appearance,
    b: Appearance,
    relation: str,
    background: str,
    r: tuple[float, float],
    shift: tuple[float, float],
    resolution: Resolution,
) -> Scene:
    offsets = [_group_offset((x, y) if relation == "left of" else (y, x), resolution) for x, y in _GROUP_OFFSETS[2]]
    objects = tuple(
        _place_object(appearance, each, *offset, shift, resolution)
        for appearance, each, offset in zip((a, b), r, offsets, strict=True)
    )
    return _scene("two", background, objects, resolution, relation=relation)


def _group_offset(offset: tuple[float, float], resolution: Resolution) -> tuple[float, float]:
    """Scales an offset from the default resolution to `resolution`; pixels from the image's centre."""
    return offset[0] * resolution[0] / DEFAULT_RESOLUTION[0], offset[1] * resolution[1] / DEFAULT_RESOLUTION[1]


def _scene(
    kind: Kind,
    background: str,
    objects: tuple[Object, ...],
    resolution: Resolution,
    place: str = "center",
    relation: str = "",
) -> Scene:
    return Scene(kind, background, objects, place, relation, *resolution)


def _place_object(
    appearance: Appearance, r: float, x: float, y: float, shift: tuple[float, float], resolution: Resolution
) -> Object:
    """Returns an object with its centre at (x, y) + shift, in pixels from the image's centre."""
    cx, cy = resolution[0] / 2 + x + shift[0], resolution[1] / 2 + y + shift[1]
    return Object(appearance.shape, appearance.colour, appearance.style, appearance.size, cx, cy, r)
