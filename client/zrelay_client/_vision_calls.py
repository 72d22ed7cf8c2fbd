"""Calls to a vision service: images looked at and sent in as many requests as they need."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

from zrelay_client._budget import Budget
from zrelay_client._embeds import Embeds
from zrelay_client._services import VisionService
from zrelay_client._vision_embeds import Conditioned, ImageEmbeds, ImageScores
from zrelay_client._vision_images import MAX_IMAGE_BYTES, ImageFile, looks_like_image, read_image
from zrelay_client._vision_messages import (
    condition_request,
    conditioned_of,
    encode_request,
    score_request,
    scores_of,
    split,
)
from zrelay_client._vision_options import ConditionOptions, EncodeImagesOptions, Engine
from zrelay_shared.errors import InternalError, InvalidArgument

ImageSource: TypeAlias = str | os.PathLike[str] | bytes
"""A path of an image file, or its bytes."""
_STATES_SUFFIX = ".safetensors"
T = TypeVar("T", ImageEmbeds, ImageScores)


async def encode_images(
    vision: VisionService,
    images: Sequence[ImageSource],
    engine: Engine,
    options: EncodeImagesOptions,
    budget: Budget,
) -> list[ImageEmbeds]:
    """Embeddings of each image, all or none."""
    found: list[ImageEmbeds] = []
    for batch in await _batches(vision, images, budget):
        reply = split(await vision.encode_images(encode_request(batch, engine, options), budget.left("vision")))
        found += _one_each(reply, batch)
    return found


async def score_images(
    vision: VisionService, images: Sequence[ImageSource], texts: Sequence[str], budget: Budget
) -> list[ImageScores]:
    """How well each text describes each image."""
    found: list[ImageScores] = []
    for batch in await _batches(vision, images, budget):
        reply = scores_of(await vision.score_images(score_request(batch, texts), budget.left("vision")))
        found += _one_each(reply, batch)
    return found


async def condition_prompt(
    vision: VisionService,
    embeds: Embeds,
    image: ImageSource | ImageEmbeds,
    options: ConditionOptions,
    budget: Budget,
) -> Conditioned:
    """A prompt conditioned by an image: a file, its bytes, its states, or a file of them."""
    source = image if isinstance(image, ImageEmbeds) else await asyncio.to_thread(_image_or_states, image)
    request = condition_request(embeds, source, options)
    return conditioned_of(await vision.condition(request, budget.left("vision")), embeds)


def _image_or_states(source: ImageSource) -> ImageFile | ImageEmbeds:
    if not isinstance(source, bytes) and Path(source).suffix == _STATES_SUFFIX:
        with Path(source).open("rb") as file:
            if not looks_like_image(file.read(12)):
                return ImageEmbeds.load(Path(source))
    return read_image(source)


async def _batches(vision: VisionService, images: Sequence[ImageSource], budget: Budget) -> Iterator[list[ImageFile]]:
    """The images' files, as many together as one call carries."""
    if isinstance(images, str | bytes | os.PathLike):
        raise TypeError("images: expected several images, got one: put it into a list")
    if not images:
        raise InvalidArgument("images: expected at least one, got none", field="images", reason="IMAGES_MISSING")
    said = await vision.info(budget.left("vision"))
    most_bytes = min(said.max_image_bytes or MAX_IMAGE_BYTES, MAX_IMAGE_BYTES)
    files = await asyncio.to_thread(lambda: [read_image(image, max_bytes=most_bytes) for image in images])
    return _together(files, said.max_images or 1)


def _together(files: Sequence[ImageFile], most: int) -> Iterator[list[ImageFile]]:
    batch: list[ImageFile] = []
    for file in files:
        size = sum(len(other.data) for other in batch)
        if batch and (len(batch) == most or size + len(file.data) > MAX_IMAGE_BYTES):
            yield batch
            batch = []
        batch.append(file)
    yield batch


def _one_each(reply: list[T], batch: list[ImageFile]) -> list[T]:
    if len(reply) != len(batch):
        raise InternalError(f"the vision service answered {len(reply)} images, asked were {len(batch)}")
    return reply
