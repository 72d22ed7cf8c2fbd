from zrelay.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ThinkMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    THINK_MODE_UNSPECIFIED: _ClassVar[ThinkMode]
    THINK_MODE_NONE: _ClassVar[ThinkMode]
    THINK_MODE_EMPTY: _ClassVar[ThinkMode]
    THINK_MODE_CONTENT: _ClassVar[ThinkMode]

class EncoderRelation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODER_RELATION_UNSPECIFIED: _ClassVar[EncoderRelation]
    ENCODER_RELATION_EXACT: _ClassVar[EncoderRelation]
    ENCODER_RELATION_EQUIVALENT: _ClassVar[EncoderRelation]
    ENCODER_RELATION_EXPERIMENTAL: _ClassVar[EncoderRelation]
    ENCODER_RELATION_UNVERIFIED: _ClassVar[EncoderRelation]

class LongPromptMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LONG_PROMPT_MODE_UNSPECIFIED: _ClassVar[LongPromptMode]
    LONG_PROMPT_MODE_TRUNCATE: _ClassVar[LongPromptMode]
    LONG_PROMPT_MODE_INTERPOLATE: _ClassVar[LongPromptMode]
    LONG_PROMPT_MODE_POOL: _ClassVar[LongPromptMode]
    LONG_PROMPT_MODE_ATTENTION_POOL: _ClassVar[LongPromptMode]
    LONG_PROMPT_MODE_REFUSE: _ClassVar[LongPromptMode]

class TextLimitSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TEXT_LIMIT_SOURCE_UNSPECIFIED: _ClassVar[TextLimitSource]
    TEXT_LIMIT_SOURCE_REQUEST: _ClassVar[TextLimitSource]
    TEXT_LIMIT_SOURCE_CHECKPOINT: _ClassVar[TextLimitSource]
    TEXT_LIMIT_SOURCE_DEFAULT: _ClassVar[TextLimitSource]
THINK_MODE_UNSPECIFIED: ThinkMode
THINK_MODE_NONE: ThinkMode
THINK_MODE_EMPTY: ThinkMode
THINK_MODE_CONTENT: ThinkMode
ENCODER_RELATION_UNSPECIFIED: EncoderRelation
ENCODER_RELATION_EXACT: EncoderRelation
ENCODER_RELATION_EQUIVALENT: EncoderRelation
ENCODER_RELATION_EXPERIMENTAL: EncoderRelation
ENCODER_RELATION_UNVERIFIED: EncoderRelation
LONG_PROMPT_MODE_UNSPECIFIED: LongPromptMode
LONG_PROMPT_MODE_TRUNCATE: LongPromptMode
LONG_PROMPT_MODE_INTERPOLATE: LongPromptMode
LONG_PROMPT_MODE_POOL: LongPromptMode
LONG_PROMPT_MODE_ATTENTION_POOL: LongPromptMode
LONG_PROMPT_MODE_REFUSE: LongPromptMode
TEXT_LIMIT_SOURCE_UNSPECIFIED: TextLimitSource
TEXT_LIMIT_SOURCE_REQUEST: TextLimitSource
TEXT_LIMIT_SOURCE_CHECKPOINT: TextLimitSource
TEXT_LIMIT_SOURCE_DEFAULT: TextLimitSource

class LayerWeight(_message.Message):
    __slots__ = ("hidden_layer", "weight")
    HIDDEN_LAYER_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    hidden_layer: int
    weight: float
    def __init__(self, hidden_layer: _Optional[int] = ..., weight: _Optional[float] = ...) -> None: ...

class EncoderFingerprint(_message.Message):
    __slots__ = ("family", "model_id", "weights_digest", "tokenizer_digest", "chat_template_digest", "width", "hidden_layer", "before_final_norm", "layer_weights", "think_mode", "quantization", "compute_dtype", "backend", "modifications", "digest", "configuration_digest")
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_LAYER_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FINAL_NORM_FIELD_NUMBER: _ClassVar[int]
    LAYER_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    THINK_MODE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    MODIFICATIONS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    family: str
    model_id: str
    weights_digest: str
    tokenizer_digest: str
    chat_template_digest: str
    width: int
    hidden_layer: int
    before_final_norm: bool
    layer_weights: _containers.RepeatedCompositeFieldContainer[LayerWeight]
    think_mode: ThinkMode
    quantization: str
    compute_dtype: str
    backend: str
    modifications: _containers.RepeatedScalarFieldContainer[str]
    digest: str
    configuration_digest: str
    def __init__(self, family: _Optional[str] = ..., model_id: _Optional[str] = ..., weights_digest: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., chat_template_digest: _Optional[str] = ..., width: _Optional[int] = ..., hidden_layer: _Optional[int] = ..., before_final_norm: bool = ..., layer_weights: _Optional[_Iterable[_Union[LayerWeight, _Mapping]]] = ..., think_mode: _Optional[_Union[ThinkMode, str]] = ..., quantization: _Optional[str] = ..., compute_dtype: _Optional[str] = ..., backend: _Optional[str] = ..., modifications: _Optional[_Iterable[str]] = ..., digest: _Optional[str] = ..., configuration_digest: _Optional[str] = ...) -> None: ...

class PromptReport(_message.Message):
    __slots__ = ("formatted_tokens", "token_count", "dropped_tokens", "long_prompt_action", "text_limit", "text_limit_source")
    FORMATTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    DROPPED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LONG_PROMPT_ACTION_FIELD_NUMBER: _ClassVar[int]
    TEXT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    TEXT_LIMIT_SOURCE_FIELD_NUMBER: _ClassVar[int]
    formatted_tokens: int
    token_count: int
    dropped_tokens: int
    long_prompt_action: LongPromptMode
    text_limit: int
    text_limit_source: TextLimitSource
    def __init__(self, formatted_tokens: _Optional[int] = ..., token_count: _Optional[int] = ..., dropped_tokens: _Optional[int] = ..., long_prompt_action: _Optional[_Union[LongPromptMode, str]] = ..., text_limit: _Optional[int] = ..., text_limit_source: _Optional[_Union[TextLimitSource, str]] = ...) -> None: ...

class PromptSegment(_message.Message):
    __slots__ = ("prompt_embeds",)
    PROMPT_EMBEDS_FIELD_NUMBER: _ClassVar[int]
    prompt_embeds: _tensor_pb2.Tensor
    def __init__(self, prompt_embeds: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class PromptEmbeds(_message.Message):
    __slots__ = ("segments", "fingerprint", "report")
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    segments: _containers.RepeatedCompositeFieldContainer[PromptSegment]
    fingerprint: EncoderFingerprint
    report: PromptReport
    def __init__(self, segments: _Optional[_Iterable[_Union[PromptSegment, _Mapping]]] = ..., fingerprint: _Optional[_Union[EncoderFingerprint, _Mapping]] = ..., report: _Optional[_Union[PromptReport, _Mapping]] = ...) -> None: ...
