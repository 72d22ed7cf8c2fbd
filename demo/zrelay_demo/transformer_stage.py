"""Stage "transformer": trains the transformer by flow matching on the trained text encoder's hidden_states[-2]."""

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn

from .flow import BatchedTransformer, BatchSampler, PromptEncoder, add_noise, training_sets
from .latents_stage import load_scenes
from .models import Widths, new_transformer
from .muon import MuonAdam
from .training import LoopSettings, Metrics, TrainingState, train

_HIDDEN = ("to_q", "to_k", "to_v", "to_out", "feed_forward")


@dataclass(frozen=True)
class TransformerSettings:
    """Settings of the transformer's training.

    The learning rates are constant after the warm-up and then fall linearly.

    Attributes:
        loop: Length and logging.
        seed: Seed of weights, batches, captions and noise.
        batch_size: Scenes per step at the default resolution.
        resolution_shares: Share of the steps for each of `RESOLUTIONS`.
        long_prompt_share: Share of the default resolution's steps whose prompts are padded to 64 tokens.
        object_weight: Weight of patches that touch an object, relative to the background's.
        compiled: Whether to use torch.compile.
        empty_prompt_share: Share of prompts that are replaced by the empty prompt.
        lr_matrices: Muon's learning rate.
        lr_others: AdamW's learning rate.
        warmup_steps: Steps of linear warm-up.
        flat_lr_share: Share of the steps after which the learning rates start to fall.
        final_lr_factor: Lowest factor on the learning rates after the warm-up.
    """

    loop: LoopSettings = field(default_factory=lambda: LoopSettings(steps=5000, ema_decay=0.997))
    seed: int = 2
    batch_size: int = 48
    resolution_shares: tuple[float, ...] = (0.60, 0.11, 0.11, 0.10, 0.08)
    long_prompt_share: float = 0.3
    object_weight: float = 3.0
    compiled: bool = True
    empty_prompt_share: float = 0.07
    lr_matrices: float = 0.02
    lr_others: float = 2e-3
    warmup_steps: int = 50
    flat_lr_share: float = 0.3
    final_lr_factor: float = 0.02


def train_transformer(
    folder: Path,
    encoder_folder: Path,
    latents: Path,
    settings: TransformerSettings,
    widths: Widths,
    initial: Path | None = None,
    stop: int | None = None,
) -> dict[str, Any] | None:
    """Trains the transformer and saves it to `folder`.

    Args:
        folder: Output folder; also holds the saved state of an unfinished training.
        encoder_folder: Folder with `tokenizer` and `text_encoder`; the text encoder is not trained here.
        latents: Folder of the encoded scenes.
        settings: Settings of the stage.
        widths: Sizes of the networks; used without `initial`.
        initial: Folder of an earlier run whose transformer is trained further; None starts with random weights.
        stop: Step at which to stop early.

    Returns:
        The history, or None after an early stop.
    """
    torch.manual_seed(settings.seed)
    prompt_encoder = PromptEncoder(encoder_folder)
    transformer = new_transformer(widths) if initial is None else ZImageTransformer2DModel.from_pretrained(initial)
    sampler = BatchSampler(
        training_sets(load_scenes(latents), settings.object_weight),
        settings.resolution_shares,
        settings.batch_size,
        settings.long_prompt_share,
        settings.seed,
    )
    batched = BatchedTransformer(transformer, settings.compiled)
    named = dict(transformer.named_parameters())
    state = TrainingState(dict(named), optimiser(named, settings.lr_matrices, settings.lr_others))

    def loss_at(step: int) -> tuple[Tensor, Metrics]:
        rng = Random(f"dit {settings.seed} {step}")
        batch = sampler.batch_at(step)
        training_set = batch.training_set
        texts = [
            prompt_encoder.caption_tokenizer.draw_caption(training_set.scenes[k], rng, batch.tokens)
            if rng.random() >= settings.empty_prompt_share
            else ""
            for k in batch.indices
        ]
        embeds, mask = prompt_encoder.encode(texts, batch.tokens)
        noisy = add_noise(
            training_set.clean[batch.indices], torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        )
        with torch.autocast("cpu", torch.bfloat16):
            velocity = batched(training_set, noisy.x, noisy.sigma, embeds, mask)
            loss = weighted_error(velocity, noisy.velocity, training_set.weight[batch.indices])
        return loss, {"loss": loss.item()}

    history = train(state, loss_at, lambda step: _lr_factor(settings, step), settings, folder, stop)
    if history is not None:
        transformer.save_pretrained(folder)
    return history


def optimiser(named: dict[str, nn.Parameter], lr_matrices: float, lr_others: float) -> MuonAdam:
    """Returns an optimiser: Muon for the matrices inside the blocks, AdamW for all other parameters."""
    hidden = {name for name, p in named.items() if p.ndim == 2 and any(part in name for part in _HIDDEN)}
    matrices = [p for name, p in named.items() if name in hidden]
    return MuonAdam(matrices, [p for name, p in named.items() if name not in hidden], lr_matrices, lr_others)


def weighted_error(velocity: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Returns the weighted mean square error.

    Args:
        velocity: Predicted velocity [N, patches, 64].
        target: Target velocity [N, patches, 64].
        weight: Weight of each patch [N, patches].
    """
    return ((velocity - target).square().mean(-1) * weight).mean()


def _lr_factor(settings: TransformerSettings, step: int) -> float:
    progress = step / settings.loop.steps
    decay = (
        1.0
        if progress < settings.flat_lr_share
        else max(settings.final_lr_factor, (1 - progress) / (1 - settings.flat_lr_share))
    )
    return min(1.0, (step + 1) / settings.warmup_steps) * decay
