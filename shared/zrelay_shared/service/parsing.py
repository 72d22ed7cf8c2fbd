"""Helpers for request parsing: enum values checked against the contract."""

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from zrelay_shared.errors import InvalidArgument, invalid, listed

V = TypeVar("V")


class ProtoEnum(Protocol):
    """A generated protobuf enum."""

    def items(self) -> Iterable[tuple[str, int]]:
        """Returns the (name, number) pairs of the enum."""


def known_enum(value: int, enum: ProtoEnum, field: str, *, reason: str = "") -> None:
    """Refuses a number that the enum of this contract does not name (proto3 accepts any number).

    Raises:
        InvalidArgument: The value is unknown; the reason is by default the last part of `field` and `_UNKNOWN`.
    """
    names = {number: name for name, number in enum.items()}
    if value not in names:
        raise _unknown(value, [names[number] for number in sorted(names)], field, reason)


def enum_choice(value: int, enum: ProtoEnum, choices: Mapping[int, V], field: str, *, reason: str = "") -> V | None:
    """Translates an enum value.

    Args:
        value: The number in the message; 0 is UNSPECIFIED.
        enum: The generated enum, for the names in the refusal.
        choices: What each number stands for.
        field: Path of the field in the request.
        reason: Reason of the refusal; by default the last part of `field` and `_UNKNOWN`.

    Returns:
        What the value stands for, None for UNSPECIFIED.

    Raises:
        InvalidArgument: The value is not one of `choices`.
    """
    if value == 0:
        return None
    if value not in choices:
        raise _unknown(value, [name for name, number in enum.items() if number in choices], field, reason)
    return choices[value]


def _unknown(value: int, names: list[str], field: str, reason: str) -> InvalidArgument:
    default = f"{field.rpartition('.')[2].upper()}_UNKNOWN"
    return invalid(field, f"one of {listed(names)}", value, reason=reason or default)
