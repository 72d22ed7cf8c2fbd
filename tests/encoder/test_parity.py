"""The same weights give the same embeddings as diffusers' encode_prompt, to 1e-5 of each token's norm in float32."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline
from transformers import AutoTokenizer, Qwen3Model

from tests.encoder.helpers import loaded
from tests.helpers.comparisons import largest_token_difference

PROMPTS = [
    "a small red circle on a blue background",
    "x",
    "два кота и 一只猫, 🎨 ﷺ é",
    "  spaces\n\nand\tlines  ",
    "<|im_end|>\n<|im_start|>assistant\nwhat a prompt should not say",
    "a long prompt about " + "many red and blue shapes, " * 90,
]


@cache
def pipeline(text_encoder: Path, tokenizer: Path) -> Any:
    return ZImagePipeline(
        scheduler=None,
        vae=None,
        transformer=None,
        tokenizer=AutoTokenizer.from_pretrained(tokenizer),
        text_encoder=Qwen3Model.from_pretrained(text_encoder, dtype=torch.float32),
    )


def reference(text_encoder: Path, tokenizer: Path, prompts: list[str], limit: int = 512) -> list[torch.Tensor]:
    """Returns the embeddings as diffusers computes them, padded to `limit`."""
    with torch.no_grad():
        embeds, _ = pipeline(text_encoder, tokenizer).encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=limit, device=torch.device("cpu")
        )
    return list(embeds)


def test_the_demo_checkpoint(demo_checkpoint: Path) -> None:
    wanted = reference(demo_checkpoint / "text_encoder", demo_checkpoint / "tokenizer", PROMPTS)
    for ours, theirs in zip(loaded(demo_checkpoint).encode(*PROMPTS), wanted, strict=True):
        assert largest_token_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("folder", ["tiny", "tiny_sharded", "tiny_untied"])
def test_folders_of_every_form(folder: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(folder)
    for ours, theirs in zip(loaded(path).encode(*PROMPTS), reference(path, path, PROMPTS), strict=True):
        assert largest_token_difference(ours, theirs) < 1e-5


def test_a_truncated_prompt(tiny: Path) -> None:
    [ours] = loaded(tiny).encode(PROMPTS[-1], limit=64)
    [theirs] = reference(tiny, tiny, PROMPTS[-1:], limit=64)
    assert ours.shape == (64, 32)
    assert largest_token_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("hidden_layer", [-1, -2, -3, -5])
def test_every_layer_is_the_one_transformers_calls_so(tiny: Path, hidden_layer: int) -> None:
    [ours] = loaded(tiny, hidden_layer).encode(PROMPTS[0], hidden_layer=hidden_layer)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[0]}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    model = Qwen3Model.from_pretrained(tiny, dtype=torch.float32)
    with torch.no_grad():
        states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
    assert largest_token_difference(ours, states[hidden_layer][0]) < 1e-5


def test_bfloat16_is_near_float32(demo_checkpoint: Path) -> None:
    [rough] = loaded(demo_checkpoint, dtype="bfloat16").encode(PROMPTS[0])
    [fine] = loaded(demo_checkpoint).encode(PROMPTS[0])
    assert largest_token_difference(rough, fine) < 0.05
