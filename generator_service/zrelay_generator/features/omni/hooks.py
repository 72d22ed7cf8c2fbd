"""Z-Image Omni as in diffusers' ZImageOmniPipeline: images are generated from a prompt and reference images.

Prompt, references and SigLIP grids are tokens of the same sequence as the image. Tokens without noise ("clean") take
the modulation of timestep 1 in every step. Everything that is the same in all steps is computed once when the job
begins; the references are computed once for all prompts.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zrelay_generator.cost.model import Size
from zrelay_generator.features.omni.positions import (
    Extent,
    clean_tokens,
    image_slots,
    picture_positions,
    segment_positions,
    siglip_positions,
    unseen_positions,
)
from zrelay_generator.features.omni.spec import OmniSpec
from zrelay_generator.features.omni.tokens import embedded_pictures, refined_prompt, refined_siglip
from zrelay_generator.features.protocol import JobFeature, JobSpec, Prompt, SamplingSettings, Step
from zrelay_generator.model.latents import PATCH
from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.packing import Conditioning
from zrelay_generator.model.sequence import PIXELS_PER_TOKEN, TOKEN_MULTIPLE, padded
from zrelay_generator.model.transformer import PackedTransformer, Segment

_CLEAN = 1.0
"""Timestep of tokens without noise."""


def omni_hooks(spec: OmniSpec, job: JobSpec) -> "Omni":
    """Makes the hooks of a job."""
    return Omni(spec, job.sampling)


class Omni(JobFeature):
    """Replaces the sequence of every prompt. Its place is after the features that add segments."""

    def __init__(self, spec: OmniSpec, sampling: SamplingSettings) -> None:
        self._spec, self._sampling = spec, sampling
        self._pictures: Tensor | None = None
        self._siglip: dict[tuple[int, ...], Tensor] = {}

    def sequence_size(self, prompt: Prompt) -> Size:
        return omni_size(self._sampling, self._spec, prompt.lengths)

    def encoded_pixels(self) -> tuple[int, ...]:
        return tuple(picture.shape[1] * picture.shape[2] for picture in self._spec.pictures)

    def conditioning(self, model: LoadedModel, prompt: Prompt) -> Conditioning:
        references, transformer, factor = self._spec, model.transformer, model.vae.factor
        segments = prompt.lengths
        leading = refined_prompt(transformer, prompt.embeds, segments)
        sampling, slots = self._sampling, image_slots(segments)
        own = Extent(sampling.height // factor // PATCH, sampling.width // factor // PATCH)
        words, image = segment_positions(segments), picture_positions(slots[len(references.pictures)], own)
        if not references.pictures:
            return Conditioning(own.count, context=leading, rope=transformer.rope(torch.cat([image, words])))
        latents = [Extent(picture.shape[1] // factor, picture.shape[2] // factor) for picture in references.pictures]
        patches = [Extent(extent.rows // PATCH, extent.columns // PATCH) for extent in latents]
        grids = [Extent(*grid.shape[:2]) for grid in references.grids]
        pictures = [picture_positions(*found) for found in zip(slots, patches, strict=False)]
        siglip = [siglip_positions(slot + 1, *found) for slot, *found in zip(slots, grids, latents, strict=False)]
        seen = torch.cat([*siglip, unseen_positions()])
        counts = [[extent.count for extent in extents] for extents in (patches, grids)]
        return Conditioning(
            own.count,
            context=self._refined_siglip(transformer, seen, slots),
            rope=transformer.rope(torch.cat([words, *pictures, image, seen])),
            leading=leading,
            references=self._embedded(model),
            clean=clean_tokens(segments, counts[0], own.count, counts[1]),
        )

    def segments(self, model: LoadedModel, step: Step, segments: dict[str, Segment]) -> dict[str, Segment]:
        if not self._spec.pictures:
            return segments
        clean = model.transformer.modulation(_CLEAN)
        return {name: replace(segment, clean=clean) for name, segment in segments.items()}

    def _embedded(self, model: LoadedModel) -> Tensor:
        """Returns the tokens of the references, computed once for all prompts."""
        if self._pictures is None:
            latents = [model.vae.reference(picture) for picture in self._spec.pictures]
            self._pictures = embedded_pictures(model.transformer, latents)
        return self._pictures

    def _refined_siglip(self, transformer: PackedTransformer, positions: Tensor, slots: tuple[int, ...]) -> Tensor:
        """Returns the tokens of the grids, computed once for all prompts with the references at the same positions."""
        places = slots[: len(self._spec.grids)]
        if places not in self._siglip:
            self._siglip[places] = refined_siglip(transformer, self._spec.grids, positions)
        return self._siglip[places]


def omni_size(sampling: SamplingSettings, spec: OmniSpec, segments: Sequence[int]) -> Size:
    """Returns the size of one forward of an image with its references and grids.

    Args:
        sampling: Size of the image.
        spec: The references.
        segments: Tokens of each segment of the prompt.
    """
    counts = [picture.shape[1] * picture.shape[2] // PIXELS_PER_TOKEN for picture in spec.pictures]
    counts += [grid.shape[0] * grid.shape[1] for grid in spec.grids]
    counts += [sampling.width * sampling.height // PIXELS_PER_TOKEN, *segments]
    tokens = sum(map(padded, counts)) + (TOKEN_MULTIPLE if spec.grids else 0)
    return Size(tokens, tokens * tokens)
