"""Image to image: a job starts from a picture instead of noise."""

from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.features.image_to_image.hooks import image_to_image_hooks
from zrelay_generator.features.image_to_image.spec import ImageToImageSpec, parse_image_to_image
from zrelay_generator.features.protocol import Capability, FeatureSlice


def _capabilities(accepts: Acceptance | None) -> tuple[Capability, ...]:
    return (Capability("generate.img2img"),)


SLICE = FeatureSlice(
    fields=("image_to_image",),
    spec=ImageToImageSpec,
    capabilities=_capabilities,
    parse=parse_image_to_image,
    hooks=image_to_image_hooks,
)
