"""How the segments of a tick stand in one sequence, and what of it does not depend on the step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zrelay_generator.model.attention import Spans, spans_of
from zrelay_generator.model.modulation import Modulation
from zrelay_generator.model.phases import Phase, phases_of


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """What one image under one prompt needs in every step and no step changes.

    Its sequence is [leading, references, image, padding, context]; an ordinary image has neither leading tokens nor
    references. Attributes: `image_tokens` of the image without padding; `context` [tokens, dim] the refined caption;
    `rope` complex64 [tokens, 1, head_dim / 2] of the whole sequence; `leading` [tokens, dim]; `references`
    [tokens, dim] embedded patches of pictures that are refined together with the image, but not painted; `clean` bool
    [tokens] of those that take the modulation of timestep 1 whatever the step, None for none.
    """

    image_tokens: int
    context: Tensor
    rope: Tensor
    leading: Tensor | None = None
    references: Tensor | None = None
    clean: Tensor | None = None

    @property
    def tokens(self) -> int:
        return len(self.rope)

    @property
    def pictures(self) -> slice:
        """Where references, image and its padding stand."""
        return slice(_length(self.leading), self.tokens - len(self.context))

    @property
    def image(self) -> slice:
        """Where the image stands."""
        start = self.pictures.start + _length(self.references)
        return slice(start, start + self.image_tokens)

    @property
    def padding(self) -> int:
        """Tokens behind the image."""
        return int(self.pictures.stop - self.image.stop)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One image under one prompt in one tick.

    Attributes: `latents` [channels, h, w] float32; `conditioning` what does not depend on the step; `modulation` of
    the segment's timestep; `without` sets of main blocks to leave out, each of which adds a prediction; `clean` the
    modulation of its clean tokens, where it has any; `rope` in place of the conditioning's.
    """

    latents: Tensor
    conditioning: Conditioning
    modulation: Modulation
    without: tuple[frozenset[int], ...] = ()
    clean: Modulation | None = None
    rope: Tensor | None = None

    @property
    def positions(self) -> Tensor:
        """The rope in force."""
        return self.conditioning.rope if self.rope is None else self.rope

    def stands_as(self, other: "Segment") -> bool:
        """Whether both take the same place in a packing."""
        mine, its = self.conditioning, other.conditioning
        return mine is its and self.positions is other.positions and self.without == other.without


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some segments' tokens one behind the other.

    Attributes: `spans` of the segments; `rope` of all; `slots` int64 [tokens] which modulation a token takes: 2 i that
    of segment i, 2 i + 1 its clean one.
    """

    spans: Spans
    rope: Tensor
    slots: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """The places of some segments.

    Attributes: `pictures` the sequence of references and images, for the noise refiner; `phases` of the main blocks,
    with the unified sequence of each in `parts`.
    """

    segments: tuple[Segment, ...]
    pictures: Part
    phases: tuple[Phase, ...]
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, segments: Sequence[Segment], layers: int) -> "Packing":
        """For a transformer of so many main blocks."""
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
        """Whether these segments stand exactly so."""
        mine = self.segments
        return len(mine) == len(segments) and all(a.stands_as(b) for a, b in zip(mine, segments, strict=True))

    def unified(self, pictures: Tensor) -> Tensor:
        """The refined pictures between leading tokens and context: the main blocks' input [tokens, dim]."""
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
    """For each of some blocks its four norm weights, out of `norms_of` a modulation [blocks, 4, dim].

    [dim] each where all tokens take the same modulation; else [tokens, dim].
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
