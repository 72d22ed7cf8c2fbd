"""The Qwen3-VL engine: hidden states of an image, with or without text, in the space of the text encoder."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from zrelay_shared import checkpoints, torch_devices
from zrelay_shared.errors import CheckpointError, FailedPrecondition, FeatureMissing, OutOfMemory, invalid, invalid_from
from zrelay_shared.layers import LayerPlan, layer_plan
from zrelay_shared.pictures import Picture, plain_picture
from zrelay_shared.tokenizer import identify_tokenizer
from zrelay_shared.torch_tensors import all_finite, overflow_remedy
from zrelay_shared.vision_fingerprint import VisionFingerprint
from zrelay_shared.weight_files import WeightFiles
from zrelay_vision.config import VisionConfig
from zrelay_vision.engines import EngineKind, settings_digest
from zrelay_vision.images.cache import ByteCache
from zrelay_vision.qwen3_vl.folder import open_qwen3_vl
from zrelay_vision.qwen3_vl.inputs import VisionPrompt, format_vision_prompt, rotary_positions
from zrelay_vision.qwen3_vl.model import KeyValueCache, Qwen3VLModel, QwenComponents, load_components, load_model
from zrelay_vision.qwen3_vl.states import ImageStates, StatesParameters, TokenMode, select_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _ImagePrefix:
    """The part of a sequence that does not depend on the text after the image, on the CPU.

    Attributes:
        states: [T, width], up to and including vision_end.
        cache: Keys and values for the text after it.
    """

    states: torch.Tensor
    cache: KeyValueCache

    @property
    def nbytes(self) -> int:
        return self.states.nbytes + self.cache.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class PreparedImage:
    """An image that is ready for the device: either `patches` or `prefix` is set.

    Attributes:
        key: Everything that a prefix depends on.
        owner: Who sent the image.
        prompt: Token ids around the image.
        plan: Blocks to run.
        hidden_layer: Index of the hidden layer.
        tokens: Which rows to keep.
        grid: Rows and columns of patches, before merging.
        patches: Patches of the image.
        prefix: The prefix of an earlier call.
    """

    key: tuple[object, ...]
    owner: str
    prompt: VisionPrompt
    plan: LayerPlan
    hidden_layer: int
    tokens: TokenMode
    grid: tuple[int, int]
    patches: torch.Tensor | None
    prefix: _ImagePrefix | None


class Qwen3VLEngine:
    """One Qwen3-VL checkpoint. `prepare` and `run` may be called from two threads, each from one at a time.

    Attributes:
        hidden_layer: The layer of requests that name none.
        fingerprint: The fingerprint of states of that layer, None until `load`.
    """

    kind = EngineKind.QWEN3_VL

    def __init__(self, folder: Path, config: VisionConfig, dtype: torch.dtype) -> None:
        """Checks the folder. Raises CheckpointError.

        Args:
            folder: The checkpoint.
            config: The settings.
            dtype: Dtype of the computation.
        """
        self._path, self._dtype, self._max_area = folder, dtype, config.max_area
        self._folder = open_qwen3_vl(folder)
        self.hidden_layer = self._folder.hidden_layer if config.hidden_layer is None else config.hidden_layer
        self._prefixes: ByteCache[tuple[object, ...], _ImagePrefix] = ByteCache(config.state_cache_bytes)
        self._components: QwenComponents | None = None
        self._model: Qwen3VLModel | None = None
        self.fingerprint: VisionFingerprint | None = None

    @property
    def components(self) -> QwenComponents:
        """Config, tokenizer and image processor."""
        if self._components is None:
            raise RuntimeError("qwen3_vl: expected a loaded engine, got none")
        return self._components

    @property
    def model(self) -> Qwen3VLModel:
        """The network."""
        if self._model is None:
            raise RuntimeError("qwen3_vl: expected a loaded engine, got none")
        return self._model

    @property
    def width(self) -> int:
        """Size of a token's states."""
        return self.model.width

    @property
    def cached_bytes(self) -> int:
        """Bytes of the prefixes that are cached."""
        return self._prefixes.nbytes

    def load(self, device: torch.device, cache: Path | None) -> None:
        """Loads the weights. See `ImageEngine.load`."""
        component = self._folder.component
        components = load_components(self._folder, self._max_area)
        dtype = self._dtype
        weights = WeightFiles(component, cache=cache)
        try:
            model = load_model(weights, components.config, self.hidden_layer, device, dtype)
        except ValueError as error:
            raise CheckpointError(
                f"--{str(error).replace('hidden_layer', 'hidden-layer', 1)}: this Qwen3-VL has no such layer; give "
                "another --hidden-layer"
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not torch_devices.is_out_of_memory(error):
                raise
            raise torch_devices.weights_do_not_fit("the model of --qwen3-vl", device, dtype) from error
        log.info("qwen3_vl: %d of %d blocks, for layer %d", model.plan.blocks, model.total_blocks, self.hidden_layer)
        tokenizer = identify_tokenizer(components.tokenizer)
        fingerprint = VisionFingerprint(
            engine=self.kind.value,
            family="qwen3_vl",
            width=model.width,
            model_id=checkpoints.model_id(self._path),
            weights_digest=weights.digest,
            configuration_digest=components.configuration_digest,
            processor_digest=settings_digest(
                {
                    **components.preprocessor.settings,
                    "chat_template": tokenizer.chat_template_digest,
                    "tokenizer": tokenizer.tokenizer_digest,
                }
            ),
            hidden_layer=self.hidden_layer,
            compute_dtype=torch_devices.dtype_name(dtype),
            backend=f"torch-{device.type}",
        )
        self._components, self._model, self.fingerprint = components, model, fingerprint

    def warm_up(self) -> None:
        """Runs one grey image of the smallest size, and leaves nothing in the cache."""
        side = self.components.preprocessor.factor
        grey = plain_picture(side, side, (128, 128, 128))
        self.run(self.prepare("", grey.size, lambda: grey, StatesParameters(), side * side), lambda: False)
        self._prefixes = ByteCache(self._prefixes.max_bytes)

    def fingerprint_of(self, hidden_layer: int | None) -> VisionFingerprint:
        """Returns the fingerprint of states of a layer, None for the default layer."""
        if self.fingerprint is None:
            raise RuntimeError("qwen3_vl: expected a loaded engine, got none")
        return replace(self.fingerprint, hidden_layer=self.hidden_layer if hidden_layer is None else hidden_layer)

    def prepare(
        self,
        sha256: str,
        size: tuple[int, int],
        pixels: Callable[[], Picture],
        parameters: StatesParameters,
        target_area: int | None,
        *,
        field: str = "image",
        owner: str = "",
    ) -> PreparedImage:
        """Formats the prompt, and cuts the image into patches unless its prefix is cached.

        Args:
            sha256: Digest of the image's file, the key of its prefix.
            size: Width and height of the image.
            pixels: Returns the image. Only called if the prefix is not cached.
            parameters: How to read the image.
            target_area: Pixels to scale the image to, None for the processor's own size.
            field: Path of the image in the request, for refusals.
            owner: Who sent the image. Prefixes of images that others sent are not used.

        Raises:
            InvalidArgument: HIDDEN_LAYER_INVALID, TARGET_AREA_INVALID, IMAGE_ASPECT, TEXT_HAS_IMAGE.
            FeatureMissing: The layer needs blocks that are not loaded.
        """
        components, model = self.components, self.model
        layer, plan = self._layer(model, parameters.hidden_layer, "states_options.hidden_layer")
        preprocessor = components.preprocessor
        smallest, largest = preprocessor.factor**2, preprocessor.max_area
        if target_area is not None and not smallest <= target_area <= largest:
            raise invalid("target_area", f"{smallest} to {largest} pixels", target_area)
        try:
            grid = preprocessor.grid(*size, target_area)
        except ValueError as error:
            raise invalid_from(field, error, reason="IMAGE_ASPECT") from error
        prompt = format_vision_prompt(
            components.tokenizer, components.tokens, parameters.text, parameters.system_prompt
        )
        key = (sha256, layer, parameters.system_prompt, grid)
        prefix = self._prefixes.get(key, owner)
        patches = preprocessor.patches(pixels(), target_area) if prefix is None else None
        return PreparedImage(key, owner, prompt, plan, layer, parameters.tokens, grid, patches, prefix)

    def run(self, image: PreparedImage, cancelled: Callable[[], bool]) -> ImageStates:
        """Computes the states of a prepared image, on the CPU in the compute dtype.

        Args:
            image: The result of `prepare`.
            cancelled: Checked before each block.

        Raises:
            Cancelled, OutOfMemory: The computation stopped.
            FailedPrecondition: STATES_NOT_FINITE.
        """
        model = self.model
        exhausted = False
        try:
            states = self._states(model, image, cancelled)
        except (RuntimeError, MemoryError) as error:
            if not torch_devices.is_out_of_memory(error):
                raise
            exhausted = True
        if exhausted:  # outside of the handler, whose frames keep the tensors of the failed attempt
            torch_devices.release_cached_memory(model.device)
            raise _out_of_memory(image, model)
        dtype = torch_devices.dtype_name(states.hidden_states.dtype)
        if not all_finite(states.hidden_states):
            raise FailedPrecondition(
                f"the hidden states overflow in {dtype}; {overflow_remedy('vision service', dtype, dtype)}",
                reason="STATES_NOT_FINITE",
            )
        return states

    def _states(self, model: Qwen3VLModel, image: PreparedImage, cancelled: Callable[[], bool]) -> ImageStates:
        rows, columns = (side // model.merge for side in image.grid)
        count, tokens, start = rows * columns, self.components.tokens, len(image.prompt.before)
        positions = rotary_positions(start, (rows, columns), 1 + len(image.prompt.after))
        prefix_length = start + count + 1
        prefix = image.prefix
        if prefix is None:
            if image.patches is None:
                raise ValueError("image: expected patches or a prefix, got neither")
            ids = (*image.prompt.before, *([tokens.image] * count), tokens.end)
            features = model.encode_image(image.patches, image.grid)
            states, cache = model.run_prefix(ids, start, features, positions[:, :prefix_length], image.plan, cancelled)
            prefix = _ImagePrefix(states.cpu(), cache.to("cpu"))
            self._prefixes.put(image.key, prefix, prefix.nbytes, image.owner)
        suffix = prefix.states[:0]
        if image.tokens.has_text and image.prompt.after:
            cache = prefix.cache.to(model.device)
            suffix = model.run_suffix(
                image.prompt.after, cache, positions[:, prefix_length:], image.plan, cancelled
            ).cpu()
        return select_rows(prefix.states, suffix, start, count, image.tokens)

    def _layer(self, model: Qwen3VLModel, requested: int | None, field: str) -> tuple[int, LayerPlan]:
        if requested is None:
            return self.hidden_layer, model.plan
        try:
            plan = layer_plan(model.total_blocks, requested)
        except ValueError as error:
            raise invalid(field, f"{-model.total_blocks} to -1", requested) from error
        if not plan.within(model.plan):
            raise FeatureMissing(
                f"{field}: {requested} needs more blocks than this service loaded for layer {self.hidden_layer}; start "
                f"it with --hidden-layer {requested}",
                field=field,
                metadata={"feature": "vision.layer", "loaded_for": self.hidden_layer},
            )
        return requested, plan


def _out_of_memory(image: PreparedImage, model: Qwen3VLModel) -> OutOfMemory:
    patches, found = image.grid[0] * image.grid[1], torch_devices.report(model.device)
    return OutOfMemory(
        f"an image of {patches} patches needs more memory than {found.kind} has ({found.memory_free_bytes >> 20} of "
        f"{found.memory_total_bytes >> 20} MiB are free); send a smaller image, or start the service with a smaller "
        "--max-area",
        metadata={"patches": patches, "free_bytes": found.memory_free_bytes},
    )
