"""Stage "tokenizer": byte-level BPE trained on captions, with Qwen3's special tokens and chat template."""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from .scenes import sample
from .wordings import caption

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen3's special tokens, in order."""
ADDED = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
"""Qwen3's added tokens that are not special, in order."""
_EXTRA_WORDS = (
    "the and with of in at to from left right top bottom middle corner side under over behind photo drawing style "
    "texture object objects shape shapes same different no not very bright dark light pale edit make it bigger smaller "
    "move change replace add remove color colour reference image picture like gray grey brown pattern plain"
)
"""Words that are added to the corpus so that each becomes one token."""
_CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


@dataclass(frozen=True)
class TokenizerSettings:
    """Settings of the tokenizer's training.

    Attributes:
        seed: Seed of the captions.
        captions: Number of captions.
        vocabulary: Tokens before the special and added ones.
    """

    seed: int = 7
    captions: int = 20000
    vocabulary: int = 720


def build_tokenizer(folder: Path, settings: TokenizerSettings) -> None:
    """Trains the tokenizer on captions and saves it to `folder`."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(_corpus(settings), trainer)
    model: dict[str, Any] = json.loads(bpe.to_str())["model"]
    special: dict[str, Any] = {"unk_token": None, "bos_token": None}
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=_pairs(model["merges"]),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
        errors="replace",
        split_special_tokens=False,
        **special,
    )
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL], special_tokens=True)
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in ADDED])
    tokenizer.chat_template = _CHAT_TEMPLATE.read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)


def _pairs(merges: list[list[str]]) -> Any:
    return [tuple(merge) for merge in merges]


def _corpus(settings: TokenizerSettings) -> list[str]:
    """Returns the lines of text on which the tokenizer is trained."""
    rng = Random(f"tokenizer {settings.seed}")
    lines = []
    for index in range(settings.captions):
        words = caption(sample(rng), rng)
        lines.append(f"user\n{words}\n")
        if index % 4 == 0:
            lines.append(f"assistant\n{words}\n")
        if index % 40 == 0:
            lines.append("system\n\n")
    return lines + [f" {word}" for word in _EXTRA_WORDS.split() for _ in range(30)]
