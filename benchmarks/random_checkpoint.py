"""A Z-Image folder of any size with random weights: real format, real loading, nothing learnt."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from zrelay_demo import CHECKPOINT

WIDTH = 1024
"""Hidden width of the text encoder: that of Qwen3-0.6B."""


def make(folder: Path, *, seed: int = 0) -> Path:
    """A mid-size checkpoint in bf16: a transformer of about 300 M parameters, a text encoder of Qwen3-0.6B's blocks
    (28 layers, 440 M; the vocabulary is the demo tokenizer's), the demo checkpoint's VAE, tokenizer and scheduler.

    Reuses the folder where it is complete.
    """
    if (folder / "zrelay.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.bfloat16)
    try:
        transformer = ZImageTransformer2DModel(
            dim=1152,
            n_layers=14,
            n_refiner_layers=2,
            n_heads=18,
            n_kv_heads=18,
            cap_feat_dim=WIDTH,
            axes_dims=[16, 24, 24],
            axes_lens=[1536, 512, 512],
        )
        encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=1024,
                hidden_size=WIDTH,
                intermediate_size=3072,
                num_hidden_layers=28,
                num_attention_heads=16,
                num_key_value_heads=8,
                head_dim=128,
                tie_word_embeddings=True,
            )
        )
    finally:
        torch.set_default_dtype(torch.float32)
    for module in (transformer,):
        for parameter in module.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.02)
    transformer.save_pretrained(folder / "transformer")
    encoder.save_pretrained(folder / "text_encoder")
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(CHECKPOINT / name, folder / name)
    AutoencoderKL.from_pretrained(CHECKPOINT / "vae").save_pretrained(folder / "vae")
    shutil.copy(CHECKPOINT / "model_index.json", folder)
    settings = {"width": 256, "height": 256, "num_inference_steps": 8, "guidance_scale": 0.0}
    (folder / "zrelay.json").write_text(json.dumps(settings))
    print(f"made {folder}: transformer {_millions(transformer)}, text encoder {_millions(encoder)}", flush=True)
    return folder


def _millions(module: torch.nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.0f} M"
