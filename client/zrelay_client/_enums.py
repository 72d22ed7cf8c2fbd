"""Enums of the contract as words: "denoise" for STAGE_KIND_DENOISE, and back."""

from typing import cast

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from zrelay_shared.errors import InvalidArgument

_ABSENT = "UNSPECIFIED"


def word(message: Message, field: str) -> str:
    """The word of an enum field: "" where it is unspecified, its number where a newer server made it."""
    value: int = getattr(message, field)
    enum = _enum(message, field)
    if value not in enum.values_by_number:
        return str(value)
    return "" if value == 0 else enum.values_by_number[value].name.removeprefix(_prefix(enum)).lower()


def set_word(message: Message, field: str, said: str | None) -> None:
    """Sets an enum field by its word; None leaves it absent. Raises InvalidArgument for a word it has not."""
    if said is None:
        return
    enum = _enum(message, field)
    known = {name.removeprefix(_prefix(enum)).lower(): value.number for name, value in enum.values_by_name.items()}
    del known[_ABSENT.lower()]
    if said not in known:
        raise InvalidArgument(
            f"{field}: expected one of {', '.join(known)}, got {said!r}",
            field=field,
            reason=f"{field.upper()}_INVALID",
            metadata={"got": said},
        )
    setattr(message, field, known[said])


def _enum(message: Message, field: str) -> EnumDescriptor:
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    if enum is None:
        raise TypeError(f"{message.DESCRIPTOR.full_name}.{field} is no enum")
    return cast(EnumDescriptor, enum)


def _prefix(enum: EnumDescriptor) -> str:
    return enum.values_by_number[0].name.removesuffix(_ABSENT)
