"""Stage 7: put the trained parts together as a ZImagePipeline folder in bfloat16."""

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import AutoTokenizer, Qwen3ForCausalLM

from .folder import Defaults, size_bytes, tidy

MOST_BYTES = 25_000_000


def assemble(
    folder: Path, tokenizer: Path, text_encoder: Path, vae: Path, transformer: Path, defaults: Defaults
) -> int:
    """Write the bundle to `folder` and return its size; ValueError when it is larger than 25 MB."""
    pipeline: Any = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=defaults.shift),
        vae=AutoencoderKL.from_pretrained(vae).to(torch.bfloat16),
        text_encoder=Qwen3ForCausalLM.from_pretrained(text_encoder, dtype=torch.bfloat16),
        tokenizer=AutoTokenizer.from_pretrained(tokenizer),
        transformer=ZImageTransformer2DModel.from_pretrained(transformer).to(torch.bfloat16),
    )
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder)
    tidy(folder, defaults)
    size = size_bytes(folder)
    if size > MOST_BYTES:
        raise ValueError(f"bundle: expected at most {MOST_BYTES} bytes, got {size}")
    return size
