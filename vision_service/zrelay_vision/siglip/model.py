"""SigLIP2's two towers, built of transformers' modules. Each is loaded when it is needed."""

from collections.abc import Callable, Sequence
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
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from zrelay_shared.configuration import Configuration, combined_digest, read_configuration
from zrelay_shared.errors import CheckpointError
from zrelay_shared.tokenizer import check_rows
from zrelay_shared.tokenizer_files import readable_tokenizer
from zrelay_shared.torch_weights import load_weights
from zrelay_shared.weight_files import WeightFiles, canonical_name
from zrelay_vision.processor_settings import check_settings
from zrelay_vision.siglip.folder import SiglipFolder
from zrelay_vision.siglip.preprocessing import SiglipPreprocessor

_VISION, _TEXT = "vision_model.", "text_model."
_HEAD, _SCALE = "head.", ("logit_scale", "logit_bias")


class ScoreScale(nn.Module):
    """The learnt logarithm of the scale and the learnt bias of scores, [1] each."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.logit_bias = nn.Parameter(torch.zeros(1))


@dataclass(frozen=True, slots=True)
class TextTower:
    """What scoring needs besides the features of images.

    Attributes:
        model: The text tower.
        scale: Scale and bias of scores.
        tokenizer: The tokenizer.
        length: Number of tokens to which every text is padded.
    """

    model: Any
    scale: ScoreScale
    tokenizer: PreTrainedTokenizerBase
    length: int


@dataclass(frozen=True, slots=True)
class SiglipComponents:
    """What is needed besides the weights. It is small, and checked before the weights are read.

    The tokenizer is None for a checkpoint that cannot score.
    """

    vision_config: Any
    configuration_digest: str
    preprocessor: SiglipPreprocessor
    tokenizer: PreTrainedTokenizerBase | None


def load_components(folder: SiglipFolder) -> SiglipComponents:
    """Loads the vision config, the image processor and, for scores, the tokenizer.

    Raises:
        CheckpointError: They do not describe a SigLIP2, or do not fit together.
    """
    name = folder.component.path.name
    kind: Any = Siglip2VisionConfig if folder.naflex else SiglipVisionConfig
    configuration = _vision_configuration(folder)
    towers = [configuration, _text_configuration(folder)] if folder.has_text else [configuration]
    try:
        config = kind(**configuration.arguments())
        with torch.device("meta"):
            _vision_class(folder)(config)
    except Exception as error:  # transformers raises its own types, which change between versions
        raise _broken(name, "config.json does not describe a SigLIP2", error) from error
    file = f"{name}/{folder.processor_file}"
    check_settings(
        file,
        folder.processor,
        Siglip2ImageProcessorPil if folder.naflex else SiglipImageProcessorPil,
        {"patch_size": ("patch_size", int(config.patch_size))} if folder.naflex else {},
    )
    try:
        preprocessor = SiglipPreprocessor.of(
            folder.processor,
            naflex=folder.naflex,
            patch_size=int(config.patch_size),
            image_size=0 if folder.naflex else int(config.image_size),
        )
        preprocessor.settings  # noqa: B018  raises if a setting is missing
        preprocessor.check_size()
    except Exception as error:  # a setting of the wrong type raises many types
        raise _broken(file, "it does not describe an image processor for this model", error) from error
    tokenizer = None
    if folder.has_text:
        tokenizer = _load_tokenizer(folder)
        check_rows(folder.component.path, tokenizer, towers[1].values["vocab_size"])
    return SiglipComponents(config, combined_digest(*towers), preprocessor, tokenizer)


def load_vision_tower(
    folder: SiglipFolder, weights: WeightFiles, config: Any, device: torch.device, dtype: torch.dtype
) -> Any:
    """Loads the vision tower, with its pooling head only if the checkpoint can score.

    Raises:
        CheckpointError: The weights do not fit the configuration, also those of the text tower that are loaded later.
    """
    with torch.device("meta"):
        model = _vision_class(folder)(config)
    # A tower that was saved alone has no prefix, or the one of older versions of transformers.
    alone = folder.vision_config is folder.component.config
    unused = set(_SCALE) | {f"{_VISION}{name}" for name in _head_names(folder) - model.state_dict().keys()}
    if folder.has_text:
        unused |= {f"{_TEXT}{name}" for name in _new_text_model(folder).state_dict()}

    def name_of(stored: str) -> str | None:
        name = f"{_VISION}{stored.removeprefix(_VISION)}" if alone else stored
        if canonical_name(name) is None or name in unused or (stored.startswith(_TEXT) and not folder.has_text):
            return None
        return name.removeprefix(_VISION)

    _load(model, weights, device, dtype, name_of)
    return model


def load_text_tower(
    folder: SiglipFolder,
    weights: WeightFiles,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    dtype: torch.dtype,
) -> TextTower:
    """Loads text tower and scale of a folder with `has_text`. Raises CheckpointError."""
    model = _new_text_model(folder)
    with torch.device("meta"):
        scale = ScoreScale()

    def name_of(stored: str) -> str | None:
        read = stored.startswith(_TEXT) and canonical_name(stored) is not None
        return stored.removeprefix(_TEXT) if read else None

    _load(model, weights, device, dtype, name_of)
    load_weights(scale, weights, device, dtype, name_of=lambda stored: stored if stored in _SCALE else None)
    return TextTower(model, scale, tokenizer, model.config.max_position_embeddings)


def _load(
    model: Any,
    weights: WeightFiles,
    device: torch.device,
    dtype: torch.dtype,
    name_of: Callable[[str], str | None],
) -> None:
    load_weights(model, weights, device, dtype, name_of=name_of)
    for module in model.modules():  # the only buffer that is not saved
        if isinstance(getattr(module, "position_ids", None), torch.Tensor):
            module.position_ids = torch.arange(module.position_ids.shape[-1], device=device).expand(1, -1)


def _load_tokenizer(folder: SiglipFolder) -> PreTrainedTokenizerBase:
    path = folder.component.path
    try:
        with readable_tokenizer(path) as readable:
            tokenizer = AutoTokenizer.from_pretrained(readable, local_files_only=True, trust_remote_code=False)
        tokenizer(["a"], padding="max_length", max_length=8)
    except Exception as error:  # transformers and tokenizers raise their own types for damaged files
        raise _broken(path.name, "the tokenizer cannot be read", error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise CheckpointError(f"{path.name}: expected a tokenizer, got {type(tokenizer).__name__}")
    return tokenizer


def _vision_configuration(folder: SiglipFolder) -> Configuration:
    """Normalises the vision tower's configuration, with the pooling head only where it is needed."""
    kind = "siglip2_vision" if folder.naflex else "siglip_vision"
    config = {**folder.vision_config, "vision_use_head": _has_head(folder)}
    inside = "" if folder.vision_config is folder.component.config else "vision_config"
    return read_configuration(kind, config, file=f"{folder.component.path.name}/config.json", inside=inside)


