"""Stage 2: render the training scenes of every frame and encode them once."""

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

from .models import Network
from .pixels import to_tensor
from .render import render
from .world import FRAMES, Frame, Mix, Scene, sample

TRAINING = Mix(kinds=(0.38, 0.31, 0.31), styles=(0.34, 0.22, 0.22, 0.22), sizes=(0.36, 0.36, 0.28))
"""Rather more of what is hard than the world draws."""


@dataclass(frozen=True)
class LatentsSettings:
    """`scenes` counts those of each of the world's frames, in their order."""

    scenes: tuple[int, ...] = (16000, 2800, 2800, 2800, 2400)
    seed: int = 11
    batch: int = 64


@dataclass(frozen=True)
class Encoded:
    """Scenes of one frame and their latents, float32 [N, 16, h / 8, w / 8], scaled."""

    frame: Frame
    scenes: list[Scene]
    latents: Tensor


@torch.no_grad()
def encode_scenes(folder: Path, vae_folder: Path, settings: LatentsSettings) -> dict[str, Any]:
    """Write latents.safetensors (float16, a tensor for each frame) and scenes.json to `folder`."""
    began = time.monotonic()
    vae = AutoencoderKL.from_pretrained(vae_folder).eval().to(memory_format=torch.channels_last)
    latents, scenes = {}, {}
    for frame, count in zip(FRAMES, settings.scenes, strict=True):
        rng = Random(f"scenes {settings.seed} {frame}")
        scenes[_name(frame)] = [sample(rng, TRAINING, frame=frame) for _ in range(count)]
        latents[_name(frame)] = _encode(vae, scenes[_name(frame)], settings.batch)
        print(f"  {count} scenes of {_name(frame)}, {time.monotonic() - began:.0f} s", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(latents, folder / "latents.safetensors")
    fields = {name: [scene.to_json() for scene in some] for name, some in scenes.items()}
    (folder / "scenes.json").write_text(json.dumps(fields), encoding="utf-8")
    return {"seconds": time.monotonic() - began, "scenes": sum(settings.scenes)}


def load_scenes(folder: Path) -> list[Encoded]:
    """What `encode_scenes` wrote, frame by frame."""
    latents = load_file(folder / "latents.safetensors")
    fields = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    return [
        Encoded(frame, [Scene.from_json(item) for item in fields[_name(frame)]], latents[_name(frame)].float())
        for frame in FRAMES
    ]


def _encode(vae: Network, scenes: list[Scene], batch: int) -> Tensor:
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    parts = []
    for start in range(0, len(scenes), batch):
        pictures = np.stack([np.asarray(render(scene)) for scene in scenes[start : start + batch]])
        parts.append(((vae.encode(to_tensor(pictures)).latent_dist.mode() - shift) * scale).half())
    return torch.cat(parts).contiguous()


def _name(frame: Frame) -> str:
    return f"{frame[0]}x{frame[1]}"
