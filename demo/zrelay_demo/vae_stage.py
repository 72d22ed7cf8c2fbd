"""Stage "vae": trains the autoencoder on rendered scenes."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .models import Network, Widths, new_vae
from .muon import MuonAdam
from .pixels import to_tensor
from .render import render
from .scenes import Scene, SceneMix, sample
from .training import LoopSettings, Metrics, TrainingState, train

VAE_MIX = SceneMix(kinds=(0.40, 0.30, 0.30), styles=(0.22, 0.26, 0.26, 0.26), sizes=(0.45, 0.30, 0.25))
"""Has more small and textured objects than the evaluation, because an autoencoder blurs these first."""


@dataclass(frozen=True)
class VaeSettings:
    """Settings of the autoencoder's training.

    Steps train on square crops. In the last part of the training every third step uses whole images.

    Attributes:
        loop: Length and logging.
        seed: Seed of weights, scenes and crops.
        scene_count: Number of rendered scenes.
        crop_size: Side of a crop in pixels.
        crop_count: Crops per step.
        whole_count: Images per step with whole images.
        whole_from: Share of the steps after which whole images are used.
        lr_matrices: Muon's learning rate.
        lr_others: AdamW's learning rate.
        kl_weight: Weight of the KL divergence at the first and the last step; linear between.
        warmup_steps: Steps of linear warm-up.
    """

    loop: LoopSettings = field(default_factory=lambda: LoopSettings(steps=2400, ema_decay=0.998, log_every=100))
    seed: int = 1
    scene_count: int = 8000
    crop_size: int = 64
    crop_count: int = 16
    whole_count: int = 5
    whole_from: float = 0.6
    lr_matrices: float = 0.02
    lr_others: float = 2e-3
    kl_weight: tuple[float, float] = (2e-3, 5e-4)
    warmup_steps: int = 100


def train_vae(folder: Path, settings: VaeSettings, widths: Widths, stop: int | None = None) -> dict[str, Any] | None:
    """Trains the autoencoder and saves it to `folder`.

    Args:
        folder: Output folder; also holds the saved state of an unfinished training.
        settings: Settings of the stage.
        widths: Sizes of the networks.
        stop: Step at which to stop early.

    Returns:
        The history, or None after an early stop.
    """
    torch.manual_seed(settings.seed)
    vae = new_vae(widths).to(memory_format=torch.channels_last)
    scenes, pictures = _training_images(settings)
    state = TrainingState(dict(vae.named_parameters()), _optimiser(vae, settings))
    steps = settings.loop.steps

    def loss_at(step: int) -> tuple[Tensor, Metrics]:
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        images = to_tensor(_batch(settings, step, scenes, pictures))
        return _loss(vae, images, _between(settings.kl_weight, step / steps), generator)

    def lr_factor(step: int) -> float:
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        return min(1.0, (step + 1) / settings.warmup_steps) * decay

    history = train(state, loss_at, lr_factor, settings, folder, stop)
    if history is not None:
        _normalise(vae.eval(), pictures[:256])
        vae.save_pretrained(folder)
    return history


def _training_images(settings: VaeSettings) -> tuple[list[Scene], np.ndarray]:
    """Draws and renders the training scenes; images are uint8 [scenes, 128, 128, 3]."""
    rng = Random(f"vae pool {settings.seed}")
    scenes = [sample(rng, VAE_MIX) for _ in range(settings.scene_count)]
    return scenes, np.stack([np.asarray(render(scene)) for scene in scenes])


def _optimiser(vae: Network, settings: VaeSettings) -> MuonAdam:
    """Returns an optimiser: Muon for inner kernels and matrices, AdamW for all other parameters."""
    hidden: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in vae.named_parameters():
        inner = parameter.ndim >= 2 and "conv_in" not in name and "conv_out" not in name
        (hidden if inner else rest).append(parameter)
    return MuonAdam(hidden, rest, settings.lr_matrices, settings.lr_others)


def _batch(settings: VaeSettings, step: int, scenes: list[Scene], pictures: np.ndarray) -> np.ndarray:
    """Returns the images of a step, uint8 [N, size, size, 3]: crops around an object, or whole images.

    Images are mirrored and transposed at random.
    """
    rng = Random(f"vae {settings.seed} {step}")
    whole = step >= settings.whole_from * settings.loop.steps and step % 3 == 0
    size = pictures.shape[1] if whole else settings.crop_size
    chosen = []
    for _ in range(settings.whole_count if whole else settings.crop_count):
        index = rng.randrange(len(scenes))
        picture = pictures[index]
        if not whole:
            item = rng.choice(scenes[index].objects)
            top, left = (_start(centre, size, picture.shape[0], rng) for centre in (item.cy, item.cx))
            picture = picture[top : top + size, left : left + size]
        if rng.random() < 0.5:
            picture = picture[:, ::-1]
        chosen.append(picture.transpose(1, 0, 2) if rng.random() < 0.5 else picture)
    return np.stack(chosen)


def _start(centre: float, size: int, limit: int, rng: Random) -> int:
    """Returns the first row or column of a crop near `centre`, within 0 and `limit` - `size`."""
    return min(max(round(centre - size / 2 + rng.uniform(-20, 20)), 0), limit - size)


def _loss(vae: Network, images: Tensor, kl_weight: float, generator: torch.Generator) -> tuple[Tensor, Metrics]:
    """Returns the loss and its metrics: L1 and MSE of pixels, L1 of differences of neighbouring pixels, weighted KL."""
    posterior = vae.encode(images).latent_dist
    decoded = vae.decode(posterior.sample(generator)).sample
    error = decoded - images
    mse = error.square().mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    loss = error.abs().mean() + mse + edges + kl_weight * kl
    return loss, {"loss": loss.item(), "psnr": 10 * math.log10(4 / mse.item()), "kl": kl.item()}


@torch.no_grad()
def _normalise(vae: Network, pictures: np.ndarray) -> None:
    """Sets the scaling and shift factors with which latents have mean 0 and standard deviation 1."""
    parts = [vae.encode(to_tensor(part)).latent_dist.mode() for part in np.array_split(pictures, 8) if len(part)]
    latents = torch.cat(parts)
    scale, shift = round(1 / latents.std().item(), 4), round(latents.mean().item(), 4)
    vae.register_to_config(scaling_factor=scale, shift_factor=shift)


def _between(ends: tuple[float, float], part: float) -> float:
    """Interpolates linearly between two values; `part` is from 0 to 1."""
    return ends[0] + (ends[1] - ends[0]) * part
