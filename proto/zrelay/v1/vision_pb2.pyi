from zrelay.v1 import content_pb2 as _content_pb2
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

class VisionEngine(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VISION_ENGINE_UNSPECIFIED: _ClassVar[VisionEngine]
    VISION_ENGINE_SIGLIP: _ClassVar[VisionEngine]
    VISION_ENGINE_QWEN3_VL: _ClassVar[VisionEngine]

class VisionTokens(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VISION_TOKENS_UNSPECIFIED: _ClassVar[VisionTokens]
    VISION_TOKENS_FULL: _ClassVar[VisionTokens]
    VISION_TOKENS_TEXT_ONLY: _ClassVar[VisionTokens]
    VISION_TOKENS_IMAGE_ONLY: _ClassVar[VisionTokens]
    VISION_TOKENS_IMAGE_NO_MARKERS: _ClassVar[VisionTokens]

class StateNormalization(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_NORMALIZATION_UNSPECIFIED: _ClassVar[StateNormalization]
    STATE_NORMALIZATION_NONE: _ClassVar[StateNormalization]
    STATE_NORMALIZATION_TOKEN_RMS: _ClassVar[StateNormalization]
    STATE_NORMALIZATION_GLOBAL: _ClassVar[StateNormalization]
    STATE_NORMALIZATION_PER_DIM: _ClassVar[StateNormalization]
    STATE_NORMALIZATION_HYBRID: _ClassVar[StateNormalization]

class OutlierMask(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTLIER_MASK_UNSPECIFIED: _ClassVar[OutlierMask]
    OUTLIER_MASK_NONE: _ClassVar[OutlierMask]
    OUTLIER_MASK_ZERO: _ClassVar[OutlierMask]
    OUTLIER_MASK_CLAMP: _ClassVar[OutlierMask]
    OUTLIER_MASK_SCALE: _ClassVar[OutlierMask]

class BlendMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BLEND_MODE_UNSPECIFIED: _ClassVar[BlendMode]
    BLEND_MODE_INTERPOLATE: _ClassVar[BlendMode]
    BLEND_MODE_LINEAR: _ClassVar[BlendMode]
    BLEND_MODE_ADAIN: _ClassVar[BlendMode]
    BLEND_MODE_ADAIN_PER_DIM: _ClassVar[BlendMode]
    BLEND_MODE_GRADUATED: _ClassVar[BlendMode]
    BLEND_MODE_SLERP: _ClassVar[BlendMode]
    BLEND_MODE_STYLE_DELTA: _ClassVar[BlendMode]
    BLEND_MODE_TOKEN_WEIGHTS: _ClassVar[BlendMode]

class GraduatedCurve(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRADUATED_CURVE_UNSPECIFIED: _ClassVar[GraduatedCurve]
    GRADUATED_CURVE_LINEAR: _ClassVar[GraduatedCurve]
    GRADUATED_CURVE_EASE_IN: _ClassVar[GraduatedCurve]
    GRADUATED_CURVE_EASE_OUT: _ClassVar[GraduatedCurve]
VISION_ENGINE_UNSPECIFIED: VisionEngine
VISION_ENGINE_SIGLIP: VisionEngine
VISION_ENGINE_QWEN3_VL: VisionEngine
VISION_TOKENS_UNSPECIFIED: VisionTokens
VISION_TOKENS_FULL: VisionTokens
VISION_TOKENS_TEXT_ONLY: VisionTokens
VISION_TOKENS_IMAGE_ONLY: VisionTokens
VISION_TOKENS_IMAGE_NO_MARKERS: VisionTokens
STATE_NORMALIZATION_UNSPECIFIED: StateNormalization
STATE_NORMALIZATION_NONE: StateNormalization
STATE_NORMALIZATION_TOKEN_RMS: StateNormalization
STATE_NORMALIZATION_GLOBAL: StateNormalization
STATE_NORMALIZATION_PER_DIM: StateNormalization
STATE_NORMALIZATION_HYBRID: StateNormalization
OUTLIER_MASK_UNSPECIFIED: OutlierMask
OUTLIER_MASK_NONE: OutlierMask
OUTLIER_MASK_ZERO: OutlierMask
OUTLIER_MASK_CLAMP: OutlierMask
OUTLIER_MASK_SCALE: OutlierMask
BLEND_MODE_UNSPECIFIED: BlendMode
BLEND_MODE_INTERPOLATE: BlendMode
BLEND_MODE_LINEAR: BlendMode
BLEND_MODE_ADAIN: BlendMode
BLEND_MODE_ADAIN_PER_DIM: BlendMode
BLEND_MODE_GRADUATED: BlendMode
BLEND_MODE_SLERP: BlendMode
BLEND_MODE_STYLE_DELTA: BlendMode
BLEND_MODE_TOKEN_WEIGHTS: BlendMode
GRADUATED_CURVE_UNSPECIFIED: GraduatedCurve
GRADUATED_CURVE_LINEAR: GraduatedCurve
GRADUATED_CURVE_EASE_IN: GraduatedCurve
GRADUATED_CURVE_EASE_OUT: GraduatedCurve

class VisionFingerprint(_message.Message):
    __slots__ = ("engine", "family", "model_id", "weights_digest", "processor_digest", "hidden_layer", "width", "compute_dtype", "backend", "digest", "configuration_digest")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROCESSOR_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_LAYER_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    engine: VisionEngine
    family: str
    model_id: str
    weights_digest: str
    processor_digest: str
    hidden_layer: int
    width: int
    compute_dtype: str
    backend: str
    digest: str
    configuration_digest: str
    def __init__(self, engine: _Optional[_Union[VisionEngine, str]] = ..., family: _Optional[str] = ..., model_id: _Optional[str] = ..., weights_digest: _Optional[str] = ..., processor_digest: _Optional[str] = ..., hidden_layer: _Optional[int] = ..., width: _Optional[int] = ..., compute_dtype: _Optional[str] = ..., backend: _Optional[str] = ..., digest: _Optional[str] = ..., configuration_digest: _Optional[str] = ...) -> None: ...

class SiglipEmbeds(_message.Message):
    __slots__ = ("grid", "fingerprint")
    GRID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    grid: _tensor_pb2.Tensor
    fingerprint: VisionFingerprint
    def __init__(self, grid: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., fingerprint: _Optional[_Union[VisionFingerprint, _Mapping]] = ...) -> None: ...

class VisionStates(_message.Message):
    __slots__ = ("hidden_states", "fingerprint", "image_token_start", "image_token_count", "tokens")
    HIDDEN_STATES_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_TOKEN_START_FIELD_NUMBER: _ClassVar[int]
    IMAGE_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    hidden_states: _tensor_pb2.Tensor
    fingerprint: VisionFingerprint
    image_token_start: int
    image_token_count: int
    tokens: VisionTokens
    def __init__(self, hidden_states: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., fingerprint: _Optional[_Union[VisionFingerprint, _Mapping]] = ..., image_token_start: _Optional[int] = ..., image_token_count: _Optional[int] = ..., tokens: _Optional[_Union[VisionTokens, str]] = ...) -> None: ...

class VisionServiceGetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VisionEngineInfo(_message.Message):
    __slots__ = ("engine", "ready", "fingerprint", "calibrations")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CALIBRATIONS_FIELD_NUMBER: _ClassVar[int]
    engine: VisionEngine
    ready: bool
    fingerprint: VisionFingerprint
    calibrations: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, engine: _Optional[_Union[VisionEngine, str]] = ..., ready: bool = ..., fingerprint: _Optional[_Union[VisionFingerprint, _Mapping]] = ..., calibrations: _Optional[_Iterable[str]] = ...) -> None: ...

class VisionServiceGetInfoResponse(_message.Message):
    __slots__ = ("version", "ready", "engines", "device", "features", "queue", "max_images", "max_image_bytes", "max_image_pixels", "max_message_bytes", "connection")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    version: _info_pb2.ServerVersion
    ready: bool
    engines: _containers.RepeatedCompositeFieldContainer[VisionEngineInfo]
    device: _info_pb2.DeviceInfo
    features: _containers.RepeatedCompositeFieldContainer[_info_pb2.Feature]
    queue: _info_pb2.QueueInfo
    max_images: int
    max_image_bytes: int
    max_image_pixels: int
    max_message_bytes: int
    connection: _info_pb2.ConnectionInfo
    def __init__(self, version: _Optional[_Union[_info_pb2.ServerVersion, _Mapping]] = ..., ready: bool = ..., engines: _Optional[_Iterable[_Union[VisionEngineInfo, _Mapping]]] = ..., device: _Optional[_Union[_info_pb2.DeviceInfo, _Mapping]] = ..., features: _Optional[_Iterable[_Union[_info_pb2.Feature, _Mapping]]] = ..., queue: _Optional[_Union[_info_pb2.QueueInfo, _Mapping]] = ..., max_images: _Optional[int] = ..., max_image_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., connection: _Optional[_Union[_info_pb2.ConnectionInfo, _Mapping]] = ...) -> None: ...

class StatesOptions(_message.Message):
    __slots__ = ("hidden_layer", "tokens", "text", "system_prompt")
    HIDDEN_LAYER_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_PROMPT_FIELD_NUMBER: _ClassVar[int]
    hidden_layer: int
    tokens: VisionTokens
    text: str
    system_prompt: str
    def __init__(self, hidden_layer: _Optional[int] = ..., tokens: _Optional[_Union[VisionTokens, str]] = ..., text: _Optional[str] = ..., system_prompt: _Optional[str] = ...) -> None: ...

class EncodeImagesRequest(_message.Message):
    __slots__ = ("images", "engine", "target_area", "states_options", "dtype")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    TARGET_AREA_FIELD_NUMBER: _ClassVar[int]
    STATES_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[_content_pb2.ImageInput]
    engine: VisionEngine
    target_area: int
    states_options: StatesOptions
    dtype: _tensor_pb2.TensorDtype
    def __init__(self, images: _Optional[_Iterable[_Union[_content_pb2.ImageInput, _Mapping]]] = ..., engine: _Optional[_Union[VisionEngine, str]] = ..., target_area: _Optional[int] = ..., states_options: _Optional[_Union[StatesOptions, _Mapping]] = ..., dtype: _Optional[_Union[_tensor_pb2.TensorDtype, str]] = ...) -> None: ...

class EncodedImage(_message.Message):
    __slots__ = ("siglip_embeds", "states", "image_sha256")
    SIGLIP_EMBEDS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    siglip_embeds: SiglipEmbeds
    states: VisionStates
    image_sha256: str
    def __init__(self, siglip_embeds: _Optional[_Union[SiglipEmbeds, _Mapping]] = ..., states: _Optional[_Union[VisionStates, _Mapping]] = ..., image_sha256: _Optional[str] = ...) -> None: ...

class EncodeImagesResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[EncodedImage]
    def __init__(self, results: _Optional[_Iterable[_Union[EncodedImage, _Mapping]]] = ...) -> None: ...

class ConditionOptions(_message.Message):
    __slots__ = ("alpha", "blend", "normalization", "outlier_mask", "outlier_threshold", "curve", "token_weights")
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    BLEND_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    OUTLIER_MASK_FIELD_NUMBER: _ClassVar[int]
    OUTLIER_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    CURVE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    alpha: float
    blend: BlendMode
    normalization: StateNormalization
    outlier_mask: OutlierMask
    outlier_threshold: float
    curve: GraduatedCurve
    token_weights: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, alpha: _Optional[float] = ..., blend: _Optional[_Union[BlendMode, str]] = ..., normalization: _Optional[_Union[StateNormalization, str]] = ..., outlier_mask: _Optional[_Union[OutlierMask, str]] = ..., outlier_threshold: _Optional[float] = ..., curve: _Optional[_Union[GraduatedCurve, str]] = ..., token_weights: _Optional[_Iterable[float]] = ...) -> None: ...

class ConditionPromptRequest(_message.Message):
    __slots__ = ("prompt_embeds", "image", "states", "states_options", "options")
    PROMPT_EMBEDS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    STATES_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    prompt_embeds: _embeds_pb2.PromptEmbeds
    image: _content_pb2.ImageInput
    states: VisionStates
    states_options: StatesOptions
    options: ConditionOptions
    def __init__(self, prompt_embeds: _Optional[_Union[_embeds_pb2.PromptEmbeds, _Mapping]] = ..., image: _Optional[_Union[_content_pb2.ImageInput, _Mapping]] = ..., states: _Optional[_Union[VisionStates, _Mapping]] = ..., states_options: _Optional[_Union[StatesOptions, _Mapping]] = ..., options: _Optional[_Union[ConditionOptions, _Mapping]] = ...) -> None: ...

class OutlierDimension(_message.Message):
    __slots__ = ("dimension", "ratio")
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    RATIO_FIELD_NUMBER: _ClassVar[int]
    dimension: int
    ratio: float
    def __init__(self, dimension: _Optional[int] = ..., ratio: _Optional[float] = ...) -> None: ...

class EmbedsStatistics(_message.Message):
    __slots__ = ("token_rms", "mean", "std", "tokens")
    TOKEN_RMS_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    token_rms: float
    mean: float
    std: float
    tokens: int
    def __init__(self, token_rms: _Optional[float] = ..., mean: _Optional[float] = ..., std: _Optional[float] = ..., tokens: _Optional[int] = ...) -> None: ...

class ConditionReport(_message.Message):
    __slots__ = ("before", "states", "after", "outliers", "outlier_count", "calibrated")
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    OUTLIERS_FIELD_NUMBER: _ClassVar[int]
    OUTLIER_COUNT_FIELD_NUMBER: _ClassVar[int]
    CALIBRATED_FIELD_NUMBER: _ClassVar[int]
    before: EmbedsStatistics
    states: EmbedsStatistics
    after: EmbedsStatistics
    outliers: _containers.RepeatedCompositeFieldContainer[OutlierDimension]
    outlier_count: int
    calibrated: bool
    def __init__(self, before: _Optional[_Union[EmbedsStatistics, _Mapping]] = ..., states: _Optional[_Union[EmbedsStatistics, _Mapping]] = ..., after: _Optional[_Union[EmbedsStatistics, _Mapping]] = ..., outliers: _Optional[_Iterable[_Union[OutlierDimension, _Mapping]]] = ..., outlier_count: _Optional[int] = ..., calibrated: bool = ...) -> None: ...

class ConditionPromptResponse(_message.Message):
    __slots__ = ("prompt_embeds", "report", "image_sha256")
    PROMPT_EMBEDS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    prompt_embeds: _embeds_pb2.PromptEmbeds
    report: ConditionReport
    image_sha256: str
    def __init__(self, prompt_embeds: _Optional[_Union[_embeds_pb2.PromptEmbeds, _Mapping]] = ..., report: _Optional[_Union[ConditionReport, _Mapping]] = ..., image_sha256: _Optional[str] = ...) -> None: ...

class ScoreImagesRequest(_message.Message):
    __slots__ = ("images", "texts")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[_content_pb2.ImageInput]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, images: _Optional[_Iterable[_Union[_content_pb2.ImageInput, _Mapping]]] = ..., texts: _Optional[_Iterable[str]] = ...) -> None: ...

class ImageScores(_message.Message):
    __slots__ = ("probabilities", "cosines")
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    COSINES_FIELD_NUMBER: _ClassVar[int]
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    cosines: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, probabilities: _Optional[_Iterable[float]] = ..., cosines: _Optional[_Iterable[float]] = ...) -> None: ...

class ScoreImagesResponse(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[ImageScores]
    def __init__(self, images: _Optional[_Iterable[_Union[ImageScores, _Mapping]]] = ...) -> None: ...
