"""What happens to a job, as frozen values: the engine speaks them, the border turns them into messages."""

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from zrelay_generator.engine.job import Timings
from zrelay_generator.images.writing import ImageFormat
from zrelay_shared.errors import ZrelayError


class Stage(StrEnum):
    """Stages of a job, in the order in which they run."""

    PREPARE = "prepare"
    DENOISE = "denoise"
    DECODE = "decode"
    ENCODE_IMAGE = "encode_image"


@dataclass(frozen=True, slots=True)
class Accepted:
    """Always the first event: requests ahead, and the estimated seconds (0 while nothing was measured)."""

    queue_position: int
    wait_s: float
    run_s: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """The job still waits: a heart-beat."""

    queue_position: int
    eta_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """`completed` of `total` units of a stage are done; the last took `unit_s` on the device; `eta_s` until the end."""

    stage: Stage
    completed: int
    total: int
    unit_s: float
    eta_s: float


@dataclass(frozen=True, slots=True)
class Preview:
    """A small JPEG of an image after a step."""

    image_index: int
    step: int
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Image:
    """A finished image: the file, and the SHA-256 (hex) of the file and of its RGB pixels."""

    image_index: int
    seed: int
    width: int
    height: int
    format: ImageFormat
    data: bytes
    file_sha256: str
    pixels_sha256: str


@dataclass(frozen=True, slots=True)
class Done:
    """The last event of a job that succeeded."""

    images: int
    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a job that did not: the refusal its caller gets (Cancelled where it was cancelled)."""

    error: ZrelayError


@dataclass(frozen=True, slots=True, eq=False)
class PreviewPixels:
    """[h, w, 3] uint8 on their way to a Preview."""

    image_index: int
    step: int
    pixels: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ImagePixels:
    """[H, W, 3] uint8 of a decoded image on their way to an Image; `last` of its job, `eta_s` until its end."""

    image_index: int
    seed: int
    pixels: Tensor
    last: bool
    eta_s: float = 0.0


Event = Accepted | Waiting | Progress | Preview | Image | Done | Failed
"""What callers see."""
EngineEvent = Progress | PreviewPixels | ImagePixels | Failed
"""What the engine says; the writer turns pixels into files."""
