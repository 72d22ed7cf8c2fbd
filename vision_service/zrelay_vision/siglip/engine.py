"""The SigLIP2 engine: images to spatial grids, images and texts to scores."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from zrelay_shared import torch_devices
from zrelay_shared.errors import Cancelled, FeatureMissing, OutOfMemory, invalid
from zrelay_shared.pictures import Picture, plain_picture
from zrelay_shared.vision_fingerprint import VisionFingerprint
from zrelay_shared.weight_files import WeightFiles
from zrelay_vision.engines import EngineKind, settings_digest
from zrelay_vision.images.cache import ByteCache
from zrelay_vision.images.store import DecodedImage
from zrelay_vision.siglip import model as siglip_model
from zrelay_vision.siglip.folder import open_siglip
from zrelay_vision.siglip.model import SiglipComponents, TextTower
from zrelay_vision.siglip.preprocessing import MAX_AREA, MIN_AREA, to_area
from zrelay_vision.siglip.scores import Scores, score

log = logging.getLogger(__name__)
T = TypeVar("T")

_CACHE_BYTES = 64 * 1024 * 1024
"""Size of the grid cache: some forty grids of the largest fixed-size checkpoint, or a hundred of NaFlex."""


class SiglipEngine:
    """One SigLIP2 checkpoint.

    The vision tower is loaded by `load`, the text tower when the first texts are scored. All methods but the
    constructor run in one thread.

    Attributes:
        fingerprint: The fingerprint of grids, None until `load`.
    """

    kind = EngineKind.SIGLIP

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        """Checks the folder. Raises CheckpointError.

        Args:
            folder: The checkpoint.
            dtype: Dtype of the computation.
        """
        self.fingerprint: VisionFingerprint | None = None
        self._folder = open_siglip(folder)
        self._device = torch.device("cpu")
        self._dtype = dtype
        self._weights: WeightFiles | None = None
        self._components: SiglipComponents | None = None
        self._vision_tower: Any = None
        self._text_tower: TextTower | None = None
        self._grids: ByteCache[tuple[str, int | None], torch.Tensor] = ByteCache(_CACHE_BYTES)
        self._image_features: ByteCache[str, torch.Tensor] = ByteCache(_CACHE_BYTES // 16)
        self._text_features: ByteCache[tuple[str, ...], torch.Tensor] = ByteCache(_CACHE_BYTES // 16)

    @property
    def can_score(self) -> bool:
        """Whether the checkpoint holds what scores need: text tower, tokenizer, scale and bias."""
        return self._folder.has_text

    @property
    def components(self) -> SiglipComponents:
        """The vision config, the image processor and the tokenizer."""
        if self._components is None:
            raise RuntimeError("siglip: expected a loaded engine, got none")
        return self._components

    @property
    def loaded_towers(self) -> tuple[Any, ...]:
        """The towers that are in memory: the vision tower, and the text tower once texts were scored."""
        text = self._text_tower.model if self._text_tower is not None else None
        return tuple(tower for tower in (self._vision_tower, text) if tower is not None)

    def load(self, device: torch.device, cache: Path | None) -> None:
        """Loads the vision tower. See `ImageEngine.load`."""
        folder, components = self._folder, siglip_model.load_components(self._folder)
        dtype = self._dtype
        weights = WeightFiles(folder.component, cache=cache)
        self._vision_tower = _within_memory(
            device,
            lambda: siglip_model.load_vision_tower(folder, weights, components.vision_config, device, dtype),
            lambda: torch_devices.weights_do_not_fit("the vision tower of --siglip", device, dtype),
        )
        self._components, self._weights, self._device = components, weights, device
        self.fingerprint = VisionFingerprint(
            engine=self.kind.value,
            family="siglip2",
            width=int(components.vision_config.hidden_size),
            model_id=folder.model_id,
            weights_digest=weights.digest,
            configuration_digest=components.configuration_digest,
            processor_digest=settings_digest(components.preprocessor.settings),
            hidden_layer=0,
            compute_dtype=torch_devices.dtype_name(dtype),
            backend=f"torch-{device.type}",
        )

    def warm_up(self) -> None:
        """Runs one small image through the vision tower."""
        self._run_vision_tower(plain_picture(32, 32))

    def encode(
        self, images: Sequence[DecodedImage], *, target_area: int | None, cancelled: Callable[[], bool]
    ) -> list[torch.Tensor]:
        """Computes the grid of each image, as ZImageOmniPipeline.prepare_siglip_embeds does.

        Args:
            images: The images.
            target_area: Pixels of the image to be generated. As in the pipeline, references above one megapixel are
                resized to it. None resizes nothing.
            cancelled: Checked before each image.

        Returns:
            One tensor [H, W, C] per image, rows of the image first, in the compute dtype on the CPU.

        Raises:
            InvalidArgument: TARGET_AREA_INVALID.
            Cancelled, OutOfMemory: The computation stopped.
        """
        if target_area is not None and not MIN_AREA <= target_area <= MAX_AREA:
            raise invalid("target_area", f"{MIN_AREA} to {MAX_AREA} pixels", target_area)
        grids = []
        for image in images:
            _stop_if(cancelled)
            key = (image.sha256, target_area)
            if (grid := self._grids.get(key, image.owner)) is None:
                grid = self._grid(image.image, target_area)
                self._grids.put(key, grid, grid.nbytes, image.owner)
            grids.append(grid)
        return grids

    def score(
        self,
        images: Sequence[DecodedImage],
        texts: Sequence[str],
        *,
        cancelled: Callable[[], bool],
        owner: str = "",
    ) -> Scores:
        """Scores every image with every text, with SigLIP's scale, bias and padding.

        Args:
            images: The images.
            texts: The texts.
            cancelled: Checked before each image.
            owner: Who sent the texts.

        Raises:
            FeatureMissing: The checkpoint has no text tower.
            InvalidArgument: A text has more tokens than SigLIP reads (TEXT_TOO_LONG).
            CheckpointError: The text tower cannot be loaded.
            Cancelled, OutOfMemory: The computation stopped.
        """
        tower = self.text_tower()
        text_features = self._encode_texts(tower, tuple(texts), owner)
        image_features = []
        for image in images:
            _stop_if(cancelled)
            if (pooled := self._image_features.get(image.sha256, image.owner)) is None:
                pooled = self._run_vision_tower(image.image)[0].pooler_output[0].cpu()
                self._image_features.put(image.sha256, pooled, pooled.nbytes, image.owner)
            image_features.append(pooled)
        scale = tower.scale
        return score(torch.stack(image_features), text_features, scale.logit_scale.cpu(), scale.logit_bias.cpu())

    def text_tower(self) -> TextTower:
        """Returns the text tower, and loads it if needed. Raises FeatureMissing, CheckpointError, OutOfMemory."""
        if not self._folder.has_text:
            raise FeatureMissing(
                "texts: this SigLIP2 has no text tower, or lacks its tokenizer; start the vision service with the "
                "complete checkpoint, `--siglip FOLDER`",
                field="texts",
                metadata={"feature": "vision.score"},
            )
        weights, tokenizer = self._weights, self.components.tokenizer
        if weights is None or tokenizer is None:
            raise RuntimeError("siglip: expected a loaded engine, got none")
        if self._text_tower is None:
            self._text_tower = _within_memory(
                self._device,
                lambda: siglip_model.load_text_tower(self._folder, weights, tokenizer, self._device, self._dtype),
                lambda: torch_devices.weights_do_not_fit("the text tower of --siglip", self._device, self._dtype),
            )
        return self._text_tower

    def _encode_texts(self, tower: TextTower, texts: tuple[str, ...], owner: str) -> torch.Tensor:
        """Computes features [texts, C] on the CPU. They are cached for the next image of the same call."""
        if (cached := self._text_features.get(texts, owner)) is not None:
            return cached
        ids = [_padded_ids(tower, text, f"texts[{index}]") for index, text in enumerate(texts)]
        features = _within_memory(
            self._device,
            lambda: siglip_model.encode_texts(tower, ids, self._device),
            lambda: OutOfMemory(
                f"{len(texts)} texts in one forward pass need more memory than {self._device.type} has; send fewer "
                "texts per call"
            ),
        ).cpu()
        self._text_features.put(texts, features, features.nbytes, owner)
        return features

    def _grid(self, image: Picture, target_area: int | None) -> torch.Tensor:
        if target_area is not None:
            try:
                image = to_area(image, target_area)
            except ValueError as error:
                sides = f"{image.width} x {image.height}"
                expected = f"an area large enough that both sides of the {sides} image have at least 1 pixel"
                raise invalid("target_area", expected, target_area) from error
        output, (rows, columns) = self._run_vision_tower(image)
        states: torch.Tensor = output.last_hidden_state[0]
        return states[: rows * columns].reshape(rows, columns, -1).cpu()

    def _run_vision_tower(self, image: Picture) -> tuple[Any, tuple[int, int]]:
        """Returns the tower's output for one image, and rows and columns of its grid. Raises OutOfMemory."""
        inputs, shape = self.components.preprocessor.inputs(image)
        moved = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        with torch.inference_mode():
            output = _within_memory(
                self._device, lambda: self._vision_tower(**moved), lambda: _image_does_not_fit(self._device)
            )
        return output, shape


