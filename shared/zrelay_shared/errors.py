"""The errors of zrelay: one exception tree, with the status code and reason of each class.

    ZrelayError
    ├── InvalidArgument        INVALID_ARGUMENT      a field is wrong (names the field)
    ├── PayloadCorrupt         DATA_LOSS             a checksum does not match
    ├── FailedPrecondition     FAILED_PRECONDITION   the parts do not fit
    │   ├── EncoderMismatch        ENCODER_MISMATCH
    │   ├── LoraIncompatible       LORA_INCOMPATIBLE
    │   └── CheckpointError        CHECKPOINT_INVALID (start-up)
    ├── ResourceExhausted      RESOURCE_EXHAUSTED
    │   ├── QueueFull              QUEUE_FULL        with a retry hint
    │   ├── QuotaExceeded          QUOTA             with a retry hint
    │   ├── OutOfMemory            OUT_OF_MEMORY     without one
    │   └── MessageTooLarge        MESSAGE_TOO_LARGE
    ├── FeatureMissing         UNIMPLEMENTED         not built into this server
    ├── Unavailable            UNAVAILABLE
    │   ├── ModelLoading           MODEL_LOADING     with a retry hint
    │   └── Draining               DRAINING          with a retry hint
    ├── Unauthenticated        UNAUTHENTICATED
    ├── PermissionDenied       PERMISSION_DENIED
    ├── NotFound               NOT_FOUND
    ├── IdempotencyConflict    ALREADY_EXISTS
    ├── DeadlineExceeded       DEADLINE_EXCEEDED     names the stage that used the time
    ├── Cancelled              CANCELLED
    └── InternalError          INTERNAL              a bug; only an incident id is sent

Every error travels with a google.rpc.ErrorInfo, whose reason and metadata give a program the information that the
message gives a person. `zrelay_shared.status` converts errors to gRPC statuses and back.
"""

import re
from collections.abc import Mapping
from typing import ClassVar

DOMAIN = "zrelay"
MAX_LISTED = 20
"""Names in one message; longer lists are cut and end with the number of the rest."""


class ZrelayError(Exception):
    """Base class of all errors. A message says what was expected, what was received, and what to do.

    Attributes:
        message: Text for a person.
        reason: UPPER_SNAKE reason for a program.
        metadata: Further details for a program.
        field: Path of the request field at fault, "" for none.
        retry_after_s: Seconds until a retry is sensible, None if a retry does not help.
    """

    code: ClassVar[str] = "UNKNOWN"
    default_reason: ClassVar[str] = "UNKNOWN"
    further_reasons: ClassVar[tuple[str, ...]] = ()
    """Other reasons that are converted to this class and not to its parent."""
    default_retry_after_s: ClassVar[float | None] = None

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        field: str = "",
        metadata: Mapping[str, object] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.field = field
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}
        self.retry_after_s = retry_after_s if retry_after_s is not None else self.default_retry_after_s


class InvalidArgument(ZrelayError):
    """A request field is wrong; `invalid` and `invalid_from` make most of them."""

    code = "INVALID_ARGUMENT"
    default_reason = "INVALID_ARGUMENT"


class PayloadCorrupt(ZrelayError):
    """Received bytes do not match their checksum."""

    code = "DATA_LOSS"
    default_reason = "CHECKSUM_MISMATCH"


class FailedPrecondition(ZrelayError):
    """The request is well formed, but this server cannot serve it in its present state."""

    code = "FAILED_PRECONDITION"
    default_reason = "FAILED_PRECONDITION"


class EncoderMismatch(FailedPrecondition):
    """The embeddings come from an encoder that this generator was not trained with."""

    default_reason = "ENCODER_MISMATCH"
    further_reasons = ("FINGERPRINT_INVALID",)


class LoraIncompatible(FailedPrecondition):
    """The LoRA belongs to another base model."""

    default_reason = "LORA_INCOMPATIBLE"


class CheckpointError(FailedPrecondition):
    """A model folder cannot be loaded; the message names the file and what it should hold."""

    default_reason = "CHECKPOINT_INVALID"
    further_reasons = ("PICKLE_REFUSED",)


