"""Latents: noise from a seed, the Euler step, patches."""

import torch
from torch import Tensor

PATCH = 2
"""Side of a patch in latent pixels: Z-Image's patch size."""
SEED_RANGE = 1 << 64


def noise(seed: int, channels: int, height: int, width: int) -> Tensor:
    """Returns standard normal latents [channels, height, width], float32 on the CPU.

    Each image has its own CPU generator, so that a seed gives the same image on every device and next to any other
    job. The values equal those that ZImagePipeline draws from `torch.Generator("cpu").manual_seed(seed)`.
    """
    return noise_from(torch.Generator("cpu").manual_seed(seed), (channels, height, width))


def noise_from(generator: torch.Generator, shape: tuple[int, int, int]) -> Tensor:
    """Draws standard normal latents [channels, height, width] float32 from a CPU generator."""
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32)[0]


def image_seed(seed: int, index: int) -> int:
    """Returns the seed of image `index` of a request, `seed + index` modulo 2^64."""
    return (seed + index) % SEED_RANGE


def patchify(latents: Tensor) -> Tensor:
    """Cuts latents into patches.

    Args:
        latents: [C, h, w].

    Returns:
        [h/2 * w/2, 4 C]. The values of a patch are ordered (row, column, channel) as in ZImageTransformer2DModel.
    """
    channels, height, width = latents.shape
    rows, columns = height // PATCH, width // PATCH
    patches = latents.view(channels, rows, PATCH, columns, PATCH).permute(1, 3, 2, 4, 0)
    return patches.reshape(rows * columns, PATCH * PATCH * channels)


def unpatchify(patches: Tensor, height: int, width: int) -> Tensor:
    """Inverts `patchify`: [h/2 * w/2, 4 C] to [C, h, w]."""
    rows, columns = height // PATCH, width // PATCH
    grid = patches.view(rows, columns, PATCH, PATCH, -1)
    return grid.permute(4, 0, 2, 1, 3).reshape(-1, height, width)


def euler_step(latents: Tensor, prediction: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Returns the latents after one Euler step, `x - (sigma_next - sigma) * prediction`, float32.

    The transformer predicts `x0 - noise`, the negative of the velocity of FlowMatchEulerDiscreteScheduler.
    """
    return torch.add(latents, prediction, alpha=sigma - sigma_next)


def denoised(latents: Tensor, prediction: Tensor, sigma: float) -> Tensor:
    """Returns the clean latents that a prediction at `sigma` implies, `x + sigma * prediction`."""
    return torch.add(latents, prediction, alpha=sigma)


def is_finite(tensor: Tensor) -> bool:
    """Returns whether every value is finite, by one reduction: the largest magnitude propagates NaN and infinity."""
    return bool(torch.isfinite(magnitude(tensor)))


def magnitude(tensor: Tensor) -> Tensor:
    """Returns the largest absolute value, NaN or infinite if any value is."""
    return tensor.abs().amax()
