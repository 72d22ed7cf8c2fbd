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
from .free_wordings import FOREIGN, FREE, Templates, free
from .pixels import to_images, to_tensor
from .render import render
from .table import markdown
from .world import FRAMES, SQUARE, Frame, Scene, sample

_ATTRIBUTES = tuple(field.name for field in fields(Verdict))
_LONGEST = 96
"""Tokens at which a prompt would be cut; none of the evaluation's is that long."""
_KINDS = {"one": "one object", "count": "two to four alike", "two": "two different"}


@dataclass(frozen=True)
class EvalSettings:
    """The seed belongs to the evaluation alone; no stage draws its scenes from it."""

    prompts: int = 1000
    seed: int = 777002
    pixels: int = 25 * 128 * 128
    """Of the pictures of one batch."""


@dataclass(frozen=True)
class Exam:
    """One line of the table: pictures of one frame, in one kind of wording (None: canonical), at one guidance."""

    name: str
    frame: Frame = SQUARE
    wording: Templates | None = None
    guidance_scale: float = 0.0


MAIN = Exam("model")
EXAMS = (
    MAIN,
    Exam("model: free wordings", wording=FREE),
    Exam("model: foreign wordings", wording=FOREIGN),
    *(Exam(f"model: {width} x {height}", (width, height)) for width, height in FRAMES[1:]),
    *(Exam(f"model: guidance {scale}", guidance_scale=scale) for scale in (1.0, 2.0, 3.0)),
)


@dataclass(frozen=True)
class Sitting:
    """What came of an exam: a prompt, a scene, a picture and a verdict for each question."""

    exam: Exam
    scenes: list[Scene]
    prompts: list[str]
    painted: list[Image.Image]
    verdicts: list[Verdict]


def sit(checkpoint: Path, exam: Exam, settings: EvalSettings) -> Sitting:
    """Paint an exam's prompts and judge the pictures. Exams of one frame and wording share their prompts."""
    scenes = questions(exam, settings)
    rng = Random(f"wordings {settings.seed}")
    prompts = [free(scene, rng, exam.wording) if exam.wording else canonical(scene) for scene in scenes]
    painted = paint(checkpoint, prompts, exam, settings)
    return Sitting(exam, scenes, prompts, painted, _verdicts(painted, scenes))


def questions(exam: Exam, settings: EvalSettings) -> list[Scene]:
    """The held-out scenes of an exam."""
    rng = Random(f"evaluation {settings.seed} {exam.frame} {exam.wording is not None}")
    return [sample(rng, unseen=True, frame=exam.frame) for _ in range(settings.prompts)]


def evaluate(
    checkpoint: Path, settings: EvalSettings, exams: Sequence[Exam] = EXAMS
) -> tuple[dict[str, Any], list[Sitting]]:
    """The results as they stand in eval.json, and the sittings behind them."""
    scenes = questions(MAIN, settings)
    rendered = [render(scene) for scene in scenes]
    rows = [
        _row("checker's ceiling: the renderer itself", _verdicts(rendered, scenes)),
        _row("VAE's ceiling: renders, encoded and decoded", _verdicts(_round_trip(checkpoint, rendered), scenes)),
    ]
    sittings = []
    for exam in exams:
        sitting = sit(checkpoint, exam, settings)
        sittings.append(sitting)
        rows.append(_row(exam.name, sitting.verdicts))
        print(markdown(rows[-1:]).splitlines()[-1], flush=True)
        if exam == MAIN:
            rows += _by_kind(sitting)
    defaults = asdict(_defaults(checkpoint))
    return {"settings": asdict(settings), "defaults": defaults, "dtype": "bfloat16", "rows": rows}, sittings


@torch.no_grad()
def paint(checkpoint: Path, prompts: list[str], exam: Exam, settings: EvalSettings) -> list[Image.Image]:
    """One picture for each prompt, with seed 0 for the first, 1 for the second and so on."""
    pipeline = ZImagePipeline.from_pretrained(checkpoint, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    forwards = _defaults(checkpoint).num_inference_steps

    def some(part: Sequence[int]) -> list[Image.Image]:
        images: list[Image.Image] = pipeline(
            prompt=[prompts[index] for index in part],
            width=exam.frame[0],
            height=exam.frame[1],
            num_inference_steps=forwards,
            guidance_scale=exam.guidance_scale,
            generator=[torch.Generator().manual_seed(index) for index in part],
            max_sequence_length=_LONGEST,
        ).images
        return images

    return _in_batches(some, len(prompts), max(1, settings.pixels // (exam.frame[0] * exam.frame[1])))


def _defaults(checkpoint: Path) -> Defaults:
    return Defaults(**json.loads((checkpoint / "zrelay.json").read_text(encoding="utf-8")))


def _by_kind(sitting: Sitting) -> list[dict[str, Any]]:
    rows = []
    for kind, name in _KINDS.items():
        pairs = zip(sitting.verdicts, sitting.scenes, strict=True)
        mine = [verdict for verdict, scene in pairs if scene.kind == kind]
        if mine:
            rows.append(_row(f"model: {name}", mine))
    return rows


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
    parser.add_argument("--exam", action="append", choices=[e.name for e in EXAMS], help="only this one; repeatable")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    exams = [exam for exam in EXAMS if not options.exam or exam.name in options.exam]
    results, _ = evaluate(options.checkpoint, EvalSettings(prompts=options.prompts), exams)
    print(markdown(results["rows"]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
