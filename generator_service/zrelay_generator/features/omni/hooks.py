"""Z-Image Omni as diffusers' ZImageOmniPipeline has it: pictures painted after reference images.

Prompt, references and SigLIP grids stand beside the painted image in one sequence; what is clean of them is modulated
as at timestep 1 in every step. What no step changes is computed when the job begins: references once for all prompts.
"""

from dataclasses import replace

import torch
from torch import Tensor

from zrelay_generator.features.guidance.hooks import guidance_at
from zrelay_generator.features.hooks import Feature, Step
from zrelay_generator.features.omni.positions import (
    Extent,
    clean_tokens,
    image_slots,
    picture_positions,
    segment_positions,
    siglip_positions,
    unseen_positions,
)
from zrelay_generator.features.omni.size import omni_size
from zrelay_generator.features.omni.spec import References
from zrelay_generator.features.omni.tokens import embedded_pictures, refined_prompt, refined_siglip
from zrelay_generator.features.protocol import JobSpec
from zrelay_generator.model.latents import PATCH
from zrelay_generator.model.model import LoadedModel
from zrelay_generator.model.packing import Conditioning
from zrelay_generator.model.size import Size, segment_size
from zrelay_generator.model.transformer import PackedTransformer, Segment

_CLEAN = 1.0
"""Timestep of what holds no noise."""


class Omni(Feature):
    """Another sequence for prompt and negative prompt. Stands behind the features that add segments."""

    def __init__(self, spec: JobSpec, references: References) -> None:
        self._spec, self._references = spec, references
        self._pictures: Tensor | None = None
        self._siglip: dict[tuple[int, ...], Tensor] = {}

    @classmethod
    def of(cls, spec: JobSpec) -> "Omni | None":
        return None if spec.omni is None else cls(spec, spec.omni)

    def size(self, step: Step, layers: int) -> Size:
        sampling, found = self._spec.sampling, self._more(self._references.segments)
        if self._spec.guided and guidance_at(step.timestep, sampling.guidance_scale, sampling.cfg_truncation) > 0.0:
            found = found + self._more(self._references.negative_segments)
        return found

    def encoded_pixels(self) -> tuple[int, ...]:
        return tuple(picture.shape[1] * picture.shape[2] for picture in self._references.pictures)

    def conditioning(self, model: LoadedModel, prompt_embeds: Tensor) -> Conditioning:
        negative = prompt_embeds is self._spec.negative_prompt_embeds
        references, transformer, factor = self._references, model.transformer, model.vae.factor
        segments = references.negative_segments if negative else references.segments
        prompt = refined_prompt(transformer, prompt_embeds, segments)
        sampling, slots = self._spec.sampling, image_slots(segments)
        painted = Extent(sampling.height // factor // PATCH, sampling.width // factor // PATCH)
        words, image = segment_positions(segments), picture_positions(slots[len(references.pictures)], painted)
        if not references.pictures:
            return Conditioning(painted.count, context=prompt, rope=transformer.rope(torch.cat([image, words])))
        latents = [Extent(picture.shape[1] // factor, picture.shape[2] // factor) for picture in references.pictures]
        patches = [Extent(extent.rows // PATCH, extent.columns // PATCH) for extent in latents]
        grids = [Extent(*grid.shape[:2]) for grid in references.grids]
        pictures = [picture_positions(*found) for found in zip(slots, patches, strict=False)]
        siglip = [siglip_positions(slot + 1, *found) for slot, *found in zip(slots, grids, latents, strict=False)]
        seen = torch.cat([*siglip, unseen_positions()])
        counts = [[extent.count for extent in extents] for extents in (patches, grids)]
        return Conditioning(
            painted.count,
            context=self._refined_siglip(transformer, seen, slots),
            rope=transformer.rope(torch.cat([words, *pictures, image, seen])),
            leading=prompt,
            references=self._embedded(model),
            clean=clean_tokens(segments, counts[0], painted.count, counts[1]),
        )

    def segments(self, model: LoadedModel, step: Step, segments: dict[str, Segment]) -> dict[str, Segment]:
        if not self._references.pictures:
            return segments
        clean = model.transformer.modulation(_CLEAN)
        return {name: replace(segment, clean=clean) for name, segment in segments.items()}

    def _embedded(self, model: LoadedModel) -> Tensor:
        """The references' tokens, the same under every prompt."""
        if self._pictures is None:
            latents = [model.vae.reference(picture) for picture in self._references.pictures]
            self._pictures = embedded_pictures(model.transformer, latents)
        return self._pictures

    def _refined_siglip(self, transformer: PackedTransformer, positions: Tensor, slots: tuple[int, ...]) -> Tensor:
        """The grids' tokens, the same under every prompt that leaves the references at the same places."""
        places = slots[: len(self._references.grids)]
        if places not in self._siglip:
            self._siglip[places] = refined_siglip(transformer, self._references.grids, positions)
        return self._siglip[places]

    def _more(self, segments: tuple[int, ...]) -> Size:
        """What the sequence under a prompt has more than the plain one."""
        sampling = self._spec.sampling
        plain = segment_size(sampling.width, sampling.height, sum(segments))
        whole = omni_size(sampling, self._references, segments)
        return Size(whole.tokens - plain.tokens, whole.squares - plain.squares)
