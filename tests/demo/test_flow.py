"""The batched forward that training uses: the same numbers as diffusers' forward over lists, pads included."""

import pytest
import torch
from diffusers import ZImageTransformer2DModel

from zrelay_demo import CHECKPOINT
from zrelay_demo.flow import BatchedTransformer, TrainingSet, to_patches
from zrelay_demo.scenes import RESOLUTIONS, Resolution


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("tokens", [32, 64])
@torch.no_grad()
def test_the_batched_forward_is_that_of_diffusers(resolution: Resolution, tokens: int) -> None:
    transformer = ZImageTransformer2DModel.from_pretrained(CHECKPOINT / "transformer").float()
    generator = torch.Generator().manual_seed(0)
    height, width = resolution[1] // 8, resolution[0] // 8
    latents = torch.randn(2, 16, height, width, generator=generator)
    embeds = torch.randn(2, tokens, transformer.config.cap_feat_dim, generator=generator)
    lengths = [tokens - 5, tokens - 20]
    sigma = torch.tensor([0.9, 0.3])
    listed = transformer(
        [item[:, None] for item in latents],
        1 - sigma,
        [item[:length] for item, length in zip(embeds, lengths, strict=True)],
    ).sample
    expected = to_patches(torch.stack([item[:, 0] for item in listed]))
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    training_set = TrainingSet(height // 2, width // 2, [], torch.empty(0), torch.empty(0))
    got = BatchedTransformer(transformer, compiled=False)(training_set, to_patches(latents), sigma, embeds, mask)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
