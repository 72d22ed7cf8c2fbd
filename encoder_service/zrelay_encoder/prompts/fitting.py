"""Fits token ids to a token limit: truncation, padding, and a count of what was dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

from zrelay_encoder.prompts.formatting import FormattedPrompt
from zrelay_shared import checkpoints
from zrelay_shared.errors import CheckpointError, invalid, invalid_from
from zrelay_shared.limits import DEFAULT_TEXT_LIMIT
from zrelay_shared.omni import fits, segment_count, text_segment


class LimitSource(Enum):
    """Where a token limit comes from."""

    REQUEST = "request"
    CHECKPOINT = "checkpoint"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class TextLimit:
    """The maximum number of tokens of one prompt, and where it comes from."""

    tokens: int
    source: LimitSource


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """Token ids within the limit.

    Attributes:
        ids: What the model gets, padding included.
        formatted_tokens: Token count before truncation.
        pads: How many of `ids` are padding, at the end.
        segments: Token count of each segment of an Omni prompt; empty for an ordinary prompt.
    """

    ids: tuple[int, ...]
    formatted_tokens: int
    pads: int = 0
    segments: tuple[int, ...] = ()

    @property
    def dropped(self) -> int:
        """Number of tokens that truncation removed."""
        return self.formatted_tokens - (len(self.ids) - self.pads)

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """The sequences that the model encodes on their own: each segment of an Omni prompt, or the whole prompt."""
        ends = list(accumulate(self.segments or (len(self.ids),)))
        return [self.ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def resolve_limit(requested: int | None, checkpoint: int | None) -> TextLimit:
    """Returns the limit of the request, else that of the transformer beside the encoder, else the default of 1504."""
    if requested is not None:
        return TextLimit(requested, LimitSource.REQUEST)
    if checkpoint is not None:
        return TextLimit(checkpoint, LimitSource.CHECKPOINT)
    return TextLimit(DEFAULT_TEXT_LIMIT, LimitSource.DEFAULT)


def checkpoint_text_limit(folder: checkpoints.TextEncoderFolder) -> int | None:
    """Returns the maximum number of prompt tokens of the transformer beside this encoder, or None if there is none.

    Raises:
        CheckpointError: The transformer's config is invalid.
    """
    if folder.transformer_config is None:
        return None
    lens = folder.transformer_config.get("axes_lens")
    if not isinstance(lens, list) or not lens or not isinstance(lens[0], int):
        raise CheckpointError(f"transformer/config.json: axes_lens: expected a list of lengths, got {lens!r}")
    try:
        return checkpoints.text_limit(lens)
    except ValueError as error:
        raise CheckpointError(f"transformer/config.json: {error}") from error


def truncate(ids: Sequence[int], limit: int) -> FittedPrompt:
    """Keeps the first `limit` ids.

    The model is causal: the states of a token do not depend on later tokens, so truncating ids truncates embeddings.
    """
    return FittedPrompt(tuple(ids[:limit]), len(ids))


def truncate_omni(ids: Sequence[int], lengths: Sequence[int], limit: int) -> FittedPrompt:
    """Truncates the user's text of an Omni prompt so that the whole prompt fits a generator with this limit.

    Args:
        ids: Token ids of all segments, concatenated.
        lengths: Token count of each segment.
        limit: Maximum number of tokens of an ordinary prompt for this generator.

    Raises:
        ValueError: There are fewer than 3 segments, or nothing of the user's text would be left.
    """
    images = len(lengths) - 2
    if len(lengths) != segment_count(images):
        raise ValueError(f"lengths: expected those of at least 3 segments, got {len(lengths)}")
    text = text_segment(images)
    kept = list(lengths)
    kept[text] = min(kept[text], limit)
    while kept[text] and not fits(kept, limit):
        kept[text] -= 1
    if not kept[text]:
        raise ValueError(f"limit: expected room for the places of {images} images and a prompt, got {limit} tokens")
    end = sum(lengths[: text + 1])
    truncated = (*ids[: end - lengths[text] + kept[text]], *ids[end:])
    return FittedPrompt(truncated, len(ids), segments=tuple(kept))


def pad(prompt: FittedPrompt, length: int, pad_id: int) -> FittedPrompt:
    """Appends pad tokens up to `length` ids. A prompt that has as many is returned unchanged."""
    missing = max(0, length - len(prompt.ids))
    return FittedPrompt((*prompt.ids, *([pad_id] * missing)), prompt.formatted_tokens, missing)


def fit_prompt(
    prompt: FormattedPrompt, limit: int, *, refuse_long: bool, pad_to: int | None, pad_id: int, field: str
) -> FittedPrompt:
    """Truncates and pads a prompt as the request specifies.

    Args:
        prompt: The formatted prompt.
        limit: Maximum number of tokens.
        refuse_long: Refuse a longer prompt instead of truncating it.
        pad_to: Length to pad to, None for no padding. Not allowed for Omni prompts.
        pad_id: Token id of padding.
        field: Path of the prompt in the request, for refusals.

    Raises:
        InvalidArgument: PROMPT_TOO_LONG, PAD_TO_INVALID, IMAGE_COUNT_INVALID (no room left for the text).
    """
    if refuse_long and not prompt.fits(limit):
        raise invalid(
            field,
            f"at most {limit} tokens",
            len(prompt.ids),
            reason="PROMPT_TOO_LONG",
            remedy="shorten it, or allow truncation (long_prompt_mode)",
            metadata={"tokens": len(prompt.ids), "text_limit": limit},
        )
    fitted = _truncated(prompt, limit, field)
    if pad_to is None:
        return fitted
    if pad_to > limit:
        raise invalid("options.pad_to", f"at most the limit of {limit} tokens", pad_to)
    return pad(fitted, pad_to, pad_id)


def _truncated(prompt: FormattedPrompt, limit: int, field: str) -> FittedPrompt:
    if not prompt.segments:
        return truncate(prompt.ids, limit)
    try:
        return truncate_omni(prompt.ids, prompt.segments, limit)
    except ValueError as error:
        remedy = "ask for a larger text_limit or fewer images"
        raise invalid_from(f"{field}.image_count", error, remedy=remedy) from error
