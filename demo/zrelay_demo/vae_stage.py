"""Stage 1: train the autoencoder on rendered scenes."""

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
from .training import Metrics, Pace, Trainee, train
from .world import Mix, Scene, sample

HARD = Mix(kinds=(0.40, 0.30, 0.30), styles=(0.22, 0.26, 0.26, 0.26), sizes=(0.45, 0.30, 0.25))
"""Small and textured things, which an autoencoder blurs first, more often than the world draws them."""


@dataclass(frozen=True)
class VaeSettings:
    """Crops are square and in pixels; whole pictures come in late, every third step."""

    pace: Pace = field(default_factory=lambda: Pace(steps=2400, ema_decay=0.998, log_every=100))
    seed: int = 1
    pool: int = 8000
    crop: int = 64
    crops: int = 16
    wholes: int = 5
    wholes_from: float = 0.6
    lr_matrices: float = 0.02
    lr_others: float = 2e-3
    kl_weight: tuple[float, float] = (2e-3, 5e-4)
    warmup: int = 100


def train_vae(folder: Path, settings: VaeSettings, widths: Widths, stop: int | None = None) -> dict[str, Any] | None:
    """Train the autoencoder and save it to `folder`; return the history, None when ended early."""
    torch.manual_seed(settings.seed)
    vae = new_vae(widths).to(memory_format=torch.channels_last)
    scenes, pictures = _pool(settings)
    trainee = Trainee(dict(vae.named_parameters()), _optimiser(vae, settings))
    steps = settings.pace.steps

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        images = to_tensor(_batch(settings, step, scenes, pictures))
        return _loss(vae, images, _between(settings.kl_weight, step / steps), generator)

    def factor_of(step: int) -> float:
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        return min(1.0, (step + 1) / settings.warmup) * decay

    history = train(trainee, loss_of, factor_of, settings, folder, stop)
    if history is not None:
        _normalise(vae.eval(), pictures[:256])
        vae.save_pretrained(folder)
    return history


def _pool(settings: VaeSettings) -> tuple[list[Scene], np.ndarray]:
    rng = Random(f"vae pool {settings.seed}")
    scenes = [sample(rng, HARD) for _ in range(settings.pool)]
    return scenes, np.stack([np.asarray(render(scene)) for scene in scenes])


def _optimiser(vae: Network, settings: VaeSettings) -> MuonAdam:
    hidden: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in vae.named_parameters():
        inner = parameter.ndim >= 2 and "conv_in" not in name and "conv_out" not in name
        (hidden if inner else rest).append(parameter)
    return MuonAdam(hidden, rest, settings.lr_matrices, settings.lr_others)


def _batch(settings: VaeSettings, step: int, scenes: list[Scene], pictures: np.ndarray) -> np.ndarray:
    """uint8 [N, size, size, 3]: crops around an object, or whole pictures; flipped and transposed at random."""
    rng = Random(f"vae {settings.seed} {step}")
    whole = step >= settings.wholes_from * settings.pace.steps and step % 3 == 0
    size = pictures.shape[1] if whole else settings.crop
    chosen = []
    for _ in range(settings.wholes if whole else settings.crops):
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
    return min(max(round(centre - size / 2 + rng.uniform(-20, 20)), 0), limit - size)


def _loss(vae: Network, images: Tensor, kl_weight: float, generator: torch.Generator) -> tuple[Tensor, Metrics]:
    """L1 + MSE of pixels + L1 of pixel differences + weighted KL."""
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
    """Set the scale and shift that make latents of the world mean 0 and deviation 1."""
    parts = [vae.encode(to_tensor(part)).latent_dist.mode() for part in np.array_split(pictures, 8) if len(part)]
    latents = torch.cat(parts)
    scale, shift = round(1 / latents.std().item(), 4), round(latents.mean().item(), 4)
    vae.register_to_config(scaling_factor=scale, shift_factor=shift)


def _between(ends: tuple[float, float], part: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * part
