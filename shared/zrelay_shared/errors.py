"""The one table of refusals: an exception tree, its status codes, and the way over the wire and back.

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
    ├── DeadlineExceeded       DEADLINE_EXCEEDED     names the stage that spent the budget
    ├── Cancelled              CANCELLED
    └── InternalError          INTERNAL              a bug; nothing about it but an id travels

Every refusal carries a google.rpc.ErrorInfo whose reason and metadata say the same to a program that the
message says to a person. `zrelay_shared.status` turns these into gRPC statuses and back.
"""

from collections.abc import Mapping
from typing import ClassVar

DOMAIN = "zrelay"
MAX_LISTED = 20
"""Names listed in one refusal; longer lists are cut and say how many there are."""


class ZrelayError(Exception):
    """A refusal: what was expected, what was got, what to do.

    Attributes: `message` for a person; `reason` (UPPER_SNAKE) and `metadata` for a program; `field` the path of
    the request field at fault or ""; `retry_after_s` seconds until a retry is sensible, or None.
    """

    code: ClassVar[str] = "UNKNOWN"
    default_reason: ClassVar[str] = "UNKNOWN"
    further_reasons: ClassVar[tuple[str, ...]] = ()
    """Other reasons that mean this class and not its parent, where it arrives over the wire."""
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
    """A request field is wrong: `InvalidArgument("width must be ...", field="width", reason="WIDTH_INVALID")`."""

    code = "INVALID_ARGUMENT"
    default_reason = "INVALID_ARGUMENT"


class PayloadCorrupt(ZrelayError):
    """Bytes arrived that do not match their checksum."""

    code = "DATA_LOSS"
    default_reason = "CHECKSUM_MISMATCH"


class FailedPrecondition(ZrelayError):
    """The request is well formed and this server cannot serve it as it stands."""

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
    """There is not enough of something."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = "RESOURCE_EXHAUSTED"


class QueueFull(ResourceExhausted):
    """The queue is full; come back after `retry_after_s`."""

    default_reason = "QUEUE_FULL"
    default_retry_after_s = 1.0


class QuotaExceeded(ResourceExhausted):
    """Too much for one caller at a time."""

    default_reason = "QUOTA"
    default_retry_after_s = 1.0


class OutOfMemory(ResourceExhausted):
    """The device has not the memory for this job; retrying does not help, a smaller job does."""

    default_reason = "OUT_OF_MEMORY"


class MessageTooLarge(ResourceExhausted):
    """A message is over the limit of one end."""

    default_reason = "MESSAGE_TOO_LARGE"


class FeatureMissing(ZrelayError):
    """This server does not do that; its GetInfo lists what it does."""

    code = "UNIMPLEMENTED"
    default_reason = "FEATURE_MISSING"


class Unavailable(ZrelayError):
    """The service cannot be reached or cannot answer now."""

    code = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"


class ModelLoading(Unavailable):
    """The model is still being loaded."""

    default_reason = "MODEL_LOADING"
    default_retry_after_s = 2.0


class Draining(Unavailable):
    """The server is going away and takes no new work."""

    default_reason = "DRAINING"
    default_retry_after_s = 2.0


class Unauthenticated(ZrelayError):
    """No credentials, or bad ones."""

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
    """The same request_id with other content."""

    code = "ALREADY_EXISTS"
    default_reason = "IDEMPOTENCY_CONFLICT"


class DeadlineExceeded(ZrelayError):
    """The budget is spent; `metadata["stage"]` says where."""

    code = "DEADLINE_EXCEEDED"
    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(ZrelayError):
    """The caller went away or asked for it."""

    code = "CANCELLED"
    default_reason = "CANCELLED"
    further_reasons = ("LEASE_EXPIRED",)


class InternalError(ZrelayError):
    """A bug in the server; the log holds the rest under the same incident id."""

    code = "INTERNAL"
    default_reason = "INTERNAL"


def listed(names: "list[str] | tuple[str, ...]") -> str:
    """`a, b, c`, cut after 20 names with the count of the rest, so that details stay under gRPC's limits."""
    shown = ", ".join(names[:MAX_LISTED])
    more = len(names) - MAX_LISTED
    return f"{shown} (and {more} more)" if more > 0 else shown
