"""The synthetic world: colours, shapes, styles, sizes, places, scenes, and the triples kept out of training."""

import hashlib
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Literal

Kind = Literal["one", "count", "two"]
RGB = tuple[int, int, int]
Frame = tuple[int, int]
"""Width and height of a picture in pixels."""

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
RELATIONS = ("left of", "above")
COUNTS = (2, 3, 4)
SQUARE: Frame = (128, 128)
"""The default; radii and distances below are those of this frame and grow with a picture's shorter side."""
FRAMES: tuple[Frame, ...] = (SQUARE, (192, 128), (128, 192), (192, 192), (256, 256))

_ALONE = {"small": 15.0, "medium": 25.0, "large": 40.0}
_IN_GROUP = {"small": 13.0, "medium": 18.0, "large": 23.0}
_LEFT, _RIGHT, _MIDDLE = -30.0, 30.0, 0.0
_NUDGE = 1.0
"""Pixels that a scene may stand off its nominal place. What the words leave open is little, so that eight steps without
guidance can settle it; a wording that leaves something out leaves more to the seed."""
_SWELL = 0.025
_GROUPS = {
    2: ((_LEFT, _MIDDLE), (_RIGHT, _MIDDLE)),
    3: ((_MIDDLE, _LEFT), (_LEFT, _RIGHT), (_RIGHT, _RIGHT)),
    4: ((_LEFT, _LEFT), (_RIGHT, _LEFT), (_LEFT, _RIGHT), (_RIGHT, _RIGHT)),
}


@dataclass(frozen=True)
class Object:
    """One drawn thing; centre and radius in pixels."""

    shape: str
    colour: str
    style: str
    size: str
    cx: float
    cy: float
    r: float


@dataclass(frozen=True)
class Scene:
    """What one picture shows. `place` is set for one object, `relation` for two different ones."""

    kind: Kind
    background: str
    objects: tuple[Object, ...]
    place: str = "center"
    relation: str = ""
    width: int = 128
    height: int = 128

    @property
    def frame(self) -> Frame:
        return self.width, self.height

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(fields: dict[str, Any]) -> "Scene":
        return Scene(**{**fields, "objects": tuple(Object(**item) for item in fields["objects"])})


@dataclass(frozen=True)
class Look:
    """The words of one object, before it has a place."""

    shape: str
    colour: str
    style: str = "solid"
    size: str = "medium"


@dataclass(frozen=True)
class Mix:
    """How often each kind, style and size is drawn; the default is the mix of the evaluation."""

    kinds: tuple[float, float, float] = (0.50, 0.25, 0.25)
    styles: tuple[float, float, float, float] = (0.46, 0.18, 0.18, 0.18)
    sizes: tuple[float, float, float] = (0.3, 0.4, 0.3)
    centred: float = 0.4


def held_out(shape: str, colour: str, background: str) -> bool:
    """Whether this triple is kept out of all training (about one in eight, by md5)."""
    return hashlib.md5(f"{shape}|{colour}|{background}".encode(), usedforsecurity=False).digest()[0] < 26


def unit(frame: Frame) -> float:
    """Pixels of this frame for one of the default frame."""
    return min(frame) / min(SQUARE)


def radii(kind: Kind, frame: Frame = SQUARE) -> dict[str, float]:
    """Nominal radius in pixels of each size word."""
    return {word: r * unit(frame) for word, r in (_ALONE if kind == "one" else _IN_GROUP).items()}


def one(look: Look, background: str, place: str = "center", frame: Frame = SQUARE) -> Scene:
    """A scene of one object at its nominal place."""
    return _one(look, background, place, radii("one", frame)[look.size], (0.0, 0.0), frame)


def several(look: Look, count: int, background: str, frame: Frame = SQUARE) -> Scene:
    """A scene of `count` equal objects at their nominal places."""
    return _several(look, count, background, radii("count", frame)[look.size], (0.0, 0.0), frame)


def pair(first: Look, second: Look, relation: str, background: str, frame: Frame = SQUARE) -> Scene:
    """A scene of two different objects, the first left of or above the second."""
    sizes = radii("two", frame)
    return _pair(first, second, relation, background, (sizes[first.size], sizes[second.size]), (0.0, 0.0), frame)


