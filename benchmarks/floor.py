"""What a forward cannot be faster than: its operations at the rate of a plain matrix product on the same device."""

import time
from collections.abc import Sequence

import torch
from forwards import Picture

from zrelay_generator.model.sequence import padded
from zrelay_generator.model.weights import BlockWeights, TransformerWeights

_VAE_FLOP_PER_PIXEL = 10.0e6
"""Of the published VAE's decoder (docs/performance.md, 1)."""


def forward_flop(weights: TransformerWeights, pictures: Sequence[Picture]) -> float:
    """Of one forward of these images, what is computed once per job left out: 55 TFLOP at 1024 x 1024."""
    total = 0.0
    for picture in pictures:
        image = padded(picture.side * picture.side // 256)
        unified = image + padded(picture.text_tokens)
        total += sum(_block(block, image) for block in weights.noise_refiner)
        total += sum(_block(block, unified) for block in weights.layers)
    return total


def decode_flop(pixels: int) -> float:
    """Of one decode by the published VAE."""
    return _VAE_FLOP_PER_PIXEL * pixels


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Operations a second of a product of two side x side matrices: the best of some."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        for _ in range(4):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, (time.perf_counter() - started) / 4)
    return 2.0 * side**3 / best


def _block(block: BlockWeights, tokens: int) -> float:
    matrices = (block.query, block.key, block.value, block.out, block.gate, block.up, block.down)
    return tokens * 2.0 * sum(matrix.numel() for matrix in matrices) + 4.0 * block.out.shape[0] * tokens**2
