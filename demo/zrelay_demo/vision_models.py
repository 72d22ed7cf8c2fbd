"""Creates the tiny networks of the vision service: Qwen3-VL with the demo's text encoder, SigLIP2, Omni's additions.

Except for the text encoder, their weights are random. `zrelay_demo.vision_folders` writes them as checkpoints.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from transformers import (
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

Network = Any
"""A diffusers or transformers model. Any, because type checkers cannot follow the lazy imports of these libraries."""
SEED = 5
_HEAD = 32


@dataclass(frozen=True)
class VisionWidths:
    """Sizes of the networks. Heads are 32 wide everywhere.

    Attributes:
        vl_hidden: Hidden size of Qwen3-VL's vision encoder.
        vl_mlp: Width of its MLP.
        vl_layers: Its layers.
        siglip_hidden: Hidden size of SigLIP2's vision tower.
        siglip_mlp: Width of its MLP.
        siglip_layers: Its layers.
        text_hidden: Hidden size of SigLIP2's text tower.
        text_mlp: Width of its MLP.
        text_layers: Its layers.
        text_tokens: Number of tokens to which the text tower's input is padded.
        patch: Side of a patch in pixels.
        side: Side in pixels of a square image with the largest number of patches.
        fixed_side: Side in pixels of the images of the fixed-size SigLIP2.
    """

    vl_hidden: int = 64
    vl_mlp: int = 128
    vl_layers: int = 3
    siglip_hidden: int = 96
    siglip_mlp: int = 192
    siglip_layers: int = 3
    text_hidden: int = 64
    text_mlp: int = 128
    text_layers: int = 2
    text_tokens: int = 64
    patch: int = 16
    side: int = 128
    fixed_side: int = 96


def new_qwen3_vl(widths: VisionWidths, text_encoder: Network, tokenizer: Any) -> Network:
    """Returns a Qwen3-VL with the weights of `text_encoder` as its language model and a random vision encoder.

    The rotary sections divide a head as in Qwen3-VL-4B, with the larger part for time. Without an image all three
    positions are equal, so a text has the same hidden states as in `text_encoder`.
    """
    text = text_encoder.config
    half = text.head_dim // 2
    token = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "head_dim": text.head_dim,
            "rms_norm_eps": text.rms_norm_eps,
            "max_position_embeddings": text.max_position_embeddings,
            "pad_token_id": text.pad_token_id,
            "bos_token_id": text.bos_token_id,
            "eos_token_id": text.eos_token_id,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_parameters["rope_theta"],
                "mrope_section": [half - 2 * (half // 3), half // 3, half // 3],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": widths.vl_layers,
            "hidden_size": widths.vl_hidden,
            "intermediate_size": widths.vl_mlp,
            "num_heads": widths.vl_hidden // _HEAD,
            "patch_size": widths.patch,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": text.hidden_size,
            "num_position_embeddings": (widths.side // widths.patch) ** 2,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model: Network = Qwen3VLForConditionalGeneration(config)
    model.model.language_model.load_state_dict(text_encoder.model.state_dict(), strict=True)
    return model.eval()


def new_naflex_siglip(widths: VisionWidths, vocabulary: int) -> Network:
    """Returns a SigLIP2 for any aspect ratio (NaFlex) with at most (side / patch)^2 patches, with its text tower."""
    vision = _vision_tower(widths) | {"num_patches": (widths.side // widths.patch) ** 2}
    return _with_initial_scale(
        Siglip2Model(Siglip2Config(text_config=_text_tower(widths, vocabulary), vision_config=vision))
    )


def new_fixed_siglip(widths: VisionWidths, vocabulary: int) -> Network:
    """Returns a SigLIP2 for square images of `fixed_side` pixels, with its text tower.

    Fixed-size SigLIP2 checkpoints have SigLIP's architecture.
    """
    vision = _vision_tower(widths) | {"image_size": widths.fixed_side}
    return _with_initial_scale(
        SiglipModel(SiglipConfig(text_config=_text_tower(widths, vocabulary), vision_config=vision))
    )


def new_siglip_parts(transformer_config: dict[str, Any], siglip_width: int) -> dict[str, torch.Tensor]:
    """Returns the additional tensors of a transformer that accepts SigLIP2 grids of width `siglip_width`."""
    omni: Network = ZImageTransformer2DModel.from_config({**transformer_config, "siglip_feat_dim": siglip_width})
    with torch.no_grad():
        omni.siglip_pad_token.normal_(std=0.02)
    return {name: tensor for name, tensor in omni.state_dict().items() if name.startswith("siglip_")}


def _vision_tower(widths: VisionWidths) -> dict[str, Any]:
    """Returns the configuration of SigLIP2's vision tower."""
    return {
        "hidden_size": widths.siglip_hidden,
        "intermediate_size": widths.siglip_mlp,
        "num_hidden_layers": widths.siglip_layers,
        "num_attention_heads": widths.siglip_hidden // _HEAD,
        "patch_size": widths.patch,
    }


def _text_tower(widths: VisionWidths, vocabulary: int) -> dict[str, Any]:
    """Returns the configuration of SigLIP2's text tower."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": widths.text_hidden,
        "intermediate_size": widths.text_mlp,
        "num_hidden_layers": widths.text_layers,
        "num_attention_heads": widths.text_hidden // _HEAD,
        "max_position_embeddings": widths.text_tokens,
        "projection_size": widths.siglip_hidden,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }


def _with_initial_scale(model: Network) -> Network:
    """Sets the scores' scale and bias to SigLIP's initial values (arXiv 2303.15343, section 3.2)."""
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-10.0)
    return model.eval()


def load_text_encoder(pipeline: Path) -> Network:
    """Returns the text encoder of a pipeline folder in float32."""
    return Qwen3ForCausalLM.from_pretrained(pipeline / "text_encoder", dtype=torch.float32)
