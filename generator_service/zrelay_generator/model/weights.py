"""The weights of a diffusers ZImageTransformer2DModel, named and typed for the packed forward.

This is the only module that knows diffusers' names of the parts of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_PATCH = "2-1"
"""diffusers' key of patch size 2 and one frame, the only patch size of Z-Image."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockWeights:
    """A transformer block.

    Attributes:
        heads: Number of attention heads.
        query, key, value, out: [dim, dim].
        query_norm, key_norm: [head_dim].
        gate, up: [hidden, dim].
        down: [dim, hidden].
        norms: [4, dim]: before and after attention, before and after the MLP.
        adaln: Linear layer of the modulation, None in a block of the context refiner.
        eps, qk_eps: Epsilon of `norms`, and of the query and key norms.
    """

    heads: int
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    query_norm: Tensor
    key_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    norms: Tensor
    adaln: nn.Linear | None
    eps: float
    qk_eps: float


@dataclass(frozen=True, slots=True, eq=False)
class SiglipWeights:
    """The additional parts of an Omni transformer.

    Attributes:
        width: Width of the SigLIP grids.
        embedder: [width] to [dim].
        pad: [1, dim].
        refiner: Blocks without modulation.
    """

    width: int
    embedder: nn.Module
    pad: Tensor
    refiner: tuple[BlockWeights, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TransformerWeights:
    """A Z-Image transformer.

    Attributes:
        channels: Channels of the latents.
        width: Width of the prompt embeddings.
        axes_lens: Number of positions on each RoPE axis.
        time_scale: Factor of the timestep before `time_embedder`.
        image_embedder, image_pad: [4 channels] to [dim], and [1, dim].
        caption_embedder, caption_pad: [width] to [dim], and [1, dim].
        time_embedder: Embeds the scaled timestep.
        context_refiner, noise_refiner, layers: Blocks.
        final_adaln, final_out, final_eps: Modulation, linear layer and epsilon of the final layer.
        rope: int positions [tokens, 3] to complex64 [tokens, head_dim / 2].
        siglip: Parts that read SigLIP grids, None if there are none.
    """

    channels: int
    width: int
    axes_lens: tuple[int, ...]
    time_scale: float
    image_embedder: nn.Linear
    image_pad: Tensor
    caption_embedder: nn.Module
    caption_pad: Tensor
    time_embedder: nn.Module
    context_refiner: tuple[BlockWeights, ...]
    noise_refiner: tuple[BlockWeights, ...]
    layers: tuple[BlockWeights, ...]
    final_adaln: nn.Module
    final_out: nn.Linear
    final_eps: float
    rope: Callable[[Tensor], Tensor]
    siglip: SiglipWeights | None = None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.image_pad.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the computation; the matrices of the blocks may have another one (`compute_in`)."""
        return self.image_pad.dtype


def transformer_weights(model: Any) -> TransformerWeights:
    """Returns the weights of a ZImageTransformer2DModel without copying them.

    Joining query, key and value, or gate and up, would save a few kernel launches, but 70 % of the weights would be in
    memory twice while loading. In measurements on a CPU it was faster only for models of a few megabytes.

    Raises:
        ValueError: The model is not built like Z-Image.
    """
    if tuple(model.all_patch_size) != (2,) or tuple(model.all_f_patch_size) != (1,):
        raise ValueError(f"all_patch_size: expected [2] and one frame, got {list(model.all_patch_size)}")
    final = model.all_final_layer[_PATCH]
    return TransformerWeights(
        channels=model.in_channels,
        width=model.config.cap_feat_dim,
        axes_lens=tuple(model.axes_lens),
        time_scale=model.t_scale,
        image_embedder=model.all_x_embedder[_PATCH],
        image_pad=model.x_pad_token,
        caption_embedder=model.cap_embedder,
        caption_pad=model.cap_pad_token,
        time_embedder=model.t_embedder,
        context_refiner=tuple(block_weights(block) for block in model.context_refiner),
        noise_refiner=tuple(block_weights(block) for block in model.noise_refiner),
        layers=tuple(block_weights(block) for block in model.layers),
        final_adaln=final.adaLN_modulation,
        final_out=final.linear,
        final_eps=final.norm_final.eps,
        rope=model.rope_embedder,
        siglip=_siglip_weights(model),
    )


def compute_in(model: Any, dtype: torch.dtype) -> None:
    """Makes a ZImageTransformer2DModel compute in `dtype` while the matrices of its blocks keep their dtype.

    They are 99.6 % of the weights. Everything else is converted.
    """
    blocks = (model.layers, model.noise_refiner, model.context_refiner, getattr(model, "siglip_refiner", None) or ())
    kept = {id(p) for group in blocks for block in group for p in block.parameters() if p.ndim == 2}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(dtype)


def _siglip_weights(model: Any) -> SiglipWeights | None:
    if model.siglip_embedder is None:
        return None
    return SiglipWeights(
        width=model.config.siglip_feat_dim,
        embedder=model.siglip_embedder,
        pad=model.siglip_pad_token,
        refiner=tuple(block_weights(block) for block in model.siglip_refiner),
    )


def block_weights(block: Any) -> BlockWeights:
    """Returns the weights of a ZImageTransformerBlock.

    Raises:
        ValueError: The block has no query and key norms.
    """
    attention, feed_forward = block.attention, block.feed_forward
    if attention.norm_q is None or attention.norm_k is None:
        raise ValueError("qk_norm: expected a transformer with query and key norms, got one without")
    norms = (block.attention_norm1, block.attention_norm2, block.ffn_norm1, block.ffn_norm2)
    return BlockWeights(
        heads=attention.heads,
        query=attention.to_q.weight,
        key=attention.to_k.weight,
        value=attention.to_v.weight,
        out=attention.to_out[0].weight,
        query_norm=attention.norm_q.weight,
        key_norm=attention.norm_k.weight,
        gate=feed_forward.w1.weight,
        up=feed_forward.w3.weight,
        down=feed_forward.w2.weight,
        norms=torch.stack([norm.weight for norm in norms]),
        adaln=block.adaLN_modulation[0] if block.modulation else None,
        eps=norms[0].eps,
        qk_eps=attention.norm_q.eps,
    )
