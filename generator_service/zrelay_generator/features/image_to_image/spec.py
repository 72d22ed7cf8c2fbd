"""What a job asks of image to image."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from zrelay_generator.features.protocol import FeatureSpec, SamplingSettings


@dataclass(frozen=True, slots=True, eq=False)
class ImageToImageSpec(FeatureSpec):
    """The picture that a job starts from.

    Attributes:
        pixels: [3, height, width] uint8, of the result's size.
        file_sha256: SHA-256 (hex) of the file that was sent.
        strength: Share of the schedule that runs, above 0 to 1.
    """

    pixels: Tensor
    file_sha256: str
    strength: float

    def applied_to(self, sampling: SamplingSettings) -> SamplingSettings:
        """Returns the sampling that runs the last steps only."""
        return replace(sampling, first_step=first_step(sampling.num_inference_steps, self.strength))

    def provenance(self) -> Mapping[str, object]:
        return {"image_to_image": {"file_sha256": self.file_sha256, "strength": self.strength}}


def first_step(num_inference_steps: int, strength: float) -> int:
    """Returns the first step that runs at a strength from 0 to 1: N - N * strength, rounded down.

    The formula is that of `get_timesteps` in diffusers' ZImageImg2ImgPipeline. N means that no step runs.
    """
    run = min(num_inference_steps * strength, num_inference_steps)
    return int(max(num_inference_steps - run, 0))
