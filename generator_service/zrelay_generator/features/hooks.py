"""The seam: what a feature may do to a job. The engine calls these hooks and knows no feature by name.

A feature is one module: a class on `Feature`, made from a JobSpec by the registry (`recipe.py`). Each hook has a
default that changes nothing. docs/engine.md says which hooks ControlNet, LoRA, DyPE and inpainting would use.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.packing import Conditioning
from zrelay_generator.model.size import Size
from zrelay_generator.model.transformer import Prediction, Segment

Condition = Callable[[Tensor], Conditioning]
"""prompt_embeds -> the sequence of this job's images under them."""
PROMPT = "prompt"
"""Name of the segment that every job has."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of one image.

    Attributes: `image` its index in the job; `index` in the schedule; `sigma` before and `sigma_next` after it;
    `progress` the share of the steps to run that lies before it, from 0 to below 1.
    """

    image: int
    index: int
    sigma: float
    sigma_next: float
    progress: float

    @property
    def timestep(self) -> float:
        """What the transformer is fed."""
        return 1.0 - self.sigma


class Feature:
    """One capability of one job; lives as long as the job.

    The hooks run on the device thread, except `size` and `encoded_pixels`, which must need no device and no `begin`. An
    exception ends this job alone.
    """

    def size(self, step: Step, layers: int) -> Size:
        """What the feature adds to the forward of a step, for a transformer of so many main blocks."""
        return Size()

    def begin(self, model: LoadedModel, condition: Condition) -> None:
        """Once per job, before its first step: encode, embed, keep what no step changes."""

    def encoded_pixels(self) -> tuple[int, ...]:
        """Pixels of each picture that it gives to the VAE when the job begins: for memory and time."""
        return ()

    def conditioning(self, model: LoadedModel, prompt_embeds: Tensor) -> Conditioning | None:
        """The sequence of an image under a prompt, None for the plain one; for the negative prompt as well."""
        return None

    def start(self, image: int, generator: torch.Generator, shape: tuple[int, int, int], sigma: float) -> Tensor | None:
        """The latents [channels, h, w] float32 that an image begins with at `sigma`, None for plain noise.

        `generator` is the image's own; what is drawn from it here is drawn before the noise.
        """
        return None

    def segments(self, model: LoadedModel, step: Step, segments: dict[str, Segment]) -> dict[str, Segment]:
        """The segments of a step: the given ones, changed, with more beside them."""
        return segments

    def bend(self, step: Step, prediction: Tensor, predictions: Mapping[str, Prediction]) -> Tensor:
        """The prediction so far [channels, h, w] float32, changed by those of all segments."""
        return prediction

    def settle(self, step: Step, latents: Tensor) -> Tensor:
        """The latents after the Euler step, at `step.sigma_next`."""
        return latents