def _padded_ids(tower: TextTower, text: str, field: str) -> list[int]:
    """Tokenizes one text and pads it to the length that SigLIP reads. Raises InvalidArgument (TEXT_TOO_LONG).

    The text is converted to lower case, as in the training of every SigLIP. transformers' tokenizers do that for SigLIP
    and NaFlex, but not for fixed-size SigLIP2, whose folders name Gemma's tokenizer.
    """
    text = text.lower()
    count = len(tower.tokenizer(text, truncation=False).input_ids)
    if count > tower.length:
        raise invalid(
            field,
            f"at most {tower.length} tokens",
            count,
            reason="TEXT_TOO_LONG",
            remedy="shorten the text",
            metadata={"expected": tower.length},
        )
    ids: list[int] = tower.tokenizer(text, padding="max_length", max_length=tower.length, truncation=True).input_ids
    return ids


def _stop_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("the caller cancelled the call")


def _image_does_not_fit(device: torch.device) -> OutOfMemory:
    found = torch_devices.report(device)
    other = "" if device.type == "cpu" else ", or start the service with --device cpu"
    return OutOfMemory(
        f"one image needs more memory than {device.type} has ({found.memory_free_bytes >> 20} of "
        f"{found.memory_total_bytes >> 20} MiB are free); end other programs that use its memory{other}",
        metadata={"free_bytes": found.memory_free_bytes},
    )


def _within_memory(device: torch.device, work: Callable[[], T], refusal: Callable[[], OutOfMemory]) -> T:
    """Runs `work`. Raises `refusal`, made after its tensors are freed, if the device has not enough memory."""
    try:
        with torch.inference_mode():
            return work()
    except (RuntimeError, MemoryError) as error:
        if not torch_devices.is_out_of_memory(error):
            raise
    # Outside of the handler: while an exception is handled, its frames keep the tensors of the failed attempt.
    torch_devices.release_cached_memory(device)
    raise refusal()
