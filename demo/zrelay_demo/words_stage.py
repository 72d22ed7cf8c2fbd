"""Stage 3: teach the text encoder to read, before any picture: what a caption says, and which word comes next."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from .flow import LONG, SHORT, Prompts, hidden_states
from .free_wordings import free
from .models import Network, Widths, new_text_encoder
from .muon import MuonAdam
from .training import Metrics, Pace, Trainee, train
from .wordings import COLOUR_WORDS
from .world import COLOURS, COUNTS, PLACES, RELATIONS, SHAPES, SIZES, STYLES, Mix, Scene, sample

_READING = Mix(kinds=(0.32, 0.20, 0.48), styles=(0.34, 0.22, 0.22, 0.22), sizes=(0.34, 0.33, 0.33), centred=0.3)
"""Two different things, of which each could be the first, are what is hard to read."""
_COLOURS = tuple(COLOURS)
_LAYOUTS = (*PLACES, *(str(count) for count in COUNTS), *RELATIONS)
_OF_AN_OBJECT = (_COLOURS, SHAPES, STYLES, SIZES)
_QUESTIONS = ((*_COLOURS, "open"), _LAYOUTS, *_OF_AN_OBJECT, *_OF_AN_OBJECT)
"""Background, how the picture is laid out, then colour, shape, style and size of the first and the second object."""
_ABSENT = -100
_HIDDEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class WordsSettings:
    """The learning rate falls linearly. `next_word` weighs the language loss against the reading loss."""

    pace: Pace = field(default_factory=lambda: Pace(steps=1000, ema_decay=0.99, log_every=100, save_every=400))
    seed: int = 4
    batch: int = 96
    long_prompts: float = 0.4
    next_word: float = 0.3
    lr_matrices: float = 0.02
    lr_others: float = 2e-3
    warmup: int = 50
    last: float = 0.02


class Readout(nn.Module):
    """One linear layer that answers every question from the last token's hidden_states[-2]. Thrown away afterwards."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden)
        self.answers = nn.Linear(hidden, sum(len(some) for some in _QUESTIONS))

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """[N, tokens, hidden] and mask [N, tokens] -> for each question its logits [N, answers]."""
        last = states[torch.arange(len(states)), mask.sum(1) - 1]
        answers: tuple[Tensor, ...] = self.answers(self.norm(last)).split([len(some) for some in _QUESTIONS], 1)
        return answers


def train_words(
    folder: Path,
    tokenizer: Path,
    settings: WordsSettings,
    widths: Widths,
    before: Path | None = None,
    stop: int | None = None,
) -> dict[str, Any] | None:
    """Train the text encoder and save it to `folder`; return the history, None when ended early.

    It goes on from the one that an earlier run saved to `before`, or begins anew.
    """
    torch.manual_seed(settings.seed)
    prompts = Prompts(tokenizer)
    if before is None:
        text_encoder = new_text_encoder(widths, prompts.tokenizer)
    else:
        text_encoder = Qwen3ForCausalLM.from_pretrained(before / "text_encoder").train()
    text_encoder.set_attn_implementation("eager")
    readout = Readout(widths.text_hidden)
    named = {f"text_encoder.{name}": p for name, p in text_encoder.named_parameters()}
    named |= {f"readout.{name}": p for name, p in readout.named_parameters()}
    trainee = Trainee(named, _optimiser(named, settings))

    def loss_of(step: int) -> tuple[Tensor, Metrics]:
        rng = Random(f"words {settings.seed} {step}")
        tokens = LONG if rng.random() < settings.long_prompts else SHORT
        scenes = [sample(rng, _READING) for _ in range(settings.batch)]
        texts = [prompts.words(scene, rng, tokens) for scene in scenes]
        ids, mask = prompts.tokens(texts, tokens)
        wanted = _answers(scenes, texts)
        with torch.autocast("cpu", torch.bfloat16):
            states, last = hidden_states(text_encoder, ids, mask)
            language = next_word(text_encoder.lm_head(last), ids, mask)
        given = readout(states.float(), mask)
        reading = torch.stack(
            [F.cross_entropy(logits, wanted[:, n], ignore_index=_ABSENT) for n, logits in enumerate(given)]
        ).nansum()
        return reading + settings.next_word * language, {"reading": reading.item(), "language": language.item()}

    def factor_of(step: int) -> float:
        return min(1.0, (step + 1) / settings.warmup) * max(settings.last, 1 - step / settings.pace.steps)

    history = train(trainee, loss_of, factor_of, settings, folder, stop)
    if history is not None:
        history["read_right"] = _read_right(text_encoder, readout, prompts)
        print(f"  free wordings read right: {history['read_right']:.3f}", flush=True)
        text_encoder.save_pretrained(folder / "text_encoder")
        shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    return history


def next_word(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of the next token; the template's first two tokens and the pads do not count."""
    target = ids[:, 1:].masked_fill(~mask[:, 1:], _ABSENT)
    target[:, :2] = _ABSENT
    return F.cross_entropy(logits.float()[:, :-1].flatten(0, 1), target.flatten(), ignore_index=_ABSENT)


def _answers(scenes: list[Scene], texts: list[str]) -> Tensor:
    """Int64 [N, questions]; a background that the caption leaves out is open, a second object that is not is absent."""
    rows = []
    for scene, text in zip(scenes, texts, strict=True):
        layout = scene.place if scene.kind == "one" else scene.relation or str(len(scene.objects))
        ground = _COLOURS.index(scene.background) if names_ground(scene, text) else len(_COLOURS)
        row = [ground, _LAYOUTS.index(layout)]
        described = scene.objects[:1] if scene.kind != "two" else scene.objects
        for item in described:
            said = (item.colour, item.shape, item.style, item.size)
            row += [names.index(word) for names, word in zip(_OF_AN_OBJECT, said, strict=True)]
        rows.append(row + [_ABSENT] * (len(_QUESTIONS) - len(row)))
    return torch.tensor(rows)


def names_ground(scene: Scene, text: str) -> bool:
    """Whether a caption says the background; the objects of a scene never have its colour."""
    return any(word in text.lower() for word in COLOUR_WORDS[scene.background])


@torch.no_grad()
def _read_right(text_encoder: Network, readout: Readout, prompts: Prompts, count: int = 1000) -> float:
    """Share of held-out scenes in free wordings of which every answer is right."""
    rng = Random("free wordings read")
    scenes = [sample(rng, unseen=True) for _ in range(count)]
    texts = [free(scene, rng) for scene in scenes]
    ids, mask = prompts.tokens(texts, LONG)
    given = readout(hidden_states(text_encoder, ids, mask)[0], mask)
    wanted = _answers(scenes, texts)
    right = [(logits.argmax(1) == wanted[:, n]) | (wanted[:, n] == _ABSENT) for n, logits in enumerate(given)]
    return torch.stack(right).all(0).float().mean().item()


def _optimiser(named: dict[str, nn.Parameter], settings: WordsSettings) -> MuonAdam:
    hidden = {name for name, p in named.items() if p.ndim == 2 and any(part in name for part in _HIDDEN)}
    matrices = [p for name, p in named.items() if name in hidden]
    others = [p for name, p in named.items() if name not in hidden]
    return MuonAdam(matrices, others, settings.lr_matrices, settings.lr_others)
