"""Preprocesses images for SigLIP2's vision tower with transformers' image processors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    Siglip2ImageProcessorPil,
    get_image_size_for_max_num_patches,
)

from zrelay_shared.pictures import Picture, plain_picture, resized

_DECISIVE = ("do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
RESIZED_ABOVE = 1024 * 1024
"""Number of pixels above which ZImageOmniPipeline resizes a reference image."""
MIN_AREA, MAX_AREA = 64 * 64, 4096 * 4096
"""Allowed target areas in pixels: the smallest reference that the pipeline takes, and the largest image."""


@dataclass(frozen=True, slots=True)
class SiglipPreprocessor:
    """Cuts images into patches with transformers' PIL backend.

    transformers prefers torchvision if it is installed. It resizes slightly differently, and an embedding must not
    depend on which packages a machine has.

    Attributes:
        processor: transformers' image processor.
        naflex: Whether images keep their aspect ratio.
        patch_size: Side of a patch in pixels.
        image_size: Side of the square image in pixels, 0 for NaFlex.
    """

    processor: Any
    naflex: bool
    patch_size: int
    image_size: int

    @classmethod
    def of(
        cls, settings: Mapping[str, object], *, naflex: bool, patch_size: int, image_size: int
    ) -> "SiglipPreprocessor":
        """Makes the preprocessor of a checkpoint.

        Raises:
            ValueError: The settings do not fit the tower. Settings of another kind of processor raise whatever
                transformers raises.
        """
        if naflex:
            processor = Siglip2ImageProcessorPil.from_dict(dict(settings))
            if not isinstance(processor.max_num_patches, int) or processor.max_num_patches < 1:
                found = processor.max_num_patches
                raise ValueError(f"max_num_patches: expected a whole number of at least 1, got {found}")
        else:
            processor = SiglipImageProcessorPil.from_dict(dict(settings))
            size = (processor.size["height"], processor.size["width"])
            if size != (image_size, image_size):
                raise ValueError(f"size: expected {image_size} x {image_size}, as config.json says, got {size}")
        return cls(processor, naflex, patch_size, image_size)

    @property
    def settings(self) -> dict[str, object]:
        """The settings that decide the values of patches, as JSON values."""
        plain: dict[str, object] = {name: getattr(self.processor, name) for name in _DECISIVE}
        plain["resample"] = int(self.processor.resample)
        for name in ("image_mean", "image_std"):  # 1 and 1.0 are the same
            plain[name] = [float(value) for value in getattr(self.processor, name)]
        if self.naflex:
            return plain | {"patch_size": self.processor.patch_size, "max_num_patches": self.processor.max_num_patches}
        return plain | {"height": self.processor.size["height"], "width": self.processor.size["width"]}

    def check_size(self) -> None:
        """Preprocesses one small image. Raises ValueError if do_center_crop or do_pad change its size."""
        pixels = self.inputs(plain_picture(32, 32))[0]["pixel_values"]
        found, wanted = list(pixels.shape[-2:]), [self.image_size] * 2
        if not self.naflex and found != wanted:
            raise ValueError(f"do_center_crop, do_pad: expected images of {wanted} pixels after them, got {found}")

    def inputs(self, image: Picture) -> tuple[dict[str, torch.Tensor], tuple[int, int]]:
        """Preprocesses one RGB image.

        Returns:
            The keyword arguments of the tower, as a batch of 1 (pixel_values, and for NaFlex, whose patches are padded,
            pixel_attention_mask [1, P] and spatial_shapes [1, 2]), and the rows and columns of the grid.
        """
        if self.processor.do_resize:  # as transformers does, without its two copies of a large image
            high, wide = self._size(image)
            image = image.resize((wide, high), resample=self.processor.resample)
        cut = self.processor(images=[image], do_resize=False, return_tensors="pt")
        if self.naflex:
            rows, columns = (int(side) for side in cut["spatial_shapes"][0])
        else:
            rows = columns = self.image_size // self.patch_size
        return {name: cut[name] for name in self.processor.model_input_names}, (rows, columns)

    def _size(self, image: Picture) -> tuple[int, int]:
        """Returns the height and width to which an image is resized."""
        if not self.naflex:
            return self.image_size, self.image_size
        high, wide = get_image_size_for_max_num_patches(
            image_height=image.height,
            image_width=image.width,
            patch_size=self.patch_size,
            max_num_patches=self.processor.max_num_patches,
        )
        return int(high), int(wide)


def to_area(image: Picture, target_area: int) -> Picture:
    """Resizes a reference image as ZImageOmniPipeline does before SigLIP and the VAE see it.

    Images of up to 1024 * 1024 pixels stay as they are. A larger one is resized to `target_area` pixels with the same
    aspect ratio. Source: ZImageOmniPipeline.__call__ and Flux2ImageProcessor._resize_to_target_area (diffusers).

    Args:
        image: The reference image.
        target_area: Pixels of the image to be generated.

    Raises:
        ValueError: One side would have no pixel.
    """
    width, height = image.size
    if width * height <= RESIZED_ABOVE:
        return image
    scale = math.sqrt(target_area / (width * height))
    size = (int(width * scale), int(height * scale))
    if min(size) < 1:
        raise ValueError(f"image: expected at least one pixel on each side of {target_area} pixels, got {size}")
    return resized(image, *size)
