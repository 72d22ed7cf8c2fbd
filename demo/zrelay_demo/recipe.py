"""Trains the demo checkpoint from random weights. Stages run in order, can be resumed and are skipped once complete."""

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
from .evaluate import EvalSettings, evaluate
from .folder import Defaults
from .latents_stage import LatentsSettings, encode_scenes
from .models import Widths
from .table import markdown
from .text_encoder_stage import TextEncoderSettings, train_text_encoder
from .tokenizer import TokenizerSettings, build_tokenizer
from .training import LoopSettings, delete_state
from .transformer_stage import TransformerSettings, train_transformer
from .vae_stage import VaeSettings, train_vae

Record = dict[str, Any]
"""What a stage reports about its run; written to stage.json."""
_CARD_STAGES = (
    "tokenizer",
    "vae",
    "latents",
    "text_encoder",
    "transformer",
    "text_encoder_finetune",
    "transformer_finetune",
    "distilled",
)
"""Stages whose length and duration are listed in the model card."""


def _text_encoder_finetune_settings() -> TextEncoderSettings:
    loop = LoopSettings(steps=2500, ema_decay=0.99, log_every=100, save_every=400)
    return TextEncoderSettings(loop=loop, seed=5, lr_matrices=0.012, lr_others=1.2e-3)


def _transformer_finetune_settings() -> TransformerSettings:
    return TransformerSettings(
        loop=LoopSettings(steps=4000, ema_decay=0.997),
        seed=6,
        resolution_shares=(0.32, 0.09, 0.09, 0.20, 0.30),
        long_prompt_share=0.4,
        lr_matrices=0.012,
        lr_others=1.2e-3,
    )


@dataclass(frozen=True)
class Recipe:
    """All settings that determine the checkpoint. Fields named like a stage hold that stage's settings."""

    widths: Widths = field(default_factory=Widths)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    vae: VaeSettings = field(default_factory=VaeSettings)
    latents: LatentsSettings = field(default_factory=LatentsSettings)
    text_encoder: TextEncoderSettings = field(default_factory=TextEncoderSettings)
    transformer: TransformerSettings = field(default_factory=TransformerSettings)
    text_encoder_finetune: TextEncoderSettings = field(default_factory=_text_encoder_finetune_settings)
    transformer_finetune: TransformerSettings = field(default_factory=_transformer_finetune_settings)
    distilled: DistillSettings = field(default_factory=DistillSettings)
    defaults: Defaults = field(default_factory=Defaults)
    evaluation: EvalSettings = field(default_factory=EvalSettings)


def stages(recipe: Recipe, work: Path) -> dict[str, Callable[[], Record]]:
    """Returns the stages by name, in order.

    Each stage writes to the folder of its name under `work` and returns a record of its run.
    """
    r, at = recipe, work.joinpath

    def tokenizer() -> Record:
        build_tokenizer(at("tokenizer"), r.tokenizer)
        return {"captions": r.tokenizer.captions}

    def vae() -> Record:
        return _trained(train_vae(at("vae"), r.vae, r.widths))

    def latents() -> Record:
        return encode_scenes(at("latents"), at("vae"), r.latents)

    def text_encoder() -> Record:
        return _trained(train_text_encoder(at("text_encoder"), at("tokenizer"), r.text_encoder, r.widths))

    def transformer_half() -> Record:
        half = r.transformer.loop.steps // 2
        train_transformer(at("transformer"), at("text_encoder"), at("latents"), r.transformer, r.widths, stop=half)
        return {"steps": half}

    def transformer() -> Record:
        trained = _trained(
            train_transformer(at("transformer"), at("text_encoder"), at("latents"), r.transformer, r.widths)
        )
        return {**trained, "note": "in two stages; the first half is transformer_half"}

    def text_encoder_finetune() -> Record:
        return _trained(
            train_text_encoder(
                at("text_encoder_finetune"), at("tokenizer"), r.text_encoder_finetune, r.widths, at("text_encoder")
            )
        )

    def transformer_finetune() -> Record:
        initial = at("transformer")
        return _trained(
            train_transformer(
                at("transformer_finetune"),
                at("text_encoder_finetune"),
                at("latents"),
                r.transformer_finetune,
                r.widths,
                initial,
            )
        )

    def distilled() -> Record:
        return _trained(
            distill(
                at("distilled"), at("text_encoder_finetune"), at("latents"), at("transformer_finetune"), r.distilled
            )
        )

    def checkpoint() -> Record:
        encoder = at("text_encoder_finetune") / "text_encoder"
        size = assemble(at("checkpoint"), at("tokenizer"), encoder, at("vae"), at("distilled"), r.defaults)
        return {"bytes": size}

    def evaluation() -> Record:
        results, _ = evaluate(at("checkpoint"), r.evaluation)
        print(markdown(results["rows"]))
        _write(at("checkpoint", "eval.json"), results)
        records = {name: _read(at(name, "stage.json")) for name in _CARD_STAGES}
        write_card(at("checkpoint"), records)
        return {}

    every = (
        *(tokenizer, vae, latents, text_encoder, transformer_half, transformer),
        *(text_encoder_finetune, transformer_finetune, distilled, checkpoint, evaluation),
    )
    return {stage.__name__: stage for stage in every}


def run(recipe: Recipe, work: Path, only: str | None = None) -> None:
    """Runs the stages that are not complete, or only the stage named `only`, complete or not."""
    for name, stage in stages(recipe, work).items():
        done = work / name / "stage.json"
        if only not in (None, name):
            continue
        if done.exists() and only is None:
            print(f"{name}: complete", flush=True)
            continue
        print(f"{name}: started", flush=True)
        started = time.monotonic()
        record = stage()
        done.parent.mkdir(parents=True, exist_ok=True)
        _write(
            done,
            {
                "seconds": time.monotonic() - started,
                **record,
                "settings": asdict(getattr(recipe, name, recipe.defaults)),
            },
        )
        delete_state(done.parent)
        print(f"{name}: done", flush=True)


def install(work: Path) -> None:
    """Replaces the bundled checkpoint with the one under `work`."""
    shutil.rmtree(CHECKPOINT, ignore_errors=True)
    shutil.copytree(work / "checkpoint", CHECKPOINT, ignore=shutil.ignore_patterns("stage.json"))


def _trained(history: Record | None) -> Record:
    """Returns the record of a training. Raises RuntimeError if it stopped early."""
    if history is None:
        raise RuntimeError("training stopped early: expected it to run to its last step")
    return {"steps": history["log"][-1]["step"], **history}


def _read(path: Path) -> Record:
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    return record


def _write(path: Path, record: Record) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    names = [*stages(Recipe(), Path()), "install"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("out/demo-model"),
        help="folder for the output of the stages; default: out/demo-model",
    )
    parser.add_argument(
        "--stage", choices=names, help="run only this stage; 'install' replaces the bundled checkpoint by the result"
    )
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads; default: 2")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    if options.stage == "install":
        install(options.work)
    else:
        run(Recipe(), options.work, options.stage)


if __name__ == "__main__":
    main()
