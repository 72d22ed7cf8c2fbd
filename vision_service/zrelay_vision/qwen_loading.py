"""From a checked Qwen3-VL folder to a model, a tokenizer and an image processor."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3VLConfig

from zrelay_shared.digests import canonical_name
from zrelay_shared.errors import CheckpointError, InvalidArgument
from zrelay_shared.layers import layer_plan
from zrelay_shared.torch_weights import load_weights
from zrelay_vision.qwen_folder import QwenFolder
from zrelay_vision.qwen_model import Qwen3VLStates
from zrelay_vision.qwen_pixels import QwenPixels
from zrelay_vision.qwen_prompt import ImageTokens, format_vision_prompt


@dataclass(frozen=True, slots=True)
class QwenParts:
    """What is needed besides the weights: small, and checked before they are read."""

    config: Qwen3VLConfig
    tokenizer: PreTrainedTokenizerBase
    tokens: ImageTokens
    pixels: QwenPixels


def load_parts(folder: QwenFolder, max_area: int) -> QwenParts:
    """Config, tokenizer and image processor, tried once. Raises CheckpointError."""
    name = folder.component.path.name
    try:
        config = Qwen3VLConfig.from_dict(dict(folder.component.config))
        tokens = ImageTokens(
            config.vision_start_token_id, config.image_token_id, config.video_token_id, config.vision_end_token_id
        )
    except Exception as error:  # transformers has kinds of its own for this, which change between versions
        raise _broken(name, "config.json makes no Qwen3-VL", error) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder.component.path, local_files_only=True, trust_remote_code=False)
        tokenizer.chat_template = folder.chat_template
    except Exception as error:  # transformers and tokenizers have kinds of their own for damaged files
        raise _broken(name, "the tokenizer cannot be read", error) from error
    try:
        pixels = QwenPixels.of(folder.processor, max_area)
        pixels.settings  # noqa: B018  the settings that are not there show here
    except Exception as error:  # whatever a setting of the wrong kind makes of it
        raise _broken(name, "preprocessor_config.json makes no image processor", error) from error
    try:
        format_vision_prompt(tokenizer, tokens, "a", "b")
    except InvalidArgument as error:
        raise _broken(name, "its chat template shows an image twice", error) from error
    except Exception as error:  # a template is a program: it fails in any way it likes
        raise _broken(name, "its chat template cannot show an image", error) from error
    return QwenParts(config, tokenizer, tokens, pixels)


def load_model(
    folder: QwenFolder, config: Qwen3VLConfig, hidden_layer: int, device: torch.device, dtype: torch.dtype
) -> Qwen3VLStates:
    """Vision tower and the blocks that `hidden_layer` needs. Raises CheckpointError; ValueError for a layer that the
    model has not."""
    name = folder.component.path.name
    text: Any = config.text_config
    plan = layer_plan(text.num_hidden_layers, hidden_layer)
    try:
        model = Qwen3VLStates(config, plan)
    except Exception as error:  # no heads, a negative width: whatever Python makes of it
        raise _broken(name, "config.json makes no Qwen3-VL", error) from error
    load_weights(model, folder.component.weights, device, dtype, name_of=canonical_name, what=name)
    model.rotary_emb.to(device)
    model.visual.rotary_pos_emb.to(device)
    return model


def _broken(name: str, problem: str, error: Exception) -> CheckpointError:
    lines = [line.strip() for line in str(error).splitlines()] or [""]
    return CheckpointError(
        f"{name}: {problem} ({type(error).__name__}: {' '.join(lines[:2])}); copy it again from the checkpoint"
    )
