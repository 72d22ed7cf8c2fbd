"""Numbers of embeddings without numpy or torch: rows as arrays of floats, and moments of their columns.

A client carries embeddings and looks into them here alone, to calibrate and to compare: a few hundred prompts, a second
or two of arithmetic beside the minutes that their encoding takes.
"""

import math
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import mul

_AT_ONCE = 4_000_000
"""Values that are gathered before their columns are summed."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Tokens of one embedding: float32 [count, width], flat, row by row. `has_first` says whether row 0 is the first
    token of its sequence, an attention sink."""

    values: "array[float]"
    width: int
    has_first: bool

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.values) // self.width

    def row(self, index: int) -> "array[float]":
        """One token."""
        return self.values[index * self.width : (index + 1) * self.width]


def floats(dtype: str, data: memoryview) -> "array[float]":
    """Little-endian values of BF16, F16 or F32 (safetensors' names) as float32. Raises ValueError for another dtype."""
    if dtype == "F32":
        raw = data.tobytes()
    elif dtype == "BF16":  # the upper half of a float32
        wide = bytearray(2 * data.nbytes)
        wide[2::4], wide[3::4] = data[0::2], data[1::2]
        raw = bytes(wide)
    elif dtype == "F16":
        return array("f", struct.unpack(f"<{data.nbytes // 2}e", data))
    else:
        raise ValueError(f"dtype: expected BF16, F16 or F32, got {dtype}")
    values = array("f")
    values.frombytes(raw)
    if sys.byteorder == "big":
        values.byteswap()
    return values


@dataclass(slots=True)
class Moments:
    """Sums of columns as they come, for `width` dimensions; population mean and deviation at the end."""

    width: int
    count: int = 0
    _sums: list[float] = field(default_factory=list)
    _squares: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sums, self._squares = [0.0] * self.width, [0.0] * self.width

    def add(self, values: "array[float]") -> None:
        """More rows, flat."""
        for dimension in range(self.width):
            column = values[dimension :: self.width]
            self._sums[dimension] += sum(column)
            self._squares[dimension] += sum(map(mul, column, column))
        self.count += len(values) // self.width

    def with_also(self, other: "Moments") -> "Moments":
        """Both together."""
        both = Moments(self.width, self.count + other.count)
        both._sums = [a + b for a, b in zip(self._sums, other._sums, strict=True)]
        both._squares = [a + b for a, b in zip(self._squares, other._squares, strict=True)]
        return both

    @property
    def mean(self) -> "array[float]":
        """Per dimension."""
        return array("f", [total / self.count for total in self._sums])

    @property
    def std(self) -> "array[float]":
        """Per dimension, without correction for the sample's size."""
        pairs = zip(self._sums, self._squares, strict=True)
        variances = (square / self.count - (total / self.count) ** 2 for total, square in pairs)
        return array("f", [math.sqrt(max(0.0, variance)) for variance in variances])


class Gatherer:
    """Statistics over many embeddings of one width: those of first tokens apart from those of the rest."""

    def __init__(self, width: int) -> None:
        self.first, self.rest = Moments(width), Moments(width)
        self.token_rms: list[float] = []
        self._width = width
        self._waiting: array[float] = array("f")

    def add(self, rows: Rows) -> None:
        """One embedding. Raises ValueError for another width, or values that are not finite."""
        if rows.width != self._width:
            raise ValueError(f"width: expected {self._width} dimensions, got {rows.width}")
        start = 1 if rows.has_first else 0
        if rows.has_first:
            self.first.add(rows.row(0))
        measured = [rms(rows.row(index)) for index in range(start, rows.count)]
        if not all(map(math.isfinite, measured)):
            raise ValueError("values: expected finite ones, got NaN or infinity")
        self.token_rms += measured
        self._waiting += rows.values[start * rows.width :]
        if len(self._waiting) >= _AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Takes what waits into account; ask for moments afterwards."""
        if self._waiting:
            self.rest.add(self._waiting)
            self._waiting = array("f")


def rms(values: Sequence[float]) -> float:
    """Root mean square."""
    return math.sqrt(sum(map(mul, values, values)) / len(values))


def median(values: Sequence[float]) -> float:
    """The middle value; the upper one of two. Raises ValueError where there is none."""
    if not values:
        raise ValueError("values: expected at least one, got none")
    return sorted(values)[len(values) // 2]


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson's; 0 where one of them does not vary."""
    mean_one, mean_other = math.fsum(one) / len(one), math.fsum(other) / len(other)
    left, right = [value - mean_one for value in one], [value - mean_other for value in other]
    scale = math.sqrt(math.fsum(map(mul, left, left)) * math.fsum(map(mul, right, right)))
    return max(-1.0, min(1.0, math.fsum(map(mul, left, right)) / scale)) if scale else 0.0
