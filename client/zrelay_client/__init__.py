"""zrelay's client library.

    from zrelay_client import Client

    with Client() as client:  # configured services, or those of `zrelay up`; or Client(encoder=..., generator=...)
        result = client.generate("a red fox", seed=7)
        result.images[0].save("fox.png")

`AsyncClient` is the same for asyncio. Failures are ZrelayError and its subclasses (see zrelay_shared.errors).
"""

from typing import TYPE_CHECKING

from zrelay_shared import __version__

if TYPE_CHECKING:
    from zrelay_client._transport.credentials import TlsOptions, Token
    from zrelay_client._transport.endpoint import Endpoint
    from zrelay_client.client import AsyncClient
    from zrelay_client.embeds import Conditioned, ConditionReport, Embeds, EmbedsStatistics, PromptReport
    from zrelay_client.events import (
        Accepted,
        Done,
        Event,
        Image,
        Job,
        JobFailure,
        JobTimings,
        Notice,
        Preview,
        Progress,
        Sampling,
        Stage,
    )
    from zrelay_client.image_embeds import ImageEmbeds, ImageScores
    from zrelay_client.info import (
        Device,
        EncoderInfo,
        Feature,
        GeneratorInfo,
        Info,
        Limits,
        Queue,
        ServiceStatus,
        VisionEngine,
        VisionInfo,
    )
    from zrelay_client.jobs import AsyncJobs
    from zrelay_client.options import (
        ConditionKeywords,
        ConditionOptions,
        EncodeImagesKeywords,
        EncodeImagesOptions,
        EncodeKeywords,
        EncodeOptions,
        GenerateKeywords,
        GenerateOptions,
    )
    from zrelay_client.provenance import read_provenance
    from zrelay_client.results import Outcome, Result, Timings
    from zrelay_client.settings import Settings
    from zrelay_client.sync import Client, Jobs
    from zrelay_shared.errors import (
        Cancelled,
        CheckpointError,
        DeadlineExceeded,
        Draining,
        EncoderMismatch,
        FailedPrecondition,
        FeatureMissing,
        IdempotencyConflict,
        InternalError,
        InvalidArgument,
        LoraIncompatible,
        MessageTooLarge,
        ModelLoading,
        NotFound,
        OutOfMemory,
        PayloadCorrupt,
        PermissionDenied,
        QueueFull,
        QuotaExceeded,
        ResourceExhausted,
        Unauthenticated,
        Unavailable,
        ZrelayError,
    )
    from zrelay_shared.fingerprint import EncoderFingerprint
    from zrelay_shared.vision_fingerprint import VisionFingerprint

_HOMES = {
    "zrelay_client.client": ("AsyncClient",),
    "zrelay_client.jobs": ("AsyncJobs",),
    "zrelay_client.sync": (
        "Client",
        "Jobs",
    ),
    "zrelay_client.embeds": (
        "Conditioned",
        "ConditionReport",
        "Embeds",
        "EmbedsStatistics",
        "PromptReport",
    ),
    "zrelay_client.events": (
        "Accepted",
        "Done",
        "Event",
        "Image",
        "Job",
        "JobFailure",
        "JobTimings",
        "Notice",
        "Preview",
        "Progress",
        "Sampling",
        "Stage",
    ),
    "zrelay_client.image_embeds": (
        "ImageEmbeds",
        "ImageScores",
    ),
    "zrelay_client.info": (
        "Device",
        "EncoderInfo",
        "Feature",
        "GeneratorInfo",
        "Info",
        "Limits",
        "Queue",
        "ServiceStatus",
        "VisionEngine",
        "VisionInfo",
    ),
    "zrelay_client.options": (
        "ConditionKeywords",
        "ConditionOptions",
        "EncodeImagesKeywords",
        "EncodeImagesOptions",
        "EncodeKeywords",
        "EncodeOptions",
        "GenerateKeywords",
        "GenerateOptions",
    ),
    "zrelay_client.provenance": ("read_provenance",),
    "zrelay_client.results": (
        "Outcome",
        "Result",
        "Timings",
    ),
    "zrelay_client.settings": ("Settings",),
    "zrelay_client._transport.credentials": ("TlsOptions", "Token"),
    "zrelay_client._transport.endpoint": ("Endpoint",),
    "zrelay_shared.fingerprint": ("EncoderFingerprint",),
    "zrelay_shared.vision_fingerprint": ("VisionFingerprint",),
    "zrelay_shared.errors": (
        "Cancelled",
        "CheckpointError",
        "DeadlineExceeded",
        "Draining",
        "EncoderMismatch",
        "FailedPrecondition",
        "FeatureMissing",
        "IdempotencyConflict",
        "InternalError",
        "InvalidArgument",
        "LoraIncompatible",
        "MessageTooLarge",
        "ModelLoading",
        "NotFound",
        "OutOfMemory",
        "PayloadCorrupt",
        "PermissionDenied",
        "QueueFull",
        "QuotaExceeded",
        "ResourceExhausted",
        "Unauthenticated",
        "Unavailable",
        "ZrelayError",
    ),
}
"""Module -> its public names. A module is imported when one of its names is first used: `zrelay --help` uses none."""

__all__ = [
    "Accepted",
    "AsyncClient",
    "AsyncJobs",
    "Cancelled",
    "CheckpointError",
    "Client",
    "ConditionKeywords",
    "ConditionOptions",
    "ConditionReport",
    "Conditioned",
    "DeadlineExceeded",
    "Device",
    "Done",
    "Draining",
    "Embeds",
    "EmbedsStatistics",
    "EncodeImagesKeywords",
    "EncodeImagesOptions",
    "EncodeKeywords",
    "EncodeOptions",
    "EncoderFingerprint",
    "EncoderInfo",
    "EncoderMismatch",
    "Endpoint",
    "Event",
    "FailedPrecondition",
    "Feature",
    "FeatureMissing",
    "GenerateKeywords",
    "GenerateOptions",
    "GeneratorInfo",
    "IdempotencyConflict",
    "Image",
    "ImageEmbeds",
    "ImageScores",
    "Info",
    "InternalError",
    "InvalidArgument",
    "Job",
    "JobFailure",
    "JobTimings",
    "Jobs",
    "Limits",
    "LoraIncompatible",
    "MessageTooLarge",
    "ModelLoading",
    "NotFound",
    "Notice",
    "OutOfMemory",
    "Outcome",
    "PayloadCorrupt",
    "PermissionDenied",
    "Preview",
    "Progress",
    "PromptReport",
    "Queue",
    "QueueFull",
    "QuotaExceeded",
    "ResourceExhausted",
    "Result",
    "Sampling",
    "ServiceStatus",
    "Settings",
    "Stage",
    "Timings",
    "TlsOptions",
    "Token",
    "Unauthenticated",
    "Unavailable",
    "VisionEngine",
    "VisionFingerprint",
    "VisionInfo",
    "ZrelayError",
    "__version__",
    "read_provenance",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
