"""A loaded checkpoint: everything the engine runs, on its device."""

from dataclasses import dataclass

from zrelay_generator.model.preview import LatentToRgb
from zrelay_generator.model.transformer import PackedTransformer
from zrelay_generator.model.vae import Vae
from zrelay_shared.checkpoints import GenerationDefaults


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the checkpoint itself allows: prompt tokens, embedding width, pixels of a side, the side's divisor; how
    many main blocks it has, and the width of the SigLIP grids that it reads, 0 for none."""

    text_limit: int
    embeds_width: int
    max_side: int
    size_multiple: int
    layers: int
    siglip_width: int = 0


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """Transformer, VAE and the preview's map, with what the checkpoint says of itself."""

    transformer: PackedTransformer
    vae: Vae
    latent_to_rgb: LatentToRgb
    defaults: GenerationDefaults
    limits: ModelLimits
