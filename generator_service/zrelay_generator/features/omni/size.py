"""How many tokens the sequence of a Z-Image Omni job has."""

from collections.abc import Sequence

from zrelay_generator.features.omni.spec import References
from zrelay_generator.features.protocol import JobSpec, Sampling
from zrelay_generator.model.rope import TOKEN_MULTIPLE, padded
from zrelay_generator.model.size import PIXELS_PER_TOKEN, Size, segment_size


def omni_size(sampling: Sampling, references: References, segments: Sequence[int]) -> Size:
    """One forward of an image with its references and grids, under a prompt of such segments (tokens of each)."""
    counts = [picture.shape[1] * picture.shape[2] // PIXELS_PER_TOKEN for picture in references.pictures]
    counts += [grid.shape[0] * grid.shape[1] for grid in references.grids]
    counts += [sampling.width * sampling.height // PIXELS_PER_TOKEN, *segments]
    tokens = sum(map(padded, counts)) + (TOKEN_MULTIPLE if references.grids else 0)
    return Size(tokens, tokens * tokens)


def prompt_size(spec: JobSpec) -> Size:
    """One forward of an image under the prompt alone, Omni or not."""
    sampling, omni = spec.sampling, spec.omni
    if omni is not None:
        return omni_size(sampling, omni, omni.segments)
    return segment_size(sampling.width, sampling.height, len(spec.prompt_embeds))
