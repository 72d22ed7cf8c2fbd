from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TensorDtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TENSOR_DTYPE_UNSPECIFIED: _ClassVar[TensorDtype]
    TENSOR_DTYPE_BF16: _ClassVar[TensorDtype]
    TENSOR_DTYPE_F16: _ClassVar[TensorDtype]
    TENSOR_DTYPE_F32: _ClassVar[TensorDtype]
    TENSOR_DTYPE_U8: _ClassVar[TensorDtype]
    TENSOR_DTYPE_I64: _ClassVar[TensorDtype]
TENSOR_DTYPE_UNSPECIFIED: TensorDtype
TENSOR_DTYPE_BF16: TensorDtype
TENSOR_DTYPE_F16: TensorDtype
TENSOR_DTYPE_F32: TensorDtype
TENSOR_DTYPE_U8: TensorDtype
TENSOR_DTYPE_I64: TensorDtype

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "crc32c", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: TensorDtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    crc32c: int
    data: bytes
    def __init__(self, dtype: _Optional[_Union[TensorDtype, str]] = ..., shape: _Optional[_Iterable[int]] = ..., crc32c: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...
