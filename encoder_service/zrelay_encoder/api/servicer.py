"""The servicer of EncoderService: each method parses the request, calls the runtime and wraps the result."""

import asyncio

from google.protobuf.descriptor import ServiceDescriptor

from zrelay.v1 import encoder_pb2 as pb
from zrelay.v1.embeds_pb2 import LongPromptMode, PromptReport, TextLimitSource
from zrelay_encoder.api import requests
from zrelay_encoder.api.capabilities import CAPABILITIES
from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.prompts.fitting import LimitSource
from zrelay_encoder.prompts.formatting import FormattedPrompt
from zrelay_encoder.runtime import EncodedPrompt, EncodeResult, EncoderRuntime
from zrelay_shared import fingerprint, torch_devices
from zrelay_shared.receiving import largest_request, off_loop
from zrelay_shared.rpc import Context
from zrelay_shared.service.info import connection_info, device_info, queue_info, server_version
from zrelay_shared.service.lifecycle import Service
from zrelay_shared.torch_tensors import to_wire
from zrelay_shared.wire import Parcel

_TOKEN_BYTES = 64
"""Bytes whose copy takes as long as adding one token id to a message."""
_SOURCES = {
    LimitSource.REQUEST: TextLimitSource.TEXT_LIMIT_SOURCE_REQUEST,
    LimitSource.CHECKPOINT: TextLimitSource.TEXT_LIMIT_SOURCE_CHECKPOINT,
    LimitSource.DEFAULT: TextLimitSource.TEXT_LIMIT_SOURCE_DEFAULT,
}


class EncoderServicer(Service):
    """Implements EncoderService of the contract, with its lifecycle.

    Attributes:
        runtime: What answers the requests.
    """

    def __init__(self, config: EncoderConfig) -> None:
        self.runtime = EncoderRuntime(config)
        self._version = server_version("encoder", ("torch", "transformers", "tokenizers", "grpcio"))

    @property
    def descriptor(self) -> ServiceDescriptor:
        """The descriptor of zrelay.v1.EncoderService."""
        return pb.DESCRIPTOR.services_by_name["EncoderService"]

    async def load(self) -> None:
        """Loads the tokenizer and the model. Raises CheckpointError, FailedPrecondition."""
        await self.runtime.load()

    async def drain(self, grace_s: float) -> None:
        """Refuses new calls. Returns when none is running, or after `grace_s` seconds."""
        await self.runtime.drain(grace_s)

    async def close(self) -> None:
        """Ends the threads."""
        await self.runtime.close()

    async def EncodePrompts(
        self, parcel: Parcel[pb.EncodePromptsRequest], context: Context
    ) -> Parcel[pb.EncodePromptsResponse]:
        """Encodes prompts, all or none."""
        request = await off_loop(parcel.size, lambda: requests.parse_encode(parcel.message, self.runtime.config))
        result = await self.runtime.encode(request)
        with_text = parcel.message.options.return_formatted_prompts
        size = sum(rows.nbytes for prompt in result.prompts for rows in prompt.segments)
        return await off_loop(size, lambda: _encode_reply(result, with_text))

    async def FormatPrompt(self, parcel: Parcel[pb.FormatPromptRequest], context: Context) -> bytes:
        """Formats and counts prompts. Needs the tokenizer only."""
        request = await off_loop(parcel.size, lambda: requests.parse_format(parcel.message, self.runtime.config))
        formatted = await self.runtime.format(request)
        limit = self.runtime.text_limit(request.text_limit).tokens

        def reply() -> bytes:
            # The prompts of a reply follow each other in its bytes. One by one, none holds the interpreter for long.
            return b"".join(_format_reply(prompt, limit).SerializeToString() for prompt in formatted)

        return await off_loop(_TOKEN_BYTES * sum(len(prompt.ids) for prompt in formatted), reply)

    async def GetInfo(
        self, parcel: Parcel[pb.EncoderServiceGetInfoRequest], context: Context
    ) -> pb.EncoderServiceGetInfoResponse:
        """Describes this encoder. Answers while the model loads."""
        runtime = self.runtime
        config, limit, queue, encoder = runtime.config, runtime.text_limit(), runtime.device, runtime.encoder
        info = pb.EncoderServiceGetInfoResponse(
            version=self._version,
            ready=runtime.ready,
            features=CAPABILITIES,
            queue=queue_info(queue, config.max_waiting),
            max_prompts=config.max_prompts,
            max_prompt_chars=config.max_prompt_chars,
            text_limit=limit.tokens,
            text_limit_source=_SOURCES[limit.source],
            max_message_bytes=largest_request(self.descriptor),
            connection=connection_info(),
        )
        if encoder is not None:
            device = await asyncio.to_thread(torch_devices.report, encoder.device)  # the driver may block
            info.fingerprint.CopyFrom(fingerprint.to_message(encoder.fingerprint))
            info.device.CopyFrom(device_info(device, encoder.fingerprint.compute_dtype))
            info.loaded_blocks, info.total_blocks = encoder.model.plan.blocks, encoder.model.total_blocks
        return info


def _format_reply(prompt: FormattedPrompt, limit: int) -> pb.FormatPromptResponse:
    one = pb.FormattedPrompt(
        formatted_prompt=prompt.text,
        token_count=len(prompt.ids),
        text_limit=limit,
        fits=prompt.fits(limit),
        token_ids=prompt.ids,
    )
    return pb.FormatPromptResponse(prompts=[one])


def _encode_reply(result: EncodeResult, with_text: bool) -> Parcel[pb.EncodePromptsResponse]:
    reply = Parcel(pb.EncodePromptsResponse(queue_seconds=result.queue_seconds, compute_seconds=result.compute_seconds))
    for prompt in result.prompts:
        _add_result(reply, prompt, with_text)
    return reply


def _add_result(reply: Parcel[pb.EncodePromptsResponse], prompt: EncodedPrompt, with_text: bool) -> None:
    """Adds one result to `reply`, with its embeddings beside the message."""
    dropped = prompt.fitted.dropped
    result = reply.message.results.add(formatted_prompt=prompt.formatted if with_text else "")
    result.prompt_embeds.fingerprint.CopyFrom(fingerprint.to_message(prompt.fingerprint))
    result.prompt_embeds.report.CopyFrom(
        PromptReport(
            formatted_tokens=prompt.fitted.formatted_tokens,
            token_count=len(prompt.fitted.ids),
            dropped_tokens=dropped,
            long_prompt_action=(
                LongPromptMode.LONG_PROMPT_MODE_TRUNCATE if dropped else LongPromptMode.LONG_PROMPT_MODE_UNSPECIFIED
            ),
            text_limit=prompt.limit.tokens,
            text_limit_source=_SOURCES[prompt.limit.source],
        )
    )
    for segment in prompt.segments:
        to_wire(reply, result.prompt_embeds.segments.add().prompt_embeds, segment)
