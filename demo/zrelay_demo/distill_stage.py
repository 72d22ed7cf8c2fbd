"""Stage 6: train the transformer further, with a little guidance built in, so that it paints well without any."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from .dit_stage import optimiser, weighted_error
from .flow import Batched, Course, Reader, lots, noise
from .latents_stage import load_scenes
from .training import Metrics, Pace, Trainee, train


@dataclass(frozen=True)
class DistillSettings:
    """The student learns v + guidance * (c - u): v the true velocity, c and u the teacher's with prompt and without.

    Unlike the teacher's own guided velocity as the target, v lets the student learn on where the teacher stopped. More
    guidance than this would paint a little better without guidance, and worse with it: at guidance g the student paints
    as the teacher would at guidance + (1 + guidance) g.
    """

    pace: Pace = field(default_factory=lambda: Pace(steps=1000, ema_decay=0.99))
    seed: int = 3
    batch: int = 48
    frames: tuple[float, ...] = (0.40, 0.10, 0.10, 0.18, 0.22)
    long_prompts: float = 0.3
    object_weight: float = 3.0
    fused: bool = True
    guidance: float = 0.25
    empty_prompts: float = 0.07
    lr_matrices: float = 0.01
    lr_others: float = 1e-3
    warmup: int = 20
    last: float = 0.02


def distill(
    folder: Path, words: Path, latents: Path, trained: Path, settings: DistillSettings, stop: int | None = None
) -> dict[str, Any] | None:
    """Train the student and save it under `folder`; return the history, None when ended early."""
    reader = Reader(words)
    student = ZImageTransformer2DModel.from_pretrained(trained)
    course = Course(
        lots(load_scenes(latents), settings.object_weight),
        settings.frames,
        settings.batch,
        settings.long_prompts,
        settings.seed,
    )
    teach = Batched(copy.deepcopy(student).requires_grad_(False), settings.fused)
    learn = Batched(student, settings.fused)
    named = dict(student.named_parameters())
    trainee = Trainee(dict(named), optimiser(named, settings.lr_matrices, settings.lr_others))

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        rng = Random(f"distill {settings.seed} {step}")
        turn = course.turn(step)
        lot, half = turn.lot, len(turn.chosen)
        texts = [
            reader.prompts.words(lot.scenes[k], rng, turn.tokens) if rng.random() >= settings.empty_prompts else ""
            for k in turn.chosen
        ]
        embeds, mask = reader.read([*texts, ""], turn.tokens)
        noisy = noise(lot.clean[turn.chosen], torch.Generator().manual_seed(settings.seed * 1_000_003 + step))
        doubled = torch.tensor([*range(half), *[half] * half])
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                both = teach(lot, noisy.x.repeat(2, 1, 1), noisy.sigma.repeat(2), embeds[doubled], mask[doubled])
                prompted, empty = both.chunk(2)
                target = noisy.velocity + settings.guidance * (prompted - empty)
            velocity = learn(lot, noisy.x, noisy.sigma, embeds[:half], mask[:half])
            loss = weighted_error(velocity, target, lot.weight[turn.chosen])
        return loss, {"loss": loss.item()}

    def factor_of(step: int) -> float:
        return min(1.0, (step + 1) / settings.warmup) * max(settings.last, 1 - step / settings.pace.steps)

    history = train(trainee, loss_of, factor_of, settings, folder, stop)
    if history is not None:
        student.save_pretrained(folder)
    return history
