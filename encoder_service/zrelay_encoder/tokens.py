"""Token ids of formatted prompts, held to a limit, with an account of what was cut off."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from zrelay_shared.limits import DEFAULT_TEXT_LIMIT


class LimitSource(Enum):
    """Where a token limit came from."""

    REQUEST = "request"
    CHECKPOINT = "checkpoint"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class TextLimit:
    """Most tokens of one prompt, and who said so."""

    tokens: int
    source: LimitSource


@dataclass(frozen=True, slots=True)
class TokenisedPrompt:
    """A prompt that fits: `ids` are what the model gets, `formatted_tokens` what there was before anything was cut
    off, `pads` how many of `ids` are padding at the end, `segments` the lengths of an Omni prompt's segments."""

    ids: tuple[int, ...]
    formatted_tokens: int
    pads: int = 0
    segments: tuple[int, ...] = ()

    @property
    def dropped(self) -> int:
        """Tokens cut off."""
        return self.formatted_tokens - (len(self.ids) - self.pads)

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """What the model gets one by one: each segment of an Omni prompt, else the whole."""
        ends = list(accumulate(self.segments or (len(self.ids),)))
        return [self.ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def tokenise(tokenizer: PreTrainedTokenizerBase, formatted: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, neither cut nor padded."""
    ids: list[list[int]] = tokenizer(list(formatted), padding=False, truncation=False).input_ids
    return ids


def fit(ids: Sequence[int], limit: int) -> TokenisedPrompt:
    """The first `limit` ids: causal states do not depend on what follows, so cutting ids is cutting embeddings."""
    return TokenisedPrompt(tuple(ids[:limit]), len(ids))


def pad(prompt: TokenisedPrompt, length: int, pad_id: int) -> TokenisedPrompt:
    """`prompt` with pad tokens behind it, up to `length` ids; as it is where it has as many."""
    missing = max(0, length - len(prompt.ids))
    return TokenisedPrompt((*prompt.ids, *([pad_id] * missing)), prompt.formatted_tokens, missing)


def resolve_limit(requested: int | None, checkpoint: int | None) -> TextLimit:
    """The limit that applies: the request's, else the one of the transformer beside the encoder, else 1504."""
    if requested is not None:
        return TextLimit(requested, LimitSource.REQUEST)
    if checkpoint is not None:
        return TextLimit(checkpoint, LimitSource.CHECKPOINT)
    return TextLimit(DEFAULT_TEXT_LIMIT, LimitSource.DEFAULT)
