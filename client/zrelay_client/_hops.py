"""The two hops of a picture: prompts to embeddings at the encoder, embeddings to events at the generator."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from zrelay_client._budget import Budget
from zrelay_client._embeds import Embeds
from zrelay_client._events import Done, Event
from zrelay_client._options import EncodeOptions, GenerateOptions
from zrelay_client._replies import embeds_from_reply, event_of
from zrelay_client._requests import encode_request, generate_request
from zrelay_client._services import EncoderService, GeneratorService
from zrelay_shared.errors import InternalError, Unavailable, ZrelayError

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
    texts = [*prompts, *([] if negative_prompt is None else [negative_prompt])]
    started = budget.spent
    reply = await encoder.encode(encode_request(texts, options, text_limit), budget.left("encoder"))
    if len(reply.message.results) != len(texts):
        raise InternalError(f"the encoder answered {len(reply.message.results)} prompts, asked were {len(texts)}")
    negative = None if negative_prompt is None else (len(prompts), negative_prompt)
    took = budget.spent - started
    return [embeds_from_reply(reply, (index, text), negative, took) for index, text in enumerate(prompts)]


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
