"""Pictures as tensors and back."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [N, h, w, 3] -> float32 [N, 3, h, w] in -1..1, channels last in memory."""
    planes = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    return (planes.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def to_images(pictures: Tensor) -> list[Image.Image]:
    """float [N, 3, h, w] in -1..1 -> RGB images, rounded as diffusers does."""
    levels = (pictures.float().clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(item) for item in levels.contiguous().numpy()]
