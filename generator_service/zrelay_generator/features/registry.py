"""The list of features, and what follows from it. A new feature is one folder and one line here."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from zrelay_generator.cost.model import Size
from zrelay_generator.features import guidance, image_to_image, omni, skip_layers
from zrelay_generator.features.protocol import FeatureSlice, JobFeature, JobSpec, Prompt, Step
from zrelay_generator.features.request import SpecRequest
from zrelay_generator.model.sequence import segment_size

FEATURES: tuple[FeatureSlice[Any, SpecRequest], ...] = (
    guidance.SLICE,
    skip_layers.SLICE,  # after guidance: cfg_normalization does not bound it
    omni.SLICE,  # after guidance: it changes the segments of all prompts
    image_to_image.SLICE,
)
"""All features, in the order in which they are parsed and in which their hooks run."""

UNBUILT = {
    "inpaint": "generate.inpaint",
    "controls": "generate.control",
    "loras": "generate.lora",
    "dype": "generate.dype",
    "passes": "generate.passes",
    "tiled_vae": "generate.tiled_vae",
}
"""Fields of GenerationSpec that no feature reads yet, with the names of their capabilities."""


def features_of(spec: JobSpec) -> tuple[JobFeature, ...]:
    """Makes the hooks of a job's features. Needs no device."""
    parts = ((each, spec.feature(each.spec)) for each in FEATURES)
    made = (each.hooks(part, spec) for each, part in parts if part is not None)
    return tuple(feature for feature in made if feature is not None)


def steps_of(spec: JobSpec, image: int = 0) -> Iterator[Step]:
    """Yields the steps that run for one image, in order."""
    sampling = spec.sampling
    sigmas, first, count = sampling.schedule.sigmas, sampling.first_step, sampling.run_steps
    for index in range(first, sampling.num_inference_steps):
        yield Step(image, index, sigmas[index], sigmas[index + 1], (index - first) / count)


def step_sizes(spec: JobSpec, features: tuple[JobFeature, ...], layers: int) -> list[Size]:
    """Returns the size of each step's forward of one image, if nothing else is packed with it.

    Args:
        spec: The job.
        features: Its features, as made by `features_of`.
        layers: Number of main blocks of the transformer.
    """
    sampling = spec.sampling

    @cache
    def sequence_size(prompt: Prompt) -> Size:
        for feature in features:
            if (found := feature.sequence_size(prompt)) is not None:
                return found
        return segment_size(sampling.width, sampling.height, len(prompt.embeds))

    plain = sequence_size(spec.prompt)
    return [sum((each.size(step, layers, sequence_size) for each in features), plain) for step in steps_of(spec)]
