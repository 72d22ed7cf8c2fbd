"""Make the demo checkpoint from nothing: all stages in order, each resumable, each skipped once complete."""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import CHECKPOINT
from .assemble import assemble
from .card import write_card
from .distill_stage import DistillSettings, distill
from .dit_stage import DitSettings, train_dit
from .evaluate import EvalSettings, evaluate
from .folder import Defaults
from .latents_stage import LatentsSettings, encode_scenes
from .models import Widths
from .table import markdown
from .tokenizer import TokenizerSettings, build_tokenizer
from .training import Pace, forget
from .vae_stage import VaeSettings, train_vae
from .words_stage import WordsSettings, train_words

Record = dict[str, Any]
_TOLD = ("tokenizer", "vae", "latents", "words", "transformer", "reading", "frames", "distilled")
"""The stages of which the card tells length and time."""


def _second_reading() -> WordsSettings:
    pace = Pace(steps=2500, ema_decay=0.99, log_every=100, save_every=400)
    return WordsSettings(pace=pace, seed=5, lr_matrices=0.012, lr_others=1.2e-3)


def _large_frames() -> DitSettings:
    return DitSettings(
        pace=Pace(steps=4000, ema_decay=0.997),
        seed=6,
        frames=(0.32, 0.09, 0.09, 0.20, 0.30),
        long_prompts=0.4,
        lr_matrices=0.012,
        lr_others=1.2e-3,
    )


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the checkpoint becomes."""

    widths: Widths = field(default_factory=Widths)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    vae: VaeSettings = field(default_factory=VaeSettings)
    latents: LatentsSettings = field(default_factory=LatentsSettings)
    words: WordsSettings = field(default_factory=WordsSettings)
    transformer: DitSettings = field(default_factory=DitSettings)
    reading: WordsSettings = field(default_factory=_second_reading)
    frames: DitSettings = field(default_factory=_large_frames)
    distilled: DistillSettings = field(default_factory=DistillSettings)
    defaults: Defaults = field(default_factory=Defaults)
    evaluation: EvalSettings = field(default_factory=EvalSettings)


def stages(recipe: Recipe, work: Path) -> dict[str, Callable[[], Record]]:
    """The stages in order; each writes into the folder of its name under `work` and returns its record."""
    r, at = recipe, work.joinpath

    def tokenizer() -> Record:
        build_tokenizer(at("tokenizer"), r.tokenizer)
        return {"captions": r.tokenizer.captions}

    def vae() -> Record:
        return _trained(train_vae(at("vae"), r.vae, r.widths))

    def latents() -> Record:
        return encode_scenes(at("latents"), at("vae"), r.latents)

    def words() -> Record:
        return _trained(train_words(at("words"), at("tokenizer"), r.words, r.widths))

    def halfway() -> Record:
        half = r.transformer.pace.steps // 2
        train_dit(at("transformer"), at("words"), at("latents"), r.transformer, r.widths, stop=half)
        return {"steps": half}

    def transformer() -> Record:
        trained = _trained(train_dit(at("transformer"), at("words"), at("latents"), r.transformer, r.widths))
        return {**trained, "note": "in two stages, the first half called halfway"}

    def reading() -> Record:
        return _trained(train_words(at("reading"), at("tokenizer"), r.reading, r.widths, at("words")))

    def frames() -> Record:
        before = at("transformer")
        return _trained(train_dit(at("frames"), at("reading"), at("latents"), r.frames, r.widths, before))

    def distilled() -> Record:
        return _trained(distill(at("distilled"), at("reading"), at("latents"), at("frames"), r.distilled))

    def checkpoint() -> Record:
        text_encoder = at("reading") / "text_encoder"
        size = assemble(at("checkpoint"), at("tokenizer"), text_encoder, at("vae"), at("distilled"), r.defaults)
        return {"bytes": size}

    def evaluation() -> Record:
        results, _ = evaluate(at("checkpoint"), r.evaluation)
        print(markdown(results["rows"]))
        _write(at("checkpoint", "eval.json"), results)
        told = {name: _read(at(name, "stage.json")) for name in _TOLD}
        write_card(at("checkpoint"), told)
        return {}

    every = (
        *(tokenizer, vae, latents, words, halfway, transformer),
        *(reading, frames, distilled, checkpoint, evaluation),
    )
    return {stage.__name__: stage for stage in every}


def run(recipe: Recipe, work: Path, only: str | None = None) -> None:
    """Run what is not complete yet, or one stage by name."""
    for name, stage in stages(recipe, work).items():
        done = work / name / "stage.json"
        if only not in (None, name):
            continue
        if done.exists() and only is None:
            print(f"{name}: complete", flush=True)
            continue
        print(f"{name}: begins", flush=True)
        began = time.monotonic()
        record = stage()
        done.parent.mkdir(parents=True, exist_ok=True)
        _write(
            done,
            {"seconds": time.monotonic() - began, **record, "settings": asdict(getattr(recipe, name, recipe.defaults))},
        )
        forget(done.parent)
        print(f"{name}: done", flush=True)


def install(work: Path) -> None:
    """Replace the bundled checkpoint by the one under `work`."""
    shutil.rmtree(CHECKPOINT, ignore_errors=True)
    shutil.copytree(work / "checkpoint", CHECKPOINT, ignore=shutil.ignore_patterns("stage.json"))


def _trained(history: Record | None) -> Record:
    if history is None:
        raise RuntimeError("training: expected it to run to its end, got an early stop")
    return {"steps": history["log"][-1]["step"], **history}


def _read(path: Path) -> Record:
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    return record


def _write(path: Path, record: Record) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    names = [*stages(Recipe(), Path()), "install"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("out/demo-model"), help="where the stages leave their output")
    parser.add_argument("--stage", choices=names, help="run this stage alone; 'install' puts the result in the package")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; default: 2")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    if options.stage == "install":
        install(options.work)
    else:
        run(Recipe(), options.work, options.stage)


if __name__ == "__main__":
    main()
