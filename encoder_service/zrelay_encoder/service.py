"""EncoderService of the contract: parse, call, wrap."""

import asyncio

from google.protobuf.descriptor import ServiceDescriptor

from zrelay.v1 import encoder_pb2 as pb
from zrelay.v1.embeds_pb2 import LongPromptMode, PromptReport, TextLimitSource
from zrelay_encoder import parsing
from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.engine import EncodedPrompt, EncoderEngine
from zrelay_encoder.features import FEATURES
from zrelay_encoder.tokens import LimitSource
from zrelay_shared import fingerprint, torch_devices
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.rpc import Context
from zrelay_shared.service.info import device_info, features, queue_info, server_version
from zrelay_shared.service.lifecycle import Service
from zrelay_shared.torch_tensors import to_wire
from zrelay_shared.wire import Parcel

_SOURCES = {
    LimitSource.REQUEST: TextLimitSource.TEXT_LIMIT_SOURCE_REQUEST,
    LimitSource.CHECKPOINT: TextLimitSource.TEXT_LIMIT_SOURCE_CHECKPOINT,
    LimitSource.DEFAULT: TextLimitSource.TEXT_LIMIT_SOURCE_DEFAULT,
}


class EncoderService(Service):
    """The servicer and its lifecycle."""

    def __init__(self, config: EncoderConfig) -> None:
        self._engine = EncoderEngine(config)
        self._version = server_version("encoder", ("torch", "transformers", "tokenizers", "grpcio"))

    @property
    def descriptor(self) -> ServiceDescriptor:
        """zrelay.v1.EncoderService."""
        return pb.DESCRIPTOR.services_by_name["EncoderService"]

    async def load(self) -> None:
        """Loads tokenizer and model. Raises CheckpointError, FailedPrecondition."""
        await self._engine.load()

    async def drain(self, grace_s: float) -> None:
        """Refuses new calls; returns when none runs, or after `grace_s`."""
        await self._engine.drain(grace_s)

    async def close(self) -> None:
        """Ends the threads."""
        await self._engine.close()

    async def EncodePrompts(
        self, parcel: Parcel[pb.EncodePromptsRequest], context: Context
    ) -> Parcel[pb.EncodePromptsResponse]:
        """Encodes prompts, all or none."""
        call = parsing.encode_call(parcel.message, self._engine.config)
        result = await self._engine.encode(call)
        reply = Parcel(
            pb.EncodePromptsResponse(queue_seconds=result.queue_seconds, compute_seconds=result.compute_seconds)
        )
        for prompt in result.prompts:
            _add(reply, prompt, parcel.message.options.return_formatted_prompts)
        return reply

    async def FormatPrompt(self, parcel: Parcel[pb.FormatPromptRequest], context: Context) -> pb.FormatPromptResponse:
        """Formats and counts prompts; needs the tokenizer alone."""
        call = parsing.format_call(parcel.message, self._engine.config)
        formatted = await self._engine.format(call)
        limit = self._engine.text_limit(call.text_limit).tokens
        return pb.FormatPromptResponse(
            prompts=[
                pb.FormattedPrompt(
                    formatted_prompt=prompt.text,
                    token_count=len(prompt.ids),
                    text_limit=limit,
                    fits=prompt.fits(limit),
                    token_ids=prompt.ids,
                )
                for prompt in formatted
            ]
        )

    async def GetInfo(
        self, parcel: Parcel[pb.EncoderServiceGetInfoRequest], context: Context
    ) -> pb.EncoderServiceGetInfoResponse:
        """What this encoder is; answers while it loads."""
        engine = self._engine
        config, limit, queue, loaded = engine.config, engine.text_limit(), engine.device, engine.encoder
        info = pb.EncoderServiceGetInfoResponse(
            version=self._version,
            ready=engine.ready,
            features=features(FEATURES),
            queue=queue_info(queue, config.max_waiting),
            max_prompts=config.max_prompts,
            max_prompt_chars=config.max_prompt_chars,
            text_limit=limit.tokens,
            text_limit_source=_SOURCES[limit.source],
            max_message_bytes=MAX_MESSAGE_BYTES,
        )
        if loaded is not None:
            device = await asyncio.to_thread(torch_devices.report, loaded.device)  # a driver may make it wait
            info.fingerprint.CopyFrom(fingerprint.to_message(loaded.fingerprint))
            info.device.CopyFrom(device_info(device, loaded.fingerprint.compute_dtype))
            info.loaded_blocks, info.total_blocks = loaded.model.plan.blocks, loaded.model.total_blocks
        return info


def _add(reply: Parcel[pb.EncodePromptsResponse], prompt: EncodedPrompt, with_text: bool) -> None:
    """One more result in `reply`, its embeddings beside the message."""
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
