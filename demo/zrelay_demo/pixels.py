"""Converts images to tensors and back."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(pictures: np.ndarray) -> Tensor:
    """Converts uint8 [N, h, w, 3] to float32 [N, 3, h, w] in -1..1, in channels-last memory format."""
    planes = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    return (planes.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Converts float [N, 3, h, w] in -1..1 to RGB images, rounded as in diffusers."""
    levels = (pictures.float().clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(item) for item in levels.contiguous().numpy()]
