"""A loaded checkpoint: everything that the engine runs, on its device."""

from dataclasses import dataclass

from zrelay_generator.model.preview import LatentToRgb
from zrelay_generator.model.transformer import PackedTransformer
from zrelay_generator.model.vae import Vae
from zrelay_shared.checkpoints import GenerationDefaults


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Limits of a checkpoint.

    Attributes:
        text_limit: Greatest number of prompt tokens.
        embeds_width: Width of the prompt embeddings.
        max_side: Greatest side of an image in pixels.
        size_multiple: Divisor of both sides.
        layers: Number of main blocks.
        siglip_width: Width of the SigLIP grids that the transformer reads, 0 if it has no SigLIP parts.
    """

    text_limit: int
    embeds_width: int
    max_side: int
    size_multiple: int
    layers: int
    siglip_width: int = 0


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A loaded model: transformer, VAE, the map for previews, and the checkpoint's defaults and limits."""

    transformer: PackedTransformer
    vae: Vae
    latent_to_rgb: LatentToRgb
    defaults: GenerationDefaults
    limits: ModelLimits
