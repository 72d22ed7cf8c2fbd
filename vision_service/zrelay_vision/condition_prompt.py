"""The call ConditionPrompt: an image's states fetched or taken as saved, blended into a prompt, and told."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from PIL import Image

from zrelay_shared.errors import FailedPrecondition
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.torch_tensors import NAMES, all_finite
from zrelay_vision.blend import BlendMode
from zrelay_vision.calls import ConditionCall, SavedStates
from zrelay_vision.conditioning import Conditioned, Reference, condition
from zrelay_vision.encode_images import read_states
from zrelay_vision.identity import VisionFingerprint
from zrelay_vision.modification import marked
from zrelay_vision.runtime import Gone, VisionRuntime
from zrelay_vision.token_modes import States, StatesOptions

if TYPE_CHECKING:
    from zrelay_vision.qwen import Qwen3VLEngine

_GREY = (128, 128, 128)


@dataclass(frozen=True, slots=True, eq=False)
class ConditionedPrompt:
    """A conditioned prompt and its fingerprint; whether anything was changed (alpha 0 does not), whether reference
    statistics of its encoder are there; the image's digest, "" for saved states."""

    conditioned: Conditioned
    fingerprint: EncoderFingerprint
    changed: bool
    calibrated: bool
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """States, what made them, the image they are of, and those of a plain image where the blend needs them."""

    states: States
    fingerprint: VisionFingerprint
    sha256: str = ""
    neutral: torch.Tensor | None = None


async def condition_prompt(runtime: VisionRuntime, call: ConditionCall) -> ConditionedPrompt:
    """A prompt conditioned by an image or by saved states.

    Raises ModelLoading, Draining, QueueFull, FeatureMissing, InvalidArgument, NotFound, OutOfMemory, FailedPrecondition
    (REFERENCE_STATISTICS_MISSING, STATES_WIDTH, STYLE_DELTA_NEEDS_IMAGE, STATES_NOT_FINITE, RESULT_NOT_FINITE).
    """
    saved = call.source if isinstance(call.source, SavedStates) else None
    if saved is None:
        width = runtime.needs_qwen3_vl("vision.condition", "image").width
    else:
        runtime.check_ready()
        width = saved.fingerprint.width
        if call.options.blend is BlendMode.STYLE_DELTA:
            raise _style_needs_image()
    _check_width(width, call.fingerprint)
    reference = _reference(runtime, call)
    async with runtime.turn() as gone:
        source = _Source(saved.states, saved.fingerprint) if saved is not None else await _read(runtime, call, gone)
        states = _as_sent(source, call)
        done = await runtime.worker.on_images(
            lambda: condition(call.prompt_embeds, states, call.options, reference, source.neutral)
        )
        changed = call.options.alpha != 0
        used = reference if call.options.needs_reference else None
        fingerprint = (
            await runtime.worker.on_images(lambda: marked(call, source.states, source.fingerprint, source.sha256, used))
            if changed
            else call.fingerprint
        )
    if not all_finite(done.prompt_embeds):
        raise FailedPrecondition(
            f"the conditioned prompt overflows {NAMES[done.prompt_embeds.dtype]}: encode the prompt in BF16, or lower "
            "alpha",
            reason="RESULT_NOT_FINITE",
        )
    return ConditionedPrompt(done, fingerprint, changed, reference is not None, source.sha256)


async def _read(runtime: VisionRuntime, call: ConditionCall, gone: Gone) -> _Source:
    if isinstance(call.source, SavedStates):
        raise TypeError("source: expected an image, got saved states")
    engine, options = runtime.needs_qwen3_vl("vision.condition", "image"), call.states_options
    states, sha256, size = await read_states(runtime, engine, call.source, options, None, gone)
    neutral = None
    if call.options.blend is BlendMode.STYLE_DELTA:
        neutral = (await _plain(runtime, engine, size, options, gone)).hidden_states
    return _Source(states, engine.fingerprint_of(options.hidden_layer), sha256, neutral)


def _as_sent(source: _Source, call: ConditionCall) -> States:
    """The states as EncodeImages sends them by default, where the prompt is in that dtype: so an image and its saved
    states make the same prompt, whatever dtype they were computed in. (What is compared with a plain image, in the
    compute dtype, stays in it.)"""
    if source.neutral is not None or call.prompt_embeds.dtype is not torch.bfloat16:
        return source.states
    return replace(source.states, hidden_states=source.states.hidden_states.bfloat16())


async def _plain(
    runtime: VisionRuntime, engine: "Qwen3VLEngine", size: tuple[int, int], options: StatesOptions, gone: Gone
) -> States:
    """States of a plain grey image of the same size, read the same way."""
    reading = await runtime.worker.on_images(
        lambda: engine.prepare("grey", size, lambda: Image.new("RGB", size, _GREY), options, None)
    )
    return await runtime.worker.on_device(lambda: engine.run(reading, gone))


def _reference(runtime: VisionRuntime, call: ConditionCall) -> Reference | None:
    """Statistics of the prompt's encoder. Raises FailedPrecondition where an option needs them and there are none."""
    encoder = replace(call.fingerprint, modifications=())  # conditioned before: still that encoder's
    found = runtime.references.reference_for(encoder)
    if found is not None:
        return Reference(found.mean, found.std)
    if not call.options.needs_reference:
        return None
    raise FailedPrecondition(
        f"options: {call.options.said} needs reference statistics of the prompt's encoder "
        f"({call.fingerprint.model_id or 'unnamed'}, layer {call.fingerprint.hidden_layer}), and this service holds "
        f"{'those of others' if runtime.references.digests else 'none'}: run `zrelay calibrate` with that encoder, "
        "then start the vision service again (with --reference-stats FOLDER where the file is elsewhere), or use "
        "token_rms without an outlier mask",
        field="options",
        reason="REFERENCE_STATISTICS_MISSING",
        metadata={"encoder": encoder.digest, "held": len(runtime.references.digests)},
    )


def _check_width(width: int, fingerprint: EncoderFingerprint) -> None:
    if width != fingerprint.width:
        raise FailedPrecondition(
            f"prompt_embeds: expected rows of {width} values, as this Qwen3-VL's states have, got {fingerprint.width}: "
            "use a Qwen3-VL of the text encoder's width (Qwen3-VL-4B for Z-Image's Qwen3-4B)",
            field="prompt_embeds",
            reason="STATES_WIDTH",
            metadata={"expected": width, "got": fingerprint.width},
        )


def _style_needs_image() -> FailedPrecondition:
    return FailedPrecondition(
        "options.blend: style_delta compares an image with a plain one of its size, which saved states do not tell: "
        "send the image, or its digest",
        field="options.blend",
        reason="STYLE_DELTA_NEEDS_IMAGE",
    )
