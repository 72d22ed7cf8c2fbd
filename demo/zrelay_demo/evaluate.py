"""Measures a checkpoint's accuracy on held-out prompts, and the upper bounds set by the checker and the autoencoder."""

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
from .checker import CheckResult, check
from .folder import Defaults
from .free_wordings import FOREIGN, FREE, Templates, free_caption
from .pixels import to_images, to_tensor
from .render import render
from .scenes import DEFAULT_RESOLUTION, RESOLUTIONS, Resolution, Scene, sample
from .table import markdown

_ATTRIBUTES = tuple(field.name for field in fields(CheckResult))
_MAX_TOKENS = 96
"""Longest prompt in tokens; the prompts of the evaluation are shorter."""
_KINDS = {"one": "one object", "count": "two to four alike", "two": "two different"}
"""Kind of scene -> its name in the table."""


@dataclass(frozen=True)
class EvalSettings:
    """Settings of the evaluation.

    Attributes:
        prompts: Prompts per prompt set.
        seed: Seed of the prompts; no training stage uses it.
        pixels: Pixels of all images that are generated at once.
    """

    prompts: int = 1000
    seed: int = 777002
    pixels: int = 25 * 128 * 128


@dataclass(frozen=True)
class PromptSet:
    """Prompts and the settings with which their images are generated; one row of the table.

    Attributes:
        name: Name of the row.
        resolution: Width and height of the images in pixels.
        wording: Sentence templates of the prompts; None uses the canonical wording.
        guidance_scale: Guidance scale as in diffusers; 0 is off.
    """

    name: str
    resolution: Resolution = DEFAULT_RESOLUTION
    wording: Templates | None = None
    guidance_scale: float = 0.0


MAIN = PromptSet("model")
PROMPT_SETS = (
    MAIN,
    PromptSet("model: free wordings", wording=FREE),
    PromptSet("model: foreign wordings", wording=FOREIGN),
    *(PromptSet(f"model: {width} x {height}", (width, height)) for width, height in RESOLUTIONS[1:]),
    *(PromptSet(f"model: guidance {scale}", guidance_scale=scale) for scale in (1.0, 2.0, 3.0)),
)


@dataclass(frozen=True)
class PromptSetResult:
    """The images of a prompt set and what the checker found; the lists have one item per prompt.

    Attributes:
        prompt_set: The prompt set.
        scenes: Scenes that the prompts describe.
        prompts: The prompts.
        images: The generated images.
        checks: What the checker found in each image.
    """

    prompt_set: PromptSet
    scenes: list[Scene]
    prompts: list[str]
    images: list[Image.Image]
    checks: list[CheckResult]


def run_prompt_set(checkpoint: Path, prompt_set: PromptSet, settings: EvalSettings) -> PromptSetResult:
    """Generates and checks the images of a prompt set.

    Prompt sets with the same resolution and wording have the same prompts.
    """
    scenes = held_out_scenes(prompt_set, settings)
    rng = Random(f"wordings {settings.seed}")
    prompts = [
        free_caption(scene, rng, prompt_set.wording) if prompt_set.wording else canonical(scene) for scene in scenes
    ]
    images = generate_images(checkpoint, prompts, prompt_set, settings)
    return PromptSetResult(prompt_set, scenes, prompts, images, _check_all(images, scenes))


def held_out_scenes(prompt_set: PromptSet, settings: EvalSettings) -> list[Scene]:
    """Draws the scenes of a prompt set; the first object of each is a combination that training never used."""
    rng = Random(f"evaluation {settings.seed} {prompt_set.resolution} {prompt_set.wording is not None}")
    return [sample(rng, unseen=True, resolution=prompt_set.resolution) for _ in range(settings.prompts)]


def evaluate(
    checkpoint: Path, settings: EvalSettings, prompt_sets: Sequence[PromptSet] = PROMPT_SETS
) -> tuple[dict[str, Any], list[PromptSetResult]]:
    """Evaluates a checkpoint.

    Returns:
        The content of eval.json, and the result of each prompt set.
    """
    scenes = held_out_scenes(MAIN, settings)
    rendered = [render(scene) for scene in scenes]
    rows = [
        _row("checker's ceiling: the renderer itself", _check_all(rendered, scenes)),
        _row("VAE's ceiling: renders, encoded and decoded", _check_all(_round_trip(checkpoint, rendered), scenes)),
    ]
    set_results = []
    for prompt_set in prompt_sets:
        set_result = run_prompt_set(checkpoint, prompt_set, settings)
        set_results.append(set_result)
        rows.append(_row(prompt_set.name, set_result.checks))
        print(markdown(rows[-1:]).splitlines()[-1], flush=True)
        if prompt_set == MAIN:
            rows += _by_kind(set_result)
    defaults = asdict(_defaults(checkpoint))
    return {"settings": asdict(settings), "defaults": defaults, "dtype": "bfloat16", "rows": rows}, set_results