class ResourceExhausted(ZrelayError):
    """A resource is exhausted."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = "RESOURCE_EXHAUSTED"


class QueueFull(ResourceExhausted):
    """The queue is full; retry after `retry_after_s`."""

    default_reason = "QUEUE_FULL"
    default_retry_after_s = 1.0


class QuotaExceeded(ResourceExhausted):
    """A limit per caller is exceeded."""

    default_reason = "QUOTA"
    further_reasons = ("CALLS_EXCEEDED",)
    default_retry_after_s = 1.0


class OutOfMemory(ResourceExhausted):
    """The device has too little memory for this job; a retry does not help, a smaller job does."""

    default_reason = "OUT_OF_MEMORY"


class MessageTooLarge(ResourceExhausted):
    """A message exceeds the size limit of client or server."""

    default_reason = "MESSAGE_TOO_LARGE"


class FeatureMissing(ZrelayError):
    """This server does not have the feature; its GetInfo lists the features that it has."""

    code = "UNIMPLEMENTED"
    default_reason = "FEATURE_MISSING"


class Unavailable(ZrelayError):
    """The service cannot be reached, or cannot answer at the moment."""

    code = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"


class ModelLoading(Unavailable):
    """The model is still being loaded."""

    default_reason = "MODEL_LOADING"
    default_retry_after_s = 2.0


class Draining(Unavailable):
    """The server is shutting down and takes no new calls."""

    default_reason = "DRAINING"
    default_retry_after_s = 2.0


class Unauthenticated(ZrelayError):
    """Credentials are missing or invalid."""

    code = "UNAUTHENTICATED"
    default_reason = "UNAUTHENTICATED"


class PermissionDenied(ZrelayError):
    """The credentials do not allow this."""

    code = "PERMISSION_DENIED"
    default_reason = "PERMISSION_DENIED"


class NotFound(ZrelayError):
    """An unknown job, LoRA or content digest."""

    code = "NOT_FOUND"
    default_reason = "NOT_FOUND"


class IdempotencyConflict(ZrelayError):
    """A request_id was used before with other content."""

    code = "ALREADY_EXISTS"
    default_reason = "IDEMPOTENCY_CONFLICT"


class DeadlineExceeded(ZrelayError):
    """The time limit is exceeded; `metadata["stage"]` names the stage."""

    code = "DEADLINE_EXCEEDED"
    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(ZrelayError):
    """The call was cancelled, or its client disconnected."""

    code = "CANCELLED"
    default_reason = "CANCELLED"
    further_reasons = ("LEASE_EXPIRED",)


class InternalError(ZrelayError):
    """A bug in the server; its log holds the details under the same incident id."""

    code = "INTERNAL"
    default_reason = "INTERNAL"


def invalid(
    field: str,
    expected: str,
    got: object,
    *,
    reason: str = "",
    remedy: str = "",
    subject: str = "",
    metadata: Mapping[str, object] | None = None,
) -> InvalidArgument:
    """Makes the refusal of a field's value.

    Args:
        field: Path of the field in the request, for example `spec.sampling.width`.
        expected: What the field may be, in words.
        got: What it is.
        reason: UPPER_SNAKE reason for programs; by default the last part of `field` followed by `_INVALID`.
        remedy: What the caller can do, added to the message after a semicolon.
        subject: What the message names instead of `field`, for example the file that the value comes from.
        metadata: Further details for programs. An entry `expected` or `got` replaces the words of the message.

    Returns:
        An error whose message is `<field>: expected <expected>, got <got>; <remedy>` and whose metadata holds
        `expected` and `got`.
    """
    return InvalidArgument(
        f"{subject or field}: expected {expected}, got {got}{f'; {remedy}' if remedy else ''}",
        field=field,
        reason=reason or _reason(field),
        metadata={"expected": expected, "got": got, **(metadata or {})},
    )


def invalid_from(field: str, error: ValueError, *, reason: str = "", remedy: str = "") -> InvalidArgument:
    """Converts a ValueError into the refusal of a request field.

    Args:
        field: Path of the field in the request.
        error: Its message is `expected X, got Y`, or `argument: expected X, got Y`.
        reason: As in `invalid`.
        remedy: As in `invalid`.

    Returns:
        An error with a message like those of `invalid`, without metadata.
    """
    text = re.sub(r"^\w+: ", "", str(error))
    return InvalidArgument(
        f"{field}: {text}{f'; {remedy}' if remedy else ''}", field=field, reason=reason or _reason(field)
    )


def _reason(field: str) -> str:
    return f"{field.rpartition('.')[2].partition('[')[0].upper()}_INVALID"


def listed(names: "list[str] | tuple[str, ...]") -> str:
    """Returns `a, b, c`, cut after 20 names, so that messages stay within gRPC's limits."""
    shown = ", ".join(names[:MAX_LISTED])
    more = len(names) - MAX_LISTED
    return f"{shown} (and {more} more)" if more > 0 else shown
