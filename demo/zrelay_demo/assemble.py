"""Stage "checkpoint": combines the trained parts into a ZImagePipeline folder in bfloat16."""

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import AutoTokenizer, Qwen3ForCausalLM

from .folder import Defaults, size_bytes, tidy

MAX_BYTES = 25_000_000


def assemble(
    folder: Path, tokenizer: Path, text_encoder: Path, vae: Path, transformer: Path, defaults: Defaults
) -> int:
    """Writes the pipeline to `folder` and returns its size in bytes. Raises ValueError if it is larger than 25 MB."""
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
    if size > MAX_BYTES:
        raise ValueError(f"{folder}: expected at most {MAX_BYTES} bytes, got {size}; use smaller widths")
    return size
