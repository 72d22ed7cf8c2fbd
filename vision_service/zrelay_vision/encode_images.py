"""The calls EncodeImages and ScoreImages: each image decoded, run, and held to what one reply carries."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from zrelay_shared.errors import FailedPrecondition, MessageTooLarge
from zrelay_shared.torch_tensors import FLOAT_DTYPES, NAMES, all_finite
from zrelay_vision.calls import EncodeCall, ScoreCall
from zrelay_vision.engines import EngineKind
from zrelay_vision.features import ENCODE
from zrelay_vision.identity import VisionFingerprint
from zrelay_vision.picture_store import ImageRef
from zrelay_vision.runtime import Gone, VisionRuntime
from zrelay_vision.scores import Scores
from zrelay_vision.token_modes import States, StatesOptions

if TYPE_CHECKING:
    from zrelay_vision.qwen import Qwen3VLEngine


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPicture:
    """What an engine made of an image: a grid [H, W, C] or states, on the CPU in the dtype asked for."""

    result: torch.Tensor | States
    fingerprint: VisionFingerprint
    sha256: str


async def encode_images(runtime: VisionRuntime, call: EncodeCall) -> list[EncodedPicture]:
    """Each image of a call, all or none.

    Raises ModelLoading, Draining, QueueFull, FeatureMissing, InvalidArgument, NotFound, MessageTooLarge, OutOfMemory,
    FailedPrecondition (STATES_NOT_FINITE).
    """
    encode = _grid if call.engine is EngineKind.SIGLIP else _states
    if call.engine is EngineKind.SIGLIP:
        runtime.needs_siglip(ENCODE[call.engine], "engine")
    else:
        runtime.needs_qwen3_vl(ENCODE[call.engine], "engine")
    results: list[EncodedPicture] = []
    most = room = runtime.config.max_reply_bytes
    async with runtime.turn() as gone:
        for ref in call.images:
            done = await encode(runtime, ref, call, gone)
            room -= (done.result.hidden_states if isinstance(done.result, States) else done.result).nbytes
            if room < 0:
                raise MessageTooLarge(
                    f"images: the embeddings of {len(results) + 1} are over what one reply carries "
                    f"({most} bytes): send fewer images a call, or ask for BF16",
                    field="images",
                    metadata={"fits_images": len(results)},
                )
            results.append(done)
    return results


async def score_images(runtime: VisionRuntime, call: ScoreCall) -> list[Scores]:
    """Scores of each image with every text, [1, texts] each. Raises as `encode_images`."""
    siglip = runtime.needs_siglip("vision.score", "images")
    scores = []
    async with runtime.turn() as gone:
        for ref in call.images:
            stored, picture = await runtime.open(ref)
            seen = await runtime.worker.on_images(lambda: runtime.pixels(ref, stored, picture))  # noqa: B023  awaited
            scores.append(
                await runtime.worker.on_device(lambda: siglip.score([seen], call.texts, cancelled=gone))  # noqa: B023
            )
    return scores


async def read_states(
    runtime: VisionRuntime,
    engine: "Qwen3VLEngine",
    ref: ImageRef,
    options: StatesOptions,
    target_area: int | None,
    gone: Gone,
    *,
    field: str = "image",
) -> tuple[States, str, tuple[int, int]]:
    """An image's states in the compute dtype, the SHA-256 of its file, and its width and height."""
    stored, picture = await runtime.open(ref)
    size = (stored.width, stored.height)
    reading = await runtime.worker.on_images(
        lambda: engine.prepare(
            stored.sha256, size, lambda: runtime.pixels(ref, stored, picture).image, options, target_area, field=field
        )
    )
    return await runtime.worker.on_device(lambda: engine.run(reading, gone)), stored.sha256, size


async def _grid(runtime: VisionRuntime, ref: ImageRef, call: EncodeCall, gone: Gone) -> EncodedPicture:
    siglip = runtime.needs_siglip(ENCODE[call.engine], "engine")
    stored, picture = await runtime.open(ref)
    seen = await runtime.worker.on_images(lambda: runtime.pixels(ref, stored, picture))
    [grid] = await runtime.worker.on_device(lambda: siglip.encode([seen], target_area=call.target_area, cancelled=gone))
    if siglip.fingerprint is None:
        raise RuntimeError("siglip: expected a loaded engine, got none")
    return EncodedPicture(_cast(grid, call.dtype), siglip.fingerprint, stored.sha256)


async def _states(runtime: VisionRuntime, ref: ImageRef, call: EncodeCall, gone: Gone) -> EncodedPicture:
    engine, options = runtime.needs_qwen3_vl(ENCODE[call.engine], "engine"), call.states_options
    states, sha256, _ = await read_states(runtime, engine, ref, options, call.target_area, gone, field=ref.field)
    cast = replace(states, hidden_states=_cast(states.hidden_states, call.dtype))
    return EncodedPicture(cast, engine.fingerprint_of(options.hidden_layer), sha256)


def _cast(embeds: torch.Tensor, dtype: str) -> torch.Tensor:
    """Embeddings in a dtype of the wire. Raises FailedPrecondition (STATES_NOT_FINITE) where they do not fit it."""
    cast = embeds.to(FLOAT_DTYPES[dtype])
    if not all_finite(cast):
        raise FailedPrecondition(
            f"the embeddings overflow: computed in {NAMES[embeds.dtype]}, asked for in {dtype}; ask for BF16, and "
            "start the vision service with --dtype bfloat16 or float32",
            reason="STATES_NOT_FINITE",
        )
    return cast
