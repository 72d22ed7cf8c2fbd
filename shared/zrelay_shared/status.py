"""Converts errors to gRPC statuses with details, and failed calls back to errors."""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from zrelay_shared import errors
from zrelay_shared.errors import DOMAIN, ZrelayError
from zrelay_shared.limits import MAX_MESSAGE_BYTES, MAX_RETRY_AFTER_S, MIB

DETAILS_KEY = "grpc-status-details-bin"
# Trailers travel as HTTP/2 headers, of which gRPC takes 8 KiB: 4 KiB of details are 5.4 KiB in base64, and the message
# travels beside them once more, percent-encoded. The parts below add up to less than MAX_DETAILS_BYTES (a test).
_MAX_MESSAGE_BYTES = 1200
_MAX_MESSAGE_ENCODED = 2000
_MAX_METADATA_BYTES = 1400
_MAX_VALUE_BYTES = 400
_MAX_NAME_BYTES = 200

_LARGER = re.compile(r"larger than max \((\d+) vs\. (\d+)\)")
"""What gRPC says of a message that is too large: its size, and the limit."""
NOT_GRPC = "another program answers, which does not speak gRPC"
_SYSTEM_ERRORS = (
    *(errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT),
    *(errno.EACCES, errno.ENOENT),
)
_MEANINGS = {
    **{words: words[0].lower() + words[1:] for words in map(os.strerror, _SYSTEM_ERRORS)},
    os.strerror(errno.EMFILE): "this process has no free file descriptor (raise its limit with ulimit -n)",
    "Failed parsing HTTP/2": NOT_GRPC,
    "http1": NOT_GRPC,
    "http2 header": NOT_GRPC,
    "too_many_pings": "the server ended the connection because of too many pings",
    **dict.fromkeys(
        ("Socket closed", "reset by peer", "Broken pipe", "GOAWAY", "Connection dropped"), "it closes the connection"
    ),
    **dict.fromkeys(("lookup", "DNS resolution failed", "Name resolution"), "the name does not resolve"),
    "Deadline Exceeded": "no answer in time",
    **dict.fromkeys(("failed to connect to all addresses", "FD Shutdown", "empty address list"), "no answer"),
}
"""A part of gRPC's text -> what it means. The first part that occurs decides."""


def _tree(base: type[ZrelayError]) -> Iterator[type[ZrelayError]]:
    for child in base.__subclasses__():
        yield child
        yield from _tree(child)


CLASSES = tuple(_tree(ZrelayError))
BY_REASON = {reason: child for child in CLASSES for reason in (child.default_reason, *child.further_reasons)}
BY_CODE = {child.code: child for child in CLASSES if child.__base__ is ZrelayError}


def to_status(error: ZrelayError) -> status_pb2.Status:
    """Returns the google.rpc.Status of an error.

    It always holds an ErrorInfo; BadRequest, RetryInfo and PreconditionFailure if they apply. Long texts are cut, so
    that the whole takes at most 4 KiB.
    """
    message = _cut(_cut(error.message, _MAX_MESSAGE_BYTES), _MAX_MESSAGE_ENCODED, _encoded_bytes)
    status = status_pb2.Status(code=getattr(grpc.StatusCode, error.code).value[0], message=message)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=_cut(error.reason, _MAX_NAME_BYTES), domain=DOMAIN, metadata=_bounded(error.metadata)
        )
    ]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(error.field, _MAX_NAME_BYTES), description=_cut(message, _MAX_VALUE_BYTES)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(int(_retry_after_s(error.retry_after_s) * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, errors.FailedPrecondition):
        broken = error_details_pb2.PreconditionFailure.Violation(
            type=_cut(error.reason, _MAX_NAME_BYTES), subject=_cut(error.metadata.get("subject", ""), _MAX_NAME_BYTES)
        )
        details.append(error_details_pb2.PreconditionFailure(violations=[broken]))
    for detail in details:
        status.details.add().Pack(detail)
    return status


def _retry_after_s(seconds: float) -> float:
    """Returns a retry hint within its bounds. A peer may send any number."""
    return max(seconds, 0.0) if seconds <= MAX_RETRY_AFTER_S else MAX_RETRY_AFTER_S


def _bounded(metadata: Mapping[str, str]) -> dict[str, str]:
    """Returns as many entries of the metadata as fit into their share of the details, long values cut."""
    out: dict[str, str] = {}
    left = _MAX_METADATA_BYTES
    for name, text in metadata.items():
        key, value = _cut(name, 64), _cut(text, _MAX_VALUE_BYTES)
        left -= len(key.encode()) + len(value.encode()) + 12  # tags and lengths of a map entry
        if left < 0:
            break
        out[key] = value
    return out


def _cut(text: str, most: int, measure: Callable[[str], int] = lambda text: len(text.encode())) -> str:
    """Cuts `text` to `most` bytes by `measure` and appends "..." if it was cut. Lone surrogates become "?".

    A character has at least one byte by any measure, so that no more than `most` characters are looked at.
    """
    whole = text[: most + 1].encode("utf-8", "replace").decode()
    if measure(whole) <= most:
        return whole
    low, high = 0, len(whole)
    while low < high:  # the longest prefix that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if measure(whole[:middle]) + 3 <= most else (low, middle - 1)
    return whole[:low] + "..."


def _encoded_bytes(text: str) -> int:
    """Returns the size of a grpc-message, in which everything but printable ASCII, and %, takes three bytes."""
    return sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in text.encode())


