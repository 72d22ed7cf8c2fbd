"""The packed forward: any number of images, sizes, prompts and timesteps in one ragged sequence without padding.

The forward of diffusers is the oracle of the tests. It is not called here: it computes caption embedding, context
refiner, positions and modulation in every forward, while each is computed once here.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from zrelay_generator.model.attention import spans_of
from zrelay_generator.model.blocks import Modulation, modulation, run_block
from zrelay_generator.model.latents import PATCH, patchify, unpatchify
from zrelay_generator.model.packing import Conditioning, Packing, Segment, per_token
from zrelay_generator.model.phases import Variant
from zrelay_generator.model.sequence import caption_positions, image_positions, padded
from zrelay_generator.model.weights import TransformerWeights

__all__ = ["PackedTransformer", "Prediction", "Segment"]

_KEPT_MODULATIONS = 128
"""Number of timesteps whose modulation is cached, 1 MB each for the published model. Most jobs share a schedule."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The prediction of `x0 - noise` of one segment.

    Attributes:
        full: [channels, h, w] float32, with all blocks.
        without: The same for each variant of the segment.
    """

    full: Tensor
    without: tuple[Tensor, ...] = ()


class PackedTransformer:
    """Runs forwards, each on a list of segments."""

    def __init__(self, weights: TransformerWeights) -> None:
        self.weights = weights
        self._modulations: OrderedDict[float, Modulation] = OrderedDict()
        self._packing: Packing | None = None

    @property
    def layers(self) -> int:
        """Number of main blocks."""
        return len(self.weights.layers)

    def context(self, prompt_embeds: Tensor) -> Tensor:
        """Computes the refined caption of a prompt, once per prompt.

        Args:
            prompt_embeds: [T, width], any dtype and device.

        Returns:
            [padded(T), dim].
        """
        weights = self.weights
        caption: Tensor = weights.caption_embedder(prompt_embeds.to(weights.device, weights.dtype))
        padding = padded(len(caption)) - len(caption)
        caption = torch.cat([caption, weights.caption_pad.expand(padding, -1)])
        rope = self.rope(caption_positions(len(caption)))
        spans = spans_of([len(caption)], rope.device)
        for block in weights.context_refiner:
            caption = run_block(block, caption, spans, rope, block.norms.unbind())
        return caption

    def conditioning(self, context: Tensor, height: int, width: int) -> Conditioning:
        """Computes the part of an image's sequence that is the same in all steps.

        Args:
            context: The refined caption.
            height: Rows of latent pixels.
            width: Columns of latent pixels.
        """
        rows, columns, tokens = height // PATCH, width // PATCH, len(context)
        positions = torch.cat([image_positions(rows, columns, tokens), caption_positions(tokens)])
        return Conditioning(image_tokens=rows * columns, context=context, rope=self.rope(positions))

    def modulation(self, timestep: float) -> Modulation:
        """Returns the modulation of `timestep` (1 - sigma), computed at its first use."""
        known = self._modulations.get(timestep)
        if known is None:
            known = self._modulations[timestep] = modulation(self.weights, timestep)
            if len(self._modulations) > _KEPT_MODULATIONS:
                self._modulations.popitem(last=False)
        else:
            self._modulations.move_to_end(timestep)
        return known

    def embed(self, latents: Tensor) -> Tensor:
        """Embeds the patches of latents [channels, h, w]: [h/2 * w/2, dim]."""
        embedder = self.weights.image_embedder
        return F.linear(patchify(latents.to(self.weights.dtype)), embedder.weight, embedder.bias)

    def rope(self, positions: Tensor) -> Tensor:
        """Returns the rope of positions [tokens, 3]: complex64 [tokens, 1, head_dim / 2]."""
        return self.weights.rope(positions.to(self.weights.device))[:, None]

    def forward(self, segments: Sequence[Segment]) -> list[Prediction]:
        """Runs one forward of all segments and returns the prediction of each."""
        packing = self._packed(segments)
        tokens = self._pictures(segments)
        norms = per_token(packing.pictures, segments, lambda modulation: modulation.refiner)
        for block, block_norms in zip(self.weights.noise_refiner, norms, strict=True):
            tokens = run_block(block, tokens, packing.pictures.spans, packing.pictures.rope, block_norms)
        tokens, variants = self._main(packing, segments, packing.unified(tokens))

        parts = torch.split(tokens, [segment.conditioning.tokens for segment in segments])
        predictions = []
        for number, (segment, part) in enumerate(zip(segments, parts, strict=True)):
            own = [variants[Variant(number, n, blocks)] for n, blocks in enumerate(segment.without)]
            full, *without = (self._predicted(segment, tokens) for tokens in (part, *own))
            predictions.append(Prediction(full, tuple(without)))
        return predictions

    def _main(
        self, packing: Packing, segments: Sequence[Segment], tokens: Tensor
    ) -> tuple[Tensor, dict[Variant, Tensor]]:
        """Runs the main blocks. Returns the tokens of all segments and those of each variant."""
        lengths = [segment.conditioning.tokens for segment in segments]
        aside: dict[Variant, Tensor] = {}
        for phase, part in zip(packing.phases, packing.parts, strict=True):
            for variant in phase.begins:
                aside[variant] = torch.split(tokens, lengths)[variant.segment]
            if phase.variants:
                tokens = torch.cat([tokens, *(aside[variant] for variant in phase.variants)])
            blocks = slice(phase.first, phase.stop)
            norms = per_token(part, segments, partial(_layer_norms, blocks=blocks))
            for block, block_norms in zip(self.weights.layers[blocks], norms, strict=True):
                tokens = run_block(block, tokens, part.spans, part.rope, block_norms)
            if phase.variants:
                tokens, *others = torch.split(tokens, [sum(lengths), *(lengths[v.segment] for v in phase.variants)])
                aside.update(zip(phase.variants, others, strict=True))
        return tokens, aside

    def forget_segments(self) -> None:
        """Releases the segments of the latest forward, which are kept to compare them with those of the next one."""
        self._packing = None

    def _packed(self, segments: Sequence[Segment]) -> Packing:
        """Returns the packing of these segments, reused from the previous forward if the layout is the same."""
        if self._packing is None or not self._packing.fits(segments):
            self._packing = Packing.of(segments, self.layers)
        return self._packing

    def _pictures(self, segments: Sequence[Segment]) -> Tensor:
        """Returns references and embedded patches of each image, padded by the learned token: [tokens, dim]."""
        parts = []
        for segment in segments:
            if segment.conditioning.references is not None:
                parts.append(segment.conditioning.references)
            parts.append(self.embed(segment.latents))
            if segment.conditioning.padding:
                parts.append(self.weights.image_pad.expand(segment.conditioning.padding, -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _predicted(self, segment: Segment, tokens: Tensor) -> Tensor:
        """Applies the final layer to the image's tokens of one segment."""
        weights, out = self.weights, self.weights.final_out
        image = tokens[segment.conditioning.image]
        normed = F.layer_norm(image, image.shape[-1:], eps=weights.final_eps) * segment.modulation.final
        height, width = segment.latents.shape[1:]
        return unpatchify(F.linear(normed, out.weight, out.bias), height, width).float()


def _layer_norms(modulation: Modulation, blocks: slice) -> Tensor:
    return modulation.layers[blocks]
