"""Seconds as a sum of non-negative terms, fitted to measurements: the arithmetic of the cost model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_WEIGHT_OF_NEW = 0.3
"""Share of the latest measurement in the value that is kept of its size."""
_MOST_TIMES = 2.0
"""A measurement counts at most as so many times what is known: a pause of the machine is no property of the device."""
_KEPT = 32
"""Sizes that are remembered. The longest unused goes first."""
_REFIT_EVERY = 8
_TERM_PENALTY = 1.05
"""A further term must make the squared error smaller by this much."""


@dataclass(slots=True)
class Fit:
    """seconds = sum of coefficient * feature, each coefficient 0 or more.

    The `main` feature always has a term, the others where measurements of several sizes ask for it. One thread calls
    `saw`; any may read `coefficients`, None until something was measured.
    """

    main: int
    features: int
    coefficients: tuple[float, ...] | None = None
    _seen: dict[tuple[int, ...], tuple[tuple[float, ...], float]] = field(default_factory=dict)
    _count: int = 0

    def saw(self, features: Sequence[float], seconds: float) -> None:
        """Takes a measurement in. Of each size (to a factor of 1.4) an average is kept, so that what is painted all day
        does not wash out what was learnt of other sizes."""
        seconds = max(seconds, 1e-9)
        key = tuple(round(2.0 * math.log2(value)) if value > 0.0 else -1 for value in features)
        known = self._seen.pop(key, None)
        if known is None:
            kept = (tuple(features), seconds)
        else:
            old, before = known
            seconds = min(seconds, _MOST_TIMES * before)
            mixed = tuple((1.0 - _WEIGHT_OF_NEW) * a + _WEIGHT_OF_NEW * b for a, b in zip(old, features, strict=True))
            kept = (mixed, (1.0 - _WEIGHT_OF_NEW) * before + _WEIGHT_OF_NEW * seconds)
        self._seen[key] = kept
        if len(self._seen) > _KEPT:
            del self._seen[next(iter(self._seen))]
        self._count += 1
        if known is None or self._count % _REFIT_EVERY == 0 or self._count < _REFIT_EVERY:
            self.coefficients = self._fitted()

    def seconds(self, features: Sequence[float]) -> float:
        """The estimate; 0 until something was measured."""
        coefficients = self.coefficients
        return 0.0 if coefficients is None else sum(map(float.__mul__, coefficients, map(float, features)))

    def forget(self) -> None:
        """Back to nothing measured."""
        self.coefficients, self._count = None, 0
        self._seen.clear()

    def _fitted(self) -> tuple[float, ...]:
        # Relative errors count, so rows are divided by their seconds: a step of 10 ms matters as one of 10 s.
        rows = [[value / seconds for value in features] for features, seconds in self._seen.values()]
        best, least = None, math.inf
        for terms in self._subsets(len(rows)):
            solved = _least_squares([[row[term] for term in terms] for row in rows])
            if solved is None or min(solved) < 0.0:
                continue
            found = [0.0] * self.features
            for term, value in zip(terms, solved, strict=True):
                found[term] = value
            error = sum((sum(map(float.__mul__, found, row)) - 1.0) ** 2 for row in rows)
            error = (error + 1e-6) * _TERM_PENALTY ** len(terms)
            if error < least:
                best, least = tuple(found), error
        if best is None:
            raise ValueError(f"features: expected some above 0, got {rows}")
        return best

    def _subsets(self, rows: int) -> Iterator[list[int]]:
        others = [term for term in range(self.features) if term != self.main]
        for chosen in range(1 << len(others)):
            terms = [self.main, *(term for bit, term in enumerate(others) if chosen >> bit & 1)]
            if len(terms) <= rows:
                yield terms


def _least_squares(rows: list[list[float]]) -> list[float] | None:
    """The solution of rows * x = 1 in the least squares, None where it is not determined."""
    size = len(rows[0])
    scale = [max(row[i] for row in rows) or 1.0 for i in range(size)]
    scaled = [[value / s for value, s in zip(row, scale, strict=True)] for row in rows]
    matrix = [[sum(row[i] * row[j] for row in scaled) for j in range(size)] for i in range(size)]
    right = [sum(row[i] for row in scaled) for i in range(size)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda j: abs(matrix[j][i]))
        if abs(matrix[pivot][i]) < 1e-9:
            return None
        matrix[i], matrix[pivot], right[i], right[pivot] = matrix[pivot], matrix[i], right[pivot], right[i]
        for j in range(i + 1, size):
            factor = matrix[j][i] / matrix[i][i]
            right[j] -= factor * right[i]
            matrix[j] = [a - factor * b for a, b in zip(matrix[j], matrix[i], strict=True)]
    solved = [0.0] * size
    for i in reversed(range(size)):
        rest = sum(matrix[i][j] * solved[j] for j in range(i + 1, size))
        solved[i] = (right[i] - rest) / matrix[i][i]
    return [value / s for value, s in zip(solved, scale, strict=True)]
