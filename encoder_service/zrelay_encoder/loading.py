"""From a checked folder to a model and a tokenizer: only the tensors that are needed, and never two copies of one.

transformers' own from_pretrained holds 3.0 times the weights while it converts their dtype (measured, 350 M
parameters), and its mapped files are at the mercy of whoever rewrites them; so the tensors are read here, chunk by
chunk, straight into their place on the device.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config

from zrelay_encoder.model import TextEncoder, layer_plan
from zrelay_shared.checkpoints import ComponentFolder
from zrelay_shared.digests import canonical_name
from zrelay_shared.errors import CheckpointError, listed
from zrelay_shared.safetensors_header import TensorEntry, read_header
from zrelay_shared.torch_tensors import FLOAT_DTYPES

CHUNK_BYTES = 16 * 1024 * 1024
Located: TypeAlias = tuple[Path, TensorEntry]


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
    wanted = dict(model.named_parameters())
    located = _locate(component, set(wanted))
    buffer = bytearray(CHUNK_BYTES)
    state = {}
    for name, (path, entry) in located.items():
        if entry.shape != tuple(wanted[name].shape):
            raise CheckpointError(
                f"{path.name}: tensor {entry.name} has shape {list(entry.shape)}, config.json asks for "
                f"{list(wanted[name].shape)}; weights and config are of different models"
            )
        state[name] = _read(path, entry, _stored(path, entry), device, dtype, buffer)
    model.load_state_dict(state, strict=True, assign=True)
    model.rotary_emb.to(device)
    return model.eval().requires_grad_(False)


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


def _locate(component: ComponentFolder, wanted: set[str]) -> Mapping[str, Located]:
    """Where each wanted tensor lies, by canonical name in the order of the files. Raises CheckpointError."""
    located = {
        name: (path, entry)
        for path in component.weights
        for entry in read_header(path)
        if (name := canonical_name(entry.name)) in wanted
    }
    if missing := sorted(wanted - set(located)):
        raise CheckpointError(
            f"{component.path.name}: the weights lack {listed(missing)}; expected a Qwen3 of as many layers as "
            "config.json says; copy the checkpoint again"
        )
    return {str(name): place for name, place in located.items()}


def _stored(path: Path, entry: TensorEntry) -> torch.dtype:
    if entry.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{path.name}: tensor {entry.name} is {entry.dtype}; expected {', '.join(FLOAT_DTYPES)}: quantised weights "
            "are not supported, use the original checkpoint"
        )
    return FLOAT_DTYPES[entry.dtype]


def _read(
    path: Path, entry: TensorEntry, stored: torch.dtype, device: torch.device, dtype: torch.dtype, buffer: bytearray
) -> torch.Tensor:
    """One tensor in `dtype` on `device`, through `buffer`. Raises CheckpointError if the file ends early."""
    tensor = torch.empty(entry.shape, dtype=dtype, device=device)
    flat, view, done = tensor.view(-1), memoryview(buffer), 0
    with path.open("rb") as file:
        file.seek(entry.begin)
        while done < flat.numel():
            count = min(flat.numel() - done, len(buffer) // stored.itemsize)
            if file.readinto(view[: count * stored.itemsize]) != count * stored.itemsize:
                raise CheckpointError(f"{path.name}: the file ended inside {entry.name}; it changed while it was read")
            flat[done : done + count].copy_(torch.frombuffer(buffer, dtype=stored, count=count))
            done += count
    return tensor
