"""The packed forward: any number of images, sizes, prompts and timesteps in one ragged sequence, without padding.

diffusers' own forward is the oracle of the tests and is not called here: it recomputes caption embedding, context
refiner, positions and modulation in every forward, while here each is computed once.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zrelay_generator.blocks import run_block
from zrelay_generator.latents import PATCH, patchify, unpatchify
from zrelay_generator.modulation import Modulation, modulation
from zrelay_generator.packing import Conditioning, Packing, per_token, single
from zrelay_generator.rope import caption_positions, image_positions, padded
from zrelay_generator.weights import TransformerWeights

_KEPT_MODULATIONS = 128
"""Timesteps whose modulation is kept: 1 MB each for the published model. Jobs mostly share a schedule."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One image under one prompt in one tick.

    Attributes: `latents` [channels, h, w] float32; `conditioning` what does not depend on the step; `modulation` of
    the segment's timestep.
    """

    latents: Tensor
    conditioning: Conditioning
    modulation: Modulation


class PackedTransformer:
    """Runs ticks, each a list of segments."""

    def __init__(self, weights: TransformerWeights) -> None:
        self.weights = weights
        self._modulations: OrderedDict[float, Modulation] = OrderedDict()
        self._packing: Packing | None = None

    def context(self, prompt_embeds: Tensor) -> Tensor:
        """[T, width] of any dtype and device -> the refined caption [padded(T), dim]: once per prompt."""
        weights = self.weights
        caption: Tensor = weights.caption_embedder(prompt_embeds.to(weights.device, weights.dtype))
        padding = padded(len(caption)) - len(caption)
        caption = torch.cat([caption, weights.caption_pad.expand(padding, -1)])
        packed = single(len(caption), self._rope(caption_positions(len(caption))))
        for block in weights.context_refiner:
            caption = run_block(block, caption, packed, block.norms.unbind())
        return caption

    def conditioning(self, context: Tensor, height: int, width: int) -> Conditioning:
        """What an image of `height` x `width` latent pixels under a refined caption needs in every step."""
        rows, columns, tokens = height // PATCH, width // PATCH, len(context)
        return Conditioning(
            image_tokens=rows * columns,
            context=context,
            image_rope=self._rope(image_positions(rows, columns, tokens)),
            context_rope=self._rope(caption_positions(tokens)),
        )

    def modulation(self, timestep: float) -> Modulation:
        """The modulation of `timestep` (1 - sigma), computed at its first use."""
        known = self._modulations.get(timestep)
        if known is None:
            known = self._modulations[timestep] = modulation(self.weights, timestep)
            if len(self._modulations) > _KEPT_MODULATIONS:
                self._modulations.popitem(last=False)
        else:
            self._modulations.move_to_end(timestep)
        return known

    def forward(self, segments: Sequence[Segment]) -> list[Tensor]:
        """One forward of all segments: predictions of x0 - noise, each [channels, h, w] float32."""
        weights, packing = self.weights, self._packed(segments)
        tokens = self._image_tokens(segments)
        norms = per_token([segment.modulation.refiner for segment in segments], packing.image_lengths)
        for block, block_norms in zip(weights.noise_refiner, norms, strict=True):
            tokens = run_block(block, tokens, packing.image, block_norms)

        tokens = packing.with_context(tokens)
        norms = per_token([segment.modulation.layers for segment in segments], packing.lengths)
        for block, block_norms in zip(weights.layers, norms, strict=True):
            tokens = run_block(block, tokens, packing.unified, block_norms)
        return [self._predicted(s, part) for s, part in zip(segments, packing.image_parts(tokens), strict=True)]

    def _packed(self, segments: Sequence[Segment]) -> Packing:
        """The packing of these segments; that of the tick before where nobody came or went."""
        conditionings = [segment.conditioning for segment in segments]
        if self._packing is None or not self._packing.is_of(conditionings):
            self._packing = Packing.of(conditionings)
        return self._packing

    def _image_tokens(self, segments: Sequence[Segment]) -> Tensor:
        """[sum of padded image tokens, dim]: embedded patches, each image padded by the learned token."""
        weights, embedder, parts = self.weights, self.weights.image_embedder, []
        for segment in segments:
            patches = patchify(segment.latents.to(weights.dtype))
            parts.append(F.linear(patches, embedder.weight, embedder.bias))
            padding = len(segment.conditioning.image_rope) - len(patches)
            if padding:
                parts.append(weights.image_pad.expand(padding, -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _predicted(self, segment: Segment, tokens: Tensor) -> Tensor:
        """The final layer on one image's tokens."""
        weights, out = self.weights, self.weights.final_out
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=weights.final_eps) * segment.modulation.final
        height, width = segment.latents.shape[1:]
        return unpatchify(F.linear(normed, out.weight, out.bias), height, width).float()

    def _rope(self, positions: Tensor) -> Tensor:
        """complex64 [tokens, 1, head_dim / 2]."""
        return self.weights.rope(positions.to(self.weights.device))[:, None]
