"""Prompts in the chat template, think blocks, token limits and pads."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from zrelay_encoder.prompts import fitting
from zrelay_encoder.prompts.formatting import ChatMessage, Conversation, format_prompt, single_turn, tokenize

PLAIN = "<|im_start|>user\na star<|im_end|>\n<|im_start|>assistant\n"
STAR = (ChatMessage("user", "a star"),)


@pytest.fixture(scope="module")
def tokenizer(demo_checkpoint: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo_checkpoint / "tokenizer")


def test_think_modes(tokenizer: PreTrainedTokenizerBase) -> None:
    assert format_prompt(tokenizer, single_turn("a star")) == PLAIN
    assert format_prompt(tokenizer, Conversation(STAR, "empty")) == PLAIN + "<think>\n\n</think>\n\n"
    thought = Conversation(STAR, "content", "five points")
    assert format_prompt(tokenizer, thought) == PLAIN + "<think>\nfive points\n</think>\n\n"
    with pytest.raises(ValueError, match="none, empty, content, got 'deep'"):
        format_prompt(tokenizer, Conversation(STAR, "deep"))


def test_a_template_without_the_switch_gets_the_same_block(demo_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint / "tokenizer")
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    assert format_prompt(tokenizer, single_turn("a star")) == "[user]a star[assistant]"
    empty = format_prompt(tokenizer, Conversation(STAR, "empty"))
    assert empty == "[user]a star[assistant]<think>\n\n</think>\n\n"


def test_a_prompt_is_taken_as_it_is(tokenizer: PreTrainedTokenizerBase) -> None:
    assert "\n  a \n\n\n b \n<|im_end|>" in format_prompt(tokenizer, single_turn("  a \n\n\n b \n"))


def test_tokens_are_the_tokenizers(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenize(tokenizer, [PLAIN, "x"]) == [tokenizer(PLAIN).input_ids, tokenizer("x").input_ids]


def test_what_is_cut_off_is_counted() -> None:
    assert fitting.truncate(range(10), 4) == fitting.FittedPrompt((0, 1, 2, 3), 10)
    assert fitting.truncate(range(10), 4).dropped == 6
    assert fitting.truncate(range(4), 4).dropped == 0


def test_pads_are_not_tokens_of_the_prompt() -> None:
    padded = fitting.pad(fitting.truncate([7, 8], 4), 5, 9)
    assert padded == fitting.FittedPrompt((7, 8, 9, 9, 9), 2, 3)
    assert padded.dropped == 0
    assert fitting.pad(fitting.truncate([7, 8], 4), 1, 9).ids == (7, 8)


def test_the_limit_says_where_it_comes_from() -> None:
    assert fitting.resolve_limit(7, 992) == fitting.TextLimit(7, fitting.LimitSource.REQUEST)
    assert fitting.resolve_limit(None, 992) == fitting.TextLimit(992, fitting.LimitSource.CHECKPOINT)
    assert fitting.resolve_limit(None, None) == fitting.TextLimit(1504, fitting.LimitSource.DEFAULT)
