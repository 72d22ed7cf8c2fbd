"""SigLIP2's two towers, each built and loaded when it is needed, with transformers' own modules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Siglip2TextConfig,
    Siglip2TextModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from zrelay_shared.errors import CheckpointError
from zrelay_shared.torch_weights import load_weights
from zrelay_vision.siglip_folder import SiglipFolder
from zrelay_vision.siglip_pixels import SiglipPixels

_VISION, _TEXT = "vision_model.", "text_model."


class ScoreScale(nn.Module):
    """SigLIP's learnt scale (its logarithm) and bias, [1] each."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.logit_bias = nn.Parameter(torch.zeros(1))


@dataclass(frozen=True, slots=True)
class TextTower:
    """What scoring needs besides the images' features. `length` is the tokens that every text is padded to."""

    model: Any
    scale: ScoreScale
    tokenizer: PreTrainedTokenizerBase
    length: int


@dataclass(frozen=True, slots=True)
class SiglipParts:
    """What is needed besides the weights: small, and checked before they are read."""

    vision_config: Any
    pixels: SiglipPixels


def load_parts(folder: SiglipFolder) -> SiglipParts:
    """Vision config and image processor. Raises CheckpointError where they make no SigLIP2."""
    name = folder.component.path.name
    kind: Any = Siglip2VisionConfig if folder.naflex else SiglipVisionConfig
    try:
        config = kind.from_dict({**folder.vision_config, "vision_use_head": _has_head(folder)})
        with torch.device("meta"):
            _vision_class(folder)(config)
    except Exception as error:  # transformers has kinds of its own for this, which change between versions
        raise _broken(name, "config.json makes no SigLIP2", error) from error
    try:
        pixels = SiglipPixels.of(
            folder.processor,
            naflex=folder.naflex,
            patch_size=int(config.patch_size),
            image_size=0 if folder.naflex else int(config.image_size),
        )
        pixels.settings  # noqa: B018  the settings that are not there show here
    except Exception as error:  # whatever a setting of the wrong kind makes of it
        raise _broken(name, "preprocessor_config.json makes no image processor for it", error) from error
    return SiglipParts(config, pixels)


def load_vision_tower(folder: SiglipFolder, config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The vision tower; with its pooling head only where the checkpoint can score. Raises CheckpointError."""
    with torch.device("meta"):
        model = _vision_class(folder)(config)
    # A tower saved alone has no prefix, or the one that older versions of transformers gave it.
    alone = folder.vision_config is folder.component.config
    _load(model, folder, device, dtype, _VISION, alone=alone)
    return model


def load_text_tower(folder: SiglipFolder, device: torch.device, dtype: torch.dtype) -> TextTower:
    """Text tower, scale and tokenizer of a folder that `has_text`. Raises CheckpointError."""
    name = folder.component.path.name
    said = folder.component.config["text_config"]
    config_class: Any = Siglip2TextConfig if folder.naflex else SiglipTextConfig
    model_class: Any = Siglip2TextModel if folder.naflex else SiglipTextModel
    try:
        config = config_class.from_dict(said)
        with torch.device("meta"):
            model, scale = model_class(config), ScoreScale()
    except Exception as error:  # as above
        raise _broken(name, "config.json makes no SigLIP2 text tower", error) from error
    _load(model, folder, device, dtype, _TEXT)
    load_weights(scale, folder.component.weights, device, dtype, name_of=lambda n: n, what=name)
    return TextTower(model, scale, _load_tokenizer(folder), config.max_position_embeddings)


def _load(
    model: Any, folder: SiglipFolder, device: torch.device, dtype: torch.dtype, prefix: str, *, alone: bool = False
) -> None:
    def name_of(name: str) -> str | None:
        return name.removeprefix(prefix) if alone or name.startswith(prefix) else None

    load_weights(model, folder.component.weights, device, dtype, name_of=name_of, what=folder.component.path.name)
    for module in model.modules():  # the one buffer that is not saved
        if isinstance(getattr(module, "position_ids", None), torch.Tensor):
            module.position_ids = torch.arange(module.position_ids.shape[-1], device=device).expand(1, -1)


def _load_tokenizer(folder: SiglipFolder) -> PreTrainedTokenizerBase:
    path = folder.component.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        tokenizer(["a"], padding="max_length", max_length=8)
    except Exception as error:  # transformers and tokenizers have kinds of their own for damaged files
        raise _broken(path.name, "the tokenizer cannot be read", error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise CheckpointError(f"{path.name}: expected a tokenizer, got {type(tokenizer).__name__}")
    return tokenizer


def _vision_class(folder: SiglipFolder) -> Any:
    return Siglip2VisionModel if folder.naflex else SiglipVisionModel


def _has_head(folder: SiglipFolder) -> bool:
    """Grids are taken before the pooling head: only scores need it."""
    return folder.has_text and folder.vision_config.get("vision_use_head", True) is True


def encode_texts(tower: TextTower, ids: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Features [texts, C] of token ids that are padded already.

    Without an attention mask: SigLIP was trained to read its padding (and pools the last position).
    """
    features: torch.Tensor = tower.model(input_ids=torch.tensor(ids, device=device)).pooler_output
    return features


def _broken(name: str, problem: str, error: Exception) -> CheckpointError:
    lines = [line.strip() for line in str(error).splitlines()] or [""]
    return CheckpointError(
        f"{name}: {problem} ({type(error).__name__}: {' '.join(lines[:2])}); copy it again from the checkpoint"
    )
