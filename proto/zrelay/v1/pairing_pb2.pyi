from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BeginExchangeRequest(_message.Message):
    __slots__ = ("share",)
    SHARE_FIELD_NUMBER: _ClassVar[int]
    share: bytes
    def __init__(self, share: _Optional[bytes] = ...) -> None: ...

class BeginExchangeResponse(_message.Message):
    __slots__ = ("exchange_id", "share")
    EXCHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    exchange_id: bytes
    share: bytes
    def __init__(self, exchange_id: _Optional[bytes] = ..., share: _Optional[bytes] = ...) -> None: ...

class ConfirmExchangeRequest(_message.Message):
    __slots__ = ("exchange_id", "proof")
    EXCHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    exchange_id: bytes
    proof: bytes
    def __init__(self, exchange_id: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

class ConfirmExchangeResponse(_message.Message):
    __slots__ = ("proof",)
    PROOF_FIELD_NUMBER: _ClassVar[int]
    proof: bytes
    def __init__(self, proof: _Optional[bytes] = ...) -> None: ...

class ConfirmedExchange(_message.Message):
    __slots__ = ("exchange_id", "proof")
    EXCHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    exchange_id: bytes
    proof: bytes
    def __init__(self, exchange_id: _Optional[bytes] = ..., proof: _Optional[bytes] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("secret", "exchange", "name", "signing_request")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIGNING_REQUEST_FIELD_NUMBER: _ClassVar[int]
    secret: bytes
    exchange: ConfirmedExchange
    name: str
    signing_request: bytes
    def __init__(self, secret: _Optional[bytes] = ..., exchange: _Optional[_Union[ConfirmedExchange, _Mapping]] = ..., name: _Optional[str] = ..., signing_request: _Optional[bytes] = ...) -> None: ...

class PairedService(_message.Message):
    __slots__ = ("role", "endpoint")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    role: str
    endpoint: str
    def __init__(self, role: _Optional[str] = ..., endpoint: _Optional[str] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("box", "authority", "certificate", "permissions", "services", "time", "hosts")
    BOX_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    box: str
    authority: bytes
    certificate: bytes
    permissions: _containers.RepeatedScalarFieldContainer[str]
    services: _containers.RepeatedCompositeFieldContainer[PairedService]
    time: _timestamp_pb2.Timestamp
    hosts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, box: _Optional[str] = ..., authority: _Optional[bytes] = ..., certificate: _Optional[bytes] = ..., permissions: _Optional[_Iterable[str]] = ..., services: _Optional[_Iterable[_Union[PairedService, _Mapping]]] = ..., time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., hosts: _Optional[_Iterable[str]] = ...) -> None: ...
