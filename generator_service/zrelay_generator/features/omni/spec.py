"""What a job asks of Z-Image Omni, and what a checkpoint allows."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from zrelay_generator.features.protocol import FeatureSpec
from zrelay_generator.model.model import ModelLimits

CAPABILITY = "generate.omni"


@dataclass(frozen=True, slots=True, eq=False)
class OmniSpec(FeatureSpec):
    """Reference images of a job. All tuples may be empty, which is Omni without references.

    Attributes:
        pictures: [3, h, w] uint8 each, sides divisible by the VAE's factor and the patch size.
        grids: SigLIP grid of each picture, [rows, columns, siglip_width] of any dtype, on the CPU.
        files: SHA-256 (hex) of the file of each picture.
        encoders: Fingerprint digest of the model that made each grid, "" if it was not sent.
    """

    pictures: tuple[Tensor, ...]
    grids: tuple[Tensor, ...]
    files: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()

    def provenance(self) -> Mapping[str, object]:
        return {"omni": {"file_sha256": list(self.files), "siglip_encoders": list(self.encoders)}}


@dataclass(frozen=True, slots=True)
class OmniLimits:
    """Limits of reference images.

    Attributes:
        siglip_width: Width of the SigLIP grids.
        max_side: Greatest side in pixels, after resizing.
    """

    siglip_width: int
    max_side: int


def omni_limits(model: ModelLimits) -> OmniLimits | None:
    """Returns the limits of a checkpoint, None if its transformer has no SigLIP parts."""
    if not model.siglip_width:
        return None
    # A grid is spread over the latents of its picture, which have two rows for each position.
    return OmniLimits(model.siglip_width, model.max_side // 2)
