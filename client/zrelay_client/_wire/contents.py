"""Contents: inputs of a job that are uploaded to a generator once and then named by their digest."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zrelay_shared.wire import Parcel

MIN_BYTES = 2048
"""Smaller contents travel within each request, since naming them would save nothing."""


@dataclass(frozen=True, slots=True)
class Content:
    """The name of some bytes. `make` builds the bytes again for an upload, so that they are not kept in memory."""

    sha256: str
    size_bytes: int
    make: Callable[[], bytes]


def content_of(parcel: Parcel[Any], part: Any) -> Content:
    """Returns a sub-message of a parcel, serialised, as content."""

    def make() -> bytes:
        copy = Parcel(type(part)(), parcel)
        copy.message.CopyFrom(part)
        return copy.to_bytes()

    data = make()
    return Content(hashlib.sha256(data).hexdigest(), len(data), make)


def content_of_file(data: bytes) -> Content:
    """Returns the bytes of a file as content."""
    return Content(hashlib.sha256(data).hexdigest(), len(data), lambda: data)
