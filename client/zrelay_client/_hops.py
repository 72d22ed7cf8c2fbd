"""The two hops of a picture: prompts to embeddings at the encoder, embeddings to events at the generator."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from zrelay_client._budget import Budget
from zrelay_client._embeds import Embeds
from zrelay_client._events import Done, Event, Sampling
from zrelay_client._options import EncodeOptions, GenerateOptions
from zrelay_client._replies import embeds_from_reply, event_of
from zrelay_client._requests import encode_request, generate_request, guided
from zrelay_client._services import EncoderService, GeneratorService
from zrelay_shared.errors import InternalError, InvalidArgument, Unavailable, ZrelayError

_CANCEL_S = 3.0
"""A caller who gives up waits this long for the generator to say that it stopped."""


async def encode(
    encoder: EncoderService,
    prompts: Sequence[str],
    options: EncodeOptions,
    negative_prompt: str | None,
    text_limit: int | None,
    budget: Budget,
) -> list[Embeds]:
    """Embeddings of several prompts that share a negative prompt, in one call; all or none."""
    request = encode_request(prompts, negative_prompt, options, text_limit)
    asked, started = len(request.prompts), budget.spent
    reply = await encoder.encode(request, budget.left("encoder"))
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


async def paint(
    generator: GeneratorService, embeds: Embeds, options: GenerateOptions, request_id: str, budget: Budget
) -> AsyncGenerator[Event, None]:
    """Generate's events, Done last. A caller who goes away before it cancels the job explicitly, which frees the device
    at once; the end of the call alone might leave it to a lease."""
    request = generate_request(embeds, options, request_id)
    over = False
    try:
        async with contextlib.aclosing(generator.generate(request, budget.left("generator"))) as messages:
            async for message in messages:
                event = event_of(message)
                if event is not None:
                    over = isinstance(event, Done)
                    yield event
        if not over:
            raise Unavailable("the generator ended its stream before the job was done; it may be going away")
    except (asyncio.CancelledError, GeneratorExit):
        if not over:
            with contextlib.suppress(ZrelayError):
                await generator.cancel(request_id, timeout=_CANCEL_S)
        raise
