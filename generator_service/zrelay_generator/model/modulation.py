"""Modulation: the scales and gates of every block, which depend on the timestep only."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zrelay_generator.model.weights import BlockWeights, TransformerWeights


@dataclass(frozen=True, slots=True, eq=False)
class Modulation:
    """The modulation of one timestep.

    Attributes:
        refiner: [blocks, 4, dim], norm weights of the noise refiner's blocks times `1 + scale` or `tanh(gate)`.
        layers: [blocks, 4, dim], the same of the main blocks.
        final: [dim], `1 + scale` of the final layer.
    """

    refiner: Tensor
    layers: Tensor
    final: Tensor


def modulation(weights: TransformerWeights, timestep: float) -> Modulation:
    """Computes the modulation of `timestep` (1 - sigma), in float32 with one rounding to the model's dtype.

    diffusers runs these small linear layers in every forward. Their result depends on the timestep only.
    """
    time = torch.tensor([timestep], dtype=torch.float32, device=weights.device)
    embedding = weights.time_embedder(time * weights.time_scale).to(weights.dtype)
    final = 1.0 + weights.final_adaln(embedding)[0].float()
    return Modulation(
        refiner=torch.stack([_norms(block, embedding) for block in weights.noise_refiner]).to(weights.dtype),
        layers=torch.stack([_norms(block, embedding) for block in weights.layers]).to(weights.dtype),
        final=final.to(weights.dtype),
    )


def _norms(block: BlockWeights, embedding: Tensor) -> Tensor:
    """Returns [4, dim] float32: scale before and gate after attention, scale before and gate after the MLP."""
    if block.adaln is None:
        raise ValueError("adaln: expected a modulated block, got a context refiner block")
    raw = F.linear(embedding, block.adaln.weight, block.adaln.bias)[0].float().view(4, -1)
    factors = torch.stack([1.0 + raw[0], raw[1].tanh(), 1.0 + raw[2], raw[3].tanh()])
    return block.norms.float() * factors
