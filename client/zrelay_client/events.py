"""Events of a job, and jobs as a generator keeps them, as frozen values.

The events of a job arrive in the order Accepted, Progress and Preview, Image, Done. A Notice may arrive at any time,
and Accepted again after a job was moved to another generator.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from zrelay_shared import atomic
from zrelay_shared.errors import InvalidArgument

ImageFormat = Literal["png", "jpeg", "webp"]
FORMAT_OF: dict[str, ImageFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""Suffix of a file -> its image format."""
SUFFIX_OF: dict[str, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""Image format -> the suffix of new files."""
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a job ("prepare", "denoise", "decode", "encode_image") and its number of work units."""

    name: str
    total: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling settings that a generator uses, with defaults filled in. `seed` is None if none is chosen yet."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    cfg_normalization: float
    cfg_truncation: float
    shift: float
    seed: int | None
    num_images: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """The generator accepted the job and put it into its queue.

    Attributes:
        queue_position: Number of jobs ahead.
        estimated_wait_s, estimated_run_s: Estimates in seconds; 0 while the generator has no measurements.
        sigmas: The noise schedule.
        plan: The stages of the job.
        encoder_relation: "exact", "equivalent", "experimental" or "unverified".
        encoder_differences: Differences between the encoder and the one that the generator expects.
    """

    job_id: str
    request_id: str
    queue_position: int
    estimated_wait_s: float
    estimated_run_s: float
    seed: int
    sampling: Sampling
    sigmas: tuple[float, ...]
    plan: tuple[Stage, ...]
    encoder_relation: str
    encoder_differences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a job. While a job runs but completes no unit, the same unit is reported again every two seconds.

    Attributes:
        state: State of the job.
        stage: The current stage.
        completed, total: Completed units and all units of the stage.
        unit_ms: Device time of the last unit in milliseconds.
        eta_s: Estimated seconds until the result.
        queue_position: Number of jobs ahead while `state` is "queued".
    """

    state: str
    stage: str
    completed: int
    total: int
    unit_ms: float
    eta_s: float
    queue_position: int


@dataclass(frozen=True, slots=True)
class Preview:
    """A small JPEG of an image after a step. A slow reader receives only the latest preview."""

    image_index: int
    step: int
    jpeg: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Image:
    """A finished image.

    Attributes:
        data: The bytes of the image file.
        file_sha256, pixels_sha256: SHA-256 (hex) of the file and of the image's RGB pixels.
    """

    image_index: int
    seed: int
    width: int
    height: int
    format: str
    data: bytes = field(repr=False)
    file_sha256: str
    pixels_sha256: str

    def save(self, path: Path | str) -> None:
        """Writes the image file atomically.

        Raises:
            InvalidArgument: FORMAT_INVALID, the suffix of the path belongs to another format.
            OSError: The file cannot be written.
        """
        file = Path(path)
        named = FORMAT_OF.get(file.suffix.lower(), self.format)
        if named != self.format:
            raise InvalidArgument(
                f"{file.name}: expected a file name for the format {self.format}, got one for {named}: rename the "
                f"file, or generate with format={named!r}",
                field="format",
                reason="FORMAT_INVALID",
            )
        atomic.write_bytes(file, self.data)


@dataclass(frozen=True, slots=True)
class JobTimings:
    """Seconds on the generator per stage. `total_s` is the time from acceptance to the result."""

    queue_s: float
    prepare_s: float
    denoise_s: float
    decode_s: float
    encode_image_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Done:
    """The job is done, and all of its images were sent."""

    images: int
    timings: JobTimings


@dataclass(frozen=True, slots=True)
class Notice:
    """A message for people. The job continues.

    `kind` is "lost" (a generator does not answer, and the client retries), "moved" (the job moved to another generator,
    which makes the same image), "encoder" (another encoder than the first was used) or "size" (the image to start from
    decided about the size).
    """

    kind: str
    message: str


Event: TypeAlias = Accepted | Progress | Preview | Image | Done | Notice


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why a job failed: an UPPER_SNAKE reason for programs, and a message for people."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """The state of a job on a generator.

    Attributes:
        endpoint: Address of the generator.
        state: "queued", "running", "succeeded", "failed" or "cancelled".
        sequence: Sequence number of the latest event.
        progress: None if nothing is known yet.
        failure: None unless the job failed.
        accepted_at, ended_at: Unix time in seconds; `ended_at` is 0 for a job that has not ended.
    """

    job_id: str
    request_id: str
    endpoint: str
    state: str
    sequence: int
    progress: Progress | None
    failure: JobFailure | None
    accepted_at: float
    ended_at: float
    sampling: Sampling

    @property
    def ended(self) -> bool:
        """Whether the job has ended, successfully or not."""
        return self.state in ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of jobs, newest first. `next_token` is "" on the last page."""

    jobs: tuple[Job, ...]
    next_token: str
