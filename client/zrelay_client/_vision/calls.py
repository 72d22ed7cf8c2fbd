"""Calls to the vision service. Images are checked first, and sent in as many requests as they need."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from zrelay.v1 import vision_pb2 as pb
from zrelay_client._transport.deadline import CONNECT_S, Budget
from zrelay_client._transport.stub import ServiceStub
from zrelay_client._wire.option_names import (
    CONDITION_PROMPT,
    ENCODE_IMAGES,
    REFERENCE,
    SCORE_IMAGES,
    OptionNames,
    option_names,
)
from zrelay_client._wire.replies import vision_info
from zrelay_client._wire.vision import (
    condition_request,
    conditioned_of,
    encode_request,
    score_request,
    scores_of,
)
from zrelay_client.embeds import Conditioned, Embeds
from zrelay_client.image_embeds import ImageEmbeds, ImageScores, split
from zrelay_client.image_files import (
    MAX_IMAGE_BYTES,
    ImageFile,
    ImageSource,
    check_image,
    looks_like_image,
    read_image,
)
from zrelay_client.info import VisionInfo
from zrelay_client.options import ConditionOptions, EncodeImagesOptions, Engine, checked_images
from zrelay_shared.errors import InternalError, InvalidArgument, NotFound
from zrelay_shared.wire import Parcel

_STATES_SUFFIX = ".safetensors"
T = TypeVar("T", ImageEmbeds, ImageScores)


class VisionService(ServiceStub):
    """The rpcs of a vision service."""

    role = "vision"
    descriptor = pb.DESCRIPTOR.services_by_name["VisionService"]

    async def info(self, timeout: float = CONNECT_S) -> VisionInfo:
        """Returns what the service reports of itself."""
        request = pb.VisionServiceGetInfoRequest()
        reply = await self.quick_call("GetInfo", request, pb.VisionServiceGetInfoResponse, timeout)
        return vision_info(self.endpoint, reply.message)

    async def encode_images(self, request: pb.EncodeImagesRequest, timeout: float) -> Parcel[pb.EncodeImagesResponse]:
        """Encodes the images of a request in one call."""
        with option_names(ENCODE_IMAGES):
            return await self.stub.call("EncodeImages", request, pb.EncodeImagesResponse, timeout=timeout)

    async def score_images(self, request: pb.ScoreImagesRequest, timeout: float) -> pb.ScoreImagesResponse:
        """Scores images against texts in one call."""
        with option_names(SCORE_IMAGES):
            return (await self.stub.call("ScoreImages", request, pb.ScoreImagesResponse, timeout=timeout)).message

    async def condition(
        self, request: Parcel[pb.ConditionPromptRequest], timeout: float, names: OptionNames = CONDITION_PROMPT
    ) -> Parcel[pb.ConditionPromptResponse]:
        """Blends an image into the embeddings of a prompt.

        Args:
            request: The request.
            timeout: Seconds for the call.
            names: Names of the options in refusals: those of `condition_prompt` or of `generate`, whichever sends the
                request.
        """
        with option_names(names):
            return await self.stub.call("ConditionPrompt", request, pb.ConditionPromptResponse, timeout=timeout)


async def encode_images(
    vision: VisionService,
    images: Sequence[ImageSource],
    engine: Engine,
    options: EncodeImagesOptions,
    budget: Budget,
) -> list[ImageEmbeds]:
    """Returns the embedding of each image: all or none.

    Raises:
        InvalidArgument: IMAGES_MISSING, as `read_image`, or the service refuses; the message names the image's file.
        OSError: A file cannot be read.
        ZrelayError: The call fails.
    """
    info, files = await _read_all(vision, images, budget)
    return await encode_files(vision, info, files, engine, options, budget)


async def encode_files(
    vision: VisionService,
    info: VisionInfo,
    files: Sequence[ImageFile],
    engine: Engine,
    options: EncodeImagesOptions,
    budget: Budget,
) -> list[ImageEmbeds]:
    """As `encode_images`, for files that were read before, with the `info` of the service."""
    found: list[ImageEmbeds] = []
    for batch in _batches(files, info.max_images or 1):
        try:
            reply = await vision.encode_images(encode_request(batch, engine, options), budget.left("vision"))
        except InvalidArgument as error:
            raise _with_file_name(error, batch) from error
        found += _one_each(split(reply), batch)
    return found


async def score_images(
    vision: VisionService, images: Sequence[ImageSource], texts: Sequence[str], budget: Budget
) -> list[ImageScores]:
    """Returns how well each text describes each image. Raises as `encode_images`."""
    found: list[ImageScores] = []
    info, files = await _read_all(vision, images, budget)
    for batch in _batches(files, info.max_images or 1):
        try:
            reply = await vision.score_images(score_request(batch, texts), budget.left("vision"))
        except InvalidArgument as error:
            raise _with_file_name(error, batch) from error
        found += _one_each(scores_of(reply), batch)
    return found


async def condition_prompt(
    vision: VisionService,
    embeds: Embeds,
    image: ImageSource | ImageEmbeds,
    options: ConditionOptions,
    budget: Budget,
) -> Conditioned:
    """Returns a prompt conditioned by an image: a file, its bytes, its states, or a file of states."""
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
    """As `condition_prompt`, for the reference of `generate`, which the service has encoded before: the request names
    it by its digest, and contains it only if the service does not hold it any more."""
    for named in (True, False):
        request = condition_request(embeds, source, options, named=named)
        try:
            return conditioned_of(await vision.condition(request, budget.left("vision"), REFERENCE), embeds)
        except NotFound as error:
            if not named or error.reason != "CONTENT_UNKNOWN":
                raise
    raise InternalError("the vision service does not hold an image that was part of the request")


def open_reference(info: VisionInfo | None, source: ImageSource | ImageEmbeds) -> ImageFile | ImageEmbeds:
    """Reads an image file, or a file of states. Raises as `read_image` and `ImageEmbeds.load`."""
    if isinstance(source, ImageEmbeds):
        return source
    if not isinstance(source, bytes) and Path(source).suffix == _STATES_SUFFIX:
        with Path(source).open("rb") as file:
            if not looks_like_image(file.read(12)):
                return ImageEmbeds.load(Path(source))
    return read_image(source, max_bytes=_max_bytes(info))


def check_reference(source: ImageSource | ImageEmbeds) -> None:
    """Checks what `open_reference` will read. Raises as it does."""
    if isinstance(source, bytes):
        check_image(source)
    elif not isinstance(source, ImageEmbeds):
        if Path(source).suffix == _STATES_SUFFIX:
            open_reference(None, source)
        else:
            check_image(source)


def check_files(images: Sequence[ImageSource]) -> None:
    """Checks images before a service is called. Raises as `read_image`."""
    for image in images:
        check_image(image)


def open_files(info: VisionInfo, images: Sequence[ImageSource]) -> list[ImageFile]:
    """Reads image files, no larger than the service accepts. Raises as `read_image`."""
    return [read_image(image, max_bytes=_max_bytes(info)) for image in images]


def _max_bytes(info: VisionInfo | None) -> int:
    return min(info.max_image_bytes or MAX_IMAGE_BYTES, MAX_IMAGE_BYTES) if info is not None else MAX_IMAGE_BYTES


async def _read_all(
    vision: VisionService, images: Sequence[ImageSource], budget: Budget
) -> tuple[VisionInfo, list[ImageFile]]:
    images = checked_images("images", images)
    if not images:
        raise InvalidArgument("images: expected at least one, got none", field="images", reason="IMAGES_MISSING")
    await asyncio.to_thread(check_files, images)
    info = await vision.info(budget.left("vision"))
    return info, await asyncio.to_thread(open_files, info, images)


def _batches(files: Sequence[ImageFile], most: int) -> Iterator[list[ImageFile]]:
    """Yields consecutive files that fit into one request: at most `most`, and no more bytes than a message carries."""
    batch: list[ImageFile] = []
    for file in files:
        size = sum(len(other.data) for other in batch)
        if batch and (len(batch) == most or size + len(file.data) > MAX_IMAGE_BYTES):
            yield batch
            batch = []
        batch.append(file)
    yield batch


def _with_file_name(error: InvalidArgument, batch: Sequence[ImageFile]) -> InvalidArgument:
    """Returns the refusal of an image with the name of its file in place of its index."""
    found = re.match(r"images\[([0-9]+)\][\w.]*", error.field)
    if found is None or int(found[1]) >= len(batch):
        return error
    message = error.message.replace(f"{error.field}:", f"{batch[int(found[1])].name}:", 1)
    return InvalidArgument(message, reason=error.reason, field=error.field, metadata=error.metadata)


def _one_each(results: list[T], batch: list[ImageFile]) -> list[T]:
    if len(results) != len(batch):
        raise InternalError(f"expected {len(batch)} results from the vision service, got {len(results)}")
    return results
