"""The noise schedule: sigmas from 1 to 0, and the timesteps that are the transformer's input."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

_MIN_SHIFT = 1e-6
"""Least shift. Near 1e-16 the divisor of the formula is rounded to 0."""


@dataclass(frozen=True)
class Schedule:
    """The noise levels of one job.

    Attributes:
        sigmas: N + 1 strictly decreasing values, the last of which is 0.
    """

    sigmas: tuple[float, ...]

    @property
    def num_inference_steps(self) -> int:
        """Number of steps, N."""
        return len(self.sigmas) - 1

    @property
    def timesteps(self) -> tuple[float, ...]:
        """N values, `1 - sigma` before each forward."""
        return tuple(1.0 - sigma for sigma in self.sigmas[:-1])


def linear_sigmas(num_inference_steps: int) -> list[float]:
    """Returns N values from 1 to 1/N, as `get_default_z_image_sigmas` in diffusers: no forward runs at sigma 0."""
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps: expected at least 1, got {num_inference_steps}")
    # 1 + i (1/N - 1) / (N - 1) with the fraction reduced: (1/N - 1) / (N - 1) = -1/N.
    return [1.0 - i / num_inference_steps for i in range(num_inference_steps)]


def shifted(sigmas: Sequence[float], shift: float) -> list[float]:
    """Returns `s * sigma / (1 + (s - 1) * sigma)`, as FlowMatchEulerDiscreteScheduler without dynamic shifting."""
    if not _MIN_SHIFT <= shift < math.inf:
        raise ValueError(f"shift: expected a number of at least {_MIN_SHIFT:g}, got {shift:.7g}")
    return [shift * sigma / (1.0 + (shift - 1.0) * sigma) for sigma in sigmas]


def shifted_schedule(num_inference_steps: int, shift: float) -> Schedule:
    """Returns the schedule of `num_inference_steps` forwards under `shift`."""
    return Schedule((*shifted(linear_sigmas(num_inference_steps), shift), 0.0))


def explicit_schedule(sigmas: Sequence[float], shift: float | None = None) -> Schedule:
    """Returns a schedule that was given by the caller.

    Args:
        sigmas: Strictly decreasing values in (0, 1], without the final 0.
        shift: Shift that is applied to them in float32, as diffusers' scheduler of that shift does; the reported
            values give the same schedule again. None applies none.

    Raises:
        ValueError: The values are not strictly decreasing, or not after the shift.
    """
    if not sigmas:
        raise ValueError("sigmas: expected at least one value, got none")
    _check_falling(sigmas)
    if shift is not None:
        sigmas = array("f", shifted(sigmas, shift))
        _check_falling(sigmas)  # values may have become equal
    return Schedule((*sigmas, 0.0))


def _check_falling(sigmas: Sequence[float]) -> None:
    previous = float("inf")
    for sigma in sigmas:
        if not 0.0 < sigma <= 1.0:
            raise ValueError(f"sigmas: expected values in (0, 1], got {sigma:.7g}")
        if not sigma < previous:
            raise ValueError(f"sigmas: expected strictly decreasing values, got {sigma:.7g} after {previous:.7g}")
        previous = sigma
