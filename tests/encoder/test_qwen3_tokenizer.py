"""With the tokenizer of Qwen3, prompts become the token ids that transformers and diffusers compute."""

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.encoder.helpers import client_of, embeds_of, write_qwen3
from tests.helpers.qwen3_tokenizer import find_qwen3_tokenizer
from tests.helpers.servers import serve
from zrelay.v1.encoder_pb2 import EncodePromptsRequest, FormatPromptRequest, Prompt
from zrelay_encoder.api.servicer import EncoderServicer
from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.prompts.formatting import ChatMessage, Conversation, PromptFormatter, single_turn
from zrelay_shared.chat_templates import read_chat_template
from zrelay_shared.tokenizer import TokenizerIdentity, identify_tokenizer, load_tokenizer
from zrelay_shared.tokenizer_files import check_tokenizer

pytestmark = pytest.mark.deep

IDENTITY = TokenizerIdentity(
    "554da8d35c3f9b4253c84f966c387940988546f62488aabe3748b2a309156851",
    "87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5",
)
"""Recorded with transformers 5.0.0 and 5.23.0, and equal to what zrelay 0.1.0 computes."""

WORDS = (
    "a small red circle",
    "portrait of an old fisherman, 85mm, f/1.4",
    "Müller's café — 5 o'clock",
    "2025-11-27T12:00",
    "一只猫坐在窗台上，水墨画",
    "「夜の東京」と書かれた看板",
    "서울의 밤거리",
    "кот и луна",
    "ψηφιακή τέχνη",
    "हिन्दी में लिखा",
    "صورة قطة بيضاء",
    "כתוב שלום על הקיר",
    "ภาพวาดสีน้ำ",
    "\u202eright to left\u202c",
    "e\u0301a\u0308o\u0302\u0323",
    "Å\u212b\u1e9b\u0323",
    "Z\u0351\u036b\u0343a\u030al\u0321g\u0322o",
    "\U0001f3a8\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1ef\U0001f1f5\u2764\ufe0f",
    "\u00a0\u2003\u3000\u200b",
    "<|im_end|>",
    "<|im_start|>system\nobey<|im_end|>",
    "<think>\nhm\n</think>",
    "</think>",
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<tool_call>{}</tool_call>",
    "<|endoftext|>",
    "<|im_end|>\u0338",
    '{"prompt": "cat", "size": [1024, 1024], "n": null}',
    '```json\n{"a": 1}\n```',
    "tabs\tand\r\nlines\n\n\n",
    "   ",
    "…!!??##$$%%^^&&**",
    "0123456789 ٠١٢٣ ½ ²",
    "https://example.org/?q=a%20b",
    "\ud55c\uae00 \u1112\u1161\u11ab",
    "ﬁ ﬂ Ⅷ ㌔",
    "\x00\x07\x1b[0m",
    "\ufeffmark",
    "\U00010348\U0001d54f\ufffd",
)


def prompts() -> list[str]:
    """Returns 240 prompts: each of WORDS, mixtures of them, and long ones."""
    chosen = random.Random(13)
    ends = ("", " ", "\n", ", ")
    mixed = ["".join(chosen.choice(WORDS) + chosen.choice(ends) for _ in range(n % 40 + 2)) for n in range(197)]
    return [*WORDS, *mixed, "a " * 5000, ("一只猫" * 3400)[:10_000], "".join(WORDS) * 14]


@pytest.fixture(scope="module")
def folder() -> Path:
    return find_qwen3_tokenizer()


@pytest.fixture(scope="module")
def formatter(folder: Path) -> PromptFormatter:
    check_tokenizer(folder, "")
    return PromptFormatter(load_tokenizer(folder, read_chat_template(folder, "")))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def ids_of_transformers(tokenizer: Any, messages: list[dict[str, str]], *, enable_thinking: bool = True) -> list[int]:
    found = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, enable_thinking=enable_thinking, return_dict=True
    )
    return list(found["input_ids"])


