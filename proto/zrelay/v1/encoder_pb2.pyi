from zrelay.v1 import embeds_pb2 as _embeds_pb2
from zrelay.v1 import info_pb2 as _info_pb2
from zrelay.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChatRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHAT_ROLE_UNSPECIFIED: _ClassVar[ChatRole]
    CHAT_ROLE_SYSTEM: _ClassVar[ChatRole]
    CHAT_ROLE_USER: _ClassVar[ChatRole]
    CHAT_ROLE_ASSISTANT: _ClassVar[ChatRole]

class QuoteStripping(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUOTE_STRIPPING_UNSPECIFIED: _ClassVar[QuoteStripping]
    QUOTE_STRIPPING_NONE: _ClassVar[QuoteStripping]
    QUOTE_STRIPPING_JSON_KEYS: _ClassVar[QuoteStripping]
    QUOTE_STRIPPING_ALL: _ClassVar[QuoteStripping]
CHAT_ROLE_UNSPECIFIED: ChatRole
CHAT_ROLE_SYSTEM: ChatRole
CHAT_ROLE_USER: ChatRole
CHAT_ROLE_ASSISTANT: ChatRole
QUOTE_STRIPPING_UNSPECIFIED: QuoteStripping
QUOTE_STRIPPING_NONE: QuoteStripping
QUOTE_STRIPPING_JSON_KEYS: QuoteStripping
QUOTE_STRIPPING_ALL: QuoteStripping

class ChatMessage(_message.Message):
    __slots__ = ("role", "content", "thinking")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    role: ChatRole
    content: str
    thinking: str
    def __init__(self, role: _Optional[_Union[ChatRole, str]] = ..., content: _Optional[str] = ..., thinking: _Optional[str] = ...) -> None: ...

class Conversation(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("text", "conversation", "system_prompt", "assistant_prefill", "think_mode", "thinking_content", "template", "quote_stripping", "clean_whitespace", "image_count", "allow_empty")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_PROMPT_FIELD_NUMBER: _ClassVar[int]
    ASSISTANT_PREFILL_FIELD_NUMBER: _ClassVar[int]
    THINK_MODE_FIELD_NUMBER: _ClassVar[int]
    THINKING_CONTENT_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    QUOTE_STRIPPING_FIELD_NUMBER: _ClassVar[int]
    CLEAN_WHITESPACE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_COUNT_FIELD_NUMBER: _ClassVar[int]
    ALLOW_EMPTY_FIELD_NUMBER: _ClassVar[int]
    text: str
    conversation: Conversation
    system_prompt: str
    assistant_prefill: str
    think_mode: _embeds_pb2.ThinkMode
    thinking_content: str
    template: str
    quote_stripping: QuoteStripping
    clean_whitespace: bool
    image_count: int
    allow_empty: bool
    def __init__(self, text: _Optional[str] = ..., conversation: _Optional[_Union[Conversation, _Mapping]] = ..., system_prompt: _Optional[str] = ..., assistant_prefill: _Optional[str] = ..., think_mode: _Optional[_Union[_embeds_pb2.ThinkMode, str]] = ..., thinking_content: _Optional[str] = ..., template: _Optional[str] = ..., quote_stripping: _Optional[_Union[QuoteStripping, str]] = ..., clean_whitespace: bool = ..., image_count: _Optional[int] = ..., allow_empty: bool = ...) -> None: ...

class Steering(_message.Message):
    __slots__ = ("direction", "scale")
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    direction: _tensor_pb2.Tensor
    scale: float
    def __init__(self, direction: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., scale: _Optional[float] = ...) -> None: ...

class EncodeOptions(_message.Message):
    __slots__ = ("hidden_layer", "layer_weights", "text_limit", "long_prompt_mode", "dtype", "pad_to", "steering", "bypass_cache", "return_formatted_prompts", "deterministic")
    HIDDEN_LAYER_FIELD_NUMBER: _ClassVar[int]
    LAYER_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    TEXT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    LONG_PROMPT_MODE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PAD_TO_FIELD_NUMBER: _ClassVar[int]
    STEERING_FIELD_NUMBER: _ClassVar[int]
    BYPASS_CACHE_FIELD_NUMBER: _ClassVar[int]
    RETURN_FORMATTED_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    hidden_layer: int
    layer_weights: _containers.RepeatedCompositeFieldContainer[_embeds_pb2.LayerWeight]
    text_limit: int
    long_prompt_mode: _embeds_pb2.LongPromptMode
    dtype: _tensor_pb2.TensorDtype
    pad_to: int
    steering: _containers.RepeatedCompositeFieldContainer[Steering]
    bypass_cache: bool
    return_formatted_prompts: bool
    deterministic: bool
    def __init__(self, hidden_layer: _Optional[int] = ..., layer_weights: _Optional[_Iterable[_Union[_embeds_pb2.LayerWeight, _Mapping]]] = ..., text_limit: _Optional[int] = ..., long_prompt_mode: _Optional[_Union[_embeds_pb2.LongPromptMode, str]] = ..., dtype: _Optional[_Union[_tensor_pb2.TensorDtype, str]] = ..., pad_to: _Optional[int] = ..., steering: _Optional[_Iterable[_Union[Steering, _Mapping]]] = ..., bypass_cache: bool = ..., return_formatted_prompts: bool = ..., deterministic: bool = ...) -> None: ...

class EncoderServiceGetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EncoderServiceGetInfoResponse(_message.Message):
    __slots__ = ("version", "ready", "fingerprint", "device", "features", "queue", "max_prompts", "max_prompt_chars", "text_limit", "text_limit_source", "max_message_bytes", "templates", "loaded_blocks", "total_blocks", "connection")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_CHARS_FIELD_NUMBER: _ClassVar[int]
    TEXT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    TEXT_LIMIT_SOURCE_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    LOADED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    version: _info_pb2.ServerVersion
    ready: bool
    fingerprint: _embeds_pb2.EncoderFingerprint
    device: _info_pb2.DeviceInfo
    features: _containers.RepeatedCompositeFieldContainer[_info_pb2.Feature]
    queue: _info_pb2.QueueInfo
    max_prompts: int
    max_prompt_chars: int
    text_limit: int
    text_limit_source: _embeds_pb2.TextLimitSource
    max_message_bytes: int
    templates: _containers.RepeatedScalarFieldContainer[str]
    loaded_blocks: int
    total_blocks: int
    connection: _info_pb2.ConnectionInfo
    def __init__(self, version: _Optional[_Union[_info_pb2.ServerVersion, _Mapping]] = ..., ready: bool = ..., fingerprint: _Optional[_Union[_embeds_pb2.EncoderFingerprint, _Mapping]] = ..., device: _Optional[_Union[_info_pb2.DeviceInfo, _Mapping]] = ..., features: _Optional[_Iterable[_Union[_info_pb2.Feature, _Mapping]]] = ..., queue: _Optional[_Union[_info_pb2.QueueInfo, _Mapping]] = ..., max_prompts: _Optional[int] = ..., max_prompt_chars: _Optional[int] = ..., text_limit: _Optional[int] = ..., text_limit_source: _Optional[_Union[_embeds_pb2.TextLimitSource, str]] = ..., max_message_bytes: _Optional[int] = ..., templates: _Optional[_Iterable[str]] = ..., loaded_blocks: _Optional[int] = ..., total_blocks: _Optional[int] = ..., connection: _Optional[_Union[_info_pb2.ConnectionInfo, _Mapping]] = ...) -> None: ...

class FormatPromptRequest(_message.Message):
    __slots__ = ("prompts", "text_limit")
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    TEXT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedCompositeFieldContainer[Prompt]
    text_limit: int
    def __init__(self, prompts: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ..., text_limit: _Optional[int] = ...) -> None: ...

class FormattedPrompt(_message.Message):
    __slots__ = ("formatted_prompt", "token_count", "text_limit", "fits", "token_ids")
    FORMATTED_PROMPT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TEXT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    FITS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    formatted_prompt: str
    token_count: int
    text_limit: int
    fits: bool
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, formatted_prompt: _Optional[str] = ..., token_count: _Optional[int] = ..., text_limit: _Optional[int] = ..., fits: bool = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class FormatPromptResponse(_message.Message):
    __slots__ = ("prompts",)
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedCompositeFieldContainer[FormattedPrompt]
    def __init__(self, prompts: _Optional[_Iterable[_Union[FormattedPrompt, _Mapping]]] = ...) -> None: ...

class EncodePromptsRequest(_message.Message):
    __slots__ = ("prompts", "options")
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedCompositeFieldContainer[Prompt]
    options: EncodeOptions
    def __init__(self, prompts: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ..., options: _Optional[_Union[EncodeOptions, _Mapping]] = ...) -> None: ...

class EncodedPrompt(_message.Message):
    __slots__ = ("prompt_embeds", "formatted_prompt", "cached")
    PROMPT_EMBEDS_FIELD_NUMBER: _ClassVar[int]
    FORMATTED_PROMPT_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    prompt_embeds: _embeds_pb2.PromptEmbeds
    formatted_prompt: str
    cached: bool
    def __init__(self, prompt_embeds: _Optional[_Union[_embeds_pb2.PromptEmbeds, _Mapping]] = ..., formatted_prompt: _Optional[str] = ..., cached: bool = ...) -> None: ...

class EncodePromptsResponse(_message.Message):
    __slots__ = ("results", "queue_seconds", "compute_seconds")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[EncodedPrompt]
    queue_seconds: float
    compute_seconds: float
    def __init__(self, results: _Optional[_Iterable[_Union[EncodedPrompt, _Mapping]]] = ..., queue_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ...) -> None: ...
