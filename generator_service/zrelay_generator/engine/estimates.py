"""Estimates of whole jobs: the cost model applied to the steps, decodes and encoded images of a job."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from zrelay_generator.cost.model import CostModel, Size
from zrelay_generator.engine.job import DeviceJob, ImageState
from zrelay_generator.engine.refusals import out_of_memory
from zrelay_generator.features.protocol import JobFeature, JobSpec
from zrelay_generator.features.registry import features_of, step_sizes
from zrelay_shared.torch_devices import report


@dataclass(frozen=True, slots=True)
class Estimate:
    """Cost of one job that runs alone.

    Attributes:
        seconds: Seconds on the device, 0 until the device was measured.
        memory_bytes: Peak memory beside the weights.
    """

    seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class JobEstimator:
    """Estimates seconds and memory of jobs. Any thread may call it.

    Attributes:
        cost: The device's cost model.
    """

    cost: CostModel = field(default_factory=CostModel)

    def estimate(self, spec: JobSpec) -> Estimate:
        """Returns what a job will cost in total."""
        sampling, cost = spec.sampling, self.cost
        pixels = sampling.width * sampling.height
        features = features_of(spec)
        sizes = step_sizes(spec, features, cost.memory.layers)
        image_s = cost.forwards_s(len(sizes), sum(sizes, Size())) + cost.decode_s(pixels)
        forward_bytes = max(size.tokens for size in sizes) * cost.memory.bytes_per_token
        # The decoder's bytes are an upper bound of those of the VAE's encoder.
        vae_pixels = max([pixels, *(encoded for feature in features for encoded in feature.encoded_pixels())])
        return Estimate(
            self.encode_s(features) + image_s * sampling.num_images,
            int(max(forward_bytes, vae_pixels * cost.memory.bytes_per_pixel)),
        )

    def remaining_s(self, job: DeviceJob) -> float:
        """Returns the seconds on the device that a job still needs when it runs alone.

        0 while nothing was measured, and for a job that has left the device.
        """
        images = job.images  # read once: the device thread clears the list when the job is over
        if not self.cost.measured or not images:
            return 0.0
        remaining, sampling = self._remaining(job), job.spec.sampling
        count, size = 0, Size()
        for image in images:
            steps, total = remaining[image.done]
            count, size = count + steps, size + total
        decodes = sum(not image.decoded for image in images)
        decode_s = self.cost.decode_s(sampling.width * sampling.height)
        return self.begin_s(job) + self.cost.forwards_s(count, size) + decodes * decode_s

    def begin_s(self, job: DeviceJob) -> float:
        """Returns the seconds that a job takes before its first step; 0 once it has begun."""
        return self.encode_s(job.features) if job.conditioning is None else 0.0

    def step_size(self, image: ImageState) -> Size:
        """Returns the size of an image's next forward when it runs alone."""
        remaining = self._remaining(image.job)
        (_, now), (_, after) = remaining[image.done], remaining[image.done + 1]
        return Size(now.tokens - after.tokens, now.squares - after.squares)

    def encode_s(self, features: Iterable[JobFeature]) -> float:
        """Returns the seconds of the images that a job's features give to the VAE's encoder.

        Each counts as its decode, which is an upper bound: an encoder is narrower at full size than its decoder.
        """
        return sum(self.cost.decode_s(pixels) for feature in features for pixels in feature.encoded_pixels())

    def decode_s(self, job: DeviceJob) -> float:
        """Returns the seconds of the decode of one image of a job."""
        sampling = job.spec.sampling
        return self.cost.decode_s(sampling.width * sampling.height)

    def fits(self, spec: JobSpec, free_bytes: int) -> bool:
        """Whether one image of a job fits into `free_bytes`; True if the platform does not report them (0)."""
        return not free_bytes or self.estimate(spec).memory_bytes <= free_bytes

    def check_fits(
        self, spec: JobSpec, device: torch.device, idle_bytes: int = 0, most_bytes: int | None = None
    ) -> None:
        """Refuses a job whose image needs more memory than the device has.

        Args:
            spec: The job.
            device: The device it would run on.
            idle_bytes: Memory that was free while the device had no work: what is full for now is no reason to refuse.
            most_bytes: Bytes that the memory budget leaves for work, None without a budget.

        Raises:
            OutOfMemory: With a size that would fit.
        """
        free = max(idle_bytes, report(device).memory_free_bytes)
        if most_bytes is not None:
            free = min(free, most_bytes) or most_bytes
        estimate = self.estimate(spec)
        if (free or most_bytes is not None) and estimate.memory_bytes > free:
            raise out_of_memory(spec, device, estimate.memory_bytes)

    def _remaining(self, job: DeviceJob) -> tuple[tuple[int, Size], ...]:
        """Forwards and their total size from each step of an image to its end; the last entry is (0, nothing)."""
        if job.remaining is None:
            sums = [(0, Size())]
            for size in reversed(step_sizes(job.spec, job.features, self.cost.memory.layers)):
                count, total = sums[-1]
                sums.append((count + 1, total + size))
            job.remaining = tuple(reversed(sums))
        return job.remaining
