"""Values of the contract's enums as words: "denoise" for STAGE_KIND_DENOISE."""

from typing import cast

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

_UNSPECIFIED = "UNSPECIFIED"


def word(message: Message, field: str) -> str:
    """Returns the word of an enum field: "" for the unspecified value, the number for a value of a newer contract."""
    value: int = getattr(message, field)
    enum = _enum(message, field)
    if value not in enum.values_by_number:
        return str(value)
    return "" if value == 0 else enum.values_by_number[value].name.removeprefix(_prefix(enum)).lower()


def words(message: Message, field: str) -> tuple[str, ...]:
    """Returns the words that an enum field may have, without the unspecified value."""
    enum = _enum(message, field)
    return tuple(value.name.removeprefix(_prefix(enum)).lower() for value in enum.values if value.number != 0)


def set_word(message: Message, field: str, word: str | None) -> None:
    """Sets an enum field by its word. None leaves the field absent.

    Raises:
        KeyError: The enum has no such word.
    """
    if word is not None:
        enum = _enum(message, field)
        setattr(message, field, enum.values_by_name[f"{_prefix(enum)}{word.upper()}"].number)


def _enum(message: Message, field: str) -> EnumDescriptor:
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    if enum is None:
        raise TypeError(f"{message.DESCRIPTOR.full_name}.{field} is no enum")
    return cast(EnumDescriptor, enum)


def _prefix(enum: EnumDescriptor) -> str:
    return enum.values_by_number[0].name.removesuffix(_UNSPECIFIED)
