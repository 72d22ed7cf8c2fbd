"""Reads the messages that a server receives: bounds the size by method, and keeps large ones off the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from zrelay_shared.errors import MessageTooLarge
from zrelay_shared.limits import MAX_REQUEST_BYTES, SMALL_MESSAGE_BYTES
from zrelay_shared.wire import M, Parcel

T = TypeVar("T")
OFF_LOOP_BYTES = 2 << 20
"""Size above which the event loop does not parse a message. Up to it a copy takes about a millisecond."""


def largest_request(service: ServiceDescriptor) -> int:
    """Returns the bytes of the largest request message that any method of a service accepts."""
    return max(_limit(method) for method in service.methods)


async def received(method: MethodDescriptor, request_type: type[M], raw: bytes) -> Parcel[M]:
    """Parses a request message of a method.

    Raises:
        MessageTooLarge: It is larger than `limits.MAX_REQUEST_BYTES` allows for the method, or than
            `SMALL_MESSAGE_BYTES` for a method outside of the contract.
        InvalidArgument: As `Parcel.parse`.
    """
    limit = _limit(method)
    if len(raw) > limit:
        raise MessageTooLarge(
            f"{method.name}: expected a message of at most {limit} bytes, got {len(raw)}: "
            + ("leave out what it does not need" if limit == SMALL_MESSAGE_BYTES else "send fewer or smaller things"),
            metadata={"method": method.name, "bytes": len(raw), "max_bytes": limit},
        )
    return await off_loop(len(raw), lambda: Parcel.parse(request_type, raw))


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """Returns the result of `work`, which runs in a thread if it reads or writes more than `OFF_LOOP_BYTES`."""
    return work() if size <= OFF_LOOP_BYTES else await asyncio.to_thread(work)


def _limit(method: MethodDescriptor) -> int:
    return MAX_REQUEST_BYTES.get(f"{method.containing_service.name}.{method.name}", SMALL_MESSAGE_BYTES)
