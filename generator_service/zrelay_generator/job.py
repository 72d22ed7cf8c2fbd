"""A job: what was asked (frozen), and where it stands (owned by the device thread)."""

import time
from dataclasses import dataclass, field
from enum import IntEnum

from torch import Tensor

from zrelay_generator.images import ImageFormat
from zrelay_generator.latents import image_seed
from zrelay_generator.packing import Conditioning
from zrelay_generator.schedule import Schedule


class Priority(IntEnum):
    """Which jobs are taken first; lower is earlier."""

    INTERACTIVE = 0
    NORMAL = 1
    BATCH = 2


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the noise becomes pictures, every default filled in.

    Attributes: sides in pixels; `shift` is None where the caller gave the schedule itself; `seed` of the first image.
    """

    width: int
    height: int
    guidance_scale: float
    cfg_normalization: float
    cfg_truncation: float
    shift: float | None
    schedule: Schedule
    seed: int
    num_images: int

    @property
    def num_inference_steps(self) -> int:
        return self.schedule.num_inference_steps


@dataclass(frozen=True)
class Output:
    """What a result is written as; `preview_every` steps (0: none) of at most `preview_max_side` pixels."""

    format: ImageFormat = ImageFormat.PNG
    quality: int = 95
    omit_provenance: bool = False
    preview_every: int = 0
    preview_max_side: int = 256


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the embeddings and words of a job came from; none of it changes the picture.

    Attributes: `encoder` the fingerprint of what made the embeddings, as JSON text; `relation` and `differences` how
    it relates to the checkpoint's own encoder; `prompt`, `negative_prompt` the user's words or None; `labels` pairs.
    """

    encoder: str = "{}"
    relation: str = "unverified"
    differences: tuple[str, ...] = ()
    prompt: str | None = None
    negative_prompt: str | None = None
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class JobSpec:
    """One self-contained job.

    Attributes: `prompt_embeds` [T, width] and `negative_prompt_embeds` (needed where guidance is on) on the CPU;
    `identity` equal for requests of equal content.
    """

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    sampling: Sampling
    output: Output = Output()
    origin: Origin = Origin()
    priority: Priority = Priority.NORMAL
    deterministic: bool = False
    identity: str = ""

    @property
    def guided(self) -> bool:
        return self.sampling.guidance_scale > 0.0 and self.negative_prompt_embeds is not None


@dataclass(slots=True)
class Timings:
    """Seconds by stage; each is written by the thread that does the work."""

    queue_s: float = 0.0
    prepare_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    encode_image_s: float = 0.0
    total_s: float = 0.0


@dataclass(slots=True, eq=False)
class ImageState:
    """One image of a job: `latents` [channels, h, w] float32 once it has begun; `step` forwards done."""

    job: "Job"
    index: int
    seed: int
    latents: Tensor | None = None
    step: int = 0
    decoded: bool = False

    @property
    def denoised(self) -> bool:
        return self.step >= self.job.spec.sampling.num_inference_steps


@dataclass(slots=True, eq=False)
class Job:
    """A job on its way. Only the device thread changes it, but for `cancelled`, which anyone may set to true."""

    id: str
    spec: JobSpec
    arrival: int
    accepted_at: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    conditioning: Conditioning | None = None
    negative_conditioning: Conditioning | None = None
    images: list[ImageState] = field(init=False)
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        sampling = self.spec.sampling
        self.images = [ImageState(self, i, image_seed(sampling.seed, i)) for i in range(sampling.num_images)]

    @property
    def steps_done(self) -> int:
        return sum(image.step for image in self.images)

    @property
    def steps_total(self) -> int:
        return len(self.images) * self.spec.sampling.num_inference_steps

    @property
    def decoded(self) -> int:
        return sum(image.decoded for image in self.images)
