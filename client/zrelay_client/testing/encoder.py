"""A fake EncoderService: small deterministic embeddings, made of the words of a prompt."""

from dataclasses import dataclass, replace

from google.protobuf.descriptor import ServiceDescriptor

from zrelay.v1 import encoder_pb2 as pb
from zrelay.v1.embeds_pb2 import LongPromptMode, PromptReport, TextLimitSource, ThinkMode
from zrelay_client.testing.service import DEVICE, FakeService, attach, fake_fingerprint, features, values_of
from zrelay_shared import fingerprint
from zrelay_shared.errors import FeatureMissing, invalid
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.limits import MAX_MESSAGE_BYTES, MAX_OMNI_IMAGES
from zrelay_shared.omni import segment_count, text_segment
from zrelay_shared.rpc import Context
from zrelay_shared.service.info import connection_info, server_version
from zrelay_shared.tensors import FLOATS, dtype_name
from zrelay_shared.wire import Parcel

_TEMPLATE = ("<|im_start|>", "user", "<|im_end|>", "<|im_start|>", "assistant")
_MAX_PROMPTS, _MAX_CHARS = 32, 100_000
_LAYERS = range(-4, 0)
_AVAILABLE = (
    *("encode.think", "encode.negative", "encode.layer", "encode.long_prompt.truncate", "encode.long_prompt.refuse"),
    *("encode.deterministic", "encode.omni", "encode.pad_to"),
)
_UNAVAILABLE = {
    # field of Prompt or EncodeOptions -> the capability that it needs
    "system_prompt": "encode.system_prompt",
    "assistant_prefill": "encode.prefill",
    "template": "encode.template",
    "clean_whitespace": "encode.clean_whitespace",
    "quote_stripping": "encode.quote_stripping",
    "conversation": "encode.conversation",
    "layer_weights": "encode.layer_weights",
    "steering": "encode.steering",
}
_UNAVAILABLE_MODES = {
    LongPromptMode.LONG_PROMPT_MODE_INTERPOLATE: "encode.long_prompt.interpolate",
    LongPromptMode.LONG_PROMPT_MODE_POOL: "encode.long_prompt.pool",
    LongPromptMode.LONG_PROMPT_MODE_ATTENTION_POOL: "encode.long_prompt.attention_pool",
}


@dataclass(eq=False)
class FakeEncoder(FakeService):
    """The fake encoder. A prompt has five tokens of template and one for each word.

    Attributes:
        width: Width of an embedding.
        text_limit: Tokens of a prompt where the request sets no limit.
    """

    width: int = 64
    text_limit: int = 512

    @property
    def descriptor(self) -> ServiceDescriptor:
        """zrelay.v1.EncoderService."""
        return pb.DESCRIPTOR.services_by_name["EncoderService"]

    @property
    def fingerprint(self) -> EncoderFingerprint:
        """The fingerprint of a default request."""
        return fake_fingerprint(self.width)

    @property
    def prompts(self) -> list[str]:
        """The texts that were encoded so far, oldest first; a negative prompt is one of them."""
        requests = [call.request for call in self.calls if isinstance(call.request, pb.EncodePromptsRequest)]
        return [prompt.text for request in requests for prompt in request.prompts]

    async def GetInfo(
        self, parcel: Parcel[pb.EncoderServiceGetInfoRequest], context: Context
    ) -> pb.EncoderServiceGetInfoResponse:
        """Describes the encoder."""
        return pb.EncoderServiceGetInfoResponse(
            version=server_version("encoder", ("grpcio", "protobuf")),
            ready=True,
            fingerprint=fingerprint.to_message(self.fingerprint),
            device=DEVICE,
            features=features(_AVAILABLE, (*_UNAVAILABLE.values(), *_UNAVAILABLE_MODES.values())),
            max_prompts=_MAX_PROMPTS,
            max_prompt_chars=_MAX_CHARS,
            text_limit=self.text_limit,
            text_limit_source=TextLimitSource.TEXT_LIMIT_SOURCE_CHECKPOINT,
            max_message_bytes=MAX_MESSAGE_BYTES,
            loaded_blocks=-_LAYERS.start - 1,
            total_blocks=-_LAYERS.start,
            connection=connection_info(),
        )

    async def FormatPrompt(self, parcel: Parcel[pb.FormatPromptRequest], context: Context) -> pb.FormatPromptResponse:
        """Formats and counts prompts."""
        request = parcel.message
        self._receive("FormatPrompt", request)
        limit = request.text_limit if request.HasField("text_limit") else self.text_limit
        _check_count(len(request.prompts))
        reply = pb.FormatPromptResponse()
        for index, prompt in enumerate(request.prompts):
            tokens = _tokens(prompt, f"prompts[{index}]")
            reply.prompts.add(
                formatted_prompt=" ".join(tokens),
                token_count=len(tokens),
                text_limit=limit,
                fits=len(tokens) <= limit,
                token_ids=[len(token) for token in tokens],
            )
        return reply

    async def EncodePrompts(
        self, parcel: Parcel[pb.EncodePromptsRequest], context: Context
    ) -> Parcel[pb.EncodePromptsResponse]:
        """Encodes prompts, all or none."""
        request = parcel.message
        self._receive("EncodePrompts", request)
        _check_count(len(request.prompts))
        options = request.options
        _refuse_unavailable(options, "options")
        layer = options.hidden_layer if options.HasField("hidden_layer") else self.fingerprint.hidden_layer
        if layer not in _LAYERS:
            raise invalid("options.hidden_layer", f"{_LAYERS.start} to -1", layer)
        dtype = dtype_name(options.dtype) if options.dtype else "BF16"
        if dtype not in FLOATS:
            raise invalid("options.dtype", " or ".join(FLOATS), dtype or options.dtype)
        reply = Parcel(pb.EncodePromptsResponse(compute_seconds=0.001))
        for index, prompt in enumerate(request.prompts):
            self._encode(reply, prompt, f"prompts[{index}]", layer, dtype, options)
        return reply

    def _encode(
        self,
        reply: Parcel[pb.EncodePromptsResponse],
        prompt: pb.Prompt,
        path: str,
        layer: int,
        dtype: str,
        options: pb.EncodeOptions,
    ) -> None:
        tokens = _tokens(prompt, path)
        limit = options.text_limit if options.HasField("text_limit") else self.text_limit
        dropped = max(0, len(tokens) - limit)
        if dropped and options.long_prompt_mode == LongPromptMode.LONG_PROMPT_MODE_REFUSE:
            raise invalid(path, f"at most {limit} tokens", len(tokens), reason="PROMPT_TOO_LONG")
        kept = tokens[: len(tokens) - dropped]
        padding = _padding(options, prompt, len(kept))
        kept += ["<|pad|>"] * padding
        result = reply.message.results.add()
        if options.return_formatted_prompts:
            result.formatted_prompt = " ".join(tokens)
        encoder_fingerprint = replace(
            self.fingerprint,
            hidden_layer=layer,
            think_mode=_think_mode(prompt),
            modifications=("padding",) if padding else (),
        )
        result.prompt_embeds.fingerprint.CopyFrom(fingerprint.to_message(encoder_fingerprint))
        result.prompt_embeds.report.CopyFrom(
            PromptReport(
                formatted_tokens=len(tokens),
                token_count=len(kept),
                dropped_tokens=dropped,
                long_prompt_action=(
                    LongPromptMode.LONG_PROMPT_MODE_TRUNCATE if dropped else LongPromptMode.LONG_PROMPT_MODE_UNSPECIFIED
                ),
                text_limit=limit,
                text_limit_source=(
                    TextLimitSource.TEXT_LIMIT_SOURCE_REQUEST
                    if options.HasField("text_limit")
                    else TextLimitSource.TEXT_LIMIT_SOURCE_CHECKPOINT
                ),
            )
        )
        for part in _segments(kept, prompt.image_count):
            values = values_of(f"{layer} {' '.join(part)}", len(part) * self.width)
            tensor = result.prompt_embeds.segments.add().prompt_embeds
            attach(reply, tensor, values, (len(part), self.width), dtype)


