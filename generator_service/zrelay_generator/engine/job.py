"""A job on the device: the state of each of its images. Owned by the device thread."""

import time
from dataclasses import dataclass, field

from torch import Tensor

from zrelay_generator.cost.model import Size
from zrelay_generator.features.protocol import JobFeature, JobSpec, Step
from zrelay_generator.features.registry import features_of, steps_of
from zrelay_generator.model.latents import image_seed
from zrelay_generator.model.packing import Conditioning


@dataclass(slots=True)
class StageTimings:
    """Seconds per stage. Each field is written by the thread that does the work."""

    queue_s: float = 0.0
    prepare_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    encode_image_s: float = 0.0
    total_s: float = 0.0


@dataclass(slots=True, eq=False)
class ImageState:
    """One image of a job.

    Attributes:
        job: The job it belongs to.
        index: Its index in the job.
        seed: Its own seed.
        latents: [channels, h, w] float32 on the device, from its first step to its decode.
        done: Steps that were run.
        alone: It must run without company, because a tick with it failed.
        decoding: It is with the decode thread.
        decoded: Its pixels were emitted.
    """

    job: "DeviceJob"
    index: int
    seed: int
    latents: Tensor | None = None
    done: int = 0
    alone: bool = False
    decoding: bool = False
    decoded: bool = False

    @property
    def denoised(self) -> bool:
        """Whether all its steps were run."""
        return self.done >= self.job.spec.sampling.run_steps

    @property
    def step(self) -> Step:
        """The next step."""
        found = self.job.steps[self.done]
        if self.index == 0:
            return found
        return Step(self.index, found.index, found.sigma, found.sigma_next, found.progress)


@dataclass(slots=True, eq=False)
class DeviceJob:
    """A job that is on the device or next to it.

    Only the device thread changes it, except `cancelled` (any thread may set it) and `written` (the image writer).

    Attributes:
        id: The job's id.
        spec: What was requested.
        arrival: Number that orders jobs by their acceptance.
        accepted_at: Seconds on the monotonic clock at which the job was accepted, also across restarts.
        cancelled: The job is to end at the next tick.
        caller: Identity of the caller, for fairness.
        conditioning: The conditioning of its prompt, once the job has begun.
        features: The features it uses.
        steps: The steps of each image.
        images: Its images.
        timings: Seconds per stage.
        remaining: Forwards and their size from each step of an image to its end; filled by `JobEstimator`.
        written: Images that were written as files.
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
    timings: StageTimings = field(default_factory=StageTimings)
    remaining: tuple[tuple[int, Size], ...] | None = None
    written: int = 0

    def __post_init__(self) -> None:
        sampling = self.spec.sampling
        self.features = features_of(self.spec)
        self.steps = tuple(steps_of(self.spec))
        self.images = [ImageState(self, i, image_seed(sampling.seed, i)) for i in range(sampling.num_images)]

    def release(self) -> None:
        """Drops the tensors and other data that only the device needs, once the job is over.

        Images and job refer to each other. Without this their tensors (and on a GPU, its memory) would stay until
        Python's cycle collector runs.
        """
        self.images, self.features, self.conditioning = [], (), None

    @property
    def steps_done(self) -> int:
        """Steps that were run, over all images."""
        return sum(image.done for image in self.images)

    @property
    def steps_total(self) -> int:
        """Steps of the job, over all images."""
        return len(self.images) * self.spec.sampling.run_steps

    @property
    def decoded(self) -> int:
        """Images that were decoded."""
        return sum(image.decoded for image in self.images)
