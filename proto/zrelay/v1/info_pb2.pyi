from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PortSecurity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PORT_SECURITY_UNSPECIFIED: _ClassVar[PortSecurity]
    PORT_SECURITY_LOOPBACK: _ClassVar[PortSecurity]
    PORT_SECURITY_INSECURE: _ClassVar[PortSecurity]
    PORT_SECURITY_CERTIFICATE: _ClassVar[PortSecurity]
    PORT_SECURITY_TOKEN: _ClassVar[PortSecurity]
PORT_SECURITY_UNSPECIFIED: PortSecurity
PORT_SECURITY_LOOPBACK: PortSecurity
PORT_SECURITY_INSECURE: PortSecurity
PORT_SECURITY_CERTIFICATE: PortSecurity
PORT_SECURITY_TOKEN: PortSecurity

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

class ConnectionInfo(_message.Message):
    __slots__ = ("security", "caller", "permissions", "credentials_end", "server_certificate_ends", "server_time")
    SECURITY_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    CREDENTIALS_END_FIELD_NUMBER: _ClassVar[int]
    SERVER_CERTIFICATE_ENDS_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_FIELD_NUMBER: _ClassVar[int]
    security: PortSecurity
    caller: str
    permissions: _containers.RepeatedScalarFieldContainer[str]
    credentials_end: int
    server_certificate_ends: int
    server_time: int
    def __init__(self, security: _Optional[_Union[PortSecurity, str]] = ..., caller: _Optional[str] = ..., permissions: _Optional[_Iterable[str]] = ..., credentials_end: _Optional[int] = ..., server_certificate_ends: _Optional[int] = ..., server_time: _Optional[int] = ...) -> None: ...
