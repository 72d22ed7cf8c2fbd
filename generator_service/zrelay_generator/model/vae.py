"""The VAE: latents to pixels and pixels to latents."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zrelay_generator.model.latents import is_finite
from zrelay_shared.service.memory_plan import vae_bytes_per_pixel


class Bfloat16Encoder:
    """The encoder half of a diffusers AutoencoderKL in bfloat16, a copy if the VAE has another dtype."""

    def __init__(self, autoencoder: Any) -> None:
        self._autoencoder = autoencoder
        self._half: nn.Module | None = None

    def mode(self, pixels: Tensor) -> Tensor:
        """Returns the mean latents [channels, H/8, W/8] bfloat16, not scaled, of pixels [3, H, W] uint8."""
        if self._half is None:
            self._half = _encoder_half(self._autoencoder)
        images = pixels[None].to(self._autoencoder.device).float() / 255.0 * 2.0 - 1.0
        moments: Tensor = self._half(images.bfloat16().contiguous(memory_format=torch.channels_last))
        return moments.chunk(2, dim=1)[0][0]


def _encoder_half(autoencoder: Any) -> nn.Module:
    """Returns the encoder with contiguous weights, as the pipeline has it.

    The layout matters: convolutions in another layout sum in another order, which changes results in bfloat16.
    """
    parts = [part for part in (autoencoder.encoder, autoencoder.quant_conv) if part is not None]
    half = nn.Sequential(*parts)
    if autoencoder.dtype == torch.bfloat16:
        return half
    copied: Any = copy.deepcopy(half)
    contiguous: nn.Module = copied.to(torch.bfloat16, memory_format=torch.contiguous_format)
    return contiguous


@dataclass(frozen=True, slots=True, eq=False)
class LatentMoments:
    """The encoder's output for pictures: a normal distribution of latents.

    Attributes:
        mean, deviation: [n, channels, h, w] float32 on the CPU.
    """

    mean: Tensor
    deviation: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draws a sample by a CPU generator, as DiagonalGaussianDistribution in diffusers does."""
        drawn = torch.randn(self.mean.shape, generator=generator, dtype=torch.float32)
        return torch.addcmul(self.mean, self.deviation, drawn)


class Vae:
    """A diffusers AutoencoderKL with Z-Image's scaling: latents are (z - shift_factor) * scaling_factor."""

    def __init__(self, autoencoder: Any) -> None:
        """Wraps a diffusers AutoencoderKL.

        Raises:
            ValueError: The scaling factor is not a positive finite number.
        """
        # Convolutions run 1.2 (bfloat16) to 2.5 (float32) times as fast with channels last on a CPU.
        self._model = autoencoder.to(memory_format=torch.channels_last)
        self._scaling = float(autoencoder.config.scaling_factor or 0.0)
        if not 0.0 < self._scaling < math.inf:
            raise ValueError(f"scaling_factor: expected more than 0, got {autoencoder.config.scaling_factor}")
        self._shift = float(autoencoder.config.shift_factor or 0.0)
        self.factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        self._widths = tuple(autoencoder.config.block_out_channels)
        self._references = Bfloat16Encoder(self._model)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        device: torch.device = self._model.device
        return device

    @property
    def bytes_per_pixel(self) -> int:
        """Peak memory of decoding per pixel in bytes, an estimated upper bound."""
        return vae_bytes_per_pixel(self._widths, self._model.dtype.itemsize)

    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents, rounded as diffusers' VaeImageProcessor does.

        Args:
            latents: [channels, h, w] float32.

        Returns:
            [8 h, 8 w, 3] uint8 on the CPU.

        Raises:
            FloatingPointError: The VAE overflowed, which float16 can do.
        """
        scaled = (latents / self._scaling + self._shift).to(self._model.dtype)
        decoded: Tensor = self._model.decode(scaled[None], return_dict=False)[0][0]
        if not is_finite(decoded):
            raise FloatingPointError("decoded: expected finite values, got NaN or infinity")
        return to_pixels(decoded)

    def encode(self, pixels: Tensor) -> Tensor:
        """Returns the mean latents [n, channels, H/8, W/8] float32 of pixels [n, 3, H, W] in -1 to 1."""
        mean: Tensor = self._encoded(pixels).mode()
        return (mean.float() - self._shift) * self._scaling

    def moments(self, pixels: Tensor) -> LatentMoments:
        """Returns the distribution of the latents of pixels [n, 3, H, W] in -1 to 1, scaled as `encode` does."""
        found = self._encoded(pixels)
        mean = (found.mean.float() - self._shift) * self._scaling
        return LatentMoments(mean.cpu(), (found.std.float() * self._scaling).cpu())

    def reference(self, pixels: Tensor) -> Tensor:
        """Returns the clean latents of a reference, in bfloat16 as ZImageOmniPipeline.prepare_image_latents does.

        Args:
            pixels: [3, H, W] uint8.

        Returns:
            [channels, H/8, W/8] float32.
        """
        return ((self._references.mode(pixels) - self._shift) * self._scaling).float()

    def _encoded(self, pixels: Tensor) -> Any:
        return self._model.encode(pixels.to(self._model.device, self._model.dtype), return_dict=False)[0]


def to_pixels(decoded: Tensor) -> Tensor:
    """Converts a picture [3, H, W] in -1 to 1 to [H, W, 3] uint8 on the CPU."""
    unit = (decoded.float() * 0.5 + 0.5).clamp(0.0, 1.0)
    return (unit * 255.0).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu()
