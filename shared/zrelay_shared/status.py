"""Refusals over the wire: ZrelayError to a gRPC status with details, and a failed call back to a ZrelayError."""

from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from zrelay_shared import errors
from zrelay_shared.errors import DOMAIN, ZrelayError
from zrelay_shared.limits import MAX_DETAILS_BYTES, MAX_MESSAGE_BYTES

DETAILS_KEY = "grpc-status-details-bin"
_MAX_MESSAGE_CHARS = 1500
_MAX_METADATA_CHARS = 400


def _tree(base: type[ZrelayError]) -> Iterator[type[ZrelayError]]:
    for child in base.__subclasses__():
        yield child
        yield from _tree(child)


BY_REASON = {child.default_reason: child for child in _tree(ZrelayError)}
BY_CODE = {child.code: child for child in reversed(list(_tree(ZrelayError))) if child.__base__ is ZrelayError}


def to_status(error: ZrelayError) -> status_pb2.Status:
    """The google.rpc.Status of a refusal: ErrorInfo always; BadRequest, RetryInfo, PreconditionFailure where they fit.

    At most 4 KB: long texts are cut.
    """
    message = error.message[:_MAX_MESSAGE_CHARS]
    metadata = {key[:64]: value[:_MAX_METADATA_CHARS] for key, value in list(error.metadata.items())[:20]}
    status = status_pb2.Status(code=getattr(grpc.StatusCode, error.code).value[0], message=message)
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, errors.FailedPrecondition):
        subject = error.metadata.get("subject", "")[:_MAX_METADATA_CHARS]
        broken = error_details_pb2.PreconditionFailure.Violation(type=error.reason, subject=subject)
        details.append(error_details_pb2.PreconditionFailure(violations=[broken]))
    for detail in details:
        packed = status.details.add()
        packed.Pack(detail)
        if status.ByteSize() > MAX_DETAILS_BYTES:
            status.details.pop()
    return status


def trailers(error: ZrelayError) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries a refusal's details."""
    return ((DETAILS_KEY, to_status(error).SerializeToString()),)


def from_call(call: grpc.RpcError, *, service: str, endpoint: str = "") -> ZrelayError:
    """What a failed call means. `service` and `endpoint` name the far end for what gRPC refuses by itself.

    The inverse of `to_status` for our own refusals; anything else becomes the class of its code.
    """
    code, text = call.code(), call.details() or ""
    metadata: Any = call.trailing_metadata() or ()  # pairs, whatever the stubs say
    for key, value in metadata:
        if key == DETAILS_KEY:
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
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None,
    )


def _from_transport(code: str, text: str, service: str, endpoint: str) -> ZrelayError:
    """What gRPC says by itself, in words that say what to do."""
    where = f"the {service} service" + (f" at {endpoint}" if endpoint else "")
    meta = {"service": service, "endpoint": endpoint, "grpc": text[:_MAX_METADATA_CHARS]}
    if code == "RESOURCE_EXHAUSTED" and "message" in text.lower() and "larger" in text.lower():
        return errors.MessageTooLarge(
            f"a message to or from {where} is over the limit of {MAX_MESSAGE_BYTES >> 20} MiB ({text}): "
            "ask for fewer prompts or images in one call, or a smaller picture",
            metadata=meta,
        )
    if code == "UNAVAILABLE":
        return errors.Unavailable(
            f"cannot reach {where}: {text or 'no answer'}; is it running, and is the endpoint right? "
            "`zrelay doctor` checks every hop",
            metadata=meta,
        )
    if code == "DEADLINE_EXCEEDED":
        return errors.DeadlineExceeded(f"{where} did not answer in time", metadata={**meta, "stage": service})
    if code == "UNIMPLEMENTED":
        return errors.FeatureMissing(
            f"{where} does not know this call ({text}): it is another service or an older zrelay", metadata=meta
        )
    if code == "CANCELLED":
        return errors.Cancelled(f"{where} ended the call: {text or 'cancelled'}", metadata=meta)
    kind = BY_CODE.get(code, errors.InternalError)
    return kind(f"{where} failed: {code} {text}".rstrip(), metadata=meta)
