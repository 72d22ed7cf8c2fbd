"""Latents to pixels, and back for the preview's fit."""

import math
from typing import Any

import torch
from torch import Tensor

from zrelay_generator.latents import is_finite


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

    @property
    def device(self) -> torch.device:
        device: torch.device = self._model.device
        return device

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
        moments = self._model.encode(pixels.to(self._model.device, self._model.dtype), return_dict=False)[0]
        mean: Tensor = moments.mode()
        return (mean.float() - self._shift) * self._scaling


def to_pixels(decoded: Tensor) -> Tensor:
    """[3, H, W] in -1 to 1 -> [H, W, 3] uint8 on the CPU."""
    unit = (decoded.float() * 0.5 + 0.5).clamp(0.0, 1.0)
    return (unit * 255.0).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu()
