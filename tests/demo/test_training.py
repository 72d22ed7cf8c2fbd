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
from zrelay_demo.flow import BatchSampler, CaptionTokenizer, TrainingSet, training_sets
from zrelay_demo.latents_stage import LatentsSettings, encode_scenes, load_scenes
from zrelay_demo.models import Widths
from zrelay_demo.muon import orthogonalise
from zrelay_demo.scenes import RESOLUTIONS, sample
from zrelay_demo.text_encoder_stage import TextEncoderSettings, train_text_encoder
from zrelay_demo.tokenizer import TokenizerSettings, build_tokenizer
from zrelay_demo.training import LoopSettings
from zrelay_demo.transformer_stage import TransformerSettings, train_transformer
from zrelay_demo.vae_stage import VaeSettings, train_vae

WIDTHS = Widths(vae_channels=(8, 8, 8, 8), text_hidden=32, text_mlp=32, text_layers=2, dim=32, layers=1)
LOOP = LoopSettings(steps=3, ema_decay=0.9, log_every=1, save_every=1)
VAE = VaeSettings(loop=LOOP, scene_count=12, crop_count=2, whole_count=2, whole_from=0.0)
WORDS = TextEncoderSettings(loop=LOOP, batch_size=4)
DIT = TransformerSettings(loop=LOOP, batch_size=4, compiled=False)
DISTILL = DistillSettings(loop=LOOP, batch_size=4, compiled=False)
Stage = Callable[[Path, int | None], Any]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, and latents of noise for eight scenes of the default resolution and two of each other."""
    root = tmp_path_factory.mktemp("work")
    build_tokenizer(root / "tokenizer", TokenizerSettings(captions=2000))
    rng = Random(0)
    (root / "latents").mkdir()
    scenes, latents = {}, {}
    for resolution in RESOLUTIONS:
        name, count = f"{resolution[0]}x{resolution[1]}", 8 if resolution == RESOLUTIONS[0] else 2
        scenes[name] = [sample(rng, resolution=resolution).to_json() for _ in range(count)]
        latents[name] = torch.randn(count, 16, resolution[1] // 8, resolution[0] // 8).half()
    save_file(latents, root / "latents" / "latents.safetensors")
    (root / "latents" / "scenes.json").write_text(json.dumps(scenes), encoding="utf-8")
    assert train_text_encoder(root / "words", root / "tokenizer", WORDS, WIDTHS) is not None
    assert train_transformer(root / "transformer", root / "words", root / "latents", DIT, WIDTHS) is not None
    return root


@pytest.mark.parametrize("name", ["vae", "words", "transformer", "distilled"])
def test_resumed_equals_uninterrupted(name: str, work: Path, tmp_path: Path) -> None:
    stages: dict[str, Stage] = {
        "vae": lambda folder, stop: train_vae(folder, VAE, WIDTHS, stop),
        "words": lambda folder, stop: train_text_encoder(folder, work / "tokenizer", WORDS, WIDTHS, stop=stop),
        "transformer": lambda folder, stop: train_transformer(
            folder, work / "words", work / "latents", DIT, WIDTHS, stop=stop
        ),
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
    settings = replace(LatentsSettings(), scenes=(6, 1, 1, 1, 1), batch_size=4)
    record = encode_scenes(tmp_path / "latents", tmp_path / "vae", settings)
    latents = load_file(tmp_path / "latents" / "latents.safetensors")
    assert record["scenes"] == 10
    assert latents["128x128"].shape == (6, 16, 16, 16)
    assert latents["192x128"].shape == (1, 16, 16, 24)
    assert latents["128x192"].dtype == torch.float16


def _training_set(scenes: int, patches: int) -> TrainingSet:
    rng = Random(0)
    some = [sample(rng) for _ in range(scenes)]
    return TrainingSet(8, 8, some, torch.zeros(scenes, patches, 64), torch.ones(scenes, patches))


def test_an_epoch_shows_every_scene_once() -> None:
    sampler = BatchSampler([_training_set(20, 64)], (1.0,), batch_size=4, long_prompt_share=0.0, seed=1)
    shown = [index for step in range(5) for index in sampler.batch_at(step).indices]
    assert sorted(shown) == list(range(20))
    assert shown != [index for step in range(5, 10) for index in sampler.batch_at(step).indices]


def test_a_batch_does_not_depend_on_the_batches_requested_before() -> None:
    def sampler() -> BatchSampler:
        return BatchSampler(
            [_training_set(20, 64), _training_set(8, 256)], (0.5, 0.5), batch_size=8, long_prompt_share=0.5, seed=1
        )

    first, second = sampler(), sampler()
    batches = [first.batch_at(step) for step in range(12)]
    assert second.batch_at(11).indices == batches[11].indices
    assert {len(batch.indices) for batch in batches} == {8, 3}  # as many scenes as come to the same number of tokens
    assert {batch.tokens for batch in batches} == {32, 64}


def test_patches_of_objects_weigh_more_and_all_weigh_one_on_average(work: Path) -> None:
    for training_set in training_sets(load_scenes(work / "latents"), 3.0):
        torch.testing.assert_close(training_set.weight.mean(1), torch.ones(len(training_set.scenes)))
        assert (training_set.weight.max(1).values > training_set.weight.min(1).values).all()


def test_captions_fit_into_the_tokens_they_are_drawn_for(work: Path) -> None:
    prompts, rng = CaptionTokenizer(work / "tokenizer"), Random(0)
    for tokens in (32, 64, 32, 64):  # a call's padding must not be counted by the next draw
        scenes = [sample(rng) for _ in range(40)]
        texts = [prompts.draw_caption(scene, rng, tokens) for scene in scenes]
        ids, mask = prompts.tokenize(texts, tokens)
        assert ids.shape == mask.shape == (40, tokens)
        ends = prompts.tokenizer.convert_tokens_to_ids("assistant")
        assert isinstance(ends, int)
        assert ids.eq(ends).any(1).all()  # nothing is cut: the template's last turn is there
        assert sum(text == canonical(scene) for text, scene in zip(texts, scenes, strict=True)) < 30


def test_orthogonalise_makes_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(2, 24, 48, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.5
    assert values.max() < 1.5