def nominal(scene: Scene) -> Scene:
    """The scene its words describe: the same one without the jitter of places and sizes."""
    looks = [Look(item.shape, item.colour, item.style, item.size) for item in scene.objects]
    if scene.kind == "one":
        return one(looks[0], scene.background, scene.place, scene.frame)
    if scene.kind == "count":
        return several(looks[0], len(looks), scene.background, scene.frame)
    return pair(looks[0], looks[1], scene.relation, scene.background, scene.frame)


def sample(rng: Random, mix: Mix | None = None, *, unseen: bool = False, frame: Frame = SQUARE) -> Scene:
    """A random scene. `unseen` takes the first object's triple from the held-out ones; else no triple is one."""
    mix = mix or Mix()
    kind: Kind = rng.choices(("one", "count", "two"), mix.kinds)[0]
    shape, colour, background = _triple(rng, unseen)
    look = Look(shape, colour, rng.choices(STYLES, mix.styles)[0], rng.choices(SIZES, mix.sizes)[0])
    nudge = _NUDGE * unit(frame)
    shift = (rng.uniform(-nudge, nudge), rng.uniform(-nudge, nudge))
    r = radii(kind, frame)[look.size] * rng.uniform(1 - _SWELL, 1 + _SWELL)
    if kind == "one":
        place = "center" if rng.random() < mix.centred else rng.choice(list(PLACES))
        return _one(look, background, place, r, shift, frame)
    if kind == "count":
        return _several(look, rng.choice(COUNTS), background, r, shift, frame)
    other = _other(rng, colour, background, mix, unseen)
    r_other = radii(kind, frame)[other.size] * rng.uniform(1 - _SWELL, 1 + _SWELL)
    return _pair(look, other, rng.choice(RELATIONS), background, (r, r_other), shift, frame)


def _triple(rng: Random, unseen: bool) -> tuple[str, str, str]:
    while True:
        shape, colour, background = rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(COLOURS))
        if colour != background and held_out(shape, colour, background) == unseen:
            return shape, colour, background


def _other(rng: Random, colour: str, background: str, mix: Mix, unseen: bool) -> Look:
    style, size = rng.choices(STYLES, mix.styles)[0], rng.choices(SIZES, mix.sizes)[0]
    while True:
        look = Look(rng.choice(SHAPES), rng.choice(list(COLOURS)), style, size)
        known = unseen or not held_out(look.shape, look.colour, background)
        if look.colour not in (background, colour) and known:
            return look


def _one(look: Look, background: str, place: str, r: float, shift: tuple[float, float], frame: Frame) -> Scene:
    edge = 1.1 * r + 4 * unit(frame)
    share = 1.0 if look.size == "large" else 0.92
    x, y = (way * (side / 2 - edge) * share for way, side in zip(PLACES[place], frame, strict=True))
    return _scene("one", background, (_put(look, r, x, y, shift, frame),), frame, place=place)


def _several(look: Look, count: int, background: str, r: float, shift: tuple[float, float], frame: Frame) -> Scene:
    spots = (_spot(spot, frame) for spot in _GROUPS[count])
    return _scene("count", background, tuple(_put(look, r, x, y, shift, frame) for x, y in spots), frame)


def _pair(
    a: Look,
    b: Look,
    relation: str,
    background: str,
    r: tuple[float, float],
    shift: tuple[float, float],
    frame: Frame,
) -> Scene:
    spots = [_spot((x, y) if relation == "left of" else (y, x), frame) for x, y in _GROUPS[2]]
    objects = tuple(_put(look, each, *spot, shift, frame) for look, each, spot in zip((a, b), r, spots, strict=True))
    return _scene("two", background, objects, frame, relation=relation)


def _spot(spot: tuple[float, float], frame: Frame) -> tuple[float, float]:
    """A place of a group, in pixels from the picture's centre."""
    return spot[0] * frame[0] / SQUARE[0], spot[1] * frame[1] / SQUARE[1]


def _scene(
    kind: Kind, background: str, objects: tuple[Object, ...], frame: Frame, place: str = "center", relation: str = ""
) -> Scene:
    return Scene(kind, background, objects, place, relation, *frame)


def _put(look: Look, r: float, x: float, y: float, shift: tuple[float, float], frame: Frame) -> Object:
    """Place a look; x and y are pixels from the picture's centre."""
    cx, cy = frame[0] / 2 + x + shift[0], frame[1] / 2 + y + shift[1]
    return Object(look.shape, look.colour, look.style, look.size, cx, cy, r)
