"""Which features a job has, in the order in which they act. A new feature is a module and a line here."""

from collections.abc import Callable, Iterator

from zrelay_generator.features.guidance.hooks import Guidance
from zrelay_generator.features.hooks import Feature, Step
from zrelay_generator.features.image_to_image.hooks import ImageToImage
from zrelay_generator.features.omni.hooks import Omni
from zrelay_generator.features.protocol import JobSpec
from zrelay_generator.features.skip_layers.hooks import SkipLayerGuidance
from zrelay_generator.model.size import Size, segment_size

FEATURES: tuple[Callable[[JobSpec], Feature | None], ...] = (
    ImageToImage.of,
    Guidance.of,
    Omni.of,  # after guidance: it has a word in every prompt's segment
    SkipLayerGuidance.of,  # after guidance: its push is not bounded by cfg_normalization
)


def features_of(spec: JobSpec) -> tuple[Feature, ...]:
    """The features that a job asks for. Needs no device."""
    return tuple(feature for make in FEATURES if (feature := make(spec)) is not None)


def steps_of(spec: JobSpec, image: int = 0) -> Iterator[Step]:
    """The steps that are run, in order."""
    sampling = spec.sampling
    sigmas, first, count = sampling.schedule.sigmas, sampling.first_step, sampling.run_steps
    for index in range(first, sampling.num_inference_steps):
        yield Step(image, index, sigmas[index], sigmas[index + 1], (index - first) / count)


def step_sizes(spec: JobSpec, features: tuple[Feature, ...], layers: int) -> list[Size]:
    """The size of each step's forward of one image, were it alone."""
    sampling = spec.sampling
    plain = segment_size(sampling.width, sampling.height, len(spec.prompt_embeds))
    return [sum((feature.size(step, layers) for feature in features), plain) for step in steps_of(spec)]
