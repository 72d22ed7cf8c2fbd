"""A loaded checkpoint: everything the engine runs, on its device."""

from dataclasses import dataclass

from zrelay_generator.acceptance import ModelLimits
from zrelay_generator.preview import LatentToRgb
from zrelay_generator.transformer import PackedTransformer
from zrelay_generator.vae import Vae
from zrelay_shared.checkpoints import GenerationDefaults


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """Transformer, VAE and the preview's map, with what the checkpoint says of itself."""

    transformer: PackedTransformer
    vae: Vae
    latent_to_rgb: LatentToRgb
    defaults: GenerationDefaults
    limits: ModelLimits
