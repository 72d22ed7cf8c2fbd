"""Checks the folder of a Qwen3-VL checkpoint. Every refusal names the file. Loads no torch."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zrelay_shared.chat_templates import read_chat_template
from zrelay_shared.checkpoint_files import find_weights, read_json, refusal
from zrelay_shared.checkpoints import ComponentFolder
from zrelay_shared.errors import CheckpointError
from zrelay_shared.tokenizer_files import check_tokenizer

_REMEDY = "give the folder of a Qwen3-VL checkpoint (Instruct or Thinking) as transformers saves it"

DEFAULT_HIDDEN_LAYER = -6
"""Used if the checkpoint's zrelay.json names none (source: zimage.md, section (c))."""


@dataclass(frozen=True, slots=True)
class QwenFolder:
    """A checked Qwen3-VL checkpoint.

    Attributes:
        component: Config and weights.
        processor_file: The file with the settings of the image processor.
        processor: These settings.
        chat_template: Text of the template.
        hidden_layer: The layer that its zrelay.json names, else DEFAULT_HIDDEN_LAYER.
    """

    component: ComponentFolder
    processor_file: str
    processor: Mapping[str, object]
    chat_template: str
    hidden_layer: int


def open_qwen3_vl(path: Path) -> QwenFolder:
    """Opens the Qwen3-VL checkpoint at `path`. Weights may be sharded. Raises CheckpointError."""
    if not (path / "config.json").is_file():
        raise refusal(path, "config.json", "is missing", _REMEDY)
    config = read_json(path, "config.json")
    if config.get("model_type") != "qwen3_vl":
        found = f"says model_type {reprlib.repr(config.get('model_type'))}, expected 'qwen3_vl'"
        raise refusal(path, "config.json", found, _REMEDY)
    check_tokenizer(path, "")
    weights, index = find_weights(path, "", "model", config)
    return QwenFolder(
        ComponentFolder("qwen3_vl", path, config, weights, index),
        *_processor(path),
        read_chat_template(path, "", processor=True),
        _hidden_layer(path),
    )


def _processor(path: Path) -> tuple[str, Mapping[str, object]]:
    """Reads preprocessor_config.json, or the part of processor_config.json that replaces it in newer transformers.

    Returns:
        The file and the settings.
    """
    if (path / "preprocessor_config.json").is_file():
        return "preprocessor_config.json", read_json(path, "preprocessor_config.json")
    if (path / "processor_config.json").is_file():
        nested = read_json(path, "processor_config.json").get("image_processor")
        if isinstance(nested, dict):
            return "processor_config.json", nested
    raise refusal(path, "preprocessor_config.json", "is missing", "it says how images are cut; copy it again")


def _hidden_layer(path: Path) -> int:
    settings = read_json(path, "zrelay.json") if (path / "zrelay.json").is_file() else {}
    layer = settings.get("hidden_layer", DEFAULT_HIDDEN_LAYER)
    if not isinstance(layer, int) or isinstance(layer, bool) or layer >= 0:
        raise CheckpointError(f"{path}: zrelay.json says hidden_layer {reprlib.repr(layer)}; it must be -1 or less")
    return layer
