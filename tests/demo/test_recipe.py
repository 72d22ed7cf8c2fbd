"""The whole recipe from nothing, in miniature: every stage on what the one before left, to a checkpoint that paints."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import ZImagePipeline

from zrelay_demo.distill_stage import DistillSettings
from zrelay_demo.evaluate import EvalSettings
from zrelay_demo.latents_stage import LatentsSettings
from zrelay_demo.models import Widths
from zrelay_demo.recipe import Recipe, run, stages
from zrelay_demo.text_encoder_stage import TextEncoderSettings
from zrelay_demo.tokenizer import TokenizerSettings
from zrelay_demo.training import LoopSettings
from zrelay_demo.transformer_stage import TransformerSettings
from zrelay_demo.vae_stage import VaeSettings

LOOP = LoopSettings(steps=2, ema_decay=0.9, log_every=1, save_every=1)
TINY = Recipe(
    widths=Widths(vae_channels=(8, 8, 8, 8), text_hidden=32, text_mlp=32, text_layers=2, dim=32, layers=1),
    tokenizer=TokenizerSettings(captions=2000),
    vae=VaeSettings(loop=LOOP, scene_count=8, crop_count=2, whole_count=2, whole_from=0.0),
    latents=LatentsSettings(scenes=(8, 2, 2, 2, 2), batch_size=4),
    text_encoder=TextEncoderSettings(loop=LOOP, batch_size=4),
    transformer=TransformerSettings(loop=LOOP, batch_size=4, compiled=False),
    text_encoder_finetune=TextEncoderSettings(loop=LOOP, batch_size=4),
    transformer_finetune=TransformerSettings(loop=LOOP, batch_size=4, compiled=False),
    distilled=DistillSettings(loop=LOOP, batch_size=4, compiled=False),
    evaluation=EvalSettings(prompts=2),
)


def test_from_nothing_to_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    run(TINY, work)
    checkpoint = work / "checkpoint"
    assert json.loads((checkpoint / "eval.json").read_text())["rows"][2]["prompts"] == 2
    assert "2 steps" in (checkpoint / "README.md").read_text()
    pipeline = ZImagePipeline.from_pretrained(checkpoint, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red circle on a blue background", height=128, width=128, num_inference_steps=1).images
    capsys.readouterr()
    run(TINY, work)  # complete: nothing begins again
    said = capsys.readouterr().out
    assert said.splitlines() == [f"{name}: complete" for name in stages(TINY, work)]
