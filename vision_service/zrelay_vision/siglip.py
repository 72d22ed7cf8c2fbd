"""The SigLIP2 engine: pictures to spatial grids, pictures and texts to scores."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from zrelay_shared import torch_devices
from zrelay_shared.digests import weights_digest
from zrelay_shared.errors import Cancelled, FeatureMissing, InvalidArgument, OutOfMemory
from zrelay_vision import scores, siglip_model
from zrelay_vision.byte_cache import ByteCache
from zrelay_vision.engines import EngineKind
from zrelay_vision.identity import VisionFingerprint, settings_digest
from zrelay_vision.images import Picture
from zrelay_vision.scores import Scores
from zrelay_vision.siglip_folder import open_siglip
from zrelay_vision.siglip_model import SiglipParts, TextTower
from zrelay_vision.siglip_pixels import LEAST_AREA, MOST_AREA, to_area

log = logging.getLogger(__name__)
T = TypeVar("T")

_KEPT_BYTES = 64 * 1024 * 1024
"""Of grids: some forty of the largest fixed checkpoint, a hundred of NaFlex."""


class SiglipEngine:
    """One SigLIP2 checkpoint. The vision tower is loaded at once, the text tower when the first texts are scored."""

    kind = EngineKind.SIGLIP

    def __init__(self, folder: Path, dtype: str) -> None:
        """Looks at the folder alone. Raises CheckpointError."""
        self.fingerprint: VisionFingerprint | None = None
        self._path = folder
        self._folder = open_siglip(folder)
        self._asked_dtype = dtype
        self._device = torch.device("cpu")
        self._dtype = torch.float32
        self._parts: SiglipParts | None = None
        self._tower: Any = None
        self._texts: TextTower | None = None
        self._grids: ByteCache[tuple[str, int | None], torch.Tensor] = ByteCache(_KEPT_BYTES)
        self._features: ByteCache[str, torch.Tensor] = ByteCache(_KEPT_BYTES // 16)
        self._said: ByteCache[tuple[str, ...], torch.Tensor] = ByteCache(_KEPT_BYTES // 16)

    def check(self) -> None:
        """The folder, once more. Raises CheckpointError."""
        self._folder = open_siglip(self._path)

    @property
    def can_score(self) -> bool:
        """Whether the checkpoint holds what scores need: text tower, tokenizer, scale and bias."""
        return self._folder.has_text

    def load(self, device: torch.device, cache: Path | None) -> None:
        """The vision tower. Raises CheckpointError, OutOfMemory."""
        folder, parts = self._folder, siglip_model.load_parts(self._folder)
        stored = torch_devices.stored_dtype(folder.component.weights)
        dtype, why = torch_devices.pick_dtype(self._asked_dtype, device, stored)
        log.info("siglip computes in %s on %s: %s", torch_devices.dtype_name(dtype), device.type, why)
        self._tower = _fitting(
            device,
            lambda: siglip_model.load_vision_tower(folder, parts.vision_config, device, dtype),
            "the weights of --siglip; use another --device, or --dtype bfloat16",
        )
        self._parts, self._device, self._dtype = parts, device, dtype
        self.fingerprint = VisionFingerprint(
            engine=self.kind.value,
            family="siglip2",
            width=int(parts.vision_config.hidden_size),
            model_id=folder.model_id,
            weights_digest=weights_digest(folder.component, cache=cache),
            processor_digest=settings_digest(parts.pixels.settings),
            hidden_layer=0,
            compute_dtype=torch_devices.dtype_name(dtype),
            backend=f"torch-{device.type}",
        )

    def warm_up(self) -> None:
        """One small picture through the tower."""
        self._see(Image.new("RGB", (32, 32)))

    def encode(
        self, pictures: Sequence[Picture], *, target_area: int | None, cancelled: Callable[[], bool]
    ) -> list[torch.Tensor]:
        """The grid of each picture: [H, W, C] in the compute dtype on the CPU, rows of the image first.

        What ZImageOmniPipeline.prepare_siglip_embeds makes of it. `target_area` in pixels is that of the picture to be
        painted: references above one megapixel are resized to it before, as the pipeline does; without it they are
        not. Raises InvalidArgument (TARGET_AREA_INVALID), Cancelled, OutOfMemory.
        """
        if target_area is not None and not LEAST_AREA <= target_area <= MOST_AREA:
            raise _bad_area(f"{LEAST_AREA} to {MOST_AREA} pixels", target_area)
        grids = []
        for picture in pictures:
            _stop_if(cancelled)
            key = (picture.sha256, target_area)
            if (grid := self._grids.get(key)) is None:
                grid = self._grid(picture.image, target_area)
                self._grids.put(key, grid, grid.nbytes)
            grids.append(grid)
        return grids

    def score(self, pictures: Sequence[Picture], texts: Sequence[str], *, cancelled: Callable[[], bool]) -> Scores:
        """Scores [pictures, texts] with SigLIP's own scale and bias; texts padded as it was trained.

        Raises FeatureMissing where the checkpoint has no text tower, InvalidArgument (TEXT_TOO_LONG) for a text of more
        tokens than it reads, Cancelled, OutOfMemory, CheckpointError.
        """
        tower = self._text_tower()
        said = self._read(tower, tuple(texts))
        features = []
        for picture in pictures:
            _stop_if(cancelled)
            if (pooled := self._features.get(picture.sha256)) is None:
                pooled = self._see(picture.image)[0].pooler_output[0].cpu()
                self._features.put(picture.sha256, pooled, pooled.nbytes)
            features.append(pooled)
        scale = tower.scale
        return scores.score(torch.stack(features), said, scale.logit_scale.cpu(), scale.logit_bias.cpu())

    def _read(self, tower: TextTower, texts: tuple[str, ...]) -> torch.Tensor:
        """Features [texts, C] on the CPU, kept for the next picture of the same call."""
        if (held := self._said.get(texts)) is not None:
            return held
        ids = [_padded(tower, text, f"texts[{index}]") for index, text in enumerate(texts)]
        said = _fitting(
            self._device,
            lambda: siglip_model.encode_texts(tower, ids, self._device),
            f"{len(texts)} texts in one forward; send fewer a call",
        ).cpu()
        self._said.put(texts, said, said.nbytes)
        return said

    def _grid(self, image: Image.Image, target_area: int | None) -> torch.Tensor:
        if target_area is not None:
            try:
                image = to_area(image, target_area)
            except ValueError as error:
                sides = f"{image.width} x {image.height}"
                raise _bad_area(f"an area that leaves a {sides} image two sides", target_area) from error
        seen, (rows, columns) = self._see(image)
        states: torch.Tensor = seen.last_hidden_state[0]
        return states[: rows * columns].reshape(rows, columns, -1).cpu()

    def _see(self, image: Image.Image) -> tuple[Any, tuple[int, int]]:
        """The tower's output for one image, and the rows and columns of its grid. Raises OutOfMemory."""
        parts = self._parts
        if parts is None:
            raise RuntimeError("siglip: expected a loaded engine, got none")
        inputs, shape = parts.pixels.inputs(image)
        moved = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        with torch.inference_mode():
            return _fitting(self._device, lambda: self._tower(**moved), "one image; use another --device"), shape

    def _text_tower(self) -> TextTower:
        if not self._folder.has_text:
            raise FeatureMissing(
                "texts: this SigLIP2 has no text tower (or lacks its tokenizer): start the vision service with the "
                "whole checkpoint, `--siglip FOLDER`",
                field="texts",
                metadata={"feature": "vision.score"},
            )
        if self._texts is None:
            self._texts = _fitting(
                self._device,
                lambda: siglip_model.load_text_tower(self._folder, self._device, self._dtype),
                "the text tower of --siglip; use another --device, or --dtype bfloat16",
            )
        return self._texts


