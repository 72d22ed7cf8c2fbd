"""Polygons of the shapes."""

from math import atan2, cos, degrees, hypot, pi, radians, sin

Point = tuple[float, float]

_SQUARE, _CROSS_ARM, _STAR_TIP, _STAR_NOTCH = 0.88, 0.38, 1.1, 0.47
_MOON_HORN, _MOON_BITE, _MOON_SHIFT = 50.0, 0.55, 0.15


def outline(shape: str, cx: float, cy: float, r: float) -> list[Point]:
    """Returns the corners of a shape with centre (cx, cy) and radius r; pixels, y downwards."""
    return [(cx + r * x, cy + r * y) for x, y in _UNIT[shape]]


def box(shape: str, cx: float, cy: float, r: float) -> tuple[float, float, float, float]:
    """Returns left, top, right and bottom of a shape's outline in pixels."""
    xs, ys = zip(*outline(shape, cx, cy, r), strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _arc(radius: float, centre_x: float, start: float, end: float, points: int) -> list[Point]:
    """Returns points on an arc around (centre_x, 0) for angles in degrees."""
    angles = (radians(start + (end - start) * i / (points - 1)) for i in range(points))
    return [(centre_x + radius * cos(a), radius * sin(a)) for a in angles]


def _star() -> list[Point]:
    reach = (_STAR_TIP, _STAR_NOTCH)
    return [(reach[i % 2] * sin(pi * i / 5), -reach[i % 2] * cos(pi * i / 5)) for i in range(10)]


def _heart() -> list[Point]:
    """Returns the heart curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled to the radius."""
    turns = [2 * pi * i / 48 for i in range(48)]
    height = [13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t) for t in turns]
    return [(1.05 * sin(t) ** 3, -1.05 * (y + 2) / 16) for t, y in zip(turns, height, strict=True)]


def _cross() -> list[Point]:
    k = _CROSS_ARM
    quarter = [(-k, -1.0), (k, -1.0), (k, -k)]
    corners: list[Point] = []
    for _ in range(4):
        corners += quarter
        quarter = [(-y, x) for x, y in quarter]
    return corners


def _moon() -> list[Point]:
    """Returns a disc from whose right side a smaller disc is cut."""
    horn_x, horn_y = cos(radians(_MOON_HORN)), sin(radians(_MOON_HORN))
    bite = hypot(horn_x - _MOON_BITE, horn_y)
    horn = degrees(atan2(horn_y, horn_x - _MOON_BITE))
    outer = _arc(1.0, 0.0, _MOON_HORN, 360 - _MOON_HORN, 33)
    inner = _arc(bite, _MOON_BITE, 360 - horn, horn, 25)
    return [(x + _MOON_SHIFT, y) for x, y in outer + inner[1:-1]]


_UNIT: dict[str, list[Point]] = {
    "circle": _arc(1.0, 0.0, 0, 360 * 47 / 48, 48),
    "square": [(-_SQUARE, -_SQUARE), (_SQUARE, -_SQUARE), (_SQUARE, _SQUARE), (-_SQUARE, _SQUARE)],
    "triangle": [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)],
    "diamond": [(0.0, -1.1), (0.8, 0.0), (0.0, 1.1), (-0.8, 0.0)],
    "star": _star(),
    "heart": _heart(),
    "cross": _cross(),
    "moon": _moon(),
}
"""Corners of each shape with centre (0, 0) and radius 1."""
