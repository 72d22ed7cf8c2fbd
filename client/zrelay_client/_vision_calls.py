"""Calls to a vision service: images looked at and sent in as many requests as they need."""

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from zrelay_client._budget import Budget
from zrelay_client._embeds import Embeds
from zrelay_client._info import VisionInfo
from zrelay_client._services import VisionService
from zrelay_client._vision_embeds import Conditioned, ImageEmbeds, ImageScores
from zrelay_client._vision_images import (
    MAX_IMAGE_BYTES,
    ImageFile,
    ImageSource,
    check_image,
    looks_like_image,
    read_image,
)
from zrelay_client._vision_messages import (
    condition_request,
    conditioned_of,
    encode_request,
    score_request,
    scores_of,
    split,
)
from zrelay_client._vision_options import ConditionOptions, EncodeImagesOptions, Engine
from zrelay_shared.errors import InternalError, InvalidArgument, NotFound

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
    said, files = await _opened(vision, images, budget)
    return await encode_files(vision, said, files, engine, options, budget)


async def encode_files(
    vision: VisionService,
    said: VisionInfo,
    files: Sequence[ImageFile],
    engine: Engine,
    options: EncodeImagesOptions,
    budget: Budget,
) -> list[ImageEmbeds]:
    """The same for files that were read, by a service that `said` what it takes."""
    found: list[ImageEmbeds] = []
    for batch in _together(files, said.max_images or 1):
        try:
            sent = await vision.encode_images(encode_request(batch, engine, options), budget.left("vision"))
        except InvalidArgument as error:
            raise _by_name(error, batch) from error
        reply = split(sent)
        found += _one_each(reply, batch)
    return found


async def score_images(
    vision: VisionService, images: Sequence[ImageSource], texts: Sequence[str], budget: Budget
) -> list[ImageScores]:
    """How well each text describes each image."""
    found: list[ImageScores] = []
    said, files = await _opened(vision, images, budget)
    for batch in _together(files, said.max_images or 1):
        try:
            reply = scores_of(await vision.score_images(score_request(batch, texts), budget.left("vision")))
        except InvalidArgument as error:
            raise _by_name(error, batch) from error
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
    source = await asyncio.to_thread(open_reference, None, image)
    request = condition_request(embeds, source, options)
    return conditioned_of(await vision.condition(request, budget.left("vision")), embeds)


async def condition(
    vision: VisionService,
    embeds: Embeds,
    source: ImageFile | ImageEmbeds,
    options: ConditionOptions,
    budget: Budget,
) -> Conditioned:
    """The same for an image that the service has seen, which goes by its name for as long as the service keeps it."""
    for named in (True, False):
        request = condition_request(embeds, source, options, named=named)
        try:
            return conditioned_of(await vision.condition(request, budget.left("vision")), embeds)
        except NotFound as error:
            if not named or error.reason != "CONTENT_UNKNOWN":
                raise
    raise InternalError("the vision service asked for an image that it was sent")


def states_options(options: ConditionOptions) -> EncodeImagesOptions:
    """How the image is read, of how a prompt is conditioned by it."""
    return {
        "hidden_layer": options.get("hidden_layer"),
        "tokens": options.get("tokens"),
        "text": options.get("text"),
        "system_prompt": options.get("system_prompt"),
    }


def open_reference(said: VisionInfo | None, source: ImageSource | ImageEmbeds) -> ImageFile | ImageEmbeds:
    """An image file, or states: given, or in a file of theirs. Raises as `read_image` and `ImageEmbeds.load`."""
    if isinstance(source, ImageEmbeds):
        return source
    if not isinstance(source, bytes) and Path(source).suffix == _STATES_SUFFIX:
        with Path(source).open("rb") as file:
            if not looks_like_image(file.read(12)):
                return ImageEmbeds.load(Path(source))
    return read_image(source, max_bytes=_most_bytes(said))


def check_reference(source: ImageSource | ImageEmbeds) -> None:
    """Looks at what `open_reference` will open. Raises as it does."""
    if isinstance(source, bytes):
        check_image(source)
    elif not isinstance(source, ImageEmbeds):
        if Path(source).suffix == _STATES_SUFFIX:
            open_reference(None, source)
        else:
            check_image(source)


def check_files(images: Sequence[ImageSource]) -> None:
    """Looks at what `open_files` will open, before a service is asked what it takes. Raises as `read_image`."""
    for image in images:
        check_image(image)


def open_files(said: VisionInfo, images: Sequence[ImageSource]) -> list[ImageFile]:
    """The images' files, no larger than the service takes. Raises as `read_image`."""
    return [read_image(image, max_bytes=_most_bytes(said)) for image in images]


def _most_bytes(said: VisionInfo | None) -> int:
    return min(said.max_image_bytes or MAX_IMAGE_BYTES, MAX_IMAGE_BYTES) if said is not None else MAX_IMAGE_BYTES


async def _opened(
    vision: VisionService, images: Sequence[ImageSource], budget: Budget
) -> tuple[VisionInfo, list[ImageFile]]:
    if isinstance(images, str | bytes | os.PathLike):
        raise TypeError("images: expected several images, got one: put it into a list")
    if not images:
        raise InvalidArgument("images: expected at least one, got none", field="images", reason="IMAGES_MISSING")
    await asyncio.to_thread(check_files, images)
    said = await vision.info(budget.left("vision"))
    return said, await asyncio.to_thread(open_files, said, images)


def _together(files: Sequence[ImageFile], most: int) -> Iterator[list[ImageFile]]:
    batch: list[ImageFile] = []
    for file in files:
        size = sum(len(other.data) for other in batch)
        if batch and (len(batch) == most or size + len(file.data) > MAX_IMAGE_BYTES):
            yield batch
            batch = []
        batch.append(file)
    yield batch


def _by_name(error: InvalidArgument, batch: Sequence[ImageFile]) -> InvalidArgument:
    """A refusal of an image with the name of its file in place of its number."""
    found = re.match(r"images\[(\d+)\][\w.]*", error.field)
    if found is None or int(found[1]) >= len(batch):
        return error
    message = error.message.replace(f"{error.field}:", f"{batch[int(found[1])].name}:", 1)
    return InvalidArgument(message, reason=error.reason, field=error.field, metadata=error.metadata)


def _one_each(reply: list[T], batch: list[ImageFile]) -> list[T]:
    if len(reply) != len(batch):
        raise InternalError(f"the vision service answered {len(reply)} images, asked were {len(batch)}")
    return reply