@torch.no_grad()
def generate_images(
    checkpoint: Path, prompts: list[str], prompt_set: PromptSet, settings: EvalSettings
) -> list[Image.Image]:
    """Generates one image per prompt. The seed is the prompt's index."""
    pipeline = ZImagePipeline.from_pretrained(checkpoint, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    forwards = _defaults(checkpoint).num_inference_steps

    def generate(part: Sequence[int]) -> list[Image.Image]:
        images: list[Image.Image] = pipeline(
            prompt=[prompts[index] for index in part],
            width=prompt_set.resolution[0],
            height=prompt_set.resolution[1],
            num_inference_steps=forwards,
            guidance_scale=prompt_set.guidance_scale,
            generator=[torch.Generator().manual_seed(index) for index in part],
            max_sequence_length=_MAX_TOKENS,
        ).images
        return images

    return _in_batches(
        generate, len(prompts), max(1, settings.pixels // (prompt_set.resolution[0] * prompt_set.resolution[1]))
    )


def _defaults(checkpoint: Path) -> Defaults:
    return Defaults(**json.loads((checkpoint / "zrelay.json").read_text(encoding="utf-8")))


def _by_kind(set_result: PromptSetResult) -> list[dict[str, Any]]:
    """Returns one row for each kind of scene."""
    rows = []
    for kind, name in _KINDS.items():
        pairs = zip(set_result.checks, set_result.scenes, strict=True)
        of_kind = [result for result, scene in pairs if scene.kind == kind]
        if of_kind:
            rows.append(_row(f"model: {name}", of_kind))
    return rows


@torch.no_grad()
def _round_trip(checkpoint: Path, rendered: list[Image.Image]) -> list[Image.Image]:
    """Encodes and decodes images with the checkpoint's autoencoder."""
    vae = AutoencoderKL.from_pretrained(checkpoint / "vae", dtype=torch.bfloat16).eval()

    def round_trip(part: Sequence[int]) -> list[Image.Image]:
        pictures = to_tensor(np.stack([np.asarray(rendered[index]) for index in part])).bfloat16()
        return to_images(vae.decode(vae.encode(pictures).latent_dist.mode()).sample)

    return _in_batches(round_trip, len(rendered), 25)


def _in_batches(
    process: Callable[[Sequence[int]], list[Image.Image]], count: int, batch_size: int
) -> list[Image.Image]:
    """Calls `process` with the indices of each batch and returns all images."""
    images: list[Image.Image] = []
    for start in range(0, count, batch_size):
        images += process(range(start, min(start + batch_size, count)))
    return images


def _check_all(images: list[Image.Image], scenes: list[Scene]) -> list[CheckResult]:
    return [check(image, scene) for image, scene in zip(images, scenes, strict=True)]


def _row(name: str, checks: list[CheckResult]) -> dict[str, Any]:
    """Returns a row of the table: the share of images for which each attribute is correct, to three decimals."""
    shares = {key: round(float(np.mean([getattr(v, key) for v in checks])), 3) for key in _ATTRIBUTES}
    return {
        "name": name,
        "prompts": len(checks),
        **shares,
        "all_right": round(float(np.mean([v.all_right for v in checks])), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, default=CHECKPOINT, help="pipeline folder to evaluate; default: the bundled one"
    )
    parser.add_argument(
        "--prompts", type=int, default=EvalSettings.prompts, help="prompts per prompt set; default: 1000"
    )
    parser.add_argument(
        "--prompt-set",
        action="append",
        choices=[e.name for e in PROMPT_SETS],
        help="run only this prompt set; repeatable",
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file, as in eval.json")
    options = parser.parse_args()
    prompt_sets = [
        prompt_set for prompt_set in PROMPT_SETS if not options.prompt_set or prompt_set.name in options.prompt_set
    ]
    results, _ = evaluate(options.checkpoint, EvalSettings(prompts=options.prompts), prompt_sets)
    print(markdown(results["rows"]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