def _padded(tower: TextTower, text: str, field: str) -> list[int]:
    """Token ids of one text, padded to the length that SigLIP reads. Raises InvalidArgument (TEXT_TOO_LONG).

    In lower case, as every SigLIP was trained: transformers' tokenizers see to it for SigLIP and NaFlex, but not for
    SigLIP2 of a fixed size, whose folders name Gemma's.
    """
    text = text.lower()
    count = len(tower.tokenizer(text, truncation=False).input_ids)
    if count > tower.length:
        raise InvalidArgument(
            f"{field}: expected at most {tower.length} tokens, got {count}: SigLIP reads no more; shorten it",
            field=field,
            reason="TEXT_TOO_LONG",
            metadata={"expected": tower.length, "got": count},
        )
    ids: list[int] = tower.tokenizer(text, padding="max_length", max_length=tower.length, truncation=True).input_ids
    return ids


def _stop_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("the caller went away")


def _bad_area(expected: str, got: int) -> InvalidArgument:
    return InvalidArgument(
        f"target_area: expected {expected}, got {got}",
        field="target_area",
        reason="TARGET_AREA_INVALID",
        metadata={"expected": expected, "got": got},
    )


def _fitting(device: torch.device, work: Callable[[], T], what: str) -> T:
    """The result of `work`. Raises OutOfMemory, once its tensors are gone, where the device has not the memory."""
    try:
        with torch.inference_mode():
            return work()
    except (RuntimeError, MemoryError) as error:
        if not torch_devices.is_out_of_memory(error):
            raise
    # Only here: while an exception is handled, its frames hold the tensors that did not fit.
    torch_devices.release_cached_memory(device)
    need, _, remedy = what.partition("; ")
    raise OutOfMemory(f"{need} needs more memory than {device.type} has; {remedy}")
