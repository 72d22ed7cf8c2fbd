"""What a parsed call asks for, in this service's own types."""

from dataclasses import dataclass

import torch

from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_vision.conditioning import ConditionOptions
from zrelay_vision.engines import EngineKind
from zrelay_vision.identity import VisionFingerprint
from zrelay_vision.picture_store import ImageRef
from zrelay_vision.token_modes import States, StatesOptions


@dataclass(frozen=True, slots=True)
class EncodeCall:
    """Images to encode with an engine. `dtype` is of the embeddings, by safetensors' name."""

    images: tuple[ImageRef, ...]
    engine: EngineKind
    target_area: int | None
    states_options: StatesOptions
    dtype: str


@dataclass(frozen=True, slots=True)
class ScoreCall:
    """Images and texts to compare."""

    images: tuple[ImageRef, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SavedStates:
    """States that a caller brings, with what made them."""

    states: States
    fingerprint: VisionFingerprint


@dataclass(frozen=True, slots=True, eq=False)
class ConditionCall:
    """A prompt [T, width] with what made it, and the image or the states to condition it with."""

    prompt_embeds: torch.Tensor
    fingerprint: EncoderFingerprint
    source: ImageRef | SavedStates
    states_options: StatesOptions
    options: ConditionOptions
