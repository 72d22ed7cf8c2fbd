"""Loads transformer, VAE and defaults of a checkpoint folder. It opens neither the text encoder nor pickle files."""

import inspect
import json
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
from zrelay_shared.configuration import read_component
from zrelay_shared.errors import CheckpointError, listed
from zrelay_shared.torch_devices import is_out_of_memory, weights_do_not_fit
from zrelay_shared.torch_weights import load_weights
from zrelay_shared.weight_files import WeightFiles

__all__ = ["LoadedModel", "load_component", "load_model"]

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
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_model(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    stored: torch.dtype | None = None,
    cache: Path | None = None,
) -> LoadedModel:
    """Loads the model of a pipeline folder, and keeps what its identity needs: digests and configurations as loaded.

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
    components = {name: pipeline.component(name) for name in ("transformer", "vae")}
    configurations = {name: read_component(component) for name, component in components.items()}
    files = {name: WeightFiles(component, cache=cache) for name, component in components.items()}
    model = load_component(
        ZImageTransformer2DModel, components["transformer"], files["transformer"], device, stored or dtype
    )
    compute_in(model, dtype)
    autoencoder = load_component(AutoencoderKL, components["vae"], files["vae"], device, dtype)
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
        return LoadedModel(
            PackedTransformer(weights),
            vae,
            fit_latent_to_rgb(vae),
            generation_defaults,
            limits,
            {name: weights.digest for name, weights in files.items()},
            configurations,
        )


def load_component(
    kind: Any, component: ComponentFolder, weights: WeightFiles, device: torch.device, dtype: torch.dtype
) -> Any:
    """Loads one component, a diffusers model of class `kind`.

    diffusers keeps no module of these classes in float32, and they have no buffers. So the result is bitwise that of
    its from_pretrained, which leaves out and makes up tensors with a warning and may read other files.

    Args:
        kind: The class.
        component: The component's folder.
        weights: Its weights; their digest is computed on the way.
        device: Where the weights go.
        dtype: Their dtype.

    Raises:
        CheckpointError: config.json has a bad value, it and the weights do not fit together, or a value of the
            weights is not finite.
        OutOfMemory: The device has not enough memory.
    """
    name = component.name
    arguments = _arguments(kind, component)
    try:
        with torch.device("meta"):
            model = kind(**arguments)
    except Exception as error:  # diffusers does not validate configurations: no heads or a width of 0 raise any error
        raise _unusable(name, (str(error) or type(error).__name__).splitlines()[0]) from error
    renamed = _renamed_attention(model)
    try:
        load_weights(model, weights, device, dtype, name_of=lambda stored: renamed.get(stored, stored))
    except CheckpointError as error:
        raise CheckpointError(error.message, metadata={"file": f"{name}/config.json", **error.metadata}) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise weights_do_not_fit(f"{name}/", device, dtype) from error
    tensors = (*model.named_parameters(), *model.named_buffers())
    if unfilled := [each for each, tensor in tensors if tensor.is_meta]:
        raise _unusable(name, f"no file holds {listed(unfilled)}")
    return model


def _arguments(kind: Any, component: ComponentFolder) -> dict[str, Any]:
    """Returns a value for every constructor parameter of a diffusers model.

    They are the normalised values of config.json. A parameter that `configuration.TABLES` does not list, as a newer
    diffusers may add, has the default of the class, whatever config.json says.
    """
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return {each.name: each.default for each in parameters} | read_component(component).arguments()


def _renamed_attention(model: Any) -> dict[str, str]:
    """Returns the names that older versions of diffusers saved for attention layers, and today's names of them."""
    return {
        f"{path}.{old}.{part}": f"{path}.{new}.{part}"
        for path, module in model.named_modules()
        if getattr(module, "_from_deprecated_attn_block", False)
        for old, new in _OLD_ATTENTION.items()
        for part in ("weight", "bias")
    }


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
        found = ", ".join(used) if used else f"num_train_timesteps {json.dumps(steps)}"
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
