"""The cost model: how long work takes on this device and how much memory, the ground of queue limits, ETAs and of
what is packed with what."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from zrelay_generator.cost.fit import Fit
from zrelay_generator.engine.job import ImageState, Job
from zrelay_generator.engine.refusals import out_of_memory
from zrelay_generator.features.protocol import JobFeature, JobSpec
from zrelay_generator.features.registry import features_of, step_sizes
from zrelay_generator.model.size import Size
from zrelay_shared.torch_devices import report

_LAYERS = 30
"""Main blocks of the published model, until the loaded one is known."""


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Bytes that work takes at its peak beside the weights: of a forward per token, of a decode per pixel; and how
    many main blocks the transformer has. Estimates from the shapes of the weights, upper bounds rather than means."""

    layers: int = _LAYERS
    bytes_per_token: int = 0
    bytes_per_pixel: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one job alone: seconds on the device (0 while nothing was measured), bytes at its peak beside the weights."""

    seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class CostModel:
    """What the model says now, for people and monitoring; seconds are 0 until measured."""

    forward_base_s: float
    forward_s_per_token: float
    forward_s_per_token_squared: float
    decode_base_s: float
    decode_s_per_pixel: float
    bytes_per_token: int
    bytes_per_pixel: int


@dataclass(slots=True)
class Speed:
    """Measured on the device thread, read by anyone.

    A forward takes base + a tokens + b squares seconds, a decode base + c pixels + d pixels squared (a VAE has an
    attention of its own): calibrated when the model is loaded, refined by every tick.
    """

    memory: MemoryModel = field(default_factory=MemoryModel)
    _forward: Fit = field(default_factory=lambda: Fit(main=1, features=3))
    _decode: Fit = field(default_factory=lambda: Fit(main=1, features=3))

    @property
    def measured(self) -> bool:
        return self._forward.coefficients is not None and self._decode.coefficients is not None

    def saw_forward(self, tokens: float, seconds: float, squares: float = 0.0) -> None:
        self._forward.saw((1.0, tokens, squares), seconds)

    def saw_decode(self, pixels: float, seconds: float) -> None:
        self._decode.saw((1.0, pixels, pixels * pixels), seconds)

    def forget(self) -> None:
        """Back to nothing measured."""
        self._forward.forget()
        self._decode.forget()

    def forward_s(self, size: Size) -> float:
        """Seconds of one forward of this size; 0 while nothing was measured."""
        return self._forward.seconds((1.0, size.tokens, size.squares))

    def decode_s(self, pixels: int) -> float:
        """Seconds of one decode; 0 while nothing was measured."""
        return self._decode.seconds((1.0, pixels, float(pixels) ** 2))

    def encode_s(self, features: Iterable[JobFeature]) -> float:
        """Seconds of the pictures that a job's features give to the VAE: each at most what its decode takes, since a
        VAE's encoder is narrower at full size than its decoder. 0 while nothing was measured."""
        return sum(self.decode_s(pixels) for feature in features for pixels in feature.encoded_pixels())

    def step_size(self, image: ImageState) -> Size:
        """The size of an image's next forward, were it alone."""
        _, tokens, squares = self._left(image.job)[image.done]
        _, tokens_after, squares_after = self._left(image.job)[image.done + 1]
        return Size(tokens - tokens_after, squares - squares_after)

    def remaining_s(self, job: Job) -> float:
        """Estimated seconds on the device until the job is done, were it alone; 0 while nothing was measured, and for a
        job that has left the device."""
        images = job.images  # taken once: the device thread lets them go when the job is over
        if not self.measured or not images:
            return 0.0
        left, sampling = self._left(job), job.spec.sampling
        forwards = [left[image.done] for image in images]
        totals = [float(sum(column)) for column in zip(*forwards, strict=True)]
        decodes = sum(not image.decoded for image in images)
        begin_s = self.encode_s(job.features) if job.conditioning is None else 0.0
        return begin_s + self._forward.seconds(totals) + decodes * self.decode_s(sampling.width * sampling.height)

    def estimate(self, spec: JobSpec) -> Estimate:
        """What a job will take."""
        sampling = spec.sampling
        pixels = sampling.width * sampling.height
        features = features_of(spec)
        sizes = step_sizes(spec, features, self.memory.layers)
        seconds = sum(map(self.forward_s, sizes)) + self.decode_s(pixels)
        most = max(size.tokens for size in sizes) * self.memory.bytes_per_token
        # The decoder's bytes bound those of the VAE's encoder as well as its seconds.
        at_once = max([pixels, *(encoded for feature in features for encoded in feature.encoded_pixels())])
        return Estimate(
            self.encode_s(features) + seconds * sampling.num_images,
            int(max(most, at_once * self.memory.bytes_per_pixel)),
        )

    def fits(self, spec: JobSpec, free_bytes: int) -> bool:
        """Whether one image of the job goes into so much free memory; True where either is not known (0)."""
        return not free_bytes or self.estimate(spec).memory_bytes <= free_bytes

    def snapshot(self) -> CostModel:
        base, token, square = self._forward.coefficients or (0.0, 0.0, 0.0)
        decode, pixel, _ = self._decode.coefficients or (0.0, 0.0, 0.0)
        memory = self.memory
        return CostModel(base, token, square, decode, pixel, memory.bytes_per_token, memory.bytes_per_pixel)

    def _left(self, job: Job) -> tuple[tuple[int, float, float], ...]:
        """Forwards, tokens and squares of one image from each of its steps on; the last entry is nothing."""
        if job.remaining is None:
            job.remaining = _suffix_sums(step_sizes(job.spec, job.features, self.memory.layers))
        return job.remaining


def check_fits(spec: JobSpec, speed: Speed, device: torch.device, idle_bytes: int = 0) -> None:
    """Raises OutOfMemory, with what would fit, where one image of the job needs more memory than the device has.

    `idle_bytes` were free when the device had no work: what is full for now is no reason to refuse.
    """
    free = max(idle_bytes, report(device).memory_free_bytes)
    if not speed.fits(spec, free):
        raise out_of_memory(spec, device, speed.estimate(spec).memory_bytes)


def _suffix_sums(sizes: Iterable[Size]) -> tuple[tuple[int, float, float], ...]:
    sums = [(0, 0.0, 0.0)]
    for size in reversed(list(sizes)):
        count, tokens, squares = sums[-1]
        sums.append((count + 1, tokens + size.tokens, squares + size.squares))
    return tuple(reversed(sums))
