"""Latents to pixels, and back for the preview's fit."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zrelay_generator.model.latents import is_finite
from zrelay_generator.model.vae_reference import ReferenceEncoder


@dataclass(frozen=True, slots=True, eq=False)
class LatentMoments:
    """What the encoder makes of pictures: a normal distribution of latents, `mean` and `deviation`
    [n, channels, h, w] float32 on the CPU."""

    mean: Tensor
    deviation: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """A draw by a CPU generator, as diffusers' DiagonalGaussianDistribution makes it."""
        drawn = torch.randn(self.mean.shape, generator=generator, dtype=torch.float32)
        return torch.addcmul(self.mean, self.deviation, drawn)


class Vae:
    """A diffusers AutoencoderKL with Z-Image's scaling: latents are (z - shift_factor) * scaling_factor."""

    def __init__(self, autoencoder: Any) -> None:
        """`autoencoder` is a diffusers AutoencoderKL. Raises ValueError for a scaling that undoes nothing."""
        # Convolutions run 1.2 (bfloat16) to 2.5 (float32) times as fast with channels last on a CPU.
        self._model = autoencoder.to(memory_format=torch.channels_last)
        self._scaling = float(autoencoder.config.scaling_factor or 0.0)
        if not 0.0 < self._scaling < math.inf:
            raise ValueError(f"scaling_factor: expected more than 0, got {autoencoder.config.scaling_factor}")
        self._shift = float(autoencoder.config.shift_factor or 0.0)
        self.factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        self._widths = tuple(autoencoder.config.block_out_channels)
        self._references = ReferenceEncoder(self._model)

    @property
    def device(self) -> torch.device:
        device: torch.device = self._model.device
        return device

    @property
    def bytes_per_pixel(self) -> int:
        """Memory that decoding takes at its peak, per pixel: a few activations of the second-narrowest width at full
        size (before and after a norm, a convolution's result and its workspace). Estimated, an upper bound."""
        width: int = self._widths[min(1, len(self._widths) - 1)]
        itemsize: int = self._model.dtype.itemsize
        return 6 * width * itemsize

    def decode(self, latents: Tensor) -> Tensor:
        """[channels, h, w] float32 -> [8 h, 8 w, 3] uint8 on the CPU, rounded as diffusers' VaeImageProcessor.

        Raises FloatingPointError where the VAE overflows (float16).
        """
        scaled = (latents / self._scaling + self._shift).to(self._model.dtype)
        decoded: Tensor = self._model.decode(scaled[None], return_dict=False)[0][0]
        if not is_finite(decoded):
            raise FloatingPointError("decoded: expected finite values, got NaN or infinity")
        return to_pixels(decoded)

    def encode(self, pixels: Tensor) -> Tensor:
        """[n, 3, H, W] in -1 to 1 -> the mean latents [n, channels, H/8, W/8] float32."""
        mean: Tensor = self._encoded(pixels).mode()
        return (mean.float() - self._shift) * self._scaling

    def moments(self, pixels: Tensor) -> LatentMoments:
        """[n, 3, H, W] in -1 to 1 -> the distribution of their latents, scaled as `encode` does."""
        found = self._encoded(pixels)
        mean = (found.mean.float() - self._shift) * self._scaling
        return LatentMoments(mean.cpu(), (found.std.float() * self._scaling).cpu())

    def reference(self, pixels: Tensor) -> Tensor:
        """[3, H, W] uint8 -> clean latents [channels, H/8, W/8] float32, computed in bfloat16 as ZImageOmniPipeline's
        `prepare_image_latents` does."""
        return ((self._references.mode(pixels) - self._shift) * self._scaling).float()

    def _encoded(self, pixels: Tensor) -> Any:
        return self._model.encode(pixels.to(self._model.device, self._model.dtype), return_dict=False)[0]


def to_pixels(decoded: Tensor) -> Tensor:
    """[3, H, W] in -1 to 1 -> [H, W, 3] uint8 on the CPU."""
    unit = (decoded.float() * 0.5 + 0.5).clamp(0.0, 1.0)
    return (unit * 255.0).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu()
