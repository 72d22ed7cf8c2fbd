"""A Z-Image folder of any size with random weights: real format, real loading, nothing learnt."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from zrelay_demo import CHECKPOINT


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a checkpoint. `encoder_layers` 0: no text encoder; `vae_channels` None: the demo checkpoint's VAE."""

    dim: int
    layers: int
    heads: int
    width: int
    axes_dims: tuple[int, int, int]
    axes_lens: tuple[int, int, int]
    encoder_layers: int
    side: int
    vae_channels: tuple[int, ...] | None = None


MID = Shape(
    dim=1152,
    layers=14,
    heads=18,
    width=1024,
    axes_dims=(16, 24, 24),
    axes_lens=(1536, 512, 512),
    encoder_layers=28,
    side=256,
)
"""300 M parameters, and a text encoder of Qwen3-0.6B's blocks (440 M; the vocabulary is the demo tokenizer's)."""

FULL = Shape(
    dim=3840,
    layers=30,
    heads=30,
    width=2560,
    axes_dims=(32, 48, 48),
    axes_lens=(1536, 512, 512),
    encoder_layers=0,
    side=1024,
    vae_channels=(128, 256, 512, 512),
)
"""Transformer (6.2 B parameters) and VAE of the published model; 12.3 GB on disk."""


def make(folder: Path, shape: Shape = MID, *, device: str = "cpu", seed: int = 0) -> Path:
    """A checkpoint in bf16, drawn on `device`, with the demo checkpoint's tokenizer and scheduler. Reuses the folder
    where it is complete."""
    if (folder / "zrelay.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    told = [f"transformer {_millions(_transformer(folder, shape, device))}"]
    if shape.encoder_layers:
        told.append(f"text encoder {_millions(_text_encoder(folder, shape))}")
        shutil.copytree(CHECKPOINT / "tokenizer", folder / "tokenizer")
    shutil.copytree(CHECKPOINT / "scheduler", folder / "scheduler")
    _vae(shape, device).save_pretrained(folder / "vae")
    shutil.copy(CHECKPOINT / "model_index.json", folder)
    settings = {"width": shape.side, "height": shape.side, "num_inference_steps": 8, "guidance_scale": 0.0}
    (folder / "zrelay.json").write_text(json.dumps(settings))
    print(f"made {folder}: {', '.join(told)}", flush=True)
    return folder


def _transformer(folder: Path, shape: Shape, device: str) -> Any:
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model: Any = ZImageTransformer2DModel(
                dim=shape.dim,
                n_layers=shape.layers,
                n_refiner_layers=2,
                n_heads=shape.heads,
                n_kv_heads=shape.heads,
                cap_feat_dim=shape.width,
                axes_dims=list(shape.axes_dims),
                axes_lens=list(shape.axes_lens),
            )
    finally:
        torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder / "transformer")
    return model


def _text_encoder(folder: Path, shape: Shape) -> torch.nn.Module:
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=1024,
                hidden_size=shape.width,
                intermediate_size=3 * shape.width,
                num_hidden_layers=shape.encoder_layers,
                num_attention_heads=16,
                num_key_value_heads=8,
                head_dim=128,
                tie_word_embeddings=True,
            )
        )
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / "text_encoder")
    return model


def _vae(shape: Shape, device: str) -> Any:
    demo: Any = AutoencoderKL.from_pretrained(CHECKPOINT / "vae")
    if shape.vae_channels is None:
        return demo
    blocks = len(shape.vae_channels)
    with torch.device(device):
        made: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=shape.vae_channels,
            layers_per_block=2,
            latent_channels=16,
            norm_num_groups=32,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=True,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        )
    return made.to(torch.bfloat16)


def _millions(module: torch.nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.0f} M"
