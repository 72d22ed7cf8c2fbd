"""A device that sleeps instead of computing: a loaded model whose forwards and decodes take the time that the
published model's operations would, and give zeros. All around it is the real generator, which does not know."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from zrelay_generator.cost.model import Size
from zrelay_generator.model.loading import load_model
from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.sequence import segment_size
from zrelay_generator.model.transformer import PackedTransformer, Prediction, Segment
from zrelay_generator.model.vae import Vae

_FLOP_PER_TOKEN, _FLOP_PER_SQUARE, _FLOP_PER_PIXEL = 11.65e9, 491_520.0, 10.0e6
"""Of the published model (docs/performance.md, 1): 56.6 TFLOP a forward and 10.5 a decode at 1024 x 1024."""


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """Of a simulated device: `rate` floating point operations a second."""

    rate: float

    @classmethod
    def of_job(cls, seconds: float, side: int, steps: int) -> "DeviceSpeed":
        """The device on which a picture of side x side pixels in so many steps takes so long."""
        unit = cls(1.0)
        flop = steps * unit.forward_s(segment_size(side, side, 1)) + unit.decode_s(side * side)
        return cls(flop / seconds)

    def forward_s(self, size: Size) -> float:
        return (_FLOP_PER_TOKEN * size.tokens + _FLOP_PER_SQUARE * size.squares) / self.rate

    def decode_s(self, pixels: int) -> float:
        return _FLOP_PER_PIXEL * pixels / self.rate


def load(
    speed: DeviceSpeed, folder: Path, device: torch.device, dtype: torch.dtype, stored: torch.dtype
) -> LoadedModel:
    """What `zrelay_generator.model.loading.load_model` makes of a folder, at a speed."""
    real = load_model(folder, device, dtype, stored)
    transformer, vae = SimulatedTransformer(real.transformer, speed), SimulatedVae(real.vae, speed)
    return replace(real, transformer=transformer, vae=vae)


def loader(speed: DeviceSpeed) -> "partial[LoadedModel]":
    """`load` at a speed."""
    return partial(load, speed)


class SimulatedTransformer(PackedTransformer):
    """Sleeps for each forward. Captions and positions are computed, as small as the checkpoint is."""

    def __init__(self, like: PackedTransformer, speed: DeviceSpeed) -> None:
        super().__init__(like.weights)
        self._speed = speed

    def forward(self, segments: Sequence[Segment]) -> list[Prediction]:
        lengths = [segment.conditioning.tokens for segment in segments]
        time.sleep(self._speed.forward_s(Size(sum(lengths), sum(n * n for n in lengths))))
        nothing = [torch.zeros_like(segment.latents) for segment in segments]
        return [Prediction(zeros, (zeros,) * len(s.without)) for zeros, s in zip(nothing, segments, strict=True)]


class SimulatedVae(Vae):
    """Sleeps for each decode; the pictures are black."""

    def __init__(self, like: Vae, speed: DeviceSpeed) -> None:
        vars(self).update(vars(like))
        self._speed = speed

    def decode(self, latents: Tensor) -> Tensor:
        height, width = (side * self.factor for side in latents.shape[1:])
        time.sleep(self._speed.decode_s(height * width))
        return torch.zeros(height, width, 3, dtype=torch.uint8)
