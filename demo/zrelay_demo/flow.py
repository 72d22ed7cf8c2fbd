"""What training and distillation share: prompts as tokens, noisy latents, and a batched transformer forward."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import AutoTokenizer

from .attention import ProductAttention, real_rope
from .captions import canonical, caption
from .models import Network
from .world import Scene

SHIFT = 3.0
PROMPT_TOKENS = 32
"""Z-Image pads prompts to a multiple of 32; every caption of this world fits into the first."""


@dataclass(frozen=True)
class Noisy:
    """A stratified batch on the straight paths from noise to latents, all float32 [N, patches, 64]."""

    x: Tensor
    velocity: Tensor
    sigma: Tensor


class Prompts:
    """Turns scenes into token ids, each caption in Z-Image's chat template and padded to 32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def words(self, scene: Scene, rng: Random) -> str:
        """A random caption that fits."""
        text = caption(scene, rng)
        return text if len(self.tokenizer(_templated(text)).input_ids) <= PROMPT_TOKENS else canonical(scene)

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids int64 [N, 32] and mask bool [N, 32]."""
        encoded = self.tokenizer(
            [_templated(text) for text in texts],
            padding="max_length",
            max_length=PROMPT_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        return encoded.input_ids, encoded.attention_mask.bool()


def hidden_states(text_encoder: Network, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What the transformer takes, hidden_states[-2], and the last layer's output; each [N, 32, hidden]."""
    out = text_encoder.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    return out.hidden_states[-2], out.last_hidden_state


def patches(latents: Tensor) -> Tensor:
    """[N, 16, h, w] -> [N, h / 2 * w / 2, 64] in the order of Z-Image's patches: row, column, then channels last."""
    n, channels, height, width = latents.shape
    split = latents.view(n, channels, height // 2, 2, width // 2, 2)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, 4 * channels)


def noise(clean: Tensor, generator: torch.Generator) -> Noisy:
    """Mix patches with noise at stratified noise levels sigma = 3 u / (1 + 2 u), the schedule's shift."""
    count = len(clean)
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
    pure = torch.randn(clean.shape, generator=generator)
    level = sigma[:, None, None]
    return Noisy((1 - level) * clean + level * pure, clean - pure, sigma)


class Batched:
    """The transformer's forward over one batch of equal shapes; the same maths as diffusers' forward over lists."""

    def __init__(self, transformer: Network, rows: int, columns: int, fused: bool) -> None:
        """`rows` and `columns` count patches of the latents; `fused` compiles the blocks with torch.compile."""
        self._transformer = transformer
        compiles = fused and can_compile()
        for block in [*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers]:
            block.attention.set_processor(ProductAttention())
            if compiles:
                block.compile(dynamic=False)
        spots = torch.arange(1, PROMPT_TOKENS + 1)
        prompt_ids = torch.stack([spots, torch.zeros_like(spots), torch.zeros_like(spots)], -1)
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        image_ids = torch.stack([torch.full_like(y, PROMPT_TOKENS + 1), y, x], -1).flatten(0, 1)
        self._prompt_rope = real_rope(transformer.rope_embedder(prompt_ids))
        self._image_rope = real_rope(transformer.rope_embedder(image_ids))

    def __call__(self, noisy: Tensor, sigma: Tensor, embeds: Tensor, mask: Tensor) -> Tensor:
        """Velocity float32 [N, patches, 64] towards the clean patches."""
        net = self._transformer
        time = net.t_embedder((1 - sigma) * 1000.0)
        image = net.all_x_embedder["2-1"](noisy)
        time = time.type_as(image)
        for block in net.noise_refiner:
            image = block(image, None, self._image_rope, time)
        prompt = net.cap_embedder(embeds)
        prompt = torch.where(mask[..., None], prompt, net.cap_pad_token.to(prompt.dtype))
        for block in net.context_refiner:
            prompt = block(prompt, None, self._prompt_rope)
        both = torch.cat([image, prompt.to(image.dtype)], 1)
        rope = torch.cat([self._image_rope, self._prompt_rope], 1)
        for block in net.layers:
            both = block(both, None, rope, time)
        velocity: Tensor = net.all_final_layer["2-1"](both, c=time)[:, : image.shape[1]]
        return velocity.float()


def can_compile() -> bool:
    """Whether torch.compile finds a C++ compiler; says so when it does not."""
    found = bool(shutil.which("g++") or shutil.which("clang++"))
    if not found:
        print("  no C++ compiler found: training goes on uncompiled, about half as fast", flush=True)
    return found


def _templated(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
