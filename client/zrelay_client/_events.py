"""What happens to a job, as frozen values, in the order Accepted, Progress and Preview, Image, Done.

A Notice may come at any time, and Accepted again where the job was moved to another generator.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from zrelay_client._formats import FORMAT_OF
from zrelay_shared import atomic
from zrelay_shared.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the plan ("prepare", "denoise", "decode", "encode_image") and its units of work."""

    name: str
    total: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """Every setting as the generator uses it, defaults filled in; `seed` is None where none is chosen yet."""

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
    """The job is in the queue. Seconds are estimates, 0 while the server has not measured itself.

    `encoder_relation` is "exact", "equivalent", "experimental" or "unverified"; `encoder_differences` say why.
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
    """`completed` of `total` units of `stage` are done; while `state` is "queued", `queue_position` jobs are ahead.

    `unit_ms` is what the last unit took on the device, `eta_s` the estimated seconds until the result. A job that has
    begun and moves no further, since it stands aside or a step is long, is told of every two seconds: the same unit,
    another `eta_s`.
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
    """A small JPEG of an image after a step; slow readers get the latest, never all."""

    image_index: int
    step: int
    jpeg: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Image:
    """A finished picture: the file's bytes, and the SHA-256 (hex) of the file and of its RGB pixels."""

    image_index: int
    seed: int
    width: int
    height: int
    format: str
    data: bytes = field(repr=False)
    file_sha256: str
    pixels_sha256: str

    def save(self, path: Path | str) -> None:
        """Writes the file, whole or not at all. Raises OSError, and InvalidArgument for another format's suffix."""
        file = Path(path)
        named = FORMAT_OF.get(file.suffix.lower(), self.format)
        if named != self.format:
            raise InvalidArgument(
                f"{file.name}: expected a name for a {self.format} picture, got one for {named}: name it otherwise, or "
                f"generate with format={named!r}",
                field="format",
                reason="FORMAT_INVALID",
            )
        atomic.write_bytes(file, self.data)


@dataclass(frozen=True, slots=True)
class JobTimings:
    """Seconds on the generator, by stage; `total_s` from acceptance to the result."""

    queue_s: float
    prepare_s: float
    denoise_s: float
    decode_s: float
    encode_image_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Done:
    """Every image was sent."""

    images: int
    timings: JobTimings


@dataclass(frozen=True, slots=True)
class Notice:
    """Something on the way that a person may want to know; the job goes on.

    `kind` is "lost" (a generator does not answer, it is tried again), "moved" (to another generator; the picture stays
    the same) or "encoder" (another encoder than the first was used, or may not be).
    """

    kind: str
    message: str


Event: TypeAlias = Accepted | Progress | Preview | Image | Done | Notice
