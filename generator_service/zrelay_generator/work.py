"""How much work a job is, and how fast this device does it: the ground of queue limits, retry hints and ETAs."""

from dataclasses import dataclass

from zrelay_generator.job import Job
from zrelay_generator.policy import image_tokens

_WEIGHT_OF_NEW = 0.2
"""Share of the latest measurement in the running rate."""


@dataclass(slots=True)
class Speed:
    """Measured rates, 0 until measured: tokens through one forward a second, pixels decoded a second.

    The device thread writes, anyone reads. A forward is taken as linear in its tokens: attention is 15 % of it at
    1024 x 1024, so an estimate across sizes is off by about that, which a queue limit does not mind.
    """

    tokens_per_s: float = 0.0
    pixels_per_s: float = 0.0

    def saw_forward(self, tokens: int, seconds: float) -> None:
        self.tokens_per_s = _blend(self.tokens_per_s, tokens / max(seconds, 1e-9))

    def saw_decode(self, pixels: int, seconds: float) -> None:
        self.pixels_per_s = _blend(self.pixels_per_s, pixels / max(seconds, 1e-9))

    def forget(self) -> None:
        """Back to nothing measured."""
        self.tokens_per_s = self.pixels_per_s = 0.0

    def remaining_s(self, job: Job) -> float:
        """Estimated seconds on the device until the job is done; 0 while nothing was measured."""
        if not (self.tokens_per_s and self.pixels_per_s):
            return 0.0
        sampling = job.spec.sampling
        steps = job.steps_total - job.steps_done
        pixels = (len(job.images) - job.decoded) * sampling.width * sampling.height
        return steps * image_tokens(job) / self.tokens_per_s + pixels / self.pixels_per_s


def _blend(rate: float, latest: float) -> float:
    return latest if rate == 0.0 else (1.0 - _WEIGHT_OF_NEW) * rate + _WEIGHT_OF_NEW * latest
