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

from zrelay_demo.captions import canonical
from zrelay_demo.distill_stage import DistillSettings, distill
from zrelay_demo.dit_stage import DitSettings, train_dit
from zrelay_demo.flow import Course, Lot, Prompts, lots
from zrelay_demo.latents_stage import LatentsSettings, encode_scenes, load_scenes
from zrelay_demo.models import Widths
from zrelay_demo.muon import orthogonalise
from zrelay_demo.tokenizer import TokenizerSettings, build_tokenizer
from zrelay_demo.training import Pace
from zrelay_demo.vae_stage import VaeSettings, train_vae
from zrelay_demo.words_stage import WordsSettings, train_words
from zrelay_demo.world import FRAMES, sample

WIDTHS = Widths(vae_channels=(8, 8, 8, 8), text_hidden=32, text_mlp=32, text_layers=2, dim=32, layers=1)
PACE = Pace(steps=3, ema_decay=0.9, log_every=1, save_every=1)
VAE = VaeSettings(pace=PACE, pool=12, crops=2, wholes=2, wholes_from=0.0)
WORDS = WordsSettings(pace=PACE, batch=4)
DIT = DitSettings(pace=PACE, batch=4, fused=False)
DISTILL = DistillSettings(pace=PACE, batch=4, fused=False)
Stage = Callable[[Path, int | None], Any]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, and latents of noise for eight scenes of the default frame and two of each other."""
    root = tmp_path_factory.mktemp("work")
    build_tokenizer(root / "tokenizer", TokenizerSettings(captions=2000))
    rng = Random(0)
    (root / "latents").mkdir()
    scenes, latents = {}, {}
    for frame in FRAMES:
        name, count = f"{frame[0]}x{frame[1]}", 8 if frame == FRAMES[0] else 2
        scenes[name] = [sample(rng, frame=frame).to_json() for _ in range(count)]
        latents[name] = torch.randn(count, 16, frame[1] // 8, frame[0] // 8).half()
    save_file(latents, root / "latents" / "latents.safetensors")
    (root / "latents" / "scenes.json").write_text(json.dumps(scenes), encoding="utf-8")
    assert train_words(root / "words", root / "tokenizer", WORDS, WIDTHS) is not None
    assert train_dit(root / "transformer", root / "words", root / "latents", DIT, WIDTHS) is not None
    return root


@pytest.mark.parametrize("name", ["vae", "words", "transformer", "distilled"])
def test_resumed_equals_uninterrupted(name: str, work: Path, tmp_path: Path) -> None:
    stages: dict[str, Stage] = {
        "vae": lambda folder, stop: train_vae(folder, VAE, WIDTHS, stop),
        "words": lambda folder, stop: train_words(folder, work / "tokenizer", WORDS, WIDTHS, stop=stop),
        "transformer": lambda folder, stop: train_dit(folder, work / "words", work / "latents", DIT, WIDTHS, stop=stop),
        "distilled": lambda folder, stop: distill(
            folder, work / "words", work / "latents", work / "transformer", DISTILL, stop
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


def test_a_state_of_other_settings_is_not_resumed(tmp_path: Path) -> None:
    assert train_vae(tmp_path, VAE, WIDTHS, 1) is None
    with pytest.raises(ValueError, match="delete the file"):
        train_vae(tmp_path, replace(VAE, seed=VAE.seed + 1), WIDTHS)


def test_latents_are_cached(work: Path, tmp_path: Path) -> None:
    assert train_vae(tmp_path / "vae", VAE, WIDTHS) is not None
    settings = replace(LatentsSettings(), scenes=(6, 1, 1, 1, 1), batch=4)
    record = encode_scenes(tmp_path / "latents", tmp_path / "vae", settings)
    latents = load_file(tmp_path / "latents" / "latents.safetensors")
    assert record["scenes"] == 10
    assert latents["128x128"].shape == (6, 16, 16, 16)
    assert latents["192x128"].shape == (1, 16, 16, 24)
    assert latents["128x192"].dtype == torch.float16


def _lot(scenes: int, patches: int) -> Lot:
    rng = Random(0)
    some = [sample(rng) for _ in range(scenes)]
    return Lot(8, 8, some, torch.zeros(scenes, patches, 64), torch.ones(scenes, patches))


def test_an_epoch_shows_every_scene_once() -> None:
    course = Course([_lot(20, 64)], (1.0,), batch=4, long_prompts=0.0, seed=1)
    shown = [index for step in range(5) for index in course.turn(step).chosen]
    assert sorted(shown) == list(range(20))
    assert shown != [index for step in range(5, 10) for index in course.turn(step).chosen]


def test_a_course_is_the_same_from_wherever_it_is_entered() -> None:
    def course() -> Course:
        return Course([_lot(20, 64), _lot(8, 256)], (0.5, 0.5), batch=8, long_prompts=0.5, seed=1)

    first, second = course(), course()
    turns = [first.turn(step) for step in range(12)]
    assert second.turn(11).chosen == turns[11].chosen
    assert {len(turn.chosen) for turn in turns} == {8, 3}  # as many scenes as come to the same number of tokens
    assert {turn.tokens for turn in turns} == {32, 64}


def test_patches_of_objects_weigh_more_and_all_weigh_one_on_average(work: Path) -> None:
    for lot in lots(load_scenes(work / "latents"), 3.0):
        torch.testing.assert_close(lot.weight.mean(1), torch.ones(len(lot.scenes)))
        assert (lot.weight.max(1).values > lot.weight.min(1).values).all()


def test_captions_fit_into_the_tokens_they_are_drawn_for(work: Path) -> None:
    prompts, rng = Prompts(work / "tokenizer"), Random(0)
    for tokens in (32, 64, 32, 64):  # a call's padding must not be counted by the next draw
        scenes = [sample(rng) for _ in range(40)]
        texts = [prompts.words(scene, rng, tokens) for scene in scenes]
        ids, mask = prompts.tokens(texts, tokens)
        assert ids.shape == mask.shape == (40, tokens)
        ends = prompts.tokenizer.convert_tokens_to_ids("assistant")
        assert isinstance(ends, int)
        assert ids.eq(ends).any(1).all()  # nothing is cut: the template's last turn is there
        assert sum(text == canonical(scene) for text, scene in zip(texts, scenes, strict=True)) < 30


def test_orthogonalise_makes_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(2, 24, 48, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.5
    assert values.max() < 1.5
