"""Requests off the wire into calls: every field looked at, every refusal by the field's path."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from zrelay.v1.content_pb2 import ImageInput
from zrelay.v1.vision_pb2 import (
    EncodeImagesRequest,
    ScoreImagesRequest,
    VisionEngine,
    VisionTokens,
)
from zrelay.v1.vision_pb2 import StatesOptions as StatesOptionsMessage
from zrelay_shared.errors import InvalidArgument, listed
from zrelay_shared.tensors import FLOATS, dtype_name
from zrelay_vision.calls import EncodeCall, ScoreCall
from zrelay_vision.config import VisionConfig
from zrelay_vision.engines import EngineKind
from zrelay_vision.picture_store import ImageRef
from zrelay_vision.token_modes import StatesOptions, TokenMode

V = TypeVar("V")
ENGINES: Mapping[int, EngineKind] = {
    VisionEngine.VISION_ENGINE_SIGLIP: EngineKind.SIGLIP,
    VisionEngine.VISION_ENGINE_QWEN3_VL: EngineKind.QWEN3_VL,
}
TOKENS: Mapping[int, TokenMode] = {
    VisionTokens.VISION_TOKENS_FULL: TokenMode.FULL,
    VisionTokens.VISION_TOKENS_TEXT_ONLY: TokenMode.TEXT_ONLY,
    VisionTokens.VISION_TOKENS_IMAGE_ONLY: TokenMode.IMAGE_ONLY,
    VisionTokens.VISION_TOKENS_IMAGE_NO_MARKERS: TokenMode.IMAGE_NO_MARKERS,
}
_SHA256 = re.compile(r"[0-9a-f]{64}")


def encode_call(request: EncodeImagesRequest, config: VisionConfig) -> EncodeCall:
    """The call of a request. Raises InvalidArgument."""
    engine = choice(request.engine, VisionEngine, ENGINES, "engine")
    if engine is None:
        raise refusal("engine", "ENGINE_MISSING", "VISION_ENGINE_SIGLIP or VISION_ENGINE_QWEN3_VL", "none")
    area = request.target_area if request.HasField("target_area") else None
    if engine is EngineKind.SIGLIP and request.states_options.ListFields():
        raise refusal("states_options", "STATES_OPTIONS_UNUSED", "none with VISION_ENGINE_SIGLIP", "some")
    return EncodeCall(
        images(request.images, config),
        engine,
        area,
        states_options(request.states_options, "states_options", config),
        _dtype(request.dtype),
    )


def score_call(request: ScoreImagesRequest, config: VisionConfig) -> ScoreCall:
    """The call of a request. Raises InvalidArgument."""
    if not 1 <= len(request.texts) <= config.max_texts:
        raise refusal("texts", "TEXT_COUNT", f"1 to {config.max_texts} texts", len(request.texts))
    for at, text in enumerate(request.texts):
        if not text.strip():
            raise refusal(f"texts[{at}]", "TEXT_EMPTY", "a text", "an empty one")
        _check_length(text, f"texts[{at}]", config)
    return ScoreCall(images(request.images, config), tuple(request.texts))


def images(inputs: Sequence[ImageInput], config: VisionConfig) -> tuple[ImageRef, ...]:
    """The images of a call. Raises InvalidArgument."""
    if not 1 <= len(inputs) <= config.max_images:
        raise refusal("images", "IMAGE_COUNT", f"1 to {config.max_images} images", len(inputs))
    return tuple(image(given, f"images[{at}]", config) for at, given in enumerate(inputs))


def image(given: ImageInput, field: str, config: VisionConfig) -> ImageRef:
    """A file or the name of one, as far as it can be judged without decoding it. Raises InvalidArgument."""
    match given.WhichOneof("source"):
        case "data":
            if not given.data:
                raise refusal(f"{field}.data", "IMAGE_MISSING", "an image file", "0 bytes")
            if len(given.data) > config.max_image_bytes:
                raise refusal(
                    f"{field}.data", "IMAGE_TOO_LARGE", f"at most {config.max_image_bytes} bytes", len(given.data)
                )
            return ImageRef(f"{field}.data", given.data)
        case "content":
            sha256 = given.content.sha256
            if not _SHA256.fullmatch(sha256):
                expected = "64 lower-case hex digits"
                raise refusal(f"{field}.content.sha256", "DIGEST_INVALID", expected, f"{sha256[:80]!r}")
            return ImageRef(f"{field}.content", None, sha256, given.content.size_bytes)
    raise refusal(field, "IMAGE_MISSING", "an image file, or the digest of one sent before", "neither")


def states_options(options: StatesOptionsMessage, field: str, config: VisionConfig) -> StatesOptions:
    """How an image is read. Raises InvalidArgument."""
    tokens = choice(options.tokens, VisionTokens, TOKENS, f"{field}.tokens") or TokenMode.FULL
    _check_length(options.text, f"{field}.text", config)
    _check_length(options.system_prompt, f"{field}.system_prompt", config)
    layer = options.hidden_layer if options.HasField("hidden_layer") else None
    return StatesOptions(layer, tokens, options.text, options.system_prompt)


class Enum(Protocol):
    """A generated enum."""

    def items(self) -> Iterable[tuple[str, int]]: ...


def choice(value: int, enum: Enum, known: Mapping[int, V], field: str) -> V | None:
    """What an enum's value stands for, None for UNSPECIFIED. Raises InvalidArgument for one that this contract does not
    name (proto3 lets any number through)."""
    if value == 0:
        return None
    if value not in known:
        names = [name for name, number in enum.items() if number in known]
        raise refusal(field, f"{field.rpartition('.')[2].upper()}_UNKNOWN", f"one of {listed(names)}", value)
    return known[value]


def refusal(field: str, reason: str, expected: str, got: object) -> InvalidArgument:
    """`field: expected ..., got ...`."""
    return InvalidArgument(
        f"{field}: expected {expected}, got {got}",
        field=field,
        reason=reason,
        metadata={"expected": expected, "got": got},
    )


def _check_length(text: str, field: str, config: VisionConfig) -> None:
    if len(text) > config.max_text_chars:
        raise refusal(field, "TEXT_TOO_LARGE", f"at most {config.max_text_chars} characters", len(text))


def _dtype(value: int) -> str:
    if not value:
        return "BF16"
    name = dtype_name(value)
    if name not in FLOATS:
        raise refusal("dtype", "DTYPE_INVALID", " or ".join(FLOATS), name or value)
    return name
