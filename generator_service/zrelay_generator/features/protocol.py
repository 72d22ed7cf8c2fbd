"""What a job is asked to paint: frozen, self-contained, checked before it comes here."""

from dataclasses import dataclass

from torch import Tensor

from zrelay_generator.features.omni.spec import References
from zrelay_generator.features.schedule import Schedule
from zrelay_generator.images.writing import ImageFormat
from zrelay_generator.priority import Priority as Priority


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the noise becomes pictures, every default filled in.

    Attributes: sides in pixels; `shift` is None where the caller gave the schedule itself; `seed` of the first image;
    `first_step` of the schedule that is run, above 0 where the picture starts from another one.
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
    first_step: int = 0

    @property
    def num_inference_steps(self) -> int:
        return self.schedule.num_inference_steps

    @property
    def run_steps(self) -> int:
        """Forwards that are run for one image."""
        return self.num_inference_steps - self.first_step


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
class StartImage:
    """The picture that a job starts from: `pixels` [3, height, width] uint8 of the result's size, the SHA-256 (hex) of
    the `file` it came as, and the `strength` that made `Sampling.first_step`."""

    pixels: Tensor
    file_sha256: str
    strength: float


@dataclass(frozen=True, slots=True)
class SkipLayers:
    """Skip-layer guidance: how strongly to push away from a prediction without `layers`, in steps from the share
    `start` of those that are run until before `stop`."""

    scale: float
    layers: frozenset[int]
    start: float
    stop: float


@dataclass(frozen=True, slots=True, eq=False)
class JobSpec:
    """One self-contained job.

    Attributes: `prompt_embeds` [T, width] and `negative_prompt_embeds` (needed where guidance is on) on the CPU;
    `identity` equal for requests of equal content; `start_image`, `skip_layers` and `omni` where asked for. The
    embeddings of an Omni prompt are its segments one behind the other.
    """

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    sampling: Sampling
    output: Output = Output()
    origin: Origin = Origin()
    priority: Priority = Priority.NORMAL
    deterministic: bool = False
    identity: str = ""
    start_image: StartImage | None = None
    skip_layers: SkipLayers | None = None
    omni: References | None = None

    @property
    def guided(self) -> bool:
        return self.sampling.guidance_scale > 0.0 and self.negative_prompt_embeds is not None
