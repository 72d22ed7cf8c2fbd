"""An image as Qwen3-VL's vision tower takes it, by transformers' own image processor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

_DECISIVE = ("do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
             "patch_size", "temporal_patch_size", "merge_size")  # fmt: skip
MAX_ASPECT = 200
"""Longer side over shorter: beyond it transformers refuses."""


@dataclass(frozen=True, slots=True)
class QwenPixels:
    """Cuts images into patches.

    The backend that computes with PIL: torchvision, which transformers would take where it is installed, resizes a
    little differently, and an embedding must not depend on what else a machine has.
    """

    processor: Any
    least_area: int
    most_area: int

    @classmethod
    def of(cls, settings: Mapping[str, object], max_area: int) -> "QwenPixels":
        """By the checkpoint's settings, with images of more than `max_area` pixels scaled down to it.

        Raises ValueError (TypeError, KeyError) for settings that are no such processor's.
        """
        processor = Qwen2VLImageProcessorPil.from_dict(dict(settings))
        least, most = int(processor.size["shortest_edge"]), int(processor.size["longest_edge"])
        factor = int(processor.patch_size) * int(processor.merge_size)
        if not factor * factor <= least <= most:
            raise ValueError(f"size: expected {factor * factor} <= shortest_edge <= longest_edge, got {least}, {most}")
        return cls(processor, min(least, max_area), min(most, max_area))

    @property
    def factor(self) -> int:
        """Pixels along one side of an image token."""
        return int(self.processor.patch_size) * int(self.processor.merge_size)

    @property
    def settings(self) -> dict[str, object]:
        """What decides the values of patches, as JSON values."""
        plain: dict[str, object] = {name: getattr(self.processor, name) for name in _DECISIVE}
        plain["resample"] = int(self.processor.resample)
        plain["image_mean"], plain["image_std"] = list(self.processor.image_mean), list(self.processor.image_std)
        return plain | {"least_area": self.least_area, "most_area": self.most_area}

    def grid(self, width: int, height: int, target_area: int | None) -> tuple[int, int]:
        """Rows and columns of patches that an image of `width` x `height` pixels is cut into.

        Raises ValueError where one side is more than 200 times the other.
        """
        least, most = (self.least_area, self.most_area) if target_area is None else (target_area, target_area)
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise ValueError(f"image: expected sides of at most 1 to {MAX_ASPECT}, got {width} x {height}")
        high, wide = smart_resize(height, width, factor=self.factor, min_pixels=least, max_pixels=most)
        patch = int(self.processor.patch_size)
        return high // patch, wide // patch

    def patches(self, image: Image, target_area: int | None) -> torch.Tensor:
        """[rows * columns, values] float32 of an RGB image, in the vision tower's order."""
        if self.processor.do_resize:  # as transformers would, but without its two copies of a large image
            rows, columns = self.grid(*image.size, target_area)
            patch = int(self.processor.patch_size)
            image = image.resize((columns * patch, rows * patch), resample=self.processor.resample)
        cut = self.processor(
            images=[image],
            do_resize=False,
            input_data_format="channels_last",  # transformers would guess, and guess wrong at 3 pixels of height
            return_tensors="pt",
        )
        patches: torch.Tensor = cut["pixel_values"]
        return patches