def _text_configuration(folder: SiglipFolder) -> Configuration:
    """Normalises the text tower's configuration of a folder with `has_text`."""
    config: Any = folder.component.config["text_config"]
    file = f"{folder.component.path.name}/config.json"
    return read_configuration("siglip_text", config, file=file, inside="text_config")


def _new_text_model(folder: SiglipFolder) -> Any:
    """Returns the text tower on the meta device. Raises CheckpointError."""
    arguments = _text_configuration(folder).arguments()
    config_class: Any = Siglip2TextConfig if folder.naflex else SiglipTextConfig
    model_class: Any = Siglip2TextModel if folder.naflex else SiglipTextModel
    try:
        with torch.device("meta"):
            return model_class(config_class(**arguments, bos_token_id=None, eos_token_id=None))  # the tower reads none
    except Exception as error:  # transformers raises its own types, which change between versions
        name = folder.component.path.name
        raise _broken(name, "config.json does not describe a SigLIP2 text tower", error) from error


def _head_names(folder: SiglipFolder) -> set[str]:
    """Returns the names of the pooling head's tensors in the vision tower, whether it is loaded or not."""
    config: Any = Siglip2VisionConfig if folder.naflex else SiglipVisionConfig
    arguments = _vision_configuration(folder).arguments() | {"num_hidden_layers": 1, "vision_use_head": True}
    with torch.device("meta"):
        names = _vision_class(folder)(config(**arguments)).state_dict()
    return {name for name in names if name.startswith(_HEAD)}


def _vision_class(folder: SiglipFolder) -> Any:
    return Siglip2VisionModel if folder.naflex else SiglipVisionModel


def _has_head(folder: SiglipFolder) -> bool:
    """Returns whether the pooling head is needed: grids are taken before it, scores after it."""
    return folder.has_text and folder.vision_config.get("vision_use_head", True) is True


def encode_texts(tower: TextTower, ids: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Computes features [texts, C] of padded token ids.

    There is no attention mask: SigLIP was trained to read its padding, and pools the last position.
    """
    features: torch.Tensor = tower.model(input_ids=torch.tensor(ids, device=device)).pooler_output
    return features


def _broken(name: str, problem: str, error: Exception) -> CheckpointError:
    lines = [line.strip() for line in str(error).splitlines()] or [""]
    return CheckpointError(
        f"{name}: {problem} ({type(error).__name__}: {' '.join(lines[:2])}); copy it again from the checkpoint"
    )