def _check_count(count: int) -> None:
    if not 1 <= count <= _MAX_PROMPTS:
        raise invalid("prompts", f"1 to {_MAX_PROMPTS} prompts", count, reason="PROMPT_COUNT")


def _tokens(prompt: pb.Prompt, path: str) -> list[str]:
    """Checks a prompt, and returns the tokens of its formatted text."""
    _refuse_unavailable(prompt, path)
    if not prompt.text.strip() and not prompt.allow_empty:
        raise invalid(f"{path}.text", "a description of the image", "an empty prompt", reason="PROMPT_EMPTY")
    if len(prompt.text) + len(prompt.thinking_content) > _MAX_CHARS:
        raise invalid(path, f"at most {_MAX_CHARS} characters", len(prompt.text), reason="PROMPT_TOO_LARGE")
    if prompt.image_count > MAX_OMNI_IMAGES:
        raise invalid(f"{path}.image_count", f"at most {MAX_OMNI_IMAGES} images", prompt.image_count)
    thinking = ["<think>", *prompt.thinking_content.split(), "</think>"] if _think_mode(prompt) != "none" else []
    return [*_TEMPLATE[:2], *prompt.text.split(), *_TEMPLATE[2:], *thinking]


def _padding(options: pb.EncodeOptions, prompt: pb.Prompt, tokens: int) -> int:
    """Returns the number of pad tokens that follow a prompt."""
    if not options.HasField("pad_to"):
        return 0
    if prompt.image_count:
        raise invalid("options.pad_to", "no padding together with image_count", options.pad_to)
    if options.pad_to < tokens:
        raise invalid("options.pad_to", f"at least {tokens}, the tokens of the prompt", options.pad_to)
    return options.pad_to - tokens


def _segments(tokens: list[str], images: int) -> list[list[str]]:
    """Returns the tokens of each segment: the text in its own, one marker in each other."""
    parts = [["<|vision_start|>"] for _ in range(segment_count(images))]
    parts[text_segment(images)] = tokens
    return parts


def _think_mode(prompt: pb.Prompt) -> str:
    if prompt.think_mode == ThinkMode.THINK_MODE_UNSPECIFIED:
        return "content" if prompt.thinking_content else "none"
    return {number: name for name, number in fingerprint.THINK_MODES.items()}.get(prompt.think_mode, "none")


def _refuse_unavailable(message: pb.Prompt | pb.EncodeOptions, path: str) -> None:
    needed = {field.name: _UNAVAILABLE.get(field.name) for field, value in message.ListFields() if value is not False}
    if isinstance(message, pb.EncodeOptions):
        needed["long_prompt_mode"] = _UNAVAILABLE_MODES.get(message.long_prompt_mode)
    elif message.quote_stripping == pb.QuoteStripping.QUOTE_STRIPPING_NONE:
        needed.pop("quote_stripping", None)
    for field, name in needed.items():
        if name is not None:
            raise FeatureMissing(
                f"{path}.{field}: the fake encoder does not support {name}: leave it out, or test with a real encoder",
                field=f"{path}.{field}",
                metadata={"feature": name},
            )
