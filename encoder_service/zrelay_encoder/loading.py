"""From a checked folder to a model and a tokenizer: only the tensors that are needed, and never two copies of one."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config

from zrelay_encoder.model import TextEncoder
from zrelay_shared.checkpoints import ComponentFolder
from zrelay_shared.digests import canonical_name
from zrelay_shared.errors import CheckpointError, listed
from zrelay_shared.layers import layer_plan
from zrelay_shared.torch_weights import load_weights


def read_config(component: ComponentFolder) -> Qwen3Config:
    """The Qwen3 config of a text encoder. Raises CheckpointError where its numbers make no model."""
    try:
        config = Qwen3Config.from_dict(dict(component.config))
    except Exception as error:  # transformers has kinds of its own for this, which change between versions
        raise _no_model(component, error) from error
    kinds = set(config.layer_types or ())
    if kinds - {"full_attention"}:
        raise CheckpointError(
            f"{component.path.name}/config.json asks for {listed(sorted(kinds))}: expected full_attention alone, as "
            "Z-Image's text encoder has; set use_sliding_window to false if that is what it was trained with"
        )
    return config


def build_model(component: ComponentFolder, hidden_layer: int) -> TextEncoder:
    """The blocks that `hidden_layer` needs, without their weights.

    Raises CheckpointError; ValueError for a layer the model has not.
    """
    config = read_config(component)
    plan = layer_plan(config.num_hidden_layers, hidden_layer)
    try:
        return TextEncoder(config, plan)
    except Exception as error:  # no heads, a negative width: whatever Python makes of it
        raise _no_model(component, error) from error


def _no_model(component: ComponentFolder, error: Exception) -> CheckpointError:
    lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    return CheckpointError(
        f"{component.path.name}/config.json makes no Qwen3: {' '.join(lines[:2])}; copy it again from the checkpoint",
        metadata={"file": f"{component.path.name}/config.json"},
    )


def load_model(component: ComponentFolder, hidden_layer: int, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    """The blocks that `hidden_layer` needs, on `device` in `dtype`, ready to run.

    Raises CheckpointError for a missing, misshapen or quantised tensor; ValueError for a layer the model has not.
    """
    model = build_model(component, hidden_layer)
    load_weights(model, component.weights, device, dtype, name_of=canonical_name, what=component.path.name)
    model.rotary_emb.to(device)
    return model


def load_tokenizer(folder: Path, chat_template: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `folder` with this chat template, from local files alone. Raises CheckpointError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers have kinds of their own for damaged files
        raise CheckpointError(
            f"{folder.name}: the tokenizer cannot be read ({type(error).__name__}); copy its files, and config.json "
            "where it stands among them, again from the checkpoint"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise CheckpointError(f"{folder.name}: expected a tokenizer, got {type(tokenizer).__name__}")
    tokenizer.chat_template = chat_template
    return tokenizer
