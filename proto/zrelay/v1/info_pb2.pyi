from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ServerVersion(_message.Message):
    __slots__ = ("service", "version", "contract", "libraries")
    class LibrariesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    LIBRARIES_FIELD_NUMBER: _ClassVar[int]
    service: str
    version: str
    contract: str
    libraries: _containers.ScalarMap[str, str]
    def __init__(self, service: _Optional[str] = ..., version: _Optional[str] = ..., contract: _Optional[str] = ..., libraries: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Feature(_message.Message):
    __slots__ = ("name", "available", "note")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    name: str
    available: bool
    note: str
    def __init__(self, name: _Optional[str] = ..., available: bool = ..., note: _Optional[str] = ...) -> None: ...

class DeviceInfo(_message.Message):
    __slots__ = ("kind", "name", "memory_total_bytes", "memory_free_bytes", "compute_dtype")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    compute_dtype: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., memory_total_bytes: _Optional[int] = ..., memory_free_bytes: _Optional[int] = ..., compute_dtype: _Optional[str] = ...) -> None: ...

class QueueInfo(_message.Message):
    __slots__ = ("waiting", "running", "max_waiting", "estimated_wait_s")
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    waiting: int
    running: int
    max_waiting: int
    estimated_wait_s: float
    def __init__(self, waiting: _Optional[int] = ..., running: _Optional[int] = ..., max_waiting: _Optional[int] = ..., estimated_wait_s: _Optional[float] = ...) -> None: ...
