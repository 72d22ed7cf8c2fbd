"""Checks the folder of a SigLIP2 checkpoint. Every refusal names the file. Loads no torch."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zrelay_shared.checkpoint_files import find_weights, join, read_json, refusal, require_folder
from zrelay_shared.checkpoints import ComponentFolder, model_id
from zrelay_shared.safetensors_header import read_header

_REMEDY = (
    "give the folder of a SigLIP2 checkpoint as transformers saves it, or of a Z-Image Omni pipeline, which holds one"
)
_KINDS = {"siglip": False, "siglip_vision_model": False, "siglip2": True, "siglip2_vision_model": True}
"""model_type to whether images keep their aspect ratio (NaFlex). Fixed-size SigLIP2 has SigLIP's architecture."""
_TEXT_TENSORS = ("text_model.", "logit_scale", "logit_bias")


@dataclass(frozen=True, slots=True)
class SiglipFolder:
    """A checked SigLIP2 checkpoint.

    Attributes:
        component: Config and weights.
        naflex: Whether images keep their aspect ratio.
        vision_config: The vision tower's part of the config.
        processor_file: The file with the settings of the image processor, relative to the checkpoint's folder.
        processor: These settings.
        has_text: Whether a text tower and its tokenizer are there, so that texts can be scored.
        model_id: Name for people.
    """

    component: ComponentFolder
    naflex: bool
    vision_config: Mapping[str, object]
    processor_file: str
    processor: Mapping[str, object]
    has_text: bool
    model_id: str


def open_siglip(path: Path) -> SiglipFolder:
    """Opens the SigLIP2 checkpoint at `path`.

    The folder is a checkpoint with both towers or with the vision tower alone, or a pipeline folder with siglip/ and
    siglip_processor/. Weights may be sharded.

    Raises:
        CheckpointError: A file is missing or damaged, or the checkpoint is of another model.
    """
    require_folder(path)
    inside, beside = ("siglip", "siglip_processor") if (path / "siglip").is_dir() else ("", "")
    if not (path / inside / "config.json").is_file():
        raise refusal(path, join(inside, "config.json"), "is missing", _REMEDY)
    config = read_json(path, join(inside, "config.json"))
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _KINDS:
        known, shown = " or ".join(map(repr, _KINDS)), reprlib.repr(kind)
        raise refusal(
            path, join(inside, "config.json"), f"says model_type {shown}, expected {known}", "it is another model's"
        )
    vision = config if kind.endswith("_vision_model") else config.get("vision_config")
    if not isinstance(vision, dict):
        raise refusal(path, join(inside, "config.json"), "has no vision_config", "copy it again from the checkpoint")
    weights, index = find_weights(path, inside, "model", config)
    folder = path / inside
    processor_file, processor = _processor(path, inside, beside)
    return SiglipFolder(
        component=ComponentFolder("siglip", folder, config, weights, index),
        naflex=_KINDS[kind],
        vision_config=vision,
        processor_file=processor_file,
        processor=processor,
        has_text=_has_text(folder, config, weights),
        model_id=model_id(path),
    )


def _has_text(folder: Path, config: Mapping[str, object], weights: tuple[Path, ...]) -> bool:
    """Returns whether the text tower, its tokenizer and the scale and bias of scores are all there."""
    if not isinstance(config.get("text_config"), dict) or not (folder / "tokenizer_config.json").is_file():
        return False
    names = [entry.name for file in weights for entry in read_header(file)]
    return all(any(name.startswith(wanted) for name in names) for wanted in _TEXT_TENSORS)


def _processor(path: Path, inside: str, beside: str) -> tuple[str, Mapping[str, object]]:
    """Reads preprocessor_config.json of the checkpoint, or of the pipeline's siglip_processor/ beside it.

    Returns:
        The file, relative to `path`, and the settings.
    """
    places = (
        [inside, beside] if inside else ["", "../siglip_processor"]
    )  # the latter if `path` is the siglip/ of a pipeline
    for place in places:
        file = join(place, "preprocessor_config.json")
        if (path / file).is_file():
            return file, read_json(path, file)
    combined = join(inside, "processor_config.json")  # where newer transformers keeps it
    if (path / combined).is_file():
        nested = read_json(path, combined).get("image_processor")
        if isinstance(nested, dict):
            return combined, nested
    file = join(beside or inside, "preprocessor_config.json")
    raise refusal(path, file, "is missing", "it says how images are resized and cut; copy it from the same checkpoint")
