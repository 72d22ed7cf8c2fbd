"""ConditionPrompt's request off the wire into a call: the prompt, the image or saved states, the options."""

import math
from typing import Any

import torch

from zrelay.v1 import vision_pb2 as pb
from zrelay.v1.embeds_pb2 import PromptEmbeds
from zrelay_shared import vision_fingerprint
from zrelay_shared.fingerprint import EncoderFingerprint, from_message
from zrelay_shared.torch_tensors import from_wire
from zrelay_shared.wire import Parcel
from zrelay_vision.blend import BlendMode, Curve
from zrelay_vision.calls import ConditionCall, SavedStates
from zrelay_vision.conditioning import ConditionOptions
from zrelay_vision.config import VisionConfig
from zrelay_vision.engines import EngineKind
from zrelay_vision.identity import VisionFingerprint
from zrelay_vision.normalize import Normalization
from zrelay_vision.outliers import OutlierMask
from zrelay_vision.parsing import TOKENS, choice, image, refusal, states_options
from zrelay_vision.picture_store import ImageRef
from zrelay_vision.token_modes import States, TokenMode

_BLENDS = {getattr(pb.BlendMode, f"BLEND_MODE_{mode.name}"): mode for mode in BlendMode}
_NORMALIZATIONS = {getattr(pb.StateNormalization, f"STATE_NORMALIZATION_{how.name}"): how for how in Normalization}
_MASKS = {getattr(pb.OutlierMask, f"OUTLIER_MASK_{mask.name}"): mask for mask in OutlierMask}
_CURVES = {getattr(pb.GraduatedCurve, f"GRADUATED_CURVE_{curve.name}"): curve for curve in Curve}


def condition_call(parcel: Parcel[pb.ConditionPromptRequest], config: VisionConfig) -> ConditionCall:
    """The call of a request. Raises InvalidArgument, PayloadCorrupt, EncoderMismatch."""
    request = parcel.message
    options = _options(request.options)
    reading = states_options(request.states_options, "states_options", config)
    prompt, fingerprint = _prompt(parcel, request.prompt_embeds)
    source: ImageRef | SavedStates
    match request.WhichOneof("source"):
        case "image":
            source = image(request.image, "image", config)
        case "states":
            if request.states_options.ListFields():
                raise refusal("states_options", "STATES_OPTIONS_UNUSED", "none with saved states", "some")
            source = _states(parcel, request.states)
        case _:
            raise refusal("image", "IMAGE_MISSING", "an image, the digest of one sent before, or states", "none")
    weights = len(options.token_weights)
    if options.blend is BlendMode.TOKEN_WEIGHTS and weights != len(prompt):
        expected = f"{len(prompt)} weights, one for each token of the prompt"
        raise refusal("options.token_weights", "TOKEN_WEIGHTS_INVALID", expected, weights)
    return ConditionCall(prompt, fingerprint, source, reading, options)


def _prompt(parcel: Parcel[Any], given: PromptEmbeds) -> tuple[torch.Tensor, EncoderFingerprint]:
    """[T, width] of the one segment, and what made it."""
    if not given.segments:
        expected = "the embeddings of a prompt as the encoder sent them"
        raise refusal("prompt_embeds", "PROMPT_MISSING", expected, "none; encode a prompt first")
    if len(given.segments) > 1:
        got = f"{len(given.segments)}; condition ordinary prompts, and give an Omni prompt its images instead"
        raise refusal("prompt_embeds.segments", "PROMPT_SEGMENTS", "one segment", got)
    fingerprint = from_message(given.fingerprint, path="prompt_embeds.fingerprint")
    field = "prompt_embeds.segments[0].prompt_embeds"
    embeds = from_wire(parcel, given.segments[0].prompt_embeds, field=field, rank=2)
    if embeds.shape[1] != fingerprint.width:
        expected = f"rows of {fingerprint.width} values, as the fingerprint says"
        raise refusal(field, "TENSOR_SHAPE", expected, f"rows of {embeds.shape[1]}")
    return embeds, fingerprint


def _states(parcel: Parcel[Any], given: pb.VisionStates) -> SavedStates:
    fingerprint = _fingerprint(given.fingerprint)
    rows = from_wire(parcel, given.hidden_states, field="states.hidden_states", rank=2)
    if rows.shape[1] != fingerprint.width:
        expected = f"rows of {fingerprint.width} values, as the fingerprint says"
        raise refusal("states.hidden_states", "TENSOR_SHAPE", expected, f"rows of {rows.shape[1]}")
    tokens = choice(given.tokens, pb.VisionTokens, TOKENS, "states.tokens") or TokenMode.FULL
    start, count = given.image_token_start, given.image_token_count
    if start + count > len(rows):
        expected = f"image tokens among the {len(rows)} rows"
        raise refusal("states.image_token_count", "IMAGE_TOKENS_INVALID", expected, f"{count} from row {start} on")
    return SavedStates(States(rows, start, count, tokens), fingerprint)


def _fingerprint(message: pb.VisionFingerprint) -> VisionFingerprint:
    """What made saved states. Raises InvalidArgument where it is absent, not whole, or another engine's."""
    fingerprint = vision_fingerprint.from_message(message, path="states.fingerprint")
    if fingerprint.engine != EngineKind.QWEN3_VL:
        field = "states.fingerprint.engine"
        raise refusal(field, "STATES_ENGINE", "VISION_ENGINE_QWEN3_VL", fingerprint.engine)
    return fingerprint


def _options(options: pb.ConditionOptions) -> ConditionOptions:
    default = ConditionOptions()
    alpha = options.alpha if options.HasField("alpha") else default.alpha
    if not 0.0 <= alpha <= 1.0:  # not a number is refused as well
        raise refusal("options.alpha", "ALPHA_INVALID", "0 to 1", f"{alpha:g}")
    threshold = options.outlier_threshold if options.HasField("outlier_threshold") else default.outlier_threshold
    if not 0.0 < threshold < math.inf:
        raise refusal("options.outlier_threshold", "OUTLIER_THRESHOLD_INVALID", "a number above 0", f"{threshold:g}")
    blend = choice(options.blend, pb.BlendMode, _BLENDS, "options.blend") or default.blend
    weights = tuple(options.token_weights)
    if weights and blend is not BlendMode.TOKEN_WEIGHTS:
        expected = f"none with {blend}"
        raise refusal("options.token_weights", "TOKEN_WEIGHTS_INVALID", expected, f"{len(weights)}")
    if not all(0.0 <= weight <= 1.0 for weight in weights):
        bad = next(weight for weight in weights if not 0.0 <= weight <= 1.0)
        raise refusal("options.token_weights", "TOKEN_WEIGHTS_INVALID", "weights of 0 to 1", f"{bad:g}")
    return ConditionOptions(
        alpha=alpha,
        blend=blend,
        normalization=choice(options.normalization, pb.StateNormalization, _NORMALIZATIONS, "options.normalization")
        or default.normalization,
        outlier_mask=choice(options.outlier_mask, pb.OutlierMask, _MASKS, "options.outlier_mask")
        or default.outlier_mask,
        outlier_threshold=threshold,
        curve=choice(options.curve, pb.GraduatedCurve, _CURVES, "options.curve") or default.curve,
        token_weights=weights,
    )
