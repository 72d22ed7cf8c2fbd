"""Builds a tiny tokenizer for SigLIP2: BPE with byte fallback, like Gemma's tokenizer, on lower-case text."""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Siglip2Tokenizer

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
_SIZES = ["small", "medium", "large", "tiny", "big"]
_COLOURS = ["red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan", "black", "white", "grey"]
_STYLES = ["solid", "striped", "dotted", "outlined", "plain"]
_SHAPES = ["circle", "square", "triangle", "diamond", "star", "heart", "cross", "moon", "shape"]
_PLACES = ("at the top", "at the bottom", "at the left", "at the right", "in the middle", "above it", "below it")
_PREFIXES = ("a picture of", "a photo of", "a drawing of", "an image with", "there is", "")
_NUMBERS = ["a", "an", "one", "two", "three", "four"]


@dataclass(frozen=True)
class SiglipTokenizerSettings:
    """Settings of the tokenizer's training.

    Attributes:
        seed: Seed of the captions.
        captions: Number of captions.
        vocabulary: Size of the vocabulary.
        length: Number of tokens to which texts are padded.
    """

    seed: int = 11
    captions: int = 4000
    vocabulary: int = 480
    length: int = 64


def build_siglip_tokenizer(folder: Path, settings: SiglipTokenizerSettings) -> int:
    """Trains the tokenizer on captions, saves it to `folder` and returns the size of its vocabulary."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    bpe.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary, special_tokens=[*_SPECIAL, *_BYTES], min_frequency=2, show_progress=False
    )
    rng = Random(f"siglip {settings.seed}")
    bpe.train_from_iterator([_line(rng) for _ in range(settings.captions)], trainer)
    model: dict[str, Any] = json.loads(bpe.to_str())["model"]
    tokenizer = Siglip2Tokenizer(
        vocab=model["vocab"],
        merges=_pairs(model["merges"]),
        model_max_length=settings.length,
        padding_side="right",
        add_eos_token=True,
        model_input_names=["input_ids"],
    )
    tokenizer.save_pretrained(folder)
    return len(model["vocab"])


def _pairs(merges: list[list[str]]) -> Any:
    return [tuple(merge) for merge in merges]


def _line(rng: Random) -> str:
    """Returns a random caption similar to those of the demo model."""
    shape = rng.choice(_SHAPES) + rng.choice(("", "s"))
    parts = (rng.choice(group) for group in (_PREFIXES, _NUMBERS, _SIZES, _STYLES, _COLOURS))
    return " ".join([*parts, shape, rng.choice(_PLACES), "on a", rng.choice(_COLOURS), "background"]).strip()
