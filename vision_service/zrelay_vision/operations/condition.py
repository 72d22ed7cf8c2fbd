"""Conditions a prompt: reads the image's states or takes saved ones, blends, and records it in the fingerprint."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from zrelay_shared.callers import current_caller
from zrelay_shared.errors import FailedPrecondition
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.pictures import plain_picture
from zrelay_shared.torch_tensors import NAMES, all_finite
from zrelay_shared.vision_fingerprint import VisionFingerprint
from zrelay_vision.conditioning.blend import BlendMode
from zrelay_vision.conditioning.condition import (
    ConditioningOptions,
    ConditioningResult,
    condition,
    conditioned_fingerprint,
)
from zrelay_vision.conditioning.reference import ReferenceStatistics
from zrelay_vision.images.store import ImageRef
from zrelay_vision.operations.encode import read_states
from zrelay_vision.qwen3_vl.states import ImageStates, StatesParameters
from zrelay_vision.runtime import CancelCheck, VisionRuntime

if TYPE_CHECKING:
    from zrelay_vision.qwen3_vl.engine import Qwen3VLEngine

_CAPABILITY = "vision.condition"
_GREY = (128, 128, 128)


@dataclass(frozen=True, slots=True, eq=False)
class SavedStates:
    """States that the caller sends, with the fingerprint of what made them."""

    states: ImageStates
    fingerprint: VisionFingerprint


@dataclass(frozen=True, slots=True, eq=False)
class ConditionPromptParameters:
    """A parsed request of ConditionPrompt.

    Attributes:
        prompt_embeds: [T, width].
        fingerprint: What made them.
        source: The image, or saved states.
        states: How Qwen3-VL reads the image.
        options: How to condition.
    """

    prompt_embeds: torch.Tensor
    fingerprint: EncoderFingerprint
    source: ImageRef | SavedStates
    states: StatesParameters
    options: ConditioningOptions


@dataclass(frozen=True, slots=True, eq=False)
class ConditionedPrompt:
    """A conditioned prompt.

    Attributes:
        result: The embeddings, and what was measured.
        fingerprint: Their fingerprint.
        changed: Whether anything was changed; with alpha 0 nothing is.
        calibrated: Whether the service has reference statistics of the prompt's encoder.
        sha256: Digest (hex) of the image's file, "" for saved states.
    """

    result: ConditioningResult
    fingerprint: EncoderFingerprint
    changed: bool
    calibrated: bool
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """States, what made them, the digest of their image, and the states of a plain image for style_delta."""

    states: ImageStates
    fingerprint: VisionFingerprint
    sha256: str = ""
    neutral: torch.Tensor | None = None


async def condition_prompt(runtime: VisionRuntime, request: ConditionPromptParameters) -> ConditionedPrompt:
    """Conditions a prompt with an image or with saved states.

    Raises:
        ModelLoading, Draining, QueueFull: The service does not accept the request now.
        FeatureMissing: The request has an image, and Qwen3-VL does not run.
        InvalidArgument, NotFound: The image or an option is wrong.
        OutOfMemory: The image does not fit the device.
        FailedPrecondition: REFERENCE_STATISTICS_MISSING, STATES_WIDTH, STYLE_DELTA_NEEDS_IMAGE, STATES_NOT_FINITE,
            RESULT_NOT_FINITE.
    """
    saved = request.source if isinstance(request.source, SavedStates) else None
    if saved is None:
        width = runtime.require_qwen3_vl(_CAPABILITY, "image").width
    else:
        runtime.check_ready()
        width = saved.fingerprint.width
        if request.options.blend is BlendMode.STYLE_DELTA:
            raise FailedPrecondition(
                "options.blend: style_delta compares the image with a plain one of the same size, which saved states "
                "do not record; send the image, or its digest",
                field="options.blend",
                reason="STYLE_DELTA_NEEDS_IMAGE",
            )
    _check_width(width, request.fingerprint)
    reference = _reference(runtime, request)
    fingerprint, changed = request.fingerprint, request.options.alpha != 0
    async with runtime.admit() as cancelled:
        if saved is not None:
            source = _Source(saved.states, saved.fingerprint)
        else:
            source = await _read_image(runtime, request, cancelled)
        states = _in_reply_dtype(source, request)
        result = await runtime.worker.on_images(
            lambda: condition(request.prompt_embeds, states, request.options, reference, source.neutral)
        )
        if changed:
            used = reference if request.options.needs_reference else None
            fingerprint = await runtime.worker.on_images(
                lambda: conditioned_fingerprint(
                    request.fingerprint,
                    request.options,
                    request.states,
                    source.states,
                    source.fingerprint,
                    sha256=source.sha256,
                    reference=used,
                )
            )
        finite = await runtime.worker.on_images(lambda: all_finite(result.prompt_embeds))
    if not finite:
        raise FailedPrecondition(
            f"the conditioned prompt overflows {NAMES[result.prompt_embeds.dtype]}; encode the prompt in BF16, or "
            "lower alpha",
            reason="RESULT_NOT_FINITE",
        )
    return ConditionedPrompt(result, fingerprint, changed, reference is not None, source.sha256)


async def _read_image(runtime: VisionRuntime, request: ConditionPromptParameters, cancelled: CancelCheck) -> _Source:
    if isinstance(request.source, SavedStates):
        raise TypeError("source: expected an image, got saved states")
    engine, parameters = runtime.require_qwen3_vl(_CAPABILITY, "image"), request.states
    states, sha256, size = await read_states(runtime, engine, request.source, parameters, None, cancelled)
    neutral = None
    if request.options.blend is BlendMode.STYLE_DELTA:
        neutral = (await _read_plain_image(runtime, engine, size, parameters, cancelled)).hidden_states
    return _Source(states, engine.fingerprint_of(parameters.hidden_layer), sha256, neutral)


async def _read_plain_image(
    runtime: VisionRuntime,
    engine: "Qwen3VLEngine",
    size: tuple[int, int],
    parameters: StatesParameters,
    cancelled: CancelCheck,
) -> ImageStates:
    """Computes the states of a grey image of the same size, read in the same way."""
    owner = current_caller().owner
    prepared = await runtime.worker.on_images(
        lambda: engine.prepare("grey", size, lambda: plain_picture(*size, _GREY), parameters, None, owner=owner)
    )
    return await runtime.worker.on_device(lambda: engine.run(prepared, cancelled))


def _in_reply_dtype(source: _Source, request: ConditionPromptParameters) -> ImageStates:
    """Rounds states to BF16 if the prompt is BF16, as EncodeImages does by default.

    So an image and its saved states give the same prompt, whatever dtype they were computed in. States that are
    compared with a plain image stay in the compute dtype, as those of the plain image do.
    """
    if source.neutral is not None or request.prompt_embeds.dtype is not torch.bfloat16:
        return source.states
    return replace(source.states, hidden_states=source.states.hidden_states.bfloat16())


def _reference(runtime: VisionRuntime, request: ConditionPromptParameters) -> ReferenceStatistics | None:
    """Returns the statistics of the prompt's encoder. Raises FailedPrecondition if they are needed and missing."""
    encoder = replace(request.fingerprint, modifications=())  # a conditioned prompt is still of that encoder
    found = runtime.references.reference_for(encoder)
    if found is not None or not request.options.needs_reference:
        return found
    raise FailedPrecondition(
        f"options: {request.options.summary} needs reference statistics of the prompt's encoder "
        f"({request.fingerprint.model_id or 'unnamed'}, layer {request.fingerprint.hidden_layer}), and this service "
        f"has {'only those of others' if runtime.references.digests else 'none'}; run `zrelay calibrate` with that "
        "encoder and restart the vision service (with --reference-stats FOLDER if the file is elsewhere), or use "
        "token_rms without an outlier mask",
        field="options",
        reason="REFERENCE_STATISTICS_MISSING",
        metadata={"encoder": encoder.digest, "held": len(runtime.references.digests)},
    )


def _check_width(width: int, fingerprint: EncoderFingerprint) -> None:
    if width != fingerprint.width:
        raise FailedPrecondition(
            f"prompt_embeds: expected rows of {width} values, the width of this Qwen3-VL's states, got "
            f"{fingerprint.width}; use a Qwen3-VL of the text encoder's width (Qwen3-VL-4B for Z-Image's Qwen3-4B)",
            field="prompt_embeds",
            reason="STATES_WIDTH",
            metadata={"expected": width, "got": fingerprint.width},
        )
