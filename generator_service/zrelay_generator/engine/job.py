"""A job on its way: where each of its images stands. Owned by the device thread; what was asked is in spec.py."""

import time
from dataclasses import dataclass, field

from torch import Tensor

from zrelay_generator.features.protocol import JobFeature, JobSpec, Origin, Output, Priority, Sampling, Step
from zrelay_generator.features.registry import features_of, steps_of
from zrelay_generator.model.latents import image_seed
from zrelay_generator.model.packing import Conditioning

__all__ = ["ImageState", "Job", "JobSpec", "Origin", "Output", "Priority", "Sampling", "Timings"]


@dataclass(slots=True)
class Timings:
    """Seconds by stage; each is written by the thread that does the work."""

    queue_s: float = 0.0
    prepare_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    encode_image_s: float = 0.0
    total_s: float = 0.0

    @property
    def served_s(self) -> float:
        """On the device so far."""
        return self.prepare_s + self.denoise_s + self.decode_s


@dataclass(slots=True, eq=False)
class ImageState:
    """One image of a job: `latents` [channels, h, w] float32 once it has begun; `done` forwards.

    `alone` is set while it must have no company, after a tick that failed; `decoding` while it is with the decoder.
    """

    job: "Job"
    index: int
    seed: int
    latents: Tensor | None = None
    done: int = 0
    alone: bool = False
    decoding: bool = False
    decoded: bool = False

    @property
    def denoised(self) -> bool:
        return self.done >= self.job.spec.sampling.run_steps

    @property
    def step(self) -> Step:
        """The step that comes next."""
        found = self.job.steps[self.done]
        return (
            found if self.index == 0 else Step(self.index, found.index, found.sigma, found.sigma_next, found.progress)
        )


@dataclass(slots=True, eq=False)
class Job:
    """A job on its way. Only the device thread changes it, but for `cancelled`, which anyone may set to true.

    Attributes: `caller` who is treated fairly beside others; `features` what it does beside plain steps;
    `conditioning` of its prompt once it has begun.
    """

    id: str
    spec: JobSpec
    arrival: int
    accepted_at: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    caller: str = ""
    conditioning: Conditioning | None = None
    features: tuple[JobFeature, ...] = field(init=False)
    steps: tuple[Step, ...] = field(init=False)
    images: list[ImageState] = field(init=False)
    timings: Timings = field(default_factory=Timings)
    remaining: tuple[tuple[int, float, float], ...] | None = None
    """Forwards, tokens and squares from each step of an image to its end; filled by `Speed`."""
    written: int = 0
    """Images that are files by now; the writer counts."""

    def __post_init__(self) -> None:
        sampling = self.spec.sampling
        self.features = features_of(self.spec)
        self.steps = tuple(steps_of(self.spec))
        self.images = [ImageState(self, i, image_seed(sampling.seed, i)) for i in range(sampling.num_images)]

    def release(self) -> None:
        """Lets go what only the device needs, once the job is over: images and job point at each other, and with them
        their tensors would stay, on a GPU in its memory, until Python's collector comes by."""
        self.images, self.features, self.conditioning = [], (), None

    @property
    def steps_done(self) -> int:
        return sum(image.done for image in self.images)

    @property
    def steps_total(self) -> int:
        return len(self.images) * self.spec.sampling.run_steps

    @property
    def decoded(self) -> int:
        return sum(image.decoded for image in self.images)
