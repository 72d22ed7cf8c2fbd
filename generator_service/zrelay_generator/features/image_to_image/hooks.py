"""Image to image as in diffusers' ZImageImg2ImgPipeline: noise is added to a picture's latents, the last steps run."""

import torch
from torch import Tensor

from zrelay_generator.features.image_to_image.spec import ImageToImageSpec
from zrelay_generator.features.protocol import Condition, JobFeature, JobSpec
from zrelay_generator.model.latents import noise_from
from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.vae import LatentMoments


def image_to_image_hooks(spec: ImageToImageSpec, job: JobSpec) -> "ImageToImage":
    """Makes the hooks of a job."""
    return ImageToImage(spec.pixels)


class ImageToImage(JobFeature):
    """Makes the first latents from a picture."""

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels
        self._moments: LatentMoments | None = None

    def encoded_pixels(self) -> tuple[int, ...]:
        return (self._pixels.shape[1] * self._pixels.shape[2],)

    def begin(self, model: LoadedModel, condition: Condition) -> None:
        # Mean and deviation depend on the picture only. Each image of the job draws its own sample in `start`.
        self._moments = model.vae.moments(self._pixels[None].float() / 127.5 - 1.0)

    def start(self, image: int, generator: torch.Generator, shape: tuple[int, int, int], sigma: float) -> Tensor | None:
        if self._moments is None:
            raise ValueError("begin: expected before start, was not called")
        clean = self._moments.sample(generator)[0]
        return (1.0 - sigma) * clean + sigma * noise_from(generator, shape)
