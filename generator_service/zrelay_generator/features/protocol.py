"""The protocol between jobs, the engine and features: what a job is, and what a feature may change.

A feature is a vertical slice: one folder beside this module with its spec, its request parsing, its capability names
for GetInfo, its hooks and its provenance entry. The folder exports one `FeatureSlice`, which `registry.py` lists. No
module outside the folder knows the feature by name. docs/how-to/add-a-feature.md shows how to add one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from zrelay_generator.cost.model import Size
from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.features.schedule import Schedule
from zrelay_generator.images.writing import ImageFormat
from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.packing import Conditioning
from zrelay_generator.model.transformer import Prediction, Segment
from zrelay_generator.priority import Priority as Priority
from zrelay_shared.fingerprint import EncoderFingerprint

PROMPT = "prompt"
"""Name of the segment that every job has."""


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Size, schedule, guidance and seed of a job, with every default filled in.

    Attributes:
        width, height: Size of each image in pixels.
        guidance_scale: Factor of classifier-free guidance; 0 is off.
        cfg_normalization: Bound of the guided prediction's norm, as a multiple of the unguided norm; 0 is off.
        cfg_truncation: Guidance is off once the timestep exceeds this value; 1 is never.
        shift: Shift of the schedule, None if the caller sent the sigmas.
        schedule: Noise level before and after each step.
        seed: Seed of the first image; image i has `seed + i`.
        num_images: Number of images.
        first_step: Index of the first step that runs. Above 0 if the job starts from a picture.
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
        """Steps of the whole schedule."""
        return self.schedule.num_inference_steps

    @property
    def run_steps(self) -> int:
        """Steps that run for one image."""
        return self.num_inference_steps - self.first_step


@dataclass(frozen=True)
class Output:
    """Format of the result and of previews.

    Attributes:
        format: File format of the images.
        quality: 1 to 100, for lossy formats.
        omit_provenance: Whether provenance is left out of the files.
        preview_every: Steps between two previews, 0 for none.
        preview_max_side: Longer side of a preview in pixels, at most.
    """

    format: ImageFormat = ImageFormat.PNG
    quality: int = 95
    omit_provenance: bool = False
    preview_every: int = 0
    preview_max_side: int = 256


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of a job's prompts, written into the provenance of its images. It does not change the images.

    Attributes:
        encoder: Fingerprint of the encoder, None for a job that no request made.
        prompt, negative_prompt: The user's text, None if it was not sent.
        labels: Pairs of name and value.
    """

    encoder: EncoderFingerprint | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Embeddings of one prompt.

    Attributes:
        embeds: [T, width], on the CPU, the segments one behind the other.
        lengths: Tokens of each segment. An ordinary prompt is one segment, which is the default.
    """

    embeds: Tensor
    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.lengths:
            object.__setattr__(self, "lengths", (len(self.embeds),))
        if sum(self.lengths) != len(self.embeds):
            raise ValueError(f"lengths: expected a sum of {len(self.embeds)}, got {sum(self.lengths)}")


class FeatureSpec:
    """The part of a job that belongs to one feature. Subclasses are frozen dataclasses in the feature's folder."""

    __slots__ = ()

    def applied_to(self, sampling: SamplingSettings) -> SamplingSettings:
        """Returns the sampling as changed by this feature, for example with fewer steps to run."""
        return sampling

    def provenance(self) -> Mapping[str, object]:
        """Returns the JSON entries that this feature adds to an image's provenance, by key."""
        return {}


SpecT = TypeVar("SpecT", bound=FeatureSpec)
RequestT = TypeVar("RequestT")


@dataclass(frozen=True, slots=True, eq=False)
class JobSpec:
    """One self-contained, validated job.

    Attributes:
        prompt: The prompt's embeddings.
        sampling: Size, schedule, guidance and seed.
        output: Format of the result.
        origin: Origin of the prompts, for provenance.
        priority: Priority class.
        deterministic: Whether the images are bitwise independent of other jobs on the device.
        features: The parts of the job that belong to features, at most one spec of each kind.
    """

    prompt: Prompt
    sampling: SamplingSettings
    output: Output = Output()
    origin: Origin = Origin()
    priority: Priority = Priority.NORMAL
    deterministic: bool = False
    features: tuple[FeatureSpec, ...] = ()

    def feature(self, kind: type[SpecT]) -> SpecT | None:
        """Returns the job's spec of one feature, None if the job does not use it."""
        return next((spec for spec in self.features if isinstance(spec, kind)), None)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one image.

    Attributes:
        image: Index of the image in the job.
        index: Index of the step in the schedule.
        sigma, sigma_next: Noise level before and after the step.
        progress: Share of the steps to run that precede this one, from 0 to below 1.
    """

    image: int
    index: int
    sigma: float
    sigma_next: float
    progress: float

    @property
    def timestep(self) -> float:
        """Input of the transformer, `1 - sigma`."""
        return 1.0 - self.sigma


Condition = Callable[[Prompt], Conditioning]
"""Computes the sequence of the job's images under a prompt."""
SequenceSize = Callable[[Prompt], Size]
"""Returns the size of one forward of one image under a prompt. Needs no device."""


