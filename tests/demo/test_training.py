"""Every training stage resumes after an interruption as if there had been none."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zrelay_demo.distill_stage import DistillSettings, distill
from zrelay_demo.dit_stage import DitSettings, batch_of, train_dit
from zrelay_demo.latents_stage import LatentsSettings, encode_scenes
from zrelay_demo.models import Widths
from zrelay_demo.muon import orthogonalise
from zrelay_demo.tokenizer import TokenizerSettings, build_tokenizer
from zrelay_demo.training import Pace
from zrelay_demo.vae_stage import VaeSettings, train_vae
from zrelay_demo.world import sample

WIDTHS = Widths(vae_channels=(8, 8, 8, 8), text_hidden=32, text_mlp=32, text_layers=2, dim=32, layers=1)
PACE = Pace(steps=3, ema_decay=0.9, log_every=1, save_every=1)
VAE = VaeSettings(pace=PACE, pool=12, crops=2, wholes=2, wholes_from=0.0)
DIT = DitSettings(pace=PACE, batch=4, fused=False)
DISTILL = DistillSettings(pace=PACE, batch=4, fused=False)
Stage = Callable[[Path, int | None], Any]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, and latents of noise for eight scenes."""
    root = tmp_path_factory.mktemp("work")
    build_tokenizer(root / "tokenizer", TokenizerSettings(captions=2000))
    rng = Random(0)
    (root / "latents").mkdir()
    save_file({"latents": torch.randn(8, 16, 16, 16).half()}, root / "latents" / "latents.safetensors")
    scenes = [sample(rng).to_json() for _ in range(8)]
    (root / "latents" / "scenes.json").write_text(json.dumps(scenes), encoding="utf-8")
    assert train_dit(root / "transformer", root / "tokenizer", root / "latents", DIT, WIDTHS) is not None
    return root


@pytest.mark.parametrize("name", ["vae", "transformer", "distilled"])
def test_resumed_equals_uninterrupted(name: str, work: Path, tmp_path: Path) -> None:
    stages: dict[str, Stage] = {
        "vae": lambda folder, stop: train_vae(folder, VAE, WIDTHS, stop),
        "transformer": lambda folder, stop: train_dit(folder, work / "tokenizer", work / "latents", DIT, WIDTHS, stop),
        "distilled": lambda folder, stop: distill(
            folder, work / "tokenizer", work / "latents", work / "transformer", DISTILL, stop
        ),
    }
    stage = stages[name]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    history = stage(whole, None)
    assert stage(parts, 2) is None
    assert (parts / "state.safetensors").exists()
    resumed = stage(parts, None)
    assert [entry["step"] for entry in resumed["log"]] == [entry["step"] for entry in history["log"]] == [1, 2, 3]
    for path in whole.rglob("*model.safetensors"):
        expected, got = load_file(path), load_file(parts / path.relative_to(whole))
        for key, tensor in expected.items():
            torch.testing.assert_close(got[key], tensor, rtol=0, atol=1e-5, msg=key)


def test_latents_are_cached(work: Path, tmp_path: Path) -> None:
    assert train_vae(tmp_path / "vae", VAE, WIDTHS) is not None
    record = encode_scenes(tmp_path / "latents", tmp_path / "vae", replace(LatentsSettings(), scenes=6, batch=4))
    latents = load_file(tmp_path / "latents" / "latents.safetensors")["latents"]
    assert record["scenes"] == 6
    assert latents.shape == (6, 16, 16, 16)
    assert latents.dtype == torch.float16


def test_an_epoch_shows_every_scene_once() -> None:
    shown = [index for step in range(5) for index in batch_of(1, step, 4, 20)]
    assert sorted(shown) == list(range(20))
    assert shown != [index for step in range(5, 10) for index in batch_of(1, step, 4, 20)]


def test_orthogonalise_makes_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(2, 24, 48, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.5
    assert values.max() < 1.5
