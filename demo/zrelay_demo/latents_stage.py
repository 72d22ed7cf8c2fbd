"""Stage 2: render the training scenes and encode them once."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from .pixels import to_tensor
from .render import render
from .world import Mix, Scene, sample

TRAINING = Mix(kinds=(0.38, 0.31, 0.31), styles=(0.34, 0.22, 0.22, 0.22), sizes=(0.36, 0.36, 0.28))
"""Rather more of what is hard than the world draws."""


@dataclass(frozen=True)
class LatentsSettings:
    scenes: int = 24000
    seed: int = 11
    batch: int = 64


@torch.no_grad()
def encode_scenes(folder: Path, vae_folder: Path, settings: LatentsSettings) -> dict[str, Any]:
    """Write latents.safetensors (float16 [N, 16, h / 8, w / 8], scaled) and scenes.json to `folder`."""
    began = time.monotonic()
    vae = AutoencoderKL.from_pretrained(vae_folder).eval().to(memory_format=torch.channels_last)
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    rng = Random(f"scenes {settings.seed}")
    scenes = [sample(rng, TRAINING) for _ in range(settings.scenes)]
    parts = []
    for start in range(0, len(scenes), settings.batch):
        pictures = np.stack([np.asarray(render(scene)) for scene in scenes[start : start + settings.batch]])
        parts.append(((vae.encode(to_tensor(pictures)).latent_dist.mode() - shift) * scale).half())
        if start // settings.batch % 50 == 49:
            each = (time.monotonic() - began) / (start + settings.batch)
            left = each * (len(scenes) - start) / 60
            print(f"  {start}/{len(scenes)} scenes, {left:.1f} min left", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"latents": torch.cat(parts).contiguous()}, folder / "latents.safetensors")
    (folder / "scenes.json").write_text(json.dumps([scene.to_json() for scene in scenes]), encoding="utf-8")
    return {"seconds": time.monotonic() - began, "scenes": len(scenes)}


def load_scenes(folder: Path) -> tuple[Tensor, list[Scene]]:
    """Latents (float32 [N, 16, h / 8, w / 8]) and their scenes."""
    latents = load_file(folder / "latents.safetensors")["latents"].float()
    fields = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    return latents, [Scene.from_json(item) for item in fields]