def trailers(error: ZrelayError) -> tuple[tuple[str, bytes], ...]:
    """Returns the trailing metadata with the details of an error."""
    return ((DETAILS_KEY, to_status(error).SerializeToString()),)


def from_call(call: grpc.RpcError, *, service: str, endpoint: str = "") -> ZrelayError:
    """Converts a failed call to an error; the inverse of `to_status`.

    Args:
        call: The failed call.
        service: Role of the service, for messages about errors that gRPC itself reports.
        endpoint: Where the service is, likewise.

    Returns:
        The error that the server raised, or one of the class that belongs to the status code.
    """
    code, text = call.code(), call.details() or ""
    metadata: Any = call.trailing_metadata() or ()  # a sequence of pairs; the stubs are wrong
    for key, value in metadata:
        if key == DETAILS_KEY:
            with contextlib.suppress(DecodeError):  # not written by zrelay: use the status alone
                return _from_details(code.name, text, value if isinstance(value, bytes) else value.encode())
    return _from_transport(code.name, text, service, endpoint)


def _from_details(code: str, text: str, raw: bytes) -> ZrelayError:
    status = status_pb2.Status.FromString(raw)
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status.details:
        for kind in (info, bad, retry):
            if detail.Is(kind.DESCRIPTOR):
                detail.Unpack(kind)
    kind_of = BY_REASON.get(info.reason) or BY_CODE.get(code, ZrelayError)
    if kind_of.code != code:
        kind_of = BY_CODE.get(code, ZrelayError)
    return kind_of(
        status.message or text,
        reason=info.reason or None,
        field=bad.field_violations[0].field if bad.field_violations else "",
        metadata=dict(info.metadata),
        retry_after_s=_received_hint(retry),
    )


def _received_hint(retry: error_details_pb2.RetryInfo) -> float | None:
    """Returns the retry hint of a status, None without one."""
    seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return _retry_after_s(seconds) if retry.HasField("retry_delay") else None


def plain_words(text: str) -> str:
    """Returns why a call failed in plain words, from the text of gRPC; the text itself where it is another's."""
    return next((meaning for part, meaning in _MEANINGS.items() if part in text), text) or "no answer"


def _from_transport(code: str, text: str, service: str, endpoint: str) -> ZrelayError:
    """Returns the error for a status that gRPC itself reports, with a message that says what to do."""
    where = f"the {service} service" + (f" at {endpoint}" if endpoint else "")
    meta = {"service": service, "endpoint": endpoint, "grpc": text[:_MAX_VALUE_BYTES]}
    if code == "RESOURCE_EXHAUSTED" and "message" in text.lower() and "larger" in text.lower():
        sizes = _LARGER.search(text)
        size, limit = sizes.groups() if sizes else (None, MAX_MESSAGE_BYTES)
        return errors.MessageTooLarge(
            f"a message to or from {where} is over the limit of {int(limit) // MIB} MiB: "
            "request fewer prompts or images in one call, or a smaller image",
            metadata={**meta, "max_bytes": limit} | ({"bytes": size} if size else {}),
        )
    if code == "UNAVAILABLE":
        return errors.Unavailable(
            f"cannot reach {where}: {plain_words(text)}; is it running, and is the endpoint right? "
            "`zrelay doctor` checks every hop",
            metadata=meta,
        )
    if code == "DEADLINE_EXCEEDED":
        return errors.DeadlineExceeded(
            f"{where} did not answer in time: allow more time, or request less", metadata={**meta, "stage": service}
        )
    if code == "UNIMPLEMENTED" and plain_words(text) != NOT_GRPC:
        return errors.FeatureMissing(
            f"{where} does not have this method: it is another service or an older zrelay",
            metadata=meta,
        )
    if code == "CANCELLED":
        return errors.Cancelled(f"{where} ended the call: {text or 'cancelled'}", metadata=meta)
    kind = BY_CODE.get(code, errors.InternalError)
    if (why := plain_words(text)) == NOT_GRPC:
        return kind(f"{where} is no service of zrelay: {why}; is the port right?", metadata=meta)
    return kind(f"{where} failed: {code} {text}".rstrip(), metadata=meta)
