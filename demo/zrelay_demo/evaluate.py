"""Measure a checkpoint on fresh held-out prompts, beside the checker's and the autoencoder's own ceilings."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ZImagePipeline
from PIL import Image

from . import CHECKPOINT
from .captions import canonical
from .checker import Verdict, check
from .folder import Defaults
from .pixels import to_images, to_tensor
from .render import render
from .sheet import contact_sheet
from .table import markdown
from .world import Scene, sample

_ATTRIBUTES = tuple(field.name for field in fields(Verdict))
_KINDS = {"one": "one object", "count": "two to four alike", "two": "two different"}


@dataclass(frozen=True)
class EvalSettings:
    """The seed belongs to the evaluation alone; no stage draws its scenes from it."""

    prompts: int = 1000
    seed: int = 20261120
    batch: int = 25


def evaluate(checkpoint: Path, settings: EvalSettings) -> tuple[dict[str, Any], list[Image.Image], list[Scene]]:
    """The results as they stand in eval.json, the painted pictures and their scenes."""
    rng = Random(f"evaluation {settings.seed}")
    scenes = [sample(rng, unseen=True) for _ in range(settings.prompts)]
    rendered = [render(scene) for scene in scenes]
    defaults = Defaults(**json.loads((checkpoint / "zrelay.json").read_text(encoding="utf-8")))
    painted = paint(checkpoint, [canonical(scene) for scene in scenes], defaults, settings)
    verdicts = _verdicts(painted, scenes)
    rows = [
        _row("checker's ceiling: the renderer itself", _verdicts(rendered, scenes)),
        _row("VAE's ceiling: renders, encoded and decoded", _verdicts(_round_trip(checkpoint, rendered), scenes)),
        _row("model", verdicts),
    ]
    for kind, name in _KINDS.items():
        mine = [verdict for verdict, scene in zip(verdicts, scenes, strict=True) if scene.kind == kind]
        if mine:
            rows.append(_row(f"model: {name}", mine))
    return (
        {"settings": asdict(settings), "defaults": asdict(defaults), "dtype": "bfloat16", "rows": rows},
        painted,
        scenes,
    )


@torch.no_grad()
def paint(checkpoint: Path, prompts: list[str], defaults: Defaults, settings: EvalSettings) -> list[Image.Image]:
    """One picture for each prompt, with seed 0 for the first, 1 for the second and so on."""
    pipeline = ZImagePipeline.from_pretrained(checkpoint, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)

    def some(part: Sequence[int]) -> list[Image.Image]:
        images: list[Image.Image] = pipeline(
            prompt=[prompts[index] for index in part],
            width=defaults.width,
            height=defaults.height,
            num_inference_steps=defaults.num_inference_steps,
            guidance_scale=defaults.guidance_scale,
            generator=[torch.Generator().manual_seed(index) for index in part],
            max_sequence_length=64,
        ).images
        return images

    return _in_batches(some, len(prompts), settings.batch)


@torch.no_grad()
def _round_trip(checkpoint: Path, rendered: list[Image.Image]) -> list[Image.Image]:
    vae = AutoencoderKL.from_pretrained(checkpoint / "vae", dtype=torch.bfloat16).eval()

    def some(part: Sequence[int]) -> list[Image.Image]:
        pictures = to_tensor(np.stack([np.asarray(rendered[index]) for index in part])).bfloat16()
        return to_images(vae.decode(vae.encode(pictures).latent_dist.mode()).sample)

    return _in_batches(some, len(rendered), 25)


def _in_batches(some: Callable[[Sequence[int]], list[Image.Image]], count: int, batch: int) -> list[Image.Image]:
    images: list[Image.Image] = []
    for start in range(0, count, batch):
        images += some(range(start, min(start + batch, count)))
    return images


def _verdicts(images: list[Image.Image], scenes: list[Scene]) -> list[Verdict]:
    return [check(image, scene) for image, scene in zip(images, scenes, strict=True)]


def _row(name: str, verdicts: list[Verdict]) -> dict[str, Any]:
    """Shares of right verdicts, rounded to a thousandth."""
    shares = {key: round(float(np.mean([getattr(v, key) for v in verdicts])), 3) for key in _ATTRIBUTES}
    return {
        "name": name,
        "prompts": len(verdicts),
        **shares,
        "all_right": round(float(np.mean([v.all_right for v in verdicts])), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder to measure; default: the bundle")
    parser.add_argument("--prompts", type=int, default=EvalSettings.prompts, help="how many prompts; default: 1000")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first 48 prompts to this PNG")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    results, painted, scenes = evaluate(options.checkpoint, EvalSettings(prompts=options.prompts))
    print(markdown(results["rows"]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if options.sheet:
        contact_sheet(painted[:48], _verdicts(painted[:48], scenes[:48])).save(options.sheet, optimize=True)


if __name__ == "__main__":
    main()