class JobFeature:
    """One feature of one job. It lives as long as the job.

    The engine calls the hooks of all features of a job in the order of the registry and knows no feature by name. Each
    hook has a default that changes nothing. Hooks run on the device thread, except `size`, `sequence_size` and
    `encoded_pixels`, which run on any thread, need no device and may be called before `begin`. An exception in a hook
    ends this job only.
    """

    def sequence_size(self, prompt: Prompt) -> Size | None:
        """Returns the size of one forward under a prompt if `conditioning` replaces the plain sequence, else None."""
        return None

    def size(self, step: Step, layers: int, sequence_size: SequenceSize) -> Size:
        """Returns what the feature adds to the forward of a step.

        Args:
            step: The step.
            layers: Number of main blocks of the transformer.
            sequence_size: Size of one forward under a prompt, with `sequence_size` of all features applied.
        """
        return Size()

    def encoded_pixels(self) -> tuple[int, ...]:
        """Returns the pixels of each image that the VAE encodes before the first step, to estimate memory and time."""
        return ()

    def begin(self, model: LoadedModel, condition: Condition) -> None:
        """Computes what is the same in all steps. Called once per job, before its first step."""

    def conditioning(self, model: LoadedModel, prompt: Prompt) -> Conditioning | None:
        """Returns the sequence of an image under a prompt, None for the ordinary one. Called for each prompt."""
        return None

    def start(self, image: int, generator: torch.Generator, shape: tuple[int, int, int], sigma: float) -> Tensor | None:
        """Returns the first latents of an image.

        Args:
            image: Index of the image.
            generator: The image's own generator. Values drawn here are drawn before the noise.
            shape: Shape of the latents, (channels, h, w).
            sigma: Noise level of the first step.

        Returns:
            Latents [channels, h, w] float32 at `sigma`, None to start from noise.
        """
        return None

    def segments(self, model: LoadedModel, step: Step, segments: dict[str, Segment]) -> dict[str, Segment]:
        """Returns the segments of a step by name: the given segments, changed or with additional ones."""
        return segments

    def adjust_prediction(self, step: Step, prediction: Tensor, predictions: Mapping[str, Prediction]) -> Tensor:
        """Returns the prediction [channels, h, w] float32 of a step.

        Args:
            step: The step.
            prediction: The prediction of the prompt's segment as changed by the features before this one.
            predictions: The predictions of all segments by name.
        """
        return prediction

    def adjust_latents(self, step: Step, latents: Tensor) -> Tensor:
        """Returns the latents [channels, h, w] float32 after the Euler step, at `step.sigma_next`."""
        return latents


@dataclass(frozen=True, slots=True)
class Capability:
    """One entry of GetInfo's feature list: a name of the contract, availability, and a note or restriction."""

    name: str
    note: str = ""
    available: bool = True


def _no_check(request: object) -> None:
    """Accepts every request: the default of a feature that checks nothing before it reads its input."""


def _no_counts(spec: object, accepts: Acceptance) -> None:
    """Accepts every spec: the default of a feature without repeated fields."""


@dataclass(frozen=True)
class FeatureSlice(Generic[SpecT, RequestT]):
    """Everything that the rest of the generator uses of one feature.

    Attributes:
        fields: Fields of GenerationSpec that belong to the feature.
        spec: Class of the feature's part of a job.
        capabilities: Returns the entries of GetInfo for what the generator accepts; None while the model is loading.
        parse: Reads the feature's part of a job from a request. Returns None if the request does not use the feature.
            Raises the errors of `zrelay_shared.errors`.
        hooks: Returns the hooks of a job from the feature's part and the whole job, None if no hook is needed.
        check: Raises an error for what is invalid in the message alone. It is called for every request, before tensors
            and files are read.
        check_counts: Raises an error for what a GenerationSpec (its first argument) requests too much of. It is called
            before contents by name are read, so it sees names in place of contents.
    """

    fields: tuple[str, ...]
    spec: type[SpecT]
    capabilities: Callable[[Acceptance | None], tuple[Capability, ...]]
    parse: Callable[[RequestT], SpecT | None]
    hooks: Callable[[SpecT, JobSpec], JobFeature | None]
    check: Callable[[RequestT], None] = _no_check
    check_counts: Callable[[Any, Acceptance], None] = _no_counts
