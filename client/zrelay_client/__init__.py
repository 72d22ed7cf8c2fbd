"""zrelay's client library.

    from zrelay_client import Client

    with Client() as client:  # configured services, or those of `zrelay up`; or Client(encoder=..., generator=...)
        result = client.generate("a red fox", seed=7)
        result.images[0].save("fox.png")

`AsyncClient` is the same for asyncio. Failures are ZrelayError and its kinds (zrelay_shared.errors has the tree).
"""

from typing import TYPE_CHECKING

from zrelay_shared import __version__

if TYPE_CHECKING:
    from zrelay_client._async_client import AsyncClient
    from zrelay_client._async_jobs import AsyncJobs
    from zrelay_client._embeds import Embeds, PromptReport
    from zrelay_client._events import (
        Accepted,
        Done,
        Event,
        Image,
        JobTimings,
        Notice,
        Preview,
        Progress,
        Sampling,
        Stage,
    )
    from zrelay_client._info import (
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
    from zrelay_client._jobs import Job, JobFailure
    from zrelay_client._many import Outcome
    from zrelay_client._options import EncodeOptions, GenerateOptions
    from zrelay_client._provenance import read_provenance
    from zrelay_client._results import Result, Timings
    from zrelay_client._sync_client import Client, Jobs
    from zrelay_client._vision_embeds import Conditioned, ConditionReport, EmbedsStatistics, ImageEmbeds, ImageScores
    from zrelay_client._vision_options import ConditionOptions, EncodeImagesOptions
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

_HOMES = (
    "zrelay_client._sync_client",
    "zrelay_client._async_client",
    "zrelay_client._async_jobs",
    "zrelay_client._events",
    "zrelay_client._info",
    "zrelay_client._jobs",
    "zrelay_client._many",
    "zrelay_client._options",
    "zrelay_client._results",
    "zrelay_client._embeds",
    "zrelay_client._provenance",
    "zrelay_client._vision_embeds",
    "zrelay_client._vision_options",
    "zrelay_shared.errors",
    "zrelay_shared.fingerprint",
    "zrelay_shared.vision_fingerprint",
)
"""Where public names live: imported when the first is used, since the CLI's `--help` needs none of them."""

__all__ = [
    "Accepted",
    "AsyncClient",
    "AsyncJobs",
    "Cancelled",
    "CheckpointError",
    "Client",
    "ConditionOptions",
    "ConditionReport",
    "Conditioned",
    "DeadlineExceeded",
    "Device",
    "Done",
    "Draining",
    "Embeds",
    "EmbedsStatistics",
    "EncodeImagesOptions",
    "EncodeOptions",
    "EncoderFingerprint",
    "EncoderInfo",
    "EncoderMismatch",
    "Event",
    "FailedPrecondition",
    "Feature",
    "FeatureMissing",
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
    "Stage",
    "Timings",
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
    if name in __all__:
        from importlib import import_module

        for home in _HOMES:
            if hasattr(module := import_module(home), name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
