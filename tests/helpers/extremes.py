"""Messages in which one number has an extreme value of its type, and the calls that send them."""

from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.message import Message

from zrelay_shared.message_scan import is_repeated

NUMBERS: dict[str, tuple[float, ...]] = {
    "uint32": (0, 1, (1 << 32) - 1),
    "sint32": (-(1 << 31), -1, 0, (1 << 31) - 1),
    "int32": (-(1 << 31), (1 << 31) - 1),
    "fixed32": (0, (1 << 32) - 1),
    "uint64": (0, (1 << 63), (1 << 64) - 1),
    "int64": (-(1 << 63), -1, 0, (1 << 63) - 1),
    "float": (-0.0, 1e-45, 1.2e-38, -3.4028234e38, 3.4028234e38, float("inf"), float("-inf"), float("nan")),
    "double": (5e-324, 1.7e308, float("inf"), float("nan")),
    "enum": (-(1 << 31), 99, (1 << 31) - 1),
}
PROPER = {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNIMPLEMENTED", "NOT_FOUND", "DATA_LOSS"}
PROPER |= {"RESOURCE_EXHAUSTED", "ALREADY_EXISTS"}


def kind_of(field: Any) -> str:
    """Returns the name of a number's type, "" for what is no number."""
    names = {getattr(field, f"TYPE_{name.upper()}"): name for name in NUMBERS}
    return names.get(field.type, "")


def number_paths(descriptor: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the way to every number of a message type."""
    for field in descriptor.fields:
        if kind_of(field):
            yield (*before, field)
        elif field.message_type and not field.message_type.GetOptions().map_entry:
            yield from number_paths(field.message_type, (*before, field))


def extremes(base: Message) -> Iterator[tuple[str, bytes]]:
    """Yields messages that differ from `base` in one number, each with a name."""
    for path in number_paths(base.DESCRIPTOR):
        for value in NUMBERS[kind_of(path[-1])]:
            message = type(base).FromString(base.SerializeToString())
            into: Any = message
            for step in path[:-1]:
                held = getattr(into, step.name)
                into = held if not is_repeated(step) else held[0] if len(held) else held.add()
                if not is_repeated(step):
                    into.SetInParent()
            if is_repeated(path[-1]):
                getattr(into, path[-1].name).append(value)
            else:
                setattr(into, path[-1].name, value)
            yield f"{'.'.join(step.name for step in path)} = {value:g}", message.SerializeToString()


def improper(channel: grpc.Channel, method: str, base: Message, timeout: float = 60) -> list[str]:
    """Sends every extreme message. Returns the calls that end neither with an answer nor with a typed refusal."""
    call: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/zrelay.v1.{method}")
    found = []
    for name, raw in extremes(base):
        try:
            answers = call(raw, timeout=timeout)
            for _ in answers:
                pass
        except grpc.RpcError as error:
            code = error.code().name
            if code not in PROPER:
                found.append(f"{method}, {name}: {code}: {error.details()}")
    return found
