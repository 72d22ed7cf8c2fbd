from zrelay.v1 import content_pb2 as _content_pb2
from zrelay.v1 import embeds_pb2 as _embeds_pb2
from zrelay.v1 import generation_pb2 as _generation_pb2
from zrelay.v1 import info_pb2 as _info_pb2
from zrelay.v1 import jobs_pb2 as _jobs_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GeneratorServiceGetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GeneratorLimits(_message.Message):
    __slots__ = ("size_multiple", "min_side", "max_side", "max_pixels", "max_steps", "max_images", "text_limit", "embeds_width", "max_message_bytes", "max_image_bytes")
    SIZE_MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    MIN_SIDE_FIELD_NUMBER: _ClassVar[int]
    MAX_SIDE_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_FIELD_NUMBER: _ClassVar[int]
    TEXT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    EMBEDS_WIDTH_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    size_multiple: int
    min_side: int
    max_side: int
    max_pixels: int
    max_steps: int
    max_images: int
    text_limit: int
    embeds_width: int
    max_message_bytes: int
    max_image_bytes: int
    def __init__(self, size_multiple: _Optional[int] = ..., min_side: _Optional[int] = ..., max_side: _Optional[int] = ..., max_pixels: _Optional[int] = ..., max_steps: _Optional[int] = ..., max_images: _Optional[int] = ..., text_limit: _Optional[int] = ..., embeds_width: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_image_bytes: _Optional[int] = ...) -> None: ...

class CostModel(_message.Message):
    __slots__ = ("forward_s", "forward_s_per_token", "forward_s_per_token_squared", "decode_s", "decode_s_per_pixel", "bytes_per_token", "bytes_per_pixel")
    FORWARD_S_FIELD_NUMBER: _ClassVar[int]
    FORWARD_S_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FORWARD_S_PER_TOKEN_SQUARED_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_PER_PIXEL_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_PIXEL_FIELD_NUMBER: _ClassVar[int]
    forward_s: float
    forward_s_per_token: float
    forward_s_per_token_squared: float
    decode_s: float
    decode_s_per_pixel: float
    bytes_per_token: int
    bytes_per_pixel: int
    def __init__(self, forward_s: _Optional[float] = ..., forward_s_per_token: _Optional[float] = ..., forward_s_per_token_squared: _Optional[float] = ..., decode_s: _Optional[float] = ..., decode_s_per_pixel: _Optional[float] = ..., bytes_per_token: _Optional[int] = ..., bytes_per_pixel: _Optional[int] = ...) -> None: ...

