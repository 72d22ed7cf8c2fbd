"""Prompts to embeddings at an encoder, and whether embeddings can be painted as asked."""

from collections.abc import Sequence

from zrelay_client._budget import Budget
from zrelay_client._embeds import Embeds
from zrelay_client._encoders import Encoders
from zrelay_client._events import Sampling
from zrelay_client._options import EncodeOptions, GenerateOptions
from zrelay_client._replies import embeds_from_reply
from zrelay_client._requests import encode_request, guided
from zrelay_shared.errors import InternalError, InvalidArgument


async def encode(
    encoders: Encoders,
    prompts: Sequence[str],
    options: EncodeOptions,
    negative_prompt: str | None,
    text_limit: int | None,
    budget: Budget,
) -> list[Embeds]:
    """Embeddings of several prompts that share a negative prompt, in one call; all or none."""
    request = encode_request(prompts, negative_prompt, options, text_limit)
    asked, started = len(request.prompts), budget.spent
    reply = await encoders.encode(request, budget)
    if len(reply.message.results) != asked:
        raise InternalError(f"the encoder answered {len(reply.message.results)} prompts, asked were {asked}")
    negative = None if negative_prompt is None else (len(prompts), negative_prompt)
    took = budget.spent - started
    return [embeds_from_reply(reply, (index, text), negative, took) for index, text in enumerate(prompts)]


def require_negative(embeds: Embeds, options: GenerateOptions, defaults: Sampling) -> None:
    """Raises InvalidArgument (NEGATIVE_PROMPT_MISSING) for embeddings that cannot be guided and are to be."""
    if embeds.negative_report is None and guided(options, defaults):
        raise InvalidArgument(
            "negative_prompt: expected one within the embeddings, since guidance_scale is above 0, got none: encode "
            'again with a negative prompt, which may be empty (`zrelay encode ... --negative-prompt ""`), or set '
            "guidance_scale to 0",
            field="negative_prompt",
            reason="NEGATIVE_PROMPT_MISSING",
        )
