"""The first blocks of a Qwen3 over several prompts at once, as one ragged sequence without padding."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding

from zrelay_shared.layers import LayerPlan
from zrelay_shared.torch_linear import store_linears

_RAGGED = "zrelay_ragged"


class TextEncoder(nn.Module):
    """The part of a Qwen3 that a layer plan needs, built of transformers' blocks with the checkpoint's tensor names.

    The weights are on the meta device until `load_model` fills them. Only the rotary table is real from the start.

    Attributes:
        plan: The blocks that are loaded.
        total_blocks: Number of blocks of the whole checkpoint.
        width: Size of a token's embedding.
    """

    def __init__(self, config: Qwen3Config, plan: LayerPlan) -> None:
        super().__init__()
        config._attn_implementation = _RAGGED
        self.plan = plan
        self.total_blocks = int(config.num_hidden_layers)
        self.width = int(config.hidden_size)
        with torch.device("meta"):
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
            self.layers = nn.ModuleList(Qwen3DecoderLayer(config, index) for index in range(plan.blocks))
            if plan.final_norm:
                self.norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen3RotaryEmbedding(config)
        self._compute_dtype: torch.dtype | None = None

    def compute_in(self, dtype: torch.dtype) -> None:
        """Computes in `dtype` from now on. The loaded matrices keep their dtype; see `store_linears`."""
        store_linears(self, dtype)
        self._compute_dtype = dtype

    @torch.inference_mode()
    def forward(self, prompts: Sequence[Sequence[int]], plan: LayerPlan) -> list[torch.Tensor]:
        """Computes hidden states.

        The prompts are concatenated. Each attends only to itself and its positions start at 0, so the rest of the batch
        changes a result by rounding at most.

        Args:
            prompts: Token ids of each prompt.
            plan: Blocks to run, within the loaded ones.

        Returns:
            One tensor [T, width] per prompt, in the compute dtype, without padding.

        Raises:
            ValueError: A prompt is empty, or the plan needs blocks that are not loaded.
        """
        lengths = [len(ids) for ids in prompts]
        if not lengths or min(lengths) < 1:
            raise ValueError(f"prompts: expected at least one token in each, got {lengths}")
        if not plan.within(self.plan):
            raise ValueError(f"plan: expected one within {self.plan}, got {plan}")
        device = self.embed_tokens.weight.device
        ids = torch.tensor([[token for prompt in prompts for token in prompt]], device=device)
        positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0).to(device)
        states = self.embed_tokens(ids).to(self._compute_dtype)
        rotary = self.rotary_emb(states, positions)
        for block in self.layers[: plan.blocks]:
            states = block(states, attention_mask=None, position_embeddings=rotary, lengths=lengths)
        if plan.final_norm:
            states = self.norm(states)
        return list(states[0].split(lengths))


def _ragged_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    lengths: list[int],
    scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention in which each sequence attends only to itself: [1, heads, T, dim] to [1, T, heads, dim].

    `lengths` are the token counts of the sequences. The signature is that of transformers' AttentionInterface. Its
    other arguments (mask, dropout, window, cache) are not needed here.
    """
    parts = [
        scaled_dot_product_attention(*part, is_causal=True, scale=scaling, enable_gqa=True)
        for part in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 2)).transpose(1, 2), None


AttentionInterface.register(_RAGGED, _ragged_attention)
