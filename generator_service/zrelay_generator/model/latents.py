"""Latents: noise from a seed, the Euler step, and the way to patches and back."""

import torch
from torch import Tensor

PATCH = 2
"""Side of a patch in latent pixels: Z-Image's patch size."""
SEED_RANGE = 1 << 64


def noise(seed: int, channels: int, height: int, width: int) -> Tensor:
    """Standard normal latents [channels, height, width], float32 on the CPU.

    Drawn by a CPU generator of its own, so a seed means the same picture on every device and in any company; equal to
    what ZImagePipeline draws for one image from `torch.Generator("cpu").manual_seed(seed)`.
    """
    return noise_from(torch.Generator("cpu").manual_seed(seed), (channels, height, width))


def noise_from(generator: torch.Generator, shape: tuple[int, int, int]) -> Tensor:
    """The next standard normal latents [channels, height, width] of a CPU generator, float32."""
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32)[0]


def image_seed(seed: int, index: int) -> int:
    """Seed of image `index` of a request: seed + index, within 64 bits."""
    return (seed + index) % SEED_RANGE


def patchify(latents: Tensor) -> Tensor:
    """[C, h, w] -> [h/2 * w/2, 4 C], a patch's values as (row, column, channel): ZImageTransformer2DModel's order."""
    channels, height, width = latents.shape
    rows, columns = height // PATCH, width // PATCH
    patches = latents.view(channels, rows, PATCH, columns, PATCH).permute(1, 3, 2, 4, 0)
    return patches.reshape(rows * columns, PATCH * PATCH * channels)


def unpatchify(patches: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `patchify`: [h/2 * w/2, 4 C] -> [C, h, w]."""
    rows, columns = height // PATCH, width // PATCH
    grid = patches.view(rows, columns, PATCH, PATCH, -1)
    return grid.permute(4, 0, 2, 1, 3).reshape(-1, height, width)


def euler_step(latents: Tensor, prediction: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One step of the flow: x - (sigma_next - sigma) * prediction, float32.

    The transformer predicts x0 - noise, the negative of the velocity that FlowMatchEulerDiscreteScheduler steps along.
    """
    return torch.add(latents, prediction, alpha=sigma - sigma_next)


def denoised(latents: Tensor, prediction: Tensor, sigma: float) -> Tensor:
    """The clean latents that a prediction at `sigma` points to: x + sigma * prediction."""
    return torch.add(latents, prediction, alpha=sigma)


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite. One reduction: the largest magnitude carries any NaN or infinity."""
    return bool(torch.isfinite(magnitude(tensor)))


def magnitude(tensor: Tensor) -> Tensor:
    """The largest absolute value; NaN or infinite where any value is."""
    return tensor.abs().amax()
