from zrelay.v1 import embeds_pb2 as _embeds_pb2
from zrelay.v1 import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]

class StageKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_KIND_UNSPECIFIED: _ClassVar[StageKind]
    STAGE_KIND_PREPARE: _ClassVar[StageKind]
    STAGE_KIND_DENOISE: _ClassVar[StageKind]
    STAGE_KIND_DECODE: _ClassVar[StageKind]
    STAGE_KIND_ENCODE_IMAGE: _ClassVar[StageKind]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState
STAGE_KIND_UNSPECIFIED: StageKind
STAGE_KIND_PREPARE: StageKind
STAGE_KIND_DENOISE: StageKind
STAGE_KIND_DECODE: StageKind
STAGE_KIND_ENCODE_IMAGE: StageKind

class Stage(_message.Message):
    __slots__ = ("kind", "total")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    kind: StageKind
    total: int
    def __init__(self, kind: _Optional[_Union[StageKind, str]] = ..., total: _Optional[int] = ...) -> None: ...

class JobAccepted(_message.Message):
    __slots__ = ("job_id", "request_id", "queue_position", "estimated_wait_s", "estimated_run_s", "seed", "sampling", "sigmas", "plan", "encoder_relation", "encoder_differences")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_RUN_S_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SIGMAS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    ENCODER_RELATION_FIELD_NUMBER: _ClassVar[int]
    ENCODER_DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    request_id: str
    queue_position: int
    estimated_wait_s: float
    estimated_run_s: float
    seed: int
    sampling: _generation_pb2.SamplingOptions
    sigmas: _containers.RepeatedScalarFieldContainer[float]
    plan: _containers.RepeatedCompositeFieldContainer[Stage]
    encoder_relation: _embeds_pb2.EncoderRelation
    encoder_differences: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_id: _Optional[str] = ..., request_id: _Optional[str] = ..., queue_position: _Optional[int] = ..., estimated_wait_s: _Optional[float] = ..., estimated_run_s: _Optional[float] = ..., seed: _Optional[int] = ..., sampling: _Optional[_Union[_generation_pb2.SamplingOptions, _Mapping]] = ..., sigmas: _Optional[_Iterable[float]] = ..., plan: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ..., encoder_relation: _Optional[_Union[_embeds_pb2.EncoderRelation, str]] = ..., encoder_differences: _Optional[_Iterable[str]] = ...) -> None: ...

class JobProgress(_message.Message):
    __slots__ = ("state", "stage", "completed", "total", "unit_ms", "eta_s", "queue_position")
    STATE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    UNIT_MS_FIELD_NUMBER: _ClassVar[int]
    ETA_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    state: JobState
    stage: StageKind
    completed: int
    total: int
    unit_ms: float
    eta_s: float
    queue_position: int
    def __init__(self, state: _Optional[_Union[JobState, str]] = ..., stage: _Optional[_Union[StageKind, str]] = ..., completed: _Optional[int] = ..., total: _Optional[int] = ..., unit_ms: _Optional[float] = ..., eta_s: _Optional[float] = ..., queue_position: _Optional[int] = ...) -> None: ...

class JobPreview(_message.Message):
    __slots__ = ("image_index", "step", "jpeg")
    IMAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    JPEG_FIELD_NUMBER: _ClassVar[int]
    image_index: int
    step: int
    jpeg: bytes
    def __init__(self, image_index: _Optional[int] = ..., step: _Optional[int] = ..., jpeg: _Optional[bytes] = ...) -> None: ...

class JobTimings(_message.Message):
    __slots__ = ("queue_s", "prepare_s", "denoise_s", "decode_s", "encode_image_s", "total_s")
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREPARE_S_FIELD_NUMBER: _ClassVar[int]
    DENOISE_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    ENCODE_IMAGE_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    queue_s: float
    prepare_s: float
    denoise_s: float
    decode_s: float
    encode_image_s: float
    total_s: float
    def __init__(self, queue_s: _Optional[float] = ..., prepare_s: _Optional[float] = ..., denoise_s: _Optional[float] = ..., decode_s: _Optional[float] = ..., encode_image_s: _Optional[float] = ..., total_s: _Optional[float] = ...) -> None: ...

class JobImage(_message.Message):
    __slots__ = ("image_index", "seed", "width", "height", "format", "data", "file_sha256", "pixels_sha256")
    IMAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    FILE_SHA256_FIELD_NUMBER: _ClassVar[int]
    PIXELS_SHA256_FIELD_NUMBER: _ClassVar[int]
    image_index: int
    seed: int
    width: int
    height: int
    format: _generation_pb2.ImageFormat
    data: bytes
    file_sha256: str
    pixels_sha256: str
    def __init__(self, image_index: _Optional[int] = ..., seed: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., format: _Optional[_Union[_generation_pb2.ImageFormat, str]] = ..., data: _Optional[bytes] = ..., file_sha256: _Optional[str] = ..., pixels_sha256: _Optional[str] = ...) -> None: ...

class JobDone(_message.Message):
    __slots__ = ("images", "timings")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    images: int
    timings: JobTimings
    def __init__(self, images: _Optional[int] = ..., timings: _Optional[_Union[JobTimings, _Mapping]] = ...) -> None: ...

class JobEvent(_message.Message):
    __slots__ = ("sequence", "accepted", "progress", "preview", "image", "done")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    accepted: JobAccepted
    progress: JobProgress
    preview: JobPreview
    image: JobImage
    done: JobDone
    def __init__(self, sequence: _Optional[int] = ..., accepted: _Optional[_Union[JobAccepted, _Mapping]] = ..., progress: _Optional[_Union[JobProgress, _Mapping]] = ..., preview: _Optional[_Union[JobPreview, _Mapping]] = ..., image: _Optional[_Union[JobImage, _Mapping]] = ..., done: _Optional[_Union[JobDone, _Mapping]] = ...) -> None: ...

class JobError(_message.Message):
    __slots__ = ("code", "reason", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "request_id", "state", "sequence", "progress", "error", "accepted_at", "ended_at", "sampling")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    request_id: str
    state: JobState
    sequence: int
    progress: JobProgress
    error: JobError
    accepted_at: float
    ended_at: float
    sampling: _generation_pb2.SamplingOptions
    def __init__(self, job_id: _Optional[str] = ..., request_id: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., sequence: _Optional[int] = ..., progress: _Optional[_Union[JobProgress, _Mapping]] = ..., error: _Optional[_Union[JobError, _Mapping]] = ..., accepted_at: _Optional[float] = ..., ended_at: _Optional[float] = ..., sampling: _Optional[_Union[_generation_pb2.SamplingOptions, _Mapping]] = ...) -> None: ...
