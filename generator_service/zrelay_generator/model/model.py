"""A loaded checkpoint: everything that the engine runs, on its device."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from zrelay_generator.model.preview import LatentToRgb
from zrelay_generator.model.transformer import PackedTransformer
from zrelay_generator.model.vae import Vae
from zrelay_shared.checkpoints import GenerationDefaults
from zrelay_shared.configuration import Configuration


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
    """A loaded model.

    Attributes:
        transformer, vae: The networks.
        latent_to_rgb: The map for previews.
        defaults, limits: Defaults and limits of the checkpoint.
        weights_digests: Digests of the weights as they were loaded, by the name of the component.
        configurations: What the components were built of, by their names.
    """

    transformer: PackedTransformer
    vae: Vae
    latent_to_rgb: LatentToRgb
    defaults: GenerationDefaults
    limits: ModelLimits
    weights_digests: Mapping[str, str] = field(default_factory=dict)
    configurations: Mapping[str, Configuration] = field(default_factory=dict)
