"""Fits durations to measured sizes: non-negative least squares with few terms."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_NEW_SHARE = 0.3
"""Share of the newest measurement in the average that is kept per size."""
_MAX_GROWTH = 2.0
"""A measurement counts as at most this multiple of the known average: a pause of the machine is not the device's."""
_MAX_SIZES = 32
"""Number of distinct sizes kept. The least recently measured one is dropped first."""
_REFIT_EVERY = 8
_TERM_PENALTY = 1.05
"""A further term must reduce the squared error by at least this factor."""
_RANK_TOLERANCE = 1e-5
"""Singular values below this share of the largest count as zero."""


@dataclass(slots=True)
class DurationFit:
    """A model `seconds = sum(coefficient * term)` with coefficients of 0 or more.

    The `main` term is always used; the others only if measurements of several sizes support them. One thread calls
    `observe`; any thread may read `coefficients`.

    Attributes:
        main: Index of the term that is always used.
        terms: Number of terms.
        coefficients: One per term, in seconds; None until something was measured.
    """

    main: int
    terms: int
    coefficients: tuple[float, ...] | None = None
    _averages: dict[tuple[int, ...], tuple[tuple[float, ...], float]] = field(default_factory=dict)
    _count: int = 0

    def observe(self, terms: Sequence[float], seconds: float) -> None:
        """Adds a measurement.

        One average is kept per size (sizes within a factor of 1.4 share it), so that frequent sizes do not displace
        what was measured at others.
        """
        seconds = max(seconds, 1e-9)
        key = tuple(round(2.0 * math.log2(value)) if value > 0.0 else -1 for value in terms)
        known = self._averages.pop(key, None)
        if known is None:
            average = (tuple(terms), seconds)
        else:
            before, before_s = known
            seconds = min(seconds, _MAX_GROWTH * before_s)
            mixed = tuple((1.0 - _NEW_SHARE) * a + _NEW_SHARE * b for a, b in zip(before, terms, strict=True))
            average = (mixed, (1.0 - _NEW_SHARE) * before_s + _NEW_SHARE * seconds)
        self._averages[key] = average
        if len(self._averages) > _MAX_SIZES:
            del self._averages[next(iter(self._averages))]
        self._count += 1
        if known is None or self._count % _REFIT_EVERY == 0 or self._count < _REFIT_EVERY:
            self.coefficients = self._fitted()

    def seconds(self, terms: Sequence[float]) -> float:
        """Returns the estimated seconds, 0 until something was measured."""
        coefficients = self.coefficients
        return 0.0 if coefficients is None else sum(map(float.__mul__, coefficients, map(float, terms)))

    @property
    def averages(self) -> tuple[tuple[tuple[float, ...], float], ...]:
        """The average of each size: its terms and seconds, the least recently measured first."""
        return tuple(self._averages.values())

    def reset(self) -> None:
        """Forgets every measurement."""
        self.coefficients, self._count = None, 0
        self._averages.clear()

    def _fitted(self) -> tuple[float, ...]:
        # Relative errors count, so each row is divided by its seconds: a step of 10 ms matters as much as one of 10 s.
        rows = np.array([[value / seconds for value in terms] for terms, seconds in self._averages.values()])
        best: tuple[float, ...] | None = None
        least = math.inf
        for chosen in self._subsets(len(rows)):
            solution = _least_squares(rows[:, chosen])
            if solution is None or min(solution) < 0.0:
                continue
            coefficients = np.zeros(self.terms)
            coefficients[chosen] = solution
            error = float(np.sum((rows @ coefficients - 1.0) ** 2))
            error = (error + 1e-6) * _TERM_PENALTY ** len(chosen)
            if error < least:
                best, least = tuple(coefficients.tolist()), error
        if best is None:
            raise ValueError(f"terms: expected some above 0, got {rows.tolist()}")
        return best

    def _subsets(self, rows: int) -> Iterator[list[int]]:
        others = [term for term in range(self.terms) if term != self.main]
        for bits in range(1 << len(others)):
            chosen = [self.main, *(term for bit, term in enumerate(others) if bits >> bit & 1)]
            if len(chosen) <= rows:
                yield chosen


def _least_squares(rows: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Solves rows @ x = 1 in the least squares sense; None if the solution is not unique."""
    scale = rows.max(axis=0)
    scale[scale == 0.0] = 1.0
    solution, _, rank, _ = np.linalg.lstsq(rows / scale, np.ones(len(rows)), rcond=_RANK_TOLERANCE)
    return None if rank < rows.shape[1] else solution / scale
