"""Prompts in the chat template, think blocks, token limits and pads."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from zrelay_encoder import tokens
from zrelay_encoder.template import Conversation, Message, format_prompt, of_prompt

PLAIN = "<|im_start|>user\na star<|im_end|>\n<|im_start|>assistant\n"
STAR = (Message("user", "a star"),)


@pytest.fixture(scope="module")
def tokenizer(demo_checkpoint: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo_checkpoint / "tokenizer")


def test_think_modes(tokenizer: PreTrainedTokenizerBase) -> None:
    assert format_prompt(tokenizer, of_prompt("a star")) == PLAIN
    assert format_prompt(tokenizer, Conversation(STAR, "empty")) == PLAIN + "<think>\n\n</think>\n\n"
    thought = Conversation(STAR, "content", "five points")
    assert format_prompt(tokenizer, thought) == PLAIN + "<think>\nfive points\n</think>\n\n"
    with pytest.raises(ValueError, match="none, empty, content, got 'deep'"):
        format_prompt(tokenizer, Conversation(STAR, "deep"))


def test_a_template_without_the_switch_gets_the_same_block(demo_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint / "tokenizer")
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    assert format_prompt(tokenizer, of_prompt("a star")) == "[user]a star[assistant]"
    empty = format_prompt(tokenizer, Conversation(STAR, "empty"))
    assert empty == "[user]a star[assistant]<think>\n\n</think>\n\n"


def test_a_prompt_is_taken_as_it_is(tokenizer: PreTrainedTokenizerBase) -> None:
    assert "\n  a \n\n\n b \n<|im_end|>" in format_prompt(tokenizer, of_prompt("  a \n\n\n b \n"))


def test_tokens_are_the_tokenizers(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokens.tokenise(tokenizer, [PLAIN, "x"]) == [tokenizer(PLAIN).input_ids, tokenizer("x").input_ids]


def test_what_is_cut_off_is_counted() -> None:
    assert tokens.fit(range(10), 4) == tokens.TokenisedPrompt((0, 1, 2, 3), 10)
    assert tokens.fit(range(10), 4).dropped == 6
    assert tokens.fit(range(4), 4).dropped == 0


def test_pads_are_not_tokens_of_the_prompt() -> None:
    padded = tokens.pad(tokens.fit([7, 8], 4), 5, 9)
    assert padded == tokens.TokenisedPrompt((7, 8, 9, 9, 9), 2, 3)
    assert padded.dropped == 0
    assert tokens.pad(tokens.fit([7, 8], 4), 1, 9).ids == (7, 8)


def test_the_limit_says_where_it_comes_from() -> None:
    assert tokens.resolve_limit(7, 992) == tokens.TextLimit(7, tokens.LimitSource.REQUEST)
    assert tokens.resolve_limit(None, 992) == tokens.TextLimit(992, tokens.LimitSource.CHECKPOINT)
    assert tokens.resolve_limit(None, None) == tokens.TextLimit(1504, tokens.LimitSource.DEFAULT)
