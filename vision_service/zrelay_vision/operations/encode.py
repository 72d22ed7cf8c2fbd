"""Encodes and scores images: decodes each, runs an engine, and keeps the result within what one reply carries."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from zrelay_shared.callers import current_caller
from zrelay_shared.errors import FailedPrecondition, MessageTooLarge
from zrelay_shared.torch_devices import dtype_name
from zrelay_shared.torch_tensors import FLOAT_DTYPES, NAMES, all_finite, overflow_remedy
from zrelay_shared.vision_fingerprint import VisionFingerprint
from zrelay_vision.engines import EngineKind
from zrelay_vision.images.store import ImageRef
from zrelay_vision.qwen3_vl.states import ImageStates, StatesParameters
from zrelay_vision.runtime import CancelCheck, VisionRuntime
from zrelay_vision.siglip.scores import Scores

if TYPE_CHECKING:
    from zrelay_vision.qwen3_vl.engine import Qwen3VLEngine

_GRIDS, _STATES = "vision.encode.grids", "vision.encode.states"


@dataclass(frozen=True, slots=True)
class EncodeImagesParameters:
    """A parsed request of EncodeImages.

    Attributes:
        images: The images.
        engine: The engine.
        target_area: Area in pixels to which the engine resizes images, None for its default.
        states: How Qwen3-VL encodes the images.
        dtype: Dtype of the embeddings, by safetensors' name.
    """

    images: tuple[ImageRef, ...]
    engine: EngineKind
    target_area: int | None
    states: StatesParameters
    dtype: str


@dataclass(frozen=True, slots=True)
class ScoreImagesParameters:
    """A parsed request of ScoreImages: images and texts to compare."""

    images: tuple[ImageRef, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """What an engine made of an image.

    Attributes:
        result: A grid [H, W, C] or states, on the CPU in the requested dtype.
        fingerprint: What made it.
        sha256: Digest (hex) of the image's file.
    """

    result: torch.Tensor | ImageStates
    fingerprint: VisionFingerprint
    sha256: str


async def encode_images(runtime: VisionRuntime, request: EncodeImagesParameters) -> list[EncodedImage]:
    """Encodes the images of a request, all or none.

    Raises:
        ModelLoading, Draining, QueueFull: The service does not accept the request now.
        FeatureMissing: The engine does not run, or the layer is not loaded.
        InvalidArgument, NotFound: An image or an option is wrong.
        MessageTooLarge: One reply cannot carry the embeddings.
        OutOfMemory: An image does not fit the device.
        FailedPrecondition: STATES_NOT_FINITE.
    """
    if request.engine is EngineKind.SIGLIP:
        runtime.require_siglip(_GRIDS, "engine")
        encode = _encode_grid
    else:
        runtime.require_qwen3_vl(_STATES, "engine")
        encode = _encode_states
    results: list[EncodedImage] = []
    limit = remaining = runtime.config.max_reply_bytes
    async with runtime.admit() as cancelled:
        for ref in request.images:
            encoded = await encode(runtime, ref, request, cancelled)
            tensor = encoded.result.hidden_states if isinstance(encoded.result, ImageStates) else encoded.result
            remaining -= tensor.nbytes
            if remaining < 0:
                raise MessageTooLarge(
                    f"images: the embeddings of {len(results) + 1} images exceed the {limit} bytes of one reply; send "
                    "fewer images per call, or request BF16",
                    field="images",
                    metadata={"fits_images": len(results)},
                )
            results.append(encoded)
    return results


async def score_images(runtime: VisionRuntime, request: ScoreImagesParameters) -> list[Scores]:
    """Scores each image with every text: one Scores [1, texts] per image. Raises as `encode_images`."""
    siglip, owner = runtime.require_siglip("vision.score", "images"), current_caller().owner
    scores = []
    async with runtime.admit() as cancelled:
        for ref in request.images:
            stored, image = await runtime.open(ref, cancelled)
            decoded = await runtime.worker.on_images(
                lambda: runtime.decoded(ref, stored, image, cancelled)  # noqa: B023  awaited
            )
            scores.append(
                await runtime.worker.on_device(
                    lambda: siglip.score(
                        [decoded],  # noqa: B023  awaited
                        request.texts,
                        cancelled=cancelled,
                        owner=owner,
                    )
                )
            )
    return scores


async def read_states(
    runtime: VisionRuntime,
    engine: "Qwen3VLEngine",
    ref: ImageRef,
    parameters: StatesParameters,
    target_area: int | None,
    cancelled: CancelCheck,
    *,
    field: str = "image",
) -> tuple[ImageStates, str, tuple[int, int]]:
    """Returns an image's states in the compute dtype, the digest of its file, and its width and height."""
    stored, image = await runtime.open(ref, cancelled)
    size = (stored.width, stored.height)
    prepared = await runtime.worker.on_images(
        lambda: engine.prepare(
            stored.sha256,
            size,
            lambda: runtime.decoded(ref, stored, image, cancelled).image,
            parameters,
            target_area,
            field=field,
            owner=stored.owner,
        )
    )
    return await runtime.worker.on_device(lambda: engine.run(prepared, cancelled)), stored.sha256, size


async def _encode_grid(
    runtime: VisionRuntime, ref: ImageRef, request: EncodeImagesParameters, cancelled: CancelCheck
) -> EncodedImage:
    siglip = runtime.require_siglip(_GRIDS, "engine")
    stored, image = await runtime.open(ref, cancelled)
    decoded = await runtime.worker.on_images(lambda: runtime.decoded(ref, stored, image, cancelled))
    [grid] = await runtime.worker.on_device(
        lambda: siglip.encode([decoded], target_area=request.target_area, cancelled=cancelled)
    )
    if siglip.fingerprint is None:
        raise RuntimeError("siglip: expected a loaded engine, got none")
    return EncodedImage(_cast(grid, request.dtype), siglip.fingerprint, stored.sha256)


async def _encode_states(
    runtime: VisionRuntime, ref: ImageRef, request: EncodeImagesParameters, cancelled: CancelCheck
) -> EncodedImage:
    engine, parameters = runtime.require_qwen3_vl(_STATES, "engine"), request.states
    states, sha256, _ = await read_states(
        runtime, engine, ref, parameters, request.target_area, cancelled, field=ref.field
    )
    cast = replace(states, hidden_states=_cast(states.hidden_states, request.dtype))
    return EncodedImage(cast, engine.fingerprint_of(parameters.hidden_layer), sha256)


def _cast(embeds: torch.Tensor, dtype: str) -> torch.Tensor:
    """Converts embeddings to a dtype of the contract. Raises FailedPrecondition (STATES_NOT_FINITE) on overflow."""
    cast = embeds.to(FLOAT_DTYPES[dtype])
    if not all_finite(cast):
        raise FailedPrecondition(
            f"the embeddings overflow: computed in {NAMES[embeds.dtype]}, requested in {dtype}; "
            f"{overflow_remedy('vision service', dtype_name(embeds.dtype), dtype_name(cast.dtype))}",
            reason="STATES_NOT_FINITE",
        )
    return cast
