"""Loads transformer, VAE and defaults of a checkpoint folder. It opens neither the text encoder nor pickle files."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from diffusers.utils import logging as diffusers_logging

from zrelay_generator.model.model import LoadedModel, ModelLimits
from zrelay_generator.model.preview import fit_latent_to_rgb
from zrelay_generator.model.transformer import PackedTransformer
from zrelay_generator.model.vae import Vae
from zrelay_generator.model.weights import TransformerWeights, compute_in, transformer_weights
from zrelay_shared.checkpoints import (
    ComponentFolder,
    PipelineFolder,
    defaults,
    open_pipeline,
    text_limit,
)
from zrelay_shared.errors import CheckpointError, OutOfMemory, listed
from zrelay_shared.safetensors_header import read_header
from zrelay_shared.torch_devices import is_out_of_memory

__all__ = ["LoadedModel", "load_model"]

_UNSUPPORTED_SCHEDULES = (
    "use_dynamic_shifting",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
    "shift_terminal",
)
_TRAIN_TIMESTEPS = 1000


def load_model(
    folder: Path, device: torch.device, dtype: torch.dtype, stored: torch.dtype | None = None
) -> LoadedModel:
    """Loads the model of a pipeline folder.

    Args:
        folder: The pipeline folder.
        device: Where it computes.
        dtype: Dtype of the computation.
        stored: Dtype in which the matrices of the transformer's blocks stay in memory; None for `dtype`.

    Raises:
        CheckpointError: Something is missing or does not fit; the message names it.
        OutOfMemory: The device has not enough memory.
    """
    pipeline = open_pipeline(folder)
    generation_defaults = defaults(folder)
    _check_scheduler(pipeline)
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    model = _load(ZImageTransformer2DModel, pipeline, "transformer", device, stored or dtype)
    compute_in(model, dtype)
    autoencoder = _load(AutoencoderKL, pipeline, "vae", device, dtype)
    with torch.inference_mode():
        try:
            weights = transformer_weights(model)
            limits = _limits(weights, autoencoder)
        except ValueError as error:
            raise CheckpointError(
                f"transformer/config.json: {error}; this is not a Z-Image transformer",
                metadata={"file": "transformer/config.json"},
            ) from error
        try:
            vae = Vae(autoencoder)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"vae/config.json: {error}", metadata={"file": "vae/config.json"}) from error
        return LoadedModel(PackedTransformer(weights), vae, fit_latent_to_rgb(vae), generation_defaults, limits)


def _load(kind: Any, pipeline: PipelineFolder, name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Loads one component, a diffusers model of class `kind`. Its tensors are read directly to the device, once."""
    component = pipeline.component(name)
    try:
        loaded, report = kind.from_pretrained(
            component.path,
            dtype=dtype,
            device_map={"": str(device)},
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=True,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers does not validate configurations: no heads or a width of 0 raise any error
        if is_out_of_memory(error):
            raise OutOfMemory(f"{name}/ needs more memory than {device.type} has; use another --device") from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise _unusable(name, _difference(kind, component) or reason) from error
    # diffusers only warns about these and leaves missing tensors at random values.
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if names := [str(item) for item in report[problem]]:
            raise _unusable(name, f"{problem.replace('_', ' ')}: {listed(names)}")
    return loaded.eval().requires_grad_(False)


def _difference(kind: Any, component: ComponentFolder) -> str:
    """Returns which tensors of config.json the files lack or hold in another shape, "" if there are none."""
    try:
        with torch.device("meta"):
            wanted = {name: tuple(t.shape) for name, t in kind.from_config(dict(component.config)).state_dict().items()}
    except Exception:  # the configuration makes no model, so the first error is the reason
        return ""
    found = {entry.name: tuple(entry.shape) for file in component.weights for entry in read_header(file)}
    if lost := [name for name in wanted if name not in found]:
        return f"missing: {listed(lost)}"
    other = [
        f"{name} is {list(found[name])}, not {list(shape)}" for name, shape in wanted.items() if found[name] != shape
    ]
    return listed(other)


def _unusable(name: str, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{name}/: config.json and weights do not fit together ({problem}); copy the folder again",
        metadata={"file": f"{name}/config.json"},
    )


def _check_scheduler(pipeline: PipelineFolder) -> None:
    """Refuses a scheduler whose schedule differs from the one that is computed here."""
    config = pipeline.component("scheduler").config
    used = [key for key in _UNSUPPORTED_SCHEDULES if config.get(key)]
    steps = config.get("num_train_timesteps", _TRAIN_TIMESTEPS)
    if used or steps != _TRAIN_TIMESTEPS:
        found = ", ".join(used) if used else f"num_train_timesteps {steps}"
        raise CheckpointError(
            f"scheduler/scheduler_config.json says {found}, expected a static shift over {_TRAIN_TIMESTEPS} training "
            "timesteps, as Z-Image has; set it so, or use another checkpoint",
            metadata={"file": "scheduler/scheduler_config.json"},
        )


def _limits(transformer: TransformerWeights, autoencoder: Any) -> ModelLimits:
    if autoencoder.config.latent_channels != transformer.channels:
        raise CheckpointError(
            f"vae/config.json says latent_channels {autoencoder.config.latent_channels}, the transformer takes "
            f"{transformer.channels}; transformer and VAE are of different checkpoints",
            metadata={"file": "vae/config.json"},
        )
    if len(transformer.axes_lens) != 3:
        raise ValueError(f"axes_lens: expected 3 lengths, got {list(transformer.axes_lens)}")
    multiple = 2 * 2 ** (len(autoencoder.config.block_out_channels) - 1)
    return ModelLimits(
        text_limit=text_limit(transformer.axes_lens),
        embeds_width=transformer.width,
        max_side=min(transformer.axes_lens[1:]) * multiple,
        size_multiple=multiple,
        layers=len(transformer.layers),
        siglip_width=0 if transformer.siglip is None else transformer.siglip.width,
    )
