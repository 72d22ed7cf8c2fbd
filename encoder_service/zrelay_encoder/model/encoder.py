"""A loaded text encoder: loads a checked folder to a device and computes its fingerprint."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import Qwen3Config

from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.model.network import TextEncoder
from zrelay_shared import checkpoints, torch_devices
from zrelay_shared.checkpoints import ComponentFolder, TextEncoderFolder
from zrelay_shared.configuration import read_component
from zrelay_shared.errors import CheckpointError, OutOfMemory
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.layers import LayerPlan, layer_plan
from zrelay_shared.service.torch_memory import compute_dtype, plan_memory, stored_dtype
from zrelay_shared.tokenizer import TokenizerIdentity
from zrelay_shared.torch_weights import load_weights
from zrelay_shared.weight_files import WeightFiles, canonical_name

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model that is ready to run.

    Attributes:
        model: The network with its weights.
        fingerprint: The fingerprint of a request with default options.
        device: Where the model computes.
    """

    model: TextEncoder
    fingerprint: EncoderFingerprint
    device: torch.device

    def plan(self, hidden_layer: int) -> LayerPlan:
        """Returns which blocks a layer needs. Raises ValueError for a layer that the checkpoint does not have."""
        return layer_plan(self.model.total_blocks, hidden_layer)

    def forward(self, sequences: Sequence[Sequence[int]], plan: LayerPlan) -> list[torch.Tensor]:
        """Runs one forward pass: hidden states [T, width] of each sequence, on the device in the compute dtype.

        Raises:
            OutOfMemory: The device has too little memory for the batch. Memory of the failed attempt was released.
        """
        try:
            return self.model(sequences, plan)  # type: ignore[no-any-return]
        except (RuntimeError, MemoryError) as error:
            if not torch_devices.is_out_of_memory(error):
                raise
        # Outside of the handler: while an exception is handled, its frames keep the tensors of the failed attempt.
        refusal = _out_of_memory(sequences, self.device)
        torch_devices.release_cached_memory(self.device)
        raise refusal

    def fingerprint_of(self, *, hidden_layer: int, think_mode: str, padded: bool) -> EncoderFingerprint:
        """Returns the fingerprint of embeddings that were made with these options."""
        return replace(
            self.fingerprint,
            hidden_layer=hidden_layer,
            before_final_norm=hidden_layer != -1,
            think_mode=think_mode,
            modifications=("padding",) if padded else (),
        )


def load_encoder(folder: TextEncoderFolder, config: EncoderConfig, tokenizer: TokenizerIdentity) -> Encoder:
    """Loads the model of a checkpoint and computes its fingerprint, of which the tokenizer's identity is a part.

    Raises:
        CheckpointError: The checkpoint is damaged or has no such layer.
        FailedPrecondition: The device or dtype is not available.
        OutOfMemory: The weights do not fit.
    """
    device = torch_devices.pick_device(config.device)
    chosen = plan_memory(config, device).dtype
    dtype = compute_dtype(chosen)
    weights = WeightFiles(folder.component, cache=config.cache)
    try:
        model = load_model(folder.component, weights, config.hidden_layer, device, dtype, stored_dtype(chosen))
    except ValueError as error:
        raise CheckpointError(f"--{str(error).replace('hidden_layer', 'hidden-layer', 1)}") from error
    except (RuntimeError, MemoryError) as error:
        if not torch_devices.is_out_of_memory(error):
            raise
        raise torch_devices.weights_do_not_fit("text_encoder/", device, stored_dtype(chosen)) from error
    log.info("loaded %d of %d blocks, for hidden layer %d", model.plan.blocks, model.total_blocks, config.hidden_layer)
    fingerprint = _fingerprint(
        folder,
        tokenizer,
        model_id=checkpoints.model_id(config.model),
        width=model.width,
        hidden_layer=config.hidden_layer,
        device=device,
        compute_dtype=chosen,
        weights_digest=weights.digest,
    )
    return Encoder(model, fingerprint, device)


def load_model(
    component: ComponentFolder,
    weights: WeightFiles,
    hidden_layer: int,
    device: torch.device,
    dtype: torch.dtype,
    stored: torch.dtype | None = None,
) -> TextEncoder:
    """Loads the blocks that `hidden_layer` needs, and only their tensors.

    Args:
        component: The text encoder's folder.
        hidden_layer: Index of the hidden layer, negative.
        device: Where it computes.
        dtype: Dtype of the computation.
        stored: Dtype in which the matrices stay in memory; None for `dtype`.

    Raises:
        CheckpointError: A tensor is missing, left over, not finite or has another shape, or config.json is invalid.
        ValueError: The model has no such layer.
    """
    configuration = read_component(component)
    plan = layer_plan(configuration.values["num_hidden_layers"], hidden_layer)
    whole = layer_plan(configuration.values["num_hidden_layers"], -1)
    try:
        model, complete = (TextEncoder(Qwen3Config(**configuration.arguments()), each) for each in (plan, whole))
    except Exception as error:  # transformers raises its own types, which change between versions
        raise _not_a_model(component, error) from error
    unused = complete.state_dict().keys() - model.state_dict().keys()
    load_weights(model, weights, device, stored or dtype, name_of=partial(_name_in_model, unused))
    model.rotary_emb.to(device)
    if stored not in (None, dtype):
        model.compute_in(dtype)
    return model


def _name_in_model(unused: Collection[str], stored: str) -> str | None:
    """Returns the name of a tensor in the network; None for tensors of the whole model that the plan does not need."""
    name = canonical_name(stored)
    return None if name in unused else name


def _not_a_model(component: ComponentFolder, error: Exception) -> CheckpointError:
    lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    return CheckpointError(
        f"{component.path.name}/config.json does not describe a Qwen3: {' '.join(lines[:2])}; copy it again from the "
        "checkpoint",
        metadata={"file": f"{component.path.name}/config.json"},
    )


def _fingerprint(
    folder: TextEncoderFolder,
    tokenizer: TokenizerIdentity,
    *,
    model_id: str,
    width: int,
    hidden_layer: int,
    device: torch.device,
    compute_dtype: str,
    weights_digest: str,
) -> EncoderFingerprint:
    """Computes the fingerprint of embeddings made with default options."""
    return EncoderFingerprint(
        family=str(folder.component.config["model_type"]),
        width=width,
        model_id=model_id,
        weights_digest=weights_digest,
        configuration_digest=read_component(folder.component).digest,
        tokenizer_digest=tokenizer.tokenizer_digest,
        chat_template_digest=tokenizer.chat_template_digest,
        hidden_layer=hidden_layer,
        before_final_norm=hidden_layer != -1,
        compute_dtype=compute_dtype,
        backend=f"torch-{device.type}",
    )


def _out_of_memory(sequences: Sequence[Sequence[int]], device: torch.device) -> OutOfMemory:
    """Suggests half of the tokens, which need about half of the memory."""
    count, found = sum(map(len, sequences)), torch_devices.report(device)
    return OutOfMemory(
        f"{count} tokens in one forward pass need more memory than {found.kind} has ({found.memory_free_bytes >> 20} "
        f"of {found.memory_total_bytes >> 20} MiB are free); set text_limit to at most about {max(1, count // 2)}, or "
        "send fewer prompts per call",
        metadata={"tokens": count, "fits_tokens": max(1, count // 2), "free_bytes": found.memory_free_bytes},
    )
