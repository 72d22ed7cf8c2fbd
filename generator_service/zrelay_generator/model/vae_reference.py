"""Encodes reference images in bfloat16 as ZImageOmniPipeline does, whatever the dtype of the VAE is."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class ReferenceEncoder:
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
