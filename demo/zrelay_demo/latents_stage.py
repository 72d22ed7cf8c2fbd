"""Stage "latents": renders the training scenes of every resolution and encodes them with the autoencoder."""

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
from .scenes import RESOLUTIONS, Resolution, Scene, SceneMix, sample

TRAINING_MIX = SceneMix(kinds=(0.38, 0.31, 0.31), styles=(0.34, 0.22, 0.22, 0.22), sizes=(0.36, 0.36, 0.28))
"""Has more of the difficult scenes than the evaluation."""


@dataclass(frozen=True)
class LatentsSettings:
    """Settings of the encoded scenes.

    Attributes:
        scenes: Number of scenes for each of `RESOLUTIONS`.
        seed: Seed of the scenes.
        batch_size: Images that are encoded at once.
    """

    scenes: tuple[int, ...] = (16000, 2800, 2800, 2800, 2400)
    seed: int = 11
    batch_size: int = 64


@dataclass(frozen=True)
class EncodedScenes:
    """Scenes of one resolution and their latents.

    Attributes:
        resolution: Width and height of the images in pixels.
        scenes: The scenes.
        latents: Scaled latents, float32 [N, 16, h / 8, w / 8].
    """

    resolution: Resolution
    scenes: list[Scene]
    latents: Tensor


@torch.no_grad()
def encode_scenes(folder: Path, vae_folder: Path, settings: LatentsSettings) -> dict[str, Any]:
    """Draws, renders and encodes the training scenes.

    Writes latents.safetensors (float16, one tensor per resolution) and scenes.json to `folder`. Returns a record of the
    run.
    """
    started = time.monotonic()
    vae = AutoencoderKL.from_pretrained(vae_folder).eval().to(memory_format=torch.channels_last)
    latents, scenes = {}, {}
    for resolution, count in zip(RESOLUTIONS, settings.scenes, strict=True):
        rng = Random(f"scenes {settings.seed} {resolution}")
        scenes[_name(resolution)] = [sample(rng, TRAINING_MIX, resolution=resolution) for _ in range(count)]
        latents[_name(resolution)] = _encode(vae, scenes[_name(resolution)], settings.batch_size)
        print(f"  {count} scenes of {_name(resolution)}, {time.monotonic() - started:.0f} s", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(latents, folder / "latents.safetensors")
    fields = {name: [scene.to_json() for scene in drawn] for name, drawn in scenes.items()}
    (folder / "scenes.json").write_text(json.dumps(fields), encoding="utf-8")
    return {"seconds": time.monotonic() - started, "scenes": sum(settings.scenes)}


def load_scenes(folder: Path) -> list[EncodedScenes]:
    """Returns what `encode_scenes` wrote, one item per resolution."""
    latents = load_file(folder / "latents.safetensors")
    fields = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    return [
        EncodedScenes(
            resolution,
            [Scene.from_json(item) for item in fields[_name(resolution)]],
            latents[_name(resolution)].float(),
        )
        for resolution in RESOLUTIONS
    ]


def _encode(vae: Network, scenes: list[Scene], batch_size: int) -> Tensor:
    """Returns the scaled latents of scenes, float16 [N, 16, h / 8, w / 8]."""
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    parts = []
    for start in range(0, len(scenes), batch_size):
        pictures = np.stack([np.asarray(render(scene)) for scene in scenes[start : start + batch_size]])
        parts.append(((vae.encode(to_tensor(pictures)).latent_dist.mode() - shift) * scale).half())
    return torch.cat(parts).contiguous()


def _name(resolution: Resolution) -> str:
    """Returns the key of a resolution in the files, such as "192x128"."""
    return f"{resolution[0]}x{resolution[1]}"
