"""The tiny networks of the vision service, untrained: Qwen3-VL around the demo's text encoder, SigLIP2, Omni's parts.

`zrelay_demo.vision_folders` writes them as checkpoints.
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
"""A diffusers or transformers model; their bases come through lazy imports that type checkers cannot follow."""
SEED = 5
_HEAD = 32


@dataclass(frozen=True)
class VisionWidths:
    """Sizes of the networks; a head is 32 wide everywhere, a patch 16 pixels. `side` is of the picture in pixels."""

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
    """Qwen3-VL whose language model is `text_encoder`, weights and all; the eye is new.

    Rotary sections split a head as Qwen3-VL-4B does, the larger share for time: without an image all three positions
    are the same, so that a text has the states that `text_encoder` gives it.
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
    """SigLIP2 for any aspect ratio, at most (side / patch)^2 patches, with its text tower."""
    vision = _vision_tower(widths) | {"num_patches": (widths.side // widths.patch) ** 2}
    return _scored(Siglip2Model(Siglip2Config(text_config=_text_tower(widths, vocabulary), vision_config=vision)))


def new_fixed_siglip(widths: VisionWidths, vocabulary: int) -> Network:
    """SigLIP2 for squares of `fixed_side` pixels, with its text tower; such checkpoints have SigLIP's architecture."""
    vision = _vision_tower(widths) | {"image_size": widths.fixed_side}
    return _scored(SiglipModel(SiglipConfig(text_config=_text_tower(widths, vocabulary), vision_config=vision)))


def new_siglip_parts(transformer_config: dict[str, Any], siglip_width: int) -> dict[str, torch.Tensor]:
    """The tensors that a transformer of this config has more, once it reads SigLIP grids of `siglip_width`."""
    omni: Network = ZImageTransformer2DModel.from_config({**transformer_config, "siglip_feat_dim": siglip_width})
    with torch.no_grad():
        omni.siglip_pad_token.normal_(std=0.02)
    return {name: tensor for name, tensor in omni.state_dict().items() if name.startswith("siglip_")}


def _vision_tower(widths: VisionWidths) -> dict[str, Any]:
    return {
        "hidden_size": widths.siglip_hidden,
        "intermediate_size": widths.siglip_mlp,
        "num_hidden_layers": widths.siglip_layers,
        "num_attention_heads": widths.siglip_hidden // _HEAD,
        "patch_size": widths.patch,
    }


def _text_tower(widths: VisionWidths, vocabulary: int) -> dict[str, Any]:
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


def _scored(model: Network) -> Network:
    """Scale and bias of the scores as SigLIP's authors start training with (arXiv 2303.15343, section 3.2)."""
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-10.0)
    return model.eval()


def load_text_encoder(pipeline: Path) -> Network:
    """The text encoder of a pipeline folder, in float32."""
    return Qwen3ForCausalLM.from_pretrained(pipeline / "text_encoder", dtype=torch.float32)
