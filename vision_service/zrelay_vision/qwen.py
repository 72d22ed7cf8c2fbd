"""The Qwen3-VL engine: hidden states of an image, with or without text, in the text encoder's space."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from zrelay_shared import checkpoints, torch_devices
from zrelay_shared.digests import template_digest, tokenizer_digest, weights_digest
from zrelay_shared.errors import CheckpointError, FailedPrecondition, FeatureMissing, InvalidArgument, OutOfMemory
from zrelay_shared.layers import LayerPlan, layer_plan
from zrelay_shared.torch_tensors import all_finite
from zrelay_vision.byte_cache import ByteCache
from zrelay_vision.config import VisionConfig
from zrelay_vision.engines import EngineKind
from zrelay_vision.identity import VisionFingerprint, settings_digest
from zrelay_vision.qwen_folder import open_qwen3_vl
from zrelay_vision.qwen_loading import QwenParts, load_model, load_parts
from zrelay_vision.qwen_model import Memory, Qwen3VLStates
from zrelay_vision.qwen_positions import positions
from zrelay_vision.qwen_prompt import VisionPrompt, format_vision_prompt
from zrelay_vision.token_modes import States, StatesOptions, TokenMode, select

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Beginning:
    """What does not depend on text behind the image: states [T, width] up to and with vision_end, and the memory of
    them, on the CPU."""

    states: torch.Tensor
    memory: Memory


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """An image ready for the device. Either `patches` or `beginning` is there; `key` says what the latter depends on.

    `grid` is in patches, before merging."""

    key: tuple[object, ...]
    prompt: VisionPrompt
    plan: LayerPlan
    hidden_layer: int
    tokens: TokenMode
    grid: tuple[int, int]
    patches: torch.Tensor | None
    beginning: _Beginning | None


class Qwen3VLEngine:
    """One Qwen3-VL. `prepare` may run in another thread than `run`, each in one at a time."""

    kind = EngineKind.QWEN3_VL

    def __init__(self, folder: Path, config: VisionConfig) -> None:
        """Looks at the folder alone. Raises CheckpointError."""
        self._path, self._dtype, self._max_area = folder, config.dtype, config.max_area
        self._folder = open_qwen3_vl(folder)
        self.hidden_layer = self._folder.hidden_layer if config.hidden_layer is None else config.hidden_layer
        self._beginnings: ByteCache[tuple[object, ...], _Beginning] = ByteCache(config.state_cache_bytes)
        self._parts: QwenParts | None = None
        self._model: Qwen3VLStates | None = None
        self.fingerprint: VisionFingerprint | None = None

    def load(self, device: torch.device, cache: Path | None) -> None:
        """Reads the weights. Raises CheckpointError, OutOfMemory."""
        component = self._folder.component
        parts = load_parts(self._folder, self._max_area)
        dtype, why = torch_devices.pick_dtype(self._dtype, device, torch_devices.stored_dtype(component.weights))
        log.info("qwen3_vl computes in %s on %s: %s", torch_devices.dtype_name(dtype), device.type, why)
        try:
            model = load_model(self._folder, parts.config, self.hidden_layer, device, dtype)
        except ValueError as error:
            raise CheckpointError(
                f"--{str(error).replace('hidden_layer', 'hidden-layer', 1)}: this Qwen3-VL has no such layer; give "
                "another --hidden-layer"
            ) from error
        except (RuntimeError, MemoryError) as error:
            if not torch_devices.is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"--qwen3-vl needs more memory than {device.type} has; use another --device, or --dtype bfloat16"
            ) from error
        log.info("qwen3_vl: %d of %d blocks, for layer %d", model.plan.blocks, model.total_blocks, self.hidden_layer)
        fingerprint = VisionFingerprint(
            engine=self.kind.value,
            family="qwen3_vl",
            width=model.width,
            model_id=checkpoints.model_id(self._path),
            weights_digest=weights_digest(component, cache=cache),
            processor_digest=settings_digest(
                {
                    **parts.pixels.settings,
                    "chat_template": template_digest(self._folder.chat_template),
                    "tokenizer": tokenizer_digest(self._path),
                }
            ),
            hidden_layer=self.hidden_layer,
            compute_dtype=torch_devices.dtype_name(dtype),
            backend=f"torch-{device.type}",
        )
        self._parts, self._model, self.fingerprint = parts, model, fingerprint

    def warm_up(self) -> None:
        """One grey image of the smallest size."""
        side = self._loaded()[0].pixels.factor
        grey = Image.new("RGB", (side, side), (128, 128, 128))
        self.run(self.prepare("", grey.size, lambda: grey, StatesOptions(), side * side), lambda: False)
        self._beginnings = ByteCache(self._beginnings.max_bytes)

    @property
    def width(self) -> int:
        """Of a token's states."""
        return self._loaded()[1].width

    def fingerprint_of(self, hidden_layer: int | None) -> VisionFingerprint:
        """That of states of a layer, None for the default."""
        if self.fingerprint is None:
            raise RuntimeError("fingerprint: expected a loaded engine, got none")
        return replace(self.fingerprint, hidden_layer=self.hidden_layer if hidden_layer is None else hidden_layer)

    def prepare(
        self,
        sha256: str,
        size: tuple[int, int],
        pixels: Callable[[], Image.Image],
        options: StatesOptions,
        target_area: int | None,
        *,
        field: str = "image",
    ) -> Reading:
        """Tokens and patches of an image of `size` (width, height); `pixels` is asked for them only where its states
        are not held under its file's `sha256`. `field` is the image's path in the request.

        Raises InvalidArgument (HIDDEN_LAYER_INVALID, TARGET_AREA_INVALID, IMAGE_ASPECT, TEXT_HAS_IMAGE), FeatureMissing
        (a layer that was not loaded).
        """
        parts, model = self._loaded()
        layer, plan = self._layer(model, options.hidden_layer, "states_options.hidden_layer")
        self._check_area(parts, target_area)
        try:
            grid = parts.pixels.grid(*size, target_area)
        except ValueError as error:
            said = str(error).removeprefix("image: ")
            raise InvalidArgument(f"{field}: {said}", field=field, reason="IMAGE_ASPECT") from error
        prompt = format_vision_prompt(parts.tokenizer, parts.tokens, options.text, options.system_prompt)
        key = (sha256, layer, options.system_prompt, grid)
        held = self._beginnings.get(key)
        patches = parts.pixels.patches(pixels(), target_area) if held is None else None
        return Reading(key, prompt, plan, layer, options.tokens, grid, patches, held)

    def run(self, reading: Reading, cancelled: Callable[[], bool]) -> States:
        """The states, on the CPU in the compute dtype.

        Raises Cancelled, OutOfMemory, FailedPrecondition (STATES_NOT_FINITE).
        """
        model = self._loaded()[1]
        exhausted = False
        try:
            states = self._states(model, reading, cancelled)
        except (RuntimeError, MemoryError) as error:
            if not torch_devices.is_out_of_memory(error):
                raise
            exhausted = True
        if exhausted:  # only here: while an exception is handled, its frames hold the tensors that did not fit
            torch_devices.release_cached_memory(model.device)
            raise _out_of_memory(reading, model)
        if not all_finite(states.hidden_states):
            raise FailedPrecondition(
                f"the hidden states overflow in {torch_devices.dtype_name(states.hidden_states.dtype)}; start the "
                "vision service with --dtype bfloat16 or float32",
                reason="STATES_NOT_FINITE",
            )
        return states

    def _states(self, model: Qwen3VLStates, reading: Reading, cancelled: Callable[[], bool]) -> States:
        if self._parts is None:
            raise RuntimeError("parts: expected a loaded engine, got none")
        rows, columns = (side // model.merge for side in reading.grid)
        count, tokens = rows * columns, self._parts.tokens
        at = positions(len(reading.prompt.before), (rows, columns), 1 + len(reading.prompt.after))
        head = len(reading.prompt.before) + count + 1
        beginning = reading.beginning
        if beginning is None:
            if reading.patches is None:
                raise ValueError("reading: expected patches or states, got neither")
            ids = (*reading.prompt.before, *([tokens.image] * count), tokens.end)
            features = model.see(reading.patches, reading.grid)
            states, memory = model.begin(
                ids, len(reading.prompt.before), features, at[:, :head], reading.plan, cancelled
            )
            beginning = _Beginning(states.cpu(), memory.to("cpu"))
            self._beginnings.put(reading.key, beginning, beginning.states.nbytes + beginning.memory.nbytes)
        after = beginning.states[:0]
        if reading.tokens.has_text and reading.prompt.after:
            memory = beginning.memory.to(model.device)
            after = model.go_on(reading.prompt.after, memory, at[:, head:], reading.plan, cancelled).cpu()
        return select(beginning.states, after, len(reading.prompt.before), count, reading.tokens)

    def _loaded(self) -> tuple[QwenParts, Qwen3VLStates]:
        if self._parts is None or self._model is None:
            raise RuntimeError("engine: expected a loaded one, got none")
        return self._parts, self._model

    def _layer(self, model: Qwen3VLStates, wanted: int | None, field: str) -> tuple[int, LayerPlan]:
        if wanted is None:
            return self.hidden_layer, model.plan
        try:
            plan = layer_plan(model.total_blocks, wanted)
        except ValueError as error:
            raise InvalidArgument(
                f"{field}: {str(error).removeprefix('hidden_layer: ')}",
                field=field,
                reason="HIDDEN_LAYER_INVALID",
                metadata={"got": wanted},
            ) from error
        if not plan.within(model.plan):
            raise FeatureMissing(
                f"{field}: {wanted} needs more than this service loaded for layer {self.hidden_layer}; start it with "
                f"--hidden-layer {wanted}",
                field=field,
                metadata={"feature": "vision.layer", "loaded_for": self.hidden_layer},
            )
        return wanted, plan

    def _check_area(self, parts: QwenParts, target_area: int | None) -> None:
        least, most = parts.pixels.factor**2, parts.pixels.most_area
        if target_area is not None and not least <= target_area <= most:
            raise InvalidArgument(
                f"target_area: expected {least} to {most} pixels, got {target_area}",
                field="target_area",
                reason="TARGET_AREA_INVALID",
            )


def _out_of_memory(reading: Reading, model: Qwen3VLStates) -> OutOfMemory:
    patches, found = reading.grid[0] * reading.grid[1], torch_devices.report(model.device)
    return OutOfMemory(
        f"an image of {patches} patches needs more memory than {found.kind} has: {found.memory_free_bytes >> 20} of "
        f"{found.memory_total_bytes >> 20} MiB are free; send a smaller image, or start the service with a smaller "
        "--max-area",
        metadata={"patches": patches, "free_bytes": found.memory_free_bytes},
    )
