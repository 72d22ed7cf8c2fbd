"""Put a ZImageOmniPipeline folder together from a Z-Image pipeline and what Omni adds to it: files alone, no torch.

`python -m zrelay_demo.omni_folder FOLDER` writes the demo's. The bundle carries only the additions, since the rest is
the demo checkpoint that stands beside it.
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
_MOST_BYTES = 1 << 30
_TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
_TOWER = "vision_model."


def write_omni_folder(folder: Path, base: Path, siglip: Path, parts: Path) -> None:
    """Writes `folder`, which must not be there yet.

    `base` is a Z-Image pipeline with a transformer of one file; `siglip` a NaFlex SigLIP2 checkpoint, of which the
    vision tower is taken; `parts` the file of the tensors that the transformer gets, of `siglip`'s width.
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
        said = _read(folder / "zrelay.json")
        _write(folder / "zrelay.json", {**said, "name": f"{said.get('name', base.name)}-omni"})


def _merge(target: Path, files: Iterable[Path], *, keep: str = "") -> None:
    """The tensors of some files whose names begin with `keep`, in one file."""
    tensors: list[tuple[str, FileTensor]] = []
    for file in files:
        content = safetensors_file.read(file, max_bytes=_MOST_BYTES)
        tensors += [(name, entry) for name, entry in content.tensors.items() if name.startswith(keep)]
    safetensors_file.write(target, tensors, {"format": "pt"})


def _read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """The command."""
    from . import CHECKPOINT, VISION_CHECKPOINT

    parser = argparse.ArgumentParser(description="Write the demo's Omni pipeline folder; its SigLIP is untrained.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_omni_folder(folder, CHECKPOINT, VISION_CHECKPOINT / "siglip", VISION_CHECKPOINT / "omni" / PARTS)
    print(folder)


if __name__ == "__main__":
    main()
