"""Writes the tiny checkpoints of the vision service as folders that transformers and diffusers load."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from . import CHECKPOINT, VISION_CHECKPOINT
from .folder import size_bytes, without_paths
from .omni_folder import PARTS, write_omni_folder
from .siglip_tokenizer import SiglipTokenizerSettings, build_siglip_tokenizer
from .vision_models import (
    SEED,
    Network,
    VisionWidths,
    load_text_encoder,
    new_fixed_siglip,
    new_naflex_siglip,
    new_qwen3_vl,
    new_siglip_parts,
)

MAX_BYTES = 5_000_000
HIDDEN_LAYER = -2
"""Layer of the text encoder that gives the prompt embeddings; the usual -6 needs more than its four blocks."""
_CARD = Path(__file__).with_name("vision_card.md")


def write_checkpoints(folder: Path, base: Path, widths: VisionWidths | None = None) -> list[Path]:
    """Writes all four checkpoints: qwen3_vl, siglip (NaFlex), siglip_fixed and omni, a complete pipeline folder.

    The weights are the same on every call.

    Args:
        folder: Output folder.
        base: Pipeline folder whose text encoder, tokenizer and transformer are used.
        widths: Sizes of the networks.

    Returns:
        The folders written.
    """
    widths = widths or VisionWidths()
    written = [write_qwen3_vl(folder / "qwen3_vl", base, widths)]
    written += [write_siglip(folder / "siglip", widths, fixed=False)]
    written += [write_siglip(folder / "siglip_fixed", widths, fixed=True)]
    parts = folder / PARTS
    write_siglip_parts(parts, base, widths)
    write_omni_folder(folder / "omni", base, folder / "siglip", parts)
    parts.unlink()
    for path in [*written, folder / "omni"]:
        shutil.copyfile(_CARD, path / "README.md")
    return [*written, folder / "omni"]


def write_bundle(folder: Path, base: Path, widths: VisionWidths | None = None) -> int:
    """Writes the checkpoints that the package contains: qwen3_vl, siglip (NaFlex) and Omni's additional tensors.

    Args:
        folder: Output folder; replaced if it exists.
        base: Pipeline folder whose text encoder, tokenizer and transformer are used.
        widths: Sizes of the networks.

    Returns:
        The size in bytes.

    Raises:
        ValueError: If the size is over 5 MB.
    """
    widths = widths or VisionWidths()
    shutil.rmtree(folder, ignore_errors=True)
    write_qwen3_vl(folder / "qwen3_vl", base, widths)
    write_siglip(folder / "siglip", widths, fixed=False)
    (folder / "omni").mkdir()
    write_siglip_parts(folder / "omni" / PARTS, base, widths)
    shutil.copyfile(_CARD, folder / "README.md")
    if (size := size_bytes(folder)) > MAX_BYTES:
        raise ValueError(f"{folder}: expected at most {MAX_BYTES} bytes, got {size}; use smaller widths")
    return size


def write_qwen3_vl(folder: Path, base: Path, widths: VisionWidths, trained: Network | None = None) -> Path:
    """Writes a Qwen3-VL folder: model, tokenizer and chat template of `base`, and image processor.

    The model is `trained`, or a new one if that is None.
    """
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(base / "tokenizer")
    _save(trained or new_qwen3_vl(widths, load_text_encoder(base), tokenizer), folder)
    shutil.copytree(base / "tokenizer", folder, dirs_exist_ok=True)
    Qwen2VLImageProcessorPil(
        patch_size=widths.patch,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": (4 * widths.patch) ** 2, "longest_edge": (2 * widths.side) ** 2},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)
    _write_info(folder, {"name": "zrelay-demo-qwen3-vl", "hidden_layer": HIDDEN_LAYER})
    return folder


def write_siglip(folder: Path, widths: VisionWidths, *, fixed: bool, trained: Network | None = None) -> Path:
    """Writes a SigLIP2 folder: both towers, tokenizer and image processor.

    The model is `trained`, or a new one if that is None.
    """
    vocabulary = build_siglip_tokenizer(folder, SiglipTokenizerSettings(length=widths.text_tokens))
    torch.manual_seed(SEED)
    _save(trained or (new_fixed_siglip if fixed else new_naflex_siglip)(widths, vocabulary), folder)
    processor: Any
    if fixed:
        size = {"height": widths.fixed_side, "width": widths.fixed_side}
        processor = SiglipImageProcessorPil(size=size, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    else:
        patches = (widths.side // widths.patch) ** 2
        processor = Siglip2ImageProcessorPil(patch_size=widths.patch, max_num_patches=patches)
    processor.save_pretrained(folder)
    _write_info(folder, {"name": f"zrelay-demo-siglip{'-fixed' if fixed else ''}"})
    return folder


def write_siglip_parts(file: Path, base: Path, widths: VisionWidths) -> None:
    """Writes the tensors that Omni adds to the transformer of `base`, in bfloat16."""
    config = json.loads((base / "transformer/config.json").read_text(encoding="utf-8"))
    torch.manual_seed(SEED)
    parts = new_siglip_parts({**config, "siglip_feat_dim": None}, widths.siglip_hidden)
    save_file({name: tensor.to(torch.bfloat16).contiguous() for name, tensor in parts.items()}, file)


def _save(model: Any, folder: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)
    without_paths(folder / "config.json")


def _write_info(folder: Path, content: dict[str, object]) -> None:
    """Writes zrelay.json."""
    (folder / "zrelay.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Runs the command line of `python -m zrelay_demo.vision_folders`."""
    parser = argparse.ArgumentParser(description="Write the vision service's tiny checkpoints, untrained.")
    parser.add_argument(
        "folder", type=Path, nargs="?", help="write qwen3_vl, siglip, siglip_fixed and omni to this folder"
    )
    parser.add_argument(
        "--base",
        type=Path,
        default=CHECKPOINT,
        help="pipeline folder whose text encoder and transformer are used; default: the bundled one",
    )
    parser.add_argument("--bundle", action="store_true", help="write the checkpoints bundled with the package instead")
    options = parser.parse_args()
    if options.bundle == (options.folder is not None):
        parser.error("expected either FOLDER or --bundle")
    torch.set_num_threads(1)
    if options.bundle:
        print(f"{write_bundle(VISION_CHECKPOINT, options.base)} bytes")
    else:
        for path in write_checkpoints(options.folder, options.base):
            print(path)


if __name__ == "__main__":
    main()
