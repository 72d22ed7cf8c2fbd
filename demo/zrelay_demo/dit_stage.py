"""Stage 4: train the transformer by flow matching, on hidden_states[-2] of the text encoder that has learnt to read."""

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn

from .flow import Batched, Course, Reader, lots, noise
from .latents_stage import load_scenes
from .models import Widths, new_transformer
from .muon import MuonAdam
from .training import Metrics, Pace, Trainee, train

_HIDDEN = ("to_q", "to_k", "to_v", "to_out", "feed_forward")


@dataclass(frozen=True)
class DitSettings:
    """`frames` are their shares of the steps. The learning rate is flat to `flat` of the steps, then falls linearly."""

    pace: Pace = field(default_factory=lambda: Pace(steps=5000, ema_decay=0.997))
    seed: int = 2
    batch: int = 48
    frames: tuple[float, ...] = (0.60, 0.11, 0.11, 0.10, 0.08)
    long_prompts: float = 0.3
    object_weight: float = 3.0
    fused: bool = True
    empty_prompts: float = 0.07
    lr_matrices: float = 0.02
    lr_others: float = 2e-3
    warmup: int = 50
    flat: float = 0.3
    last: float = 0.02


def train_dit(
    folder: Path,
    words: Path,
    latents: Path,
    settings: DitSettings,
    widths: Widths,
    before: Path | None = None,
    stop: int | None = None,
) -> dict[str, Any] | None:
    """Train the transformer and save it to `folder`; return the history, None when ended early.

    `words` holds the tokenizer and the text encoder, which stays as it is. The transformer goes on from the one that an
    earlier run saved to `before`, or begins anew.
    """
    torch.manual_seed(settings.seed)
    reader = Reader(words)
    transformer = new_transformer(widths) if before is None else ZImageTransformer2DModel.from_pretrained(before)
    course = Course(
        lots(load_scenes(latents), settings.object_weight),
        settings.frames,
        settings.batch,
        settings.long_prompts,
        settings.seed,
    )
    batched = Batched(transformer, settings.fused)
    named = dict(transformer.named_parameters())
    trainee = Trainee(dict(named), optimiser(named, settings.lr_matrices, settings.lr_others))

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        rng = Random(f"dit {settings.seed} {step}")
        turn = course.turn(step)
        lot = turn.lot
        texts = [
            reader.prompts.words(lot.scenes[k], rng, turn.tokens) if rng.random() >= settings.empty_prompts else ""
            for k in turn.chosen
        ]
        embeds, mask = reader.read(texts, turn.tokens)
        noisy = noise(lot.clean[turn.chosen], torch.Generator().manual_seed(settings.seed * 1_000_003 + step))
        with torch.autocast("cpu", torch.bfloat16):
            velocity = batched(lot, noisy.x, noisy.sigma, embeds, mask)
            flow = weighted_error(velocity, noisy.velocity, lot.weight[turn.chosen])
        return flow, {"flow": flow.item()}

    history = train(trainee, loss_of, lambda step: _factor(settings, step), settings, folder, stop)
    if history is not None:
        transformer.save_pretrained(folder)
    return history


def optimiser(named: dict[str, nn.Parameter], lr_matrices: float, lr_others: float) -> MuonAdam:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms, modulations and ends."""
    hidden = {name for name, p in named.items() if p.ndim == 2 and any(part in name for part in _HIDDEN)}
    matrices = [p for name, p in named.items() if name in hidden]
    return MuonAdam(matrices, [p for name, p in named.items() if name not in hidden], lr_matrices, lr_others)


def weighted_error(velocity: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean square error of patches [N, patches, 64], each patch with its weight [N, patches]."""
    return ((velocity - target).square().mean(-1) * weight).mean()


def _factor(settings: DitSettings, step: int) -> float:
    part = step / settings.pace.steps
    fall = 1.0 if part < settings.flat else max(settings.last, (1 - part) / (1 - settings.flat))
    return min(1.0, (step + 1) / settings.warmup) * fall