class GeneratorServiceGetInfoResponse(_message.Message):
    __slots__ = ("version", "ready", "model_id", "transformer_digest", "expected_encoder", "defaults", "limits", "device", "features", "queue", "cost", "vae_digest", "configuration_digest", "connection")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSFORMER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_ENCODER_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    VAE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    version: _info_pb2.ServerVersion
    ready: bool
    model_id: str
    transformer_digest: str
    expected_encoder: _embeds_pb2.EncoderFingerprint
    defaults: _generation_pb2.SamplingOptions
    limits: GeneratorLimits
    device: _info_pb2.DeviceInfo
    features: _containers.RepeatedCompositeFieldContainer[_info_pb2.Feature]
    queue: _info_pb2.QueueInfo
    cost: CostModel
    vae_digest: str
    configuration_digest: str
    connection: _info_pb2.ConnectionInfo
    def __init__(self, version: _Optional[_Union[_info_pb2.ServerVersion, _Mapping]] = ..., ready: bool = ..., model_id: _Optional[str] = ..., transformer_digest: _Optional[str] = ..., expected_encoder: _Optional[_Union[_embeds_pb2.EncoderFingerprint, _Mapping]] = ..., defaults: _Optional[_Union[_generation_pb2.SamplingOptions, _Mapping]] = ..., limits: _Optional[_Union[GeneratorLimits, _Mapping]] = ..., device: _Optional[_Union[_info_pb2.DeviceInfo, _Mapping]] = ..., features: _Optional[_Iterable[_Union[_info_pb2.Feature, _Mapping]]] = ..., queue: _Optional[_Union[_info_pb2.QueueInfo, _Mapping]] = ..., cost: _Optional[_Union[CostModel, _Mapping]] = ..., vae_digest: _Optional[str] = ..., configuration_digest: _Optional[str] = ..., connection: _Optional[_Union[_info_pb2.ConnectionInfo, _Mapping]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "spec")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    spec: _generation_pb2.GenerationSpec
    def __init__(self, request_id: _Optional[str] = ..., spec: _Optional[_Union[_generation_pb2.GenerationSpec, _Mapping]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _jobs_pb2.JobEvent
    def __init__(self, event: _Optional[_Union[_jobs_pb2.JobEvent, _Mapping]] = ...) -> None: ...

class SubmitJobRequest(_message.Message):
    __slots__ = ("request_id", "spec", "detached")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    DETACHED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    spec: _generation_pb2.GenerationSpec
    detached: bool
    def __init__(self, request_id: _Optional[str] = ..., spec: _Optional[_Union[_generation_pb2.GenerationSpec, _Mapping]] = ..., detached: bool = ...) -> None: ...

class SubmitJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _jobs_pb2.Job
    def __init__(self, job: _Optional[_Union[_jobs_pb2.Job, _Mapping]] = ...) -> None: ...

class WatchJobRequest(_message.Message):
    __slots__ = ("job_id", "after_sequence")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    after_sequence: int
    def __init__(self, job_id: _Optional[str] = ..., after_sequence: _Optional[int] = ...) -> None: ...

class WatchJobResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _jobs_pb2.JobEvent
    def __init__(self, event: _Optional[_Union[_jobs_pb2.JobEvent, _Mapping]] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _jobs_pb2.Job
    def __init__(self, job: _Optional[_Union[_jobs_pb2.Job, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "states")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    states: _containers.RepeatedScalarFieldContainer[_jobs_pb2.JobState]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., states: _Optional[_Iterable[_Union[_jobs_pb2.JobState, str]]] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[_jobs_pb2.Job]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[_jobs_pb2.Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("job_id", "request_id")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    request_id: str
    def __init__(self, job_id: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _jobs_pb2.Job
    def __init__(self, job: _Optional[_Union[_jobs_pb2.Job, _Mapping]] = ...) -> None: ...

class UploadBlobRequest(_message.Message):
    __slots__ = ("content", "data")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    content: _content_pb2.ContentRef
    data: bytes
    def __init__(self, content: _Optional[_Union[_content_pb2.ContentRef, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadBlobResponse(_message.Message):
    __slots__ = ("content", "existed")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    EXISTED_FIELD_NUMBER: _ClassVar[int]
    content: _content_pb2.ContentRef
    existed: bool
    def __init__(self, content: _Optional[_Union[_content_pb2.ContentRef, _Mapping]] = ..., existed: bool = ...) -> None: ...

class Lora(_message.Message):
    __slots__ = ("name", "sha256", "size_bytes", "rank", "format", "layers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: str
    size_bytes: int
    rank: int
    format: str
    layers: int
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., rank: _Optional[int] = ..., format: _Optional[str] = ..., layers: _Optional[int] = ...) -> None: ...

class ListLorasRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListLorasResponse(_message.Message):
    __slots__ = ("loras",)
    LORAS_FIELD_NUMBER: _ClassVar[int]
    loras: _containers.RepeatedCompositeFieldContainer[Lora]
    def __init__(self, loras: _Optional[_Iterable[_Union[Lora, _Mapping]]] = ...) -> None: ...

class UploadLoraRequest(_message.Message):
    __slots__ = ("name", "content", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    content: _content_pb2.ContentRef
    data: bytes
    def __init__(self, name: _Optional[str] = ..., content: _Optional[_Union[_content_pb2.ContentRef, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class UploadLoraResponse(_message.Message):
    __slots__ = ("lora",)
    LORA_FIELD_NUMBER: _ClassVar[int]
    lora: Lora
    def __init__(self, lora: _Optional[_Union[Lora, _Mapping]] = ...) -> None: ...

class RemoveLoraRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RemoveLoraResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
