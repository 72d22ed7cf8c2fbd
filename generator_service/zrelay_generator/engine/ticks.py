"""What one tick does, and the function that decides it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zrelay_generator.engine.job import DeviceJob, ImageState


@dataclass(frozen=True, slots=True)
class DenoiseTick:
    """One denoising step of each of these images, packed into one forward. The first image leads the tick."""

    images: tuple[ImageState, ...]


@dataclass(frozen=True, slots=True)
class DecodeTick:
    """The decode of one image."""

    image: ImageState


Tick = DenoiseTick | DecodeTick
SelectTick = Callable[[Sequence[DeviceJob], int], Tick | None]
"""Chooses the next tick from the jobs on the device and the number of tokens that one forward may have.

Returns None if there is nothing to do. It has no side effects: the engine also calls it to learn whether there is
work.
"""
TickCompleted = Callable[[Sequence[DeviceJob], Tick, float], None]
"""Receives the jobs on the device, the tick that was run, and its seconds, for the accounting of device time."""


def leading_image(tick: Tick) -> ImageState:
    """Returns the image that a tick was chosen for."""
    return tick.image if isinstance(tick, DecodeTick) else tick.images[0]
