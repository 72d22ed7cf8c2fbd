"""Builds a ZImageOmniPipeline folder from a Z-Image pipeline and Omni's additions, by copying files, without torch.

`python -m zrelay_demo.omni_folder FOLDER` writes the demo's. The package contains only the additions, because the rest
is the demo checkpoint.
"""

import argparse
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zrelay_shared import safetensors_file
from zrelay_shared.safetensors_file import FileTensor

PARTS = "siglip_parts.safetensors"
"""Name of the file with the tensors that Omni adds to the transformer."""
_MAX_BYTES = 1 << 30
_TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
_TOWER = "vision_model."
"""Prefix of the vision tower's tensors in a SigLIP2 checkpoint."""


def write_omni_folder(folder: Path, base: Path, siglip: Path, parts: Path) -> None:
    """Writes an Omni pipeline folder.

    Args:
        folder: Output folder; must not exist.
        base: Z-Image pipeline folder whose transformer is one file.
        siglip: NaFlex SigLIP2 folder whose vision tower is used.
        parts: File with the tensors that the transformer needs for `siglip`'s hidden size.
    """
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("README.md", "eval.json"))
    index = _read(folder / "model_index.json")
    index["_class_name"] = "ZImageOmniPipeline"
    index["siglip"] = ["transformers", "Siglip2VisionModel"]
    index["siglip_processor"] = ["transformers", "Siglip2ImageProcessor"]
    _write(folder / "model_index.json", index)
    vision = _read(siglip / "config.json")["vision_config"]
    transformer = _read(folder / "transformer/config.json")
    transformer["siglip_feat_dim"] = vision["hidden_size"]
    _write(folder / "transformer/config.json", transformer)
    _merge(folder / _TRANSFORMER, (base / _TRANSFORMER, parts))
    (folder / "siglip").mkdir()
    dtype = _read(siglip / "config.json").get("dtype", "float32")
    config = {**vision, "architectures": ["Siglip2VisionModel"], "dtype": dtype}
    _write(folder / "siglip/config.json", config)
    _merge(folder / "siglip/model.safetensors", (siglip / "model.safetensors",), keep=_TOWER)
    (folder / "siglip_processor").mkdir()
    shutil.copyfile(siglip / "preprocessor_config.json", folder / "siglip_processor/preprocessor_config.json")
    if (folder / "zrelay.json").is_file():
        info = _read(folder / "zrelay.json")
        _write(folder / "zrelay.json", {**info, "name": f"{info.get('name', base.name)}-omni"})


def _merge(target: Path, files: Iterable[Path], *, keep: str = "") -> None:
    """Writes the tensors of `files` whose names start with `keep` to one file."""
    tensors: list[tuple[str, FileTensor]] = []
    for file in files:
        content = safetensors_file.read(file, max_bytes=_MAX_BYTES)
        tensors += [(name, entry) for name, entry in content.tensors.items() if name.startswith(keep)]
    safetensors_file.write(target, tensors, {"format": "pt"})


def _read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Runs the command line of `python -m zrelay_demo.omni_folder`."""
    from . import CHECKPOINT, VISION_CHECKPOINT

    parser = argparse.ArgumentParser(description="Write the demo's Omni pipeline folder; its SigLIP is untrained.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_omni_folder(folder, CHECKPOINT, VISION_CHECKPOINT / "siglip", VISION_CHECKPOINT / "omni" / PARTS)
    print(folder)


if __name__ == "__main__":
    main()
