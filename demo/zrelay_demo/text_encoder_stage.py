"""Stage "text_encoder": trains the text encoder to represent what a caption says and to predict the next token."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from .flow import LONG_TOKENS, SHORT_TOKENS, CaptionTokenizer, hidden_states
from .free_wordings import free_caption
from .models import Network, Widths, new_text_encoder
from .muon import MuonAdam
from .scenes import COLOURS, COUNTS, PLACES, RELATIONS, SHAPES, SIZES, STYLES, Scene, SceneMix, sample
from .training import LoopSettings, Metrics, TrainingState, train
from .wordings import COLOUR_WORDS

_READING_MIX = SceneMix(
    kinds=(0.32, 0.20, 0.48), styles=(0.34, 0.22, 0.22, 0.22), sizes=(0.34, 0.33, 0.33), centred=0.3
)
"""Has many scenes with two different objects: which words belong to which object is hardest to learn."""
_COLOURS = tuple(COLOURS)
_LAYOUTS = (*PLACES, *(str(count) for count in COUNTS), *RELATIONS)
_OBJECT_ATTRIBUTES = (_COLOURS, SHAPES, STYLES, SIZES)
_ATTRIBUTES = ((*_COLOURS, "open"), _LAYOUTS, *_OBJECT_ATTRIBUTES, *_OBJECT_ATTRIBUTES)
"""Values of each attribute: background, layout, then colour, shape, style and size of both objects."""
_IGNORED = -100
"""Label that cross entropy ignores."""
_HIDDEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class TextEncoderSettings:
    """Settings of the text encoder's training. The learning rates fall linearly.

    Attributes:
        loop: Length and logging.
        seed: Seed of weights, scenes and captions.
        batch_size: Captions per step.
        long_prompt_share: Share of steps whose captions are padded to 64 tokens instead of 32.
        next_token_weight: Weight of the next-token loss relative to the attribute loss.
        lr_matrices: Muon's learning rate.
        lr_others: AdamW's learning rate.
        warmup_steps: Steps of linear warm-up.
        final_lr_factor: Lowest factor on the learning rates after the warm-up.
    """

    loop: LoopSettings = field(
        default_factory=lambda: LoopSettings(steps=1000, ema_decay=0.99, log_every=100, save_every=400)
    )
    seed: int = 4
    batch_size: int = 96
    long_prompt_share: float = 0.4
    next_token_weight: float = 0.3
    lr_matrices: float = 0.02
    lr_others: float = 2e-3
    warmup_steps: int = 50
    final_lr_factor: float = 0.02


class AttributeProbe(nn.Module):
    """A linear probe that predicts every attribute from the last token's hidden_states[-2]; used only in training."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden)
        self.head = nn.Linear(hidden, sum(len(values) for values in _ATTRIBUTES))

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Returns the logits of each attribute, [N, values of the attribute].

        Args:
            states: Hidden states [N, tokens, hidden].
            mask: Which tokens belong to the prompt [N, tokens].
        """
        last = states[torch.arange(len(states)), mask.sum(1) - 1]
        logits: tuple[Tensor, ...] = self.head(self.norm(last)).split([len(values) for values in _ATTRIBUTES], 1)
        return logits


def train_text_encoder(
    folder: Path,
    tokenizer: Path,
    settings: TextEncoderSettings,
    widths: Widths,
    initial: Path | None = None,
    stop: int | None = None,
) -> dict[str, Any] | None:
    """Trains the text encoder and saves it with its tokenizer to `folder`.

    Args:
        folder: Output folder; also holds the saved state of an unfinished training.
        tokenizer: Folder of the tokenizer.
        settings: Settings of the stage.
        widths: Sizes of the networks; used without `initial`.
        initial: Folder of an earlier run whose text encoder is trained further; None starts with random weights.
        stop: Step at which to stop early.

    Returns:
        The history, or None after an early stop.
    """
    torch.manual_seed(settings.seed)
    caption_tokenizer = CaptionTokenizer(tokenizer)
    if initial is None:
        text_encoder = new_text_encoder(widths, caption_tokenizer.tokenizer)
    else:
        text_encoder = Qwen3ForCausalLM.from_pretrained(initial / "text_encoder").train()
    text_encoder.set_attn_implementation("eager")
    probe = AttributeProbe(widths.text_hidden)
    named = {f"text_encoder.{name}": p for name, p in text_encoder.named_parameters()}
    named |= {f"probe.{name}": p for name, p in probe.named_parameters()}
    state = TrainingState(named, _optimiser(named, settings))

    def loss_at(step: int) -> tuple[Tensor, Metrics]:
        rng = Random(f"words {settings.seed} {step}")
        tokens = LONG_TOKENS if rng.random() < settings.long_prompt_share else SHORT_TOKENS
        scenes = [sample(rng, _READING_MIX) for _ in range(settings.batch_size)]
        texts = [caption_tokenizer.draw_caption(scene, rng, tokens) for scene in scenes]
        ids, mask = caption_tokenizer.tokenize(texts, tokens)
        labels = _labels(scenes, texts)
        with torch.autocast("cpu", torch.bfloat16):
            states, last = hidden_states(text_encoder, ids, mask)
            next_token = next_token_loss(text_encoder.lm_head(last), ids, mask)
        predictions = probe(states.float(), mask)
        attributes = torch.stack(
            [F.cross_entropy(logits, labels[:, n], ignore_index=_IGNORED) for n, logits in enumerate(predictions)]
        ).nansum()
        return attributes + settings.next_token_weight * next_token, {
            "attributes": attributes.item(),
            "next_token": next_token.item(),
        }

    def lr_factor(step: int) -> float:
        return min(1.0, (step + 1) / settings.warmup_steps) * max(
            settings.final_lr_factor, 1 - step / settings.loop.steps
        )

    history = train(state, loss_at, lr_factor, settings, folder, stop)
    if history is not None:
        history["probe_accuracy"] = _probe_accuracy(text_encoder, probe, caption_tokenizer)
        print(f"  probe accuracy on free wordings: {history['probe_accuracy']:.3f}", flush=True)
        text_encoder.save_pretrained(folder / "text_encoder")
        shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    return history


def next_token_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Returns the cross entropy of the next token, without the template's first two tokens and pad tokens."""
    target = ids[:, 1:].masked_fill(~mask[:, 1:], _IGNORED)
    target[:, :2] = _IGNORED
    return F.cross_entropy(logits.float()[:, :-1].flatten(0, 1), target.flatten(), ignore_index=_IGNORED)