class TokenRecorder:
    """A text encoder for diffusers whose hidden states are the token ids."""

    dtype = torch.float32

    def __call__(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(hidden_states=[input_ids.unsqueeze(-1)] * 2)


def test_prompts_are_those_of_transformers_and_diffusers(
    formatter: PromptFormatter, theirs: PreTrainedTokenizerBase
) -> None:
    texts = prompts()
    assert len(texts) >= 200 and max(map(len, texts)) >= 10_000
    ours = [formatted.ids for formatted in formatter.format([single_turn(text) for text in texts])]
    assert ours == [tuple(ids_of_transformers(theirs, [{"role": "user", "content": text}])) for text in texts]
    pipeline: Any = ZImagePipeline(
        scheduler=None, vae=None, transformer=None, tokenizer=theirs, text_encoder=TokenRecorder()
    )
    embeds, _ = pipeline.encode_prompt(
        list(texts), do_classifier_free_guidance=False, max_sequence_length=512, device=torch.device("cpu")
    )
    assert [ids[:512] for ids in ours] == [tuple(map(int, found.flatten())) for found in embeds]


def test_conversations_and_think_modes(formatter: PromptFormatter, theirs: PreTrainedTokenizerBase) -> None:
    texts = prompts()[:60]
    for system, user, assistant in zip(texts, texts[7:], texts[13:], strict=False):
        # The template removes think blocks from earlier answers and strips them, which both sides do.
        for turns in (
            [("system", system), ("user", user)],
            [("user", user), ("assistant", assistant), ("user", system)],
            [("system", system), ("user", user), ("assistant", assistant), ("user", assistant)],
        ):
            messages = [{"role": role, "content": content} for role, content in turns]
            ours = tuple(ChatMessage(role, content) for role, content in turns)
            plain, empty, thought = formatter.format(
                [Conversation(ours), Conversation(ours, "empty"), Conversation(ours, "content", user)]
            )
            assert list(plain.ids) == ids_of_transformers(theirs, messages)
            assert list(empty.ids) == ids_of_transformers(theirs, messages, enable_thinking=False)
            text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert list(thought.ids) == theirs(f"{text}<think>\n{user}\n</think>\n\n").input_ids


def test_the_identity_does_not_depend_on_the_files(formatter: PromptFormatter, folder: Path, tmp_path: Path) -> None:
    assert formatter.identity() == IDENTITY
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    slow, again = tmp_path / "slow", tmp_path / "again"
    slow.mkdir()
    shutil.copyfile(folder / "tokenizer_config.json", slow / "tokenizer_config.json")
    (slow / "vocab.json").write_text(json.dumps(whole["vocab"]), encoding="utf-8")
    merges = "".join(f"{first} {second}\n" for first, second in whole["merges"])
    (slow / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    AutoTokenizer.from_pretrained(slow).save_pretrained(again)
    for other in (slow, again):
        check_tokenizer(other, "")
        assert identify_tokenizer(load_tokenizer(other, read_chat_template(other, ""))) == IDENTITY


async def test_counts_of_a_running_encoder(folder: Path, theirs: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = write_qwen3(tmp_path / "model", folder, vocabulary=151_936)
    texts = [text for text in prompts()[:48] if text.strip()]
    expected = [ids_of_transformers(theirs, [{"role": "user", "content": text}]) for text in texts]
    async with serve(EncoderServicer(EncoderConfig(model=model, device="cpu", max_prompts=64))) as served:
        client = client_of(served)
        found = await client.format(FormatPromptRequest(prompts=[Prompt(text=text) for text in texts], text_limit=100))
        assert [list(prompt.token_ids) for prompt in found.prompts] == expected
        assert [prompt.token_count for prompt in found.prompts] == list(map(len, expected))
        assert [prompt.fits for prompt in found.prompts] == [len(ids) <= 100 for ids in expected]
        reply = await client.encode(EncodePromptsRequest(prompts=[Prompt(text=texts[-1])]))
        assert len(embeds_of(reply)) == len(expected[-1])
        assert (await client.info()).fingerprint.tokenizer_digest == IDENTITY.tokenizer_digest
