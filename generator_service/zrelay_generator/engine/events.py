"""What the engine reports about a job, as frozen values."""

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from zrelay_shared.errors import ZrelayError


class JobStage(StrEnum):
    """Stages of a job, in the order in which they run."""

    PREPARE = "prepare"
    DENOISE = "denoise"
    DECODE = "decode"
    ENCODE_IMAGE = "encode_image"


@dataclass(frozen=True, slots=True)
class StageProgress:
    """A unit of work of a job was completed.

    Attributes:
        stage: The stage that the unit belongs to.
        completed: Units of the stage that are done.
        total: Units of the stage.
        unit_s: Seconds that the latest unit took on the device.
        eta_s: Estimated seconds until the job is done.
    """

    stage: JobStage
    completed: int
    total: int
    unit_s: float
    eta_s: float


@dataclass(frozen=True, slots=True)
class JobFailed:
    """The last event of a job that did not succeed.

    Attributes:
        error: What the caller receives; `Cancelled` for a cancelled job.
    """

    error: ZrelayError


@dataclass(frozen=True, slots=True, eq=False)
class PreviewPixels:
    """Pixels of a preview, before they are encoded.

    Attributes:
        image_index: Index of the image in the job.
        step: Steps of the image that are done.
        pixels: [h, w, 3] uint8 on the CPU.
    """

    image_index: int
    step: int
    pixels: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ImagePixels:
    """Pixels of a decoded image, before they are encoded.

    Attributes:
        image_index: Index of the image in the job.
        seed: Seed of the image.
        pixels: [H, W, 3] uint8 on the CPU.
        last: Whether it is the job's last image.
        eta_s: Estimated seconds until the job is done.
    """

    image_index: int
    seed: int
    pixels: Tensor
    last: bool
    eta_s: float = 0.0


EngineEvent = StageProgress | PreviewPixels | ImagePixels | JobFailed
"""What the engine emits; the image writer turns pixels into files."""
