"""Qwen3-VL's vision tower and its first language blocks, run on what is up to the image and then on what follows it.

The language model is causal: what stands after an image does not reach back into it. So a sequence runs in two parts,
the second over the first's keys and values, and the first can be kept for as long as the image and what is before it
stay the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextRMSNorm,
    Qwen3VLTextRotaryEmbedding,
    Qwen3VLVisionModel,
    Qwen3VLVisionRotaryEmbedding,
)

from zrelay_shared.errors import Cancelled
from zrelay_shared.layers import LayerPlan


@dataclass(frozen=True, slots=True, eq=False)
class ImageFeatures:
    """What the vision tower says of an image: `embeds` [N, width] in place of its tokens, and `deepstack`, which is
    added to their states after the first blocks, one [N, width] for each."""

    embeds: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]


class Memory:
    """Keys and values of each block, [1, heads, tokens, dim], grown by whatever runs over it.

    Has the one method of transformers' Cache that a block calls.
    """

    def __init__(self, keys: Sequence[torch.Tensor] = (), values: Sequence[torch.Tensor] = ()) -> None:
        self.keys, self.values = list(keys), list(values)

    @property
    def tokens(self) -> int:
        """How many are remembered."""
        return int(self.keys[0].shape[2]) if self.keys else 0

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def to(self, device: torch.device | str) -> "Memory":
        """A copy there, that grows by itself."""
        return Memory([key.to(device) for key in self.keys], [value.to(device) for value in self.values])

    def update(self, key: torch.Tensor, value: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of `block` with the new ones behind them."""
        if block == len(self.keys):
            self.keys.append(key)
            self.values.append(value)
        else:
            self.keys[block] = torch.cat([self.keys[block], key], 2)
            self.values[block] = torch.cat([self.values[block], value], 2)
        return self.keys[block], self.values[block]


class _LanguageModel(nn.Module):
    def __init__(self, config: Qwen3VLConfig, plan: LayerPlan) -> None:
        super().__init__()
        text: Any = config.text_config
        self.embed_tokens = nn.Embedding(text.vocab_size, text.hidden_size)
        self.layers = nn.ModuleList(Qwen3VLTextDecoderLayer(text, index) for index in range(plan.blocks))
        if plan.final_norm:
            self.norm = Qwen3VLTextRMSNorm(text.hidden_size, eps=text.rms_norm_eps)


class Qwen3VLStates(nn.Module):
    """The part of a Qwen3-VL that a plan needs, of transformers' own blocks and with the checkpoint's names.

    Made on the meta device; only the rotary tables are real at once.
    """

    def __init__(self, config: Qwen3VLConfig, plan: LayerPlan) -> None:
        super().__init__()
        text: Any = config.text_config  # sub-configs by now, whatever their types say
        vision: Any = config.vision_config
        text._attn_implementation = vision._attn_implementation = "sdpa"
        self.plan = plan
        self.total_blocks = int(text.num_hidden_layers)
        self.width = int(text.hidden_size)
        self.merge = int(vision.spatial_merge_size)
        with torch.device("meta"):
            self.visual = Qwen3VLVisionModel(vision)
            self.language_model = _LanguageModel(config, plan)
        self.visual.rotary_pos_emb = Qwen3VLVisionRotaryEmbedding(vision)
        self.rotary_emb = Qwen3VLTextRotaryEmbedding(text)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.language_model.embed_tokens.weight.device

    @torch.inference_mode()
    def see(self, patches: torch.Tensor, grid: tuple[int, int]) -> ImageFeatures:
        """The features of one image: `patches` [rows * columns, values] of the image processor, before merging."""
        grid_thw = torch.tensor([[1, *grid]], device=self.device)
        seen = self.visual(patches.to(self.device, self.visual.patch_embed.proj.weight.dtype), grid_thw=grid_thw)
        return ImageFeatures(seen.pooler_output, tuple(seen.deepstack_features))

    @torch.inference_mode()
    def begin(
        self,
        ids: Sequence[int],
        image_at: int,
        features: ImageFeatures,
        positions: torch.Tensor,
        plan: LayerPlan,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> tuple[torch.Tensor, Memory]:
        """States [T, width] of `ids`, the image's tokens from `image_at` on among them, and the memory of them.

        `positions` is [3, T]. Raises Cancelled between two blocks.
        """
        embeds = self._embed(ids)
        image = slice(image_at, image_at + len(features.embeds))
        embeds[0, image] = features.embeds.to(embeds.dtype)
        memory = Memory()
        states = self._run(embeds, positions, None, memory, plan, cancelled, (image, features.deepstack))
        return states, memory

    @torch.inference_mode()
    def go_on(
        self,
        ids: Sequence[int],
        memory: Memory,
        positions: torch.Tensor,
        plan: LayerPlan,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> torch.Tensor:
        """States [T, width] of text that follows what `memory` remembers; `memory` grows by it."""
        seen = memory.tokens
        mask = torch.ones(len(ids), seen + len(ids), dtype=torch.bool, device=self.device).tril(seen)
        return self._run(self._embed(ids), positions, mask[None, None], memory, plan, cancelled, None)

    def _embed(self, ids: Sequence[int]) -> torch.Tensor:
        embeds: torch.Tensor = self.language_model.embed_tokens(torch.tensor([list(ids)], device=self.device))
        return embeds

    def _run(
        self,
        states: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        memory: Memory,
        plan: LayerPlan,
        cancelled: Callable[[], bool],
        image: tuple[slice, tuple[torch.Tensor, ...]] | None,
    ) -> torch.Tensor:
        if not plan.within(self.plan):
            raise ValueError(f"plan: expected one within {self.plan}, got {plan}")
        rotary = self.rotary_emb(states, positions[:, None].to(self.device))
        where, deepstack = image if image is not None else (slice(0), ())
        for at, block in enumerate(self.language_model.layers[: plan.blocks]):
            if cancelled():
                raise Cancelled("the caller went away")
            states = block(states, attention_mask=mask, position_embeddings=rotary, past_key_values=memory)
            # What transformers calls a block's hidden states is its output before the image's features are added, so
            # the last block's are added only where a norm follows.
            if at < len(deepstack) and (at + 1 < plan.blocks or plan.final_norm):
                states = states.clone()
                states[0, where] += deepstack[at].to(states.dtype)
        if plan.final_norm:
            states = self.language_model.norm(states)
        return states[0]
