"""Scans serialised messages before protobuf parses them: counts fields and elements, and finds the bytes of tensors.

protobuf parses whatever it gets: 64 MiB of packed enums become 64 million elements, in a call that holds the
interpreter for half a second. The scan takes time in proportion to the number of fields and stops at the first limit
that is exceeded. The limits are the tables of `zrelay_shared.limits`.

The encoding is described at protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from zrelay_shared.errors import InvalidArgument, invalid
from zrelay_shared.limits import (
    MAX_ELEMENTS,
    MAX_MESSAGE_BYTES,
    MAX_MESSAGE_FIELDS,
    MAX_STRING_BYTES,
    MAX_TEXT_BYTES,
    TEXT_FIELDS,
    UNBOUNDED_STRINGS,
)

Buffer = bytes | bytearray | memoryview
_TENSOR_DATA = "zrelay.v1.Tensor.data"
_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
_MAX_VARINT_BYTES, _MAX_SIZE_BYTES = 10, 5
_CONTINUED = bytes(range(0x80, 0x100))
"""Bytes of a varint that another byte follows."""
_FIXED_SIZES = {
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
    FieldDescriptor.TYPE_DOUBLE: 8,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
}


@dataclass(frozen=True, slots=True)
class ScannedField:
    """A field of a message type that the scan looks at.

    Attributes:
        path: Path of the field in the message, without indices.
        number: Number of the field.
        inner: Fields of the message that it holds, None if it holds no message.
        is_data: Whether it holds the bytes of a tensor.
        max_elements: Limit of its elements, 0 for a field that is not repeated.
        element_bytes: Size of a packed element: 0 for a varint, -1 if elements are not packed.
        max_bytes: Limit of a string.
    """

    path: str
    number: int
    inner: "Fields | None"
    is_data: bool
    max_elements: int
    element_bytes: int
    max_bytes: int


Fields = dict[int, ScannedField]
_Counts = dict[int, Any]
"""Number of a field -> its elements so far, or the counts of the message in it. A message that occurs several times in
a field that is not repeated is one message, so its elements add up."""


@cache
def scanned_fields(descriptor: Descriptor, path: str = "") -> Fields:
    """Returns the fields of a message type that are scanned. The type must not be recursive.

    Raises:
        KeyError: A repeated field is missing in `limits.MAX_ELEMENTS`.
    """
    fields = (_scanned(field, f"{path}.{field.name}" if path else field.name) for field in descriptor.fields)
    return {field.number: field for field in fields if field is not None}


def _scanned(field: Any, path: str) -> ScannedField | None:
    name = f"{field.containing_type.name}.{field.name}"
    is_data = field.full_name == _TENSOR_DATA
    is_text = field.type == field.TYPE_STRING
    repeated = is_repeated(field)
    if not (field.message_type or is_data or is_text or repeated):
        return None
    max_bytes = MAX_MESSAGE_BYTES
    if is_text and name not in UNBOUNDED_STRINGS:
        max_bytes = MAX_TEXT_BYTES if name in TEXT_FIELDS else MAX_STRING_BYTES
    return ScannedField(
        path=path,
        number=field.number,
        inner=scanned_fields(field.message_type, path) if field.message_type else None,
        is_data=is_data,
        max_elements=MAX_ELEMENTS[name] if repeated else 0,
        element_bytes=-1 if field.message_type or is_text else _FIXED_SIZES.get(field.type, 0),
        max_bytes=max_bytes,
    )


def is_repeated(field: Any) -> bool:
    """Returns whether a field is repeated, in every supported version of protobuf."""
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED)


class MessageScan:
    """One pass over a serialised message, which replaces the bytes of every tensor.

    Attributes:
        replaced: Whether there was a tensor with its bytes.
    """

    __slots__ = ("_bounded", "_left", "_raw", "_replace", "_view", "replaced")

    def __init__(self, raw: Buffer, replace: Callable[[memoryview], Buffer], *, bounded: bool = True) -> None:
        """Prepares the pass.

        Args:
            raw: The message.
            replace: Returns what takes the place of a tensor's bytes.
            bounded: Whether the limits of elements and strings apply. The limit of fields always does.
        """
        self._raw, self._view = raw, memoryview(raw)
        self._replace, self._bounded = replace, bounded
        self._left = MAX_MESSAGE_FIELDS
        self.replaced = False

    def pieces(self, fields: Fields) -> list[Buffer]:
        """Returns the message with every tensor's bytes replaced, as a list of byte strings.

        Raises:
            InvalidArgument: MESSAGE_TOO_COMPLEX or TEXT_TOO_LARGE, a limit is exceeded.
            ValueError, IndexError: The bytes are not a message.
        """
        found = self._message(0, len(self._raw), fields, {})
        return [self._view] if found is None else found

    def _message(self, at: int, end: int, fields: Fields, counts: _Counts) -> list[Buffer] | None:
        """Scans the message in raw[at:end]. Returns its pieces, None if nothing in it is replaced."""
        raw, done = self._raw, at
        pieces: list[Buffer] | None = None
        groups: list[int] = []
        while at < end:
            begin = at
            self._left -= 1
            if self._left < 0:
                raise _too_many_fields()
            key = raw[at]
            at += 1
            if key > 0x7F:
                key, at = _varint(raw, begin, _MAX_SIZE_BYTES)
            kind = key & 7
            if kind == _BYTES:
                size = raw[at]
                at += 1
                if size > 0x7F:
                    size, at = _varint(raw, at - 1, _MAX_SIZE_BYTES)
                stop = at + size
                if stop > end:
                    raise ValueError("the message ends inside a field")
                if not groups and (field := fields.get(key >> 3)) is not None:
                    changed = self._bytes(field, at, stop, counts)
                    if changed is not None:
                        if pieces is None:
                            pieces = []
                        pieces += (self._view[done:begin], varint(key) + varint(sum(map(len, changed))), *changed)
                        done = stop
                at = stop
                continue
            if kind == _VARINT:
                last = at + _MAX_VARINT_BYTES
                while raw[at] > 0x7F:
                    at += 1
                    if at == last:
                        raise ValueError(f"a varint of more than {_MAX_VARINT_BYTES} bytes")
                at += 1
            elif kind == _FIXED32:
                at += 4
            elif kind == _FIXED64:
                at += 8
            elif kind == _GROUP:
                groups.append(key >> 3)
            elif kind != _GROUP_END or not groups or groups.pop() != key >> 3:
                raise ValueError(f"wire type {kind}")
            if at > end:
                raise ValueError("the message ends inside a field")
            if not groups and (field := fields.get(key >> 3)) is not None and field.max_elements:
                self._count(field, 1, counts)
        if groups:
            raise ValueError("the message ends inside a group")
        if pieces is not None:
            pieces.append(self._view[done:end])
        return pieces

    def _bytes(self, field: ScannedField, at: int, stop: int, counts: _Counts) -> list[Buffer] | None:
        """Scans the payload of a length-delimited field. Returns its pieces, None if nothing in it is replaced."""
        if field.is_data:
            self.replaced = True
            return [self._replace(self._view[at:stop])]
        if field.inner is not None:
            if field.max_elements:
                self._count(field, 1, counts)
                return self._message(at, stop, field.inner, {})
            return self._message(at, stop, field.inner, counts.setdefault(field.number, {}))
        if not self._bounded:
            return None
        if stop - at > field.max_bytes:
            raise invalid(
                field.path,
                f"at most {field.max_bytes} bytes of UTF-8",
                stop - at,
                reason="TEXT_TOO_LARGE",
                remedy="send a shorter text",
            )
        if field.max_elements:
            self._count(field, self._packed(field, at, stop), counts)
        return None

    def _packed(self, field: ScannedField, at: int, stop: int) -> int:
        """Returns the number of elements in a packed field, or one above the limit if there are surely more."""
        size = stop - at
        if field.element_bytes:
            return 1 if field.element_bytes < 0 else size // field.element_bytes
        if size > field.max_elements * _MAX_VARINT_BYTES:
            return field.max_elements + 1
        return len(bytes(self._view[at:stop]).translate(None, _CONTINUED))

    def _count(self, field: ScannedField, elements: int, counts: _Counts) -> None:
        total = counts.get(field.number, 0) + elements
        if total > field.max_elements and self._bounded:
            raise invalid(
                field.path,
                f"at most {field.max_elements} elements",
                "more",
                reason="MESSAGE_TOO_COMPLEX",
                remedy="send fewer in one call",
            )
        counts[field.number] = total


def _too_many_fields() -> InvalidArgument:
    return InvalidArgument(
        f"expected a message of at most {MAX_MESSAGE_FIELDS} fields at all levels, got more: send fewer things in one "
        "call",
        reason="MESSAGE_TOO_COMPLEX",
    )


def _varint(raw: Buffer, at: int, most: int) -> tuple[int, int]:
    value = shift = 0
    for _ in range(most):
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"a varint of more than {most} bytes")


def varint(value: int) -> bytes:
    """Returns the varint of a number of at least 0."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
