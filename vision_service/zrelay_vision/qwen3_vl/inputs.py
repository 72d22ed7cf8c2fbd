"""The model's inputs: patches of the image, token ids around it, and rotary positions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from zrelay_shared.errors import invalid
from zrelay_shared.pictures import Picture

_DECISIVE = ("do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
             "patch_size", "temporal_patch_size", "merge_size")  # fmt: skip
MAX_ASPECT = 200
"""Longer side over shorter side: transformers refuses larger ratios."""


@dataclass(frozen=True, slots=True)
class QwenPreprocessor:
    """Cuts images into patches with transformers' PIL backend.

    transformers prefers torchvision if it is installed. It resizes slightly differently, and an embedding must not
    depend on which packages a machine has.

    Attributes:
        processor: transformers' image processor.
        min_area: Smaller images are scaled up to this many pixels.
        max_area: Larger images are scaled down to this many pixels.
    """

    processor: Any
    min_area: int
    max_area: int

    @classmethod
    def of(cls, settings: Mapping[str, object], max_area: int) -> "QwenPreprocessor":
        """Makes the preprocessor of a checkpoint, with at most `max_area` pixels per image.

        Raises:
            ValueError: The sizes are inconsistent. Settings of another kind of processor raise TypeError or KeyError.
        """
        processor = Qwen2VLImageProcessorPil.from_dict(dict(settings))
        sides = (processor.size["shortest_edge"], processor.size["longest_edge"])
        if not all(isinstance(side, int) for side in sides):
            raise ValueError(f"size: expected whole numbers of pixels in shortest_edge and longest_edge, got {sides}")
        smallest, largest = sides
        factor = int(processor.patch_size) * int(processor.merge_size)
        if not factor * factor <= smallest <= largest:
            expected = f"{factor * factor} <= shortest_edge <= longest_edge"
            raise ValueError(f"size: expected {expected}, got {smallest}, {largest}")
        return cls(processor, min(smallest, max_area), min(largest, max_area))

    @property
    def factor(self) -> int:
        """Side of an image token in pixels."""
        return int(self.processor.patch_size) * int(self.processor.merge_size)

    @property
    def settings(self) -> dict[str, object]:
        """The settings that decide the values of patches, as JSON values."""
        plain: dict[str, object] = {name: getattr(self.processor, name) for name in _DECISIVE}
        plain["resample"] = int(self.processor.resample)
        for name in ("image_mean", "image_std"):  # 1 and 1.0 are the same
            plain[name] = [float(value) for value in getattr(self.processor, name)]
        # The names of the two areas are part of the digest in fingerprints.
        return plain | {"least_area": self.min_area, "most_area": self.max_area}

    def grid(self, width: int, height: int, target_area: int | None) -> tuple[int, int]:
        """Returns rows and columns of patches for an image of `width` x `height` pixels.

        Raises:
            ValueError: One side is more than MAX_ASPECT times the other.
        """
        smallest, largest = (self.min_area, self.max_area) if target_area is None else (target_area, target_area)
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise ValueError(f"image: expected one side at most {MAX_ASPECT} times the other, got {width} x {height}")
        high, wide = smart_resize(height, width, factor=self.factor, min_pixels=smallest, max_pixels=largest)
        patch = int(self.processor.patch_size)
        return high // patch, wide // patch

    def patches(self, image: Picture, target_area: int | None) -> torch.Tensor:
        """Cuts an RGB image into patches: [rows * columns, values] float32, in the vision tower's order."""
        if self.processor.do_resize:  # as transformers does, without its two copies of a large image
            rows, columns = self.grid(*image.size, target_area)
            patch = int(self.processor.patch_size)
            image = image.resize((columns * patch, rows * patch), resample=self.processor.resample)
        processed = self.processor(
            images=[image],
            do_resize=False,
            input_data_format="channels_last",  # transformers guesses wrong for an image of 3 rows
            return_tensors="pt",
        )
        patches: torch.Tensor = processed["pixel_values"]
        return patches


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """Ids of the special tokens around an image and in its place."""

    start: int
    image: int
    video: int
    end: int


@dataclass(frozen=True, slots=True)
class VisionPrompt:
    """Token ids around an image.

    Attributes:
        before: Ids up to and including vision_start.
        after: Ids after vision_end: the text, and the start of the assistant's turn.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]


def format_vision_prompt(
    tokenizer: PreTrainedTokenizerBase, tokens: ImageTokens, text: str, system_prompt: str
) -> VisionPrompt:
    """Formats a system turn (if any), a user turn with the image and `text`, and the start of the assistant's turn.

    The template decides whether the assistant's turn opens a think block (Thinking) or not (Instruct).

    Raises:
        InvalidArgument: The text or the system prompt contains image tokens (TEXT_HAS_IMAGE).
        ValueError: The template does not put an image between its markers.
    """
    content: list[dict[str, str]] = [{"type": "image"}]
    if text:
        content.append({"type": "text", "text": text})
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system_prompt:
        turns.insert(0, {"role": "system", "content": system_prompt})
    formatted = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(formatted, padding=False, truncation=False).input_ids
    if tokens.video in ids or ids.count(tokens.image) > 1:
        raise invalid(
            "states_options",
            "text without the model's image and video tokens",
            "some",
            reason="TEXT_HAS_IMAGE",
            remedy="leave out <|image_pad|> and <|video_pad|>",
        )
    at = ids.index(tokens.image) if tokens.image in ids else 0
    if not 0 < at < len(ids) - 1 or (ids[at - 1], ids[at + 1]) != (tokens.start, tokens.end):
        raise ValueError("chat_template: expected one image between vision_start and vision_end, got none")
    return VisionPrompt(tuple(ids[:at]), tuple(ids[at + 2 :]))


def rotary_positions(before: int, grid: tuple[int, int], after: int) -> torch.Tensor:
    """Computes the positions of a sequence with one image for Qwen3-VL's rotary embedding (mrope).

    Text has the same position on all three axes. An image has one time, the position after the text before it, and from
    there its rows and columns. Text after it continues behind the longer side (transformers'
    Qwen3VLModel.get_rope_index).

    Args:
        before: Number of tokens before the image.
        grid: Rows and columns of image tokens, after merging.
        after: Number of tokens after the image.

    Returns:
        Time, height and width of each token: [3, before + rows * columns + after] int64.
    """
    rows, columns = grid
    if min(rows, columns) < 1 or min(before, after) < 0:
        raise ValueError(f"grid: expected at least 1 x 1 between texts of at least 0, got {before}, {grid}, {after}")
    height = torch.arange(rows).repeat_interleave(columns) + before
    width = torch.arange(columns).repeat(rows) + before
    image = torch.stack([torch.full_like(height, before), height, width])
    text = [torch.arange(length).expand(3, -1) + start for start, length in ((0, before), (before + max(grid), after))]
    return torch.cat([text[0], image, text[1]], 1)
