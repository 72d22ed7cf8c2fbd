"""The layout of a tick's segments in one sequence, and the part of a segment that is the same in all steps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zrelay_generator.model.attention import Spans, spans_of
from zrelay_generator.model.blocks import Modulation
from zrelay_generator.model.phases import Phase, phases_of


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """The part of an image's sequence under one prompt that is the same in all steps.

    The sequence is [leading, references, image, padding, context]. A plain image has no leading tokens and no
    references.

    Attributes:
        image_tokens: Tokens of the image without padding.
        context: [tokens, dim], the refined caption.
        rope: complex64 [tokens, 1, head_dim / 2] of the whole sequence.
        leading: [tokens, dim].
        references: [tokens, dim], embedded patches of pictures that are refined with the image and not generated.
        clean: bool [tokens], those that take the modulation of timestep 1 in every step; None for none.
    """

    image_tokens: int
    context: Tensor
    rope: Tensor
    leading: Tensor | None = None
    references: Tensor | None = None
    clean: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return len(self.rope)

    @property
    def pictures(self) -> slice:
        """Positions of references, image and padding."""
        return slice(_length(self.leading), self.tokens - len(self.context))

    @property
    def image(self) -> slice:
        """Positions of the image."""
        start = self.pictures.start + _length(self.references)
        return slice(start, start + self.image_tokens)

    @property
    def padding(self) -> int:
        """Number of tokens of padding after the image."""
        return int(self.pictures.stop - self.image.stop)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One image under one prompt in one tick.

    Attributes:
        latents: [channels, h, w] float32.
        conditioning: The part that does not depend on the step.
        modulation: Modulation of the segment's timestep.
        without: Sets of main blocks to leave out; each set adds a prediction.
        clean: Modulation of the clean tokens, None if there are none.
        rope: Replaces the rope of the conditioning.
    """

    latents: Tensor
    conditioning: Conditioning
    modulation: Modulation
    without: tuple[frozenset[int], ...] = ()
    clean: Modulation | None = None
    rope: Tensor | None = None

    @property
    def positions(self) -> Tensor:
        """The rope that is used."""
        return self.conditioning.rope if self.rope is None else self.rope

    def same_layout(self, other: "Segment") -> bool:
        """Returns whether both segments have the same layout in a packing."""
        mine, its = self.conditioning, other.conditioning
        return mine is its and self.positions is other.positions and self.without == other.without


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Consecutive tokens of some segments.

    Attributes:
        spans: Positions of the segments.
        rope: Rope of all tokens.
        slots: int64 [tokens], the index of each token's modulation: 2 i for segment i, 2 i + 1 for its clean tokens.
    """

    spans: Spans
    rope: Tensor
    slots: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """The layout of some segments.

    Attributes:
        segments: The segments.
        pictures: Sequence of references and images, for the noise refiner.
        phases: Phases of the main blocks.
        parts: Unified sequence of each phase.
    """

    segments: tuple[Segment, ...]
    pictures: Part
    phases: tuple[Phase, ...]
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, segments: Sequence[Segment], layers: int) -> "Packing":
        """Computes the layout for a transformer with `layers` main blocks."""
        phases = phases_of([segment.without for segment in segments], layers)
        pictures = _part(segments, [(i, s.conditioning.pictures) for i, s in enumerate(segments)])
        everyone = list(range(len(segments)))
        whole = slice(None)
        parts = [
            _part(segments, [(i, whole) for i in [*everyone, *(variant.segment for variant in phase.variants)]])
            for phase in phases
        ]
        return cls(tuple(segments), pictures, phases, tuple(parts))

    def fits(self, segments: Sequence[Segment]) -> bool:
        """Returns whether these segments have exactly this layout."""
        mine = self.segments
        return len(mine) == len(segments) and all(a.same_layout(b) for a, b in zip(mine, segments, strict=True))

    def unified(self, pictures: Tensor) -> Tensor:
        """Joins leading tokens, refined pictures and context: the input of the main blocks, [tokens, dim]."""
        split = torch.split(pictures, self.pictures.spans.lengths)
        parts = [
            part
            for tokens, segment in zip(split, self.segments, strict=True)
            for part in (segment.conditioning.leading, tokens, segment.conditioning.context)
            if part is not None
        ]
        return torch.cat(parts)


def per_token(
    part: Part, segments: Sequence[Segment], norms_of: Callable[[Modulation], Tensor]
) -> Iterator[Sequence[Tensor]]:
    """Yields the four norm weights of each block.

    Args:
        part: The tokens.
        segments: The segments of the packing.
        norms_of: Returns the norm weights [blocks, 4, dim] of a modulation.

    Yields:
        Four tensors: [dim] if all tokens take the same modulation, else [tokens, dim].
    """
    slots = [modulation for s in segments for modulation in (s.modulation, s.clean or s.modulation)]
    known = list({id(modulation): modulation for modulation in slots}.values())
    norms = [norms_of(modulation) for modulation in known]
    if len(norms) == 1:
        for block in norms[0].unbind():
            yield block.unbind()
        return
    place = {id(modulation): number for number, modulation in enumerate(known)}
    index = torch.tensor([place[id(modulation)] for modulation in slots], device=part.slots.device)[part.slots]
    for block in torch.stack(norms).unbind(1):
        yield block[index].unbind(1)


def _part(segments: Sequence[Segment], places: Sequence[tuple[int, slice]]) -> Part:
    ropes = [segments[i].positions[where] for i, where in places]
    lengths = [len(rope) for rope in ropes]
    rope = torch.cat(ropes)
    slots = torch.tensor([2 * i for i, _ in places]).repeat_interleave(torch.tensor(lengths))
    clean = [
        torch.zeros(length, dtype=torch.bool) if (mask := segments[i].conditioning.clean) is None else mask[where].cpu()
        for (i, where), length in zip(places, lengths, strict=True)
    ]
    return Part(spans_of(lengths, rope.device), rope, (slots + torch.cat(clean)).to(rope.device))


def _length(tokens: Tensor | None) -> int:
    return 0 if tokens is None else len(tokens)
