"""Stage "distilled": trains a copy of the transformer to have the effect of a small guidance scale built in."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from .flow import BatchedTransformer, BatchSampler, PromptEncoder, add_noise, training_sets
from .latents_stage import load_scenes
from .training import LoopSettings, Metrics, TrainingState, train
from .transformer_stage import optimiser, weighted_error


@dataclass(frozen=True)
class DistillSettings:
    """Settings of the guidance distillation.

    The student's target is v + guidance * (c - u): v is the true velocity, c and u are the teacher's velocities with
    and without the prompt. Because the target contains v, and not the teacher's velocity alone, the student can become
    better than the teacher.

    A larger `guidance` gives slightly better images without guidance and worse ones with it: with guidance scale g, the
    student's result is the teacher's at guidance + (1 + guidance) * g. The learning rates fall linearly.

    Attributes:
        loop: Length and logging.
        seed: Seed of batches, captions and noise.
        batch_size: Scenes per step at the default resolution.
        resolution_shares: Share of the steps for each of `RESOLUTIONS`.
        long_prompt_share: Share of the default resolution's steps whose prompts are padded to 64 tokens.
        object_weight: Weight of patches that touch an object, relative to the background's.
        compiled: Whether to use torch.compile.
        guidance: Guidance scale that the student learns.
        empty_prompt_share: Share of prompts that are replaced by the empty prompt.
        lr_matrices: Muon's learning rate.
        lr_others: AdamW's learning rate.
        warmup_steps: Steps of linear warm-up.
        final_lr_factor: Lowest factor on the learning rates after the warm-up.
    """

    loop: LoopSettings = field(default_factory=lambda: LoopSettings(steps=1000, ema_decay=0.99))
    seed: int = 3
    batch_size: int = 48
    resolution_shares: tuple[float, ...] = (0.40, 0.10, 0.10, 0.18, 0.22)
    long_prompt_share: float = 0.3
    object_weight: float = 3.0
    compiled: bool = True
    guidance: float = 0.25
    empty_prompt_share: float = 0.07
    lr_matrices: float = 0.01
    lr_others: float = 1e-3
    warmup_steps: int = 20
    final_lr_factor: float = 0.02


def distill(
    folder: Path, encoder_folder: Path, latents: Path, teacher: Path, settings: DistillSettings, stop: int | None = None
) -> dict[str, Any] | None:
    """Trains the student and saves it to `folder`.

    Args:
        folder: Output folder; also holds the saved state of an unfinished training.
        encoder_folder: Folder with `tokenizer` and `text_encoder`.
        latents: Folder of the encoded scenes.
        teacher: Folder of the trained transformer; the student starts with its weights.
        settings: Settings of the stage.
        stop: Step at which to stop early.

    Returns:
        The history, or None after an early stop.
    """
    prompt_encoder = PromptEncoder(encoder_folder)
    student = ZImageTransformer2DModel.from_pretrained(teacher)
    sampler = BatchSampler(
        training_sets(load_scenes(latents), settings.object_weight),
        settings.resolution_shares,
        settings.batch_size,
        settings.long_prompt_share,
        settings.seed,
    )
    teacher_model = BatchedTransformer(copy.deepcopy(student).requires_grad_(False), settings.compiled)
    student_model = BatchedTransformer(student, settings.compiled)
    named = dict(student.named_parameters())
    state = TrainingState(dict(named), optimiser(named, settings.lr_matrices, settings.lr_others))

    def loss_at(step: int) -> tuple[Tensor, Metrics]:
        rng = Random(f"distill {settings.seed} {step}")
        batch = sampler.batch_at(step)
        training_set, count = batch.training_set, len(batch.indices)
        texts = [
            prompt_encoder.caption_tokenizer.draw_caption(training_set.scenes[k], rng, batch.tokens)
            if rng.random() >= settings.empty_prompt_share
            else ""
            for k in batch.indices
        ]
        embeds, mask = prompt_encoder.encode([*texts, ""], batch.tokens)
        noisy = add_noise(
            training_set.clean[batch.indices], torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        )
        doubled = torch.tensor([*range(count), *[count] * count])
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                both = teacher_model(
                    training_set, noisy.x.repeat(2, 1, 1), noisy.sigma.repeat(2), embeds[doubled], mask[doubled]
                )
                with_prompt, without_prompt = both.chunk(2)
                target = noisy.velocity + settings.guidance * (with_prompt - without_prompt)
            velocity = student_model(training_set, noisy.x, noisy.sigma, embeds[:count], mask[:count])
            loss = weighted_error(velocity, target, training_set.weight[batch.indices])
        return loss, {"loss": loss.item()}

    def lr_factor(step: int) -> float:
        return min(1.0, (step + 1) / settings.warmup_steps) * max(
            settings.final_lr_factor, 1 - step / settings.loop.steps
        )

    history = train(state, loss_at, lr_factor, settings, folder, stop)
    if history is not None:
        student.save_pretrained(folder)
    return history