def _labels(scenes: list[Scene], texts: list[str]) -> Tensor:
    """Returns the index of each attribute's value, int64 [N, attributes].

    The label is "open" for a background that the caption omits, and ignored for a second object that does not exist.
    """
    rows = []
    for scene, text in zip(scenes, texts, strict=True):
        layout = scene.place if scene.kind == "one" else scene.relation or str(len(scene.objects))
        background = _COLOURS.index(scene.background) if mentions_background(scene, text) else len(_COLOURS)
        row = [background, _LAYOUTS.index(layout)]
        objects = scene.objects[:1] if scene.kind != "two" else scene.objects
        for item in objects:
            words = (item.colour, item.shape, item.style, item.size)
            row += [names.index(word) for names, word in zip(_OBJECT_ATTRIBUTES, words, strict=True)]
        rows.append(row + [_IGNORED] * (len(_ATTRIBUTES) - len(row)))
    return torch.tensor(rows)


def mentions_background(scene: Scene, text: str) -> bool:
    """Returns whether a caption names the background's colour, which no object of the scene has."""
    return any(word in text.lower() for word in COLOUR_WORDS[scene.background])


@torch.no_grad()
def _probe_accuracy(
    text_encoder: Network, probe: AttributeProbe, caption_tokenizer: CaptionTokenizer, count: int = 1000
) -> float:
    """Returns the share of held-out scenes in free wordings for which the probe predicts every attribute correctly."""
    rng = Random("free wordings read")
    scenes = [sample(rng, unseen=True) for _ in range(count)]
    texts = [free_caption(scene, rng) for scene in scenes]
    ids, mask = caption_tokenizer.tokenize(texts, LONG_TOKENS)
    predictions = probe(hidden_states(text_encoder, ids, mask)[0], mask)
    labels = _labels(scenes, texts)
    right = [(logits.argmax(1) == labels[:, n]) | (labels[:, n] == _IGNORED) for n, logits in enumerate(predictions)]
    return torch.stack(right).all(0).float().mean().item()


def _optimiser(named: dict[str, nn.Parameter], settings: TextEncoderSettings) -> MuonAdam:
    hidden = {name for name, p in named.items() if p.ndim == 2 and any(part in name for part in _HIDDEN)}
    matrices = [p for name, p in named.items() if name in hidden]
    others = [p for name, p in named.items() if name not in hidden]
    return MuonAdam(matrices, others, settings.lr_matrices, settings.lr_others)
