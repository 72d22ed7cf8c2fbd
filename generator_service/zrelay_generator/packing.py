"""How the segments of a tick stand in one sequence, and what of it does not depend on the step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zrelay_generator.attention import Run, runs_of
from zrelay_generator.blocks import Packed


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """What one image under one prompt needs in every step and no step changes.

    Attributes: `image_tokens` without padding; `context` [text tokens, dim] the refined caption; `image_rope` and
    `context_rope` complex64 [tokens, 1, head_dim / 2], the image's with its padding.
    """

    image_tokens: int
    context: Tensor
    image_rope: Tensor
    context_rope: Tensor

    @property
    def tokens(self) -> int:
        return len(self.image_rope) + len(self.context)


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """The places of some segments, in the order [image, padding, caption] for each.

    Attributes: `image` the sequence of images alone, for the noise refiner; `unified` with the captions.
    """

    conditionings: tuple[Conditioning, ...]
    image: Packed
    unified: Packed
    image_lengths: list[int]
    lengths: list[int]

    @classmethod
    def of(cls, conditionings: Sequence[Conditioning]) -> "Packing":
        image_lengths = [len(c.image_rope) for c in conditionings]
        lengths = [c.tokens for c in conditionings]
        ropes = [rope for c in conditionings for rope in (c.image_rope, c.context_rope)]
        return cls(
            conditionings=tuple(conditionings),
            image=Packed(runs_of(image_lengths), torch.cat(ropes[::2])),
            unified=Packed(runs_of(lengths), torch.cat(ropes)),
            image_lengths=image_lengths,
            lengths=lengths,
        )

    def is_of(self, conditionings: Sequence[Conditioning]) -> bool:
        """Whether this is the packing of these very objects."""
        mine = self.conditionings
        return len(mine) == len(conditionings) and all(a is b for a, b in zip(mine, conditionings, strict=True))

    def with_context(self, image_tokens: Tensor) -> Tensor:
        """The images' tokens with each caption behind its image: [sum of lengths, dim]."""
        images = torch.split(image_tokens, self.image_lengths)
        parts = [part for image, c in zip(images, self.conditionings, strict=True) for part in (image, c.context)]
        return torch.cat(parts)

    def image_parts(self, tokens: Tensor) -> Iterator[Tensor]:
        """Each image's tokens out of the unified sequence, without padding."""
        for part, conditioning in zip(torch.split(tokens, self.lengths), self.conditionings, strict=True):
            yield part[: conditioning.image_tokens]


def single(tokens: int, rope: Tensor) -> Packed:
    """One segment of `tokens`, as in the context refiner."""
    return Packed((Run(0, 1, tokens),), rope)


def per_token(norms: Sequence[Tensor], lengths: Sequence[int]) -> Iterator[Sequence[Tensor]]:
    """For each block its four norm weights, from every segment's [blocks, 4, dim].

    [dim] each where all segments are at the same timestep; else [tokens, dim], a row for every token.
    """
    first = norms[0]
    if all(other.data_ptr() == first.data_ptr() for other in norms):
        for block in first.unbind():
            yield block.unbind()
        return
    segments = torch.arange(len(norms), device=first.device)
    index = segments.repeat_interleave(torch.tensor(lengths, device=first.device))
    for block in torch.stack(list(norms)).unbind(1):
        yield block[index].unbind(1)
