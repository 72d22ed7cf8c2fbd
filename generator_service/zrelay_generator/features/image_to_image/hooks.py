"""Image to image as diffusers' ZImageImg2ImgPipeline has it: noise on a picture's latents, the schedule's last part."""

import torch
from torch import Tensor

from zrelay_generator.features.hooks import Condition, Feature
from zrelay_generator.features.protocol import JobSpec
from zrelay_generator.model.latents import noise_from
from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.vae import Moments


def first_step(num_inference_steps: int, strength: float) -> int:
    """The step that a run of share `strength` (0 to 1) begins with: N - N * strength, rounded down (diffusers'
    `get_timesteps`). N means that nothing is left to run."""
    run = min(num_inference_steps * strength, num_inference_steps)
    return int(max(num_inference_steps - run, 0))


class ImageToImage(Feature):
    """Latents that start from a picture."""

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels
        self._moments: Moments | None = None

    @classmethod
    def of(cls, spec: JobSpec) -> "ImageToImage | None":
        return None if spec.start_image is None else cls(spec.start_image.pixels)

    def encoded_pixels(self) -> tuple[int, ...]:
        return (self._pixels.shape[1] * self._pixels.shape[2],)

    def begin(self, model: LoadedModel, condition: Condition) -> None:
        # Once for all images of the job: the mean and deviation depend on the picture alone, each image draws its own.
        self._moments = model.vae.moments(self._pixels[None].float() / 127.5 - 1.0)

    def start(self, image: int, generator: torch.Generator, shape: tuple[int, int, int], sigma: float) -> Tensor | None:
        if self._moments is None:
            raise ValueError("begin: expected before start, was not called")
        clean = self._moments.sample(generator)[0]
        return (1.0 - sigma) * clean + sigma * noise_from(generator, shape)
