"""Random edits of config.json: the configuration's digest is the same exactly where forwards and decodes are."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.configurations import ABSENT, Edit, edited, edits, outcome, with_config
from zrelay_generator.model.identity import generates_same, identify
from zrelay_generator.model.loading import LoadedModel, load_model
from zrelay_generator.model.transformer import Segment
from zrelay_shared.errors import CheckpointError

SIZES = ((8, 8), (12, 6))
"""Rows and columns of latent pixels of two pictures."""

TRANSFORMER: dict[str, list[Any]] = {
    "t_scale": [1000.0, 1000, 500, 1.0, 0, "much"],
    "rope_theta": [256.0, 256, 10000, -1.0, None],
    "axes_dims": [[8, 12, 12], [12, 10, 10], [8, 16, 8], [8, 12, 10], [9, 11, 12], [8, 12], ABSENT],
    "axes_lens": [[256, 64, 64], [512, 128, 128], [160, 32, 32], [256, 64]],
    "norm_eps": [1e-5, 0.00001, 1e-3, 1, 1.0, -1],
    "n_heads": [2, 2.0, 4, 1, 0],
    "n_kv_heads": [2, 1, 7, None],
    "n_layers": [3, 2, 4],
    "n_refiner_layers": [2, 1],
    "qk_norm": [True, False, 1],
    "all_patch_size": [[2], [2.0], [1]],
    "siglip_feat_dim": [None, 96, ABSENT],
    "cap_feat_dim": [48, 64],
    "in_channels": [16, 4],
    "dim": [64, 128],
    "dropout": [0.5],
    "_diffusers_version": ["0.35.0"],
    "_use_default_values": [["t_scale"]],
    "patch_size": [2],
}
VAE: dict[str, list[Any]] = {
    "scaling_factor": [0.36, 0.5, 1, 1.0, 0, None],
    "shift_factor": [0.12, 0, 0.0, None, -0.5, 1, 1.0, ABSENT],
    "norm_num_groups": [4, 2, 8, 1, 3, 4.0],
    "act_fn": ["silu", "swish", "SiLU", "mish", "relu", "elu", ABSENT],
    "mid_block_add_attention": [True, False],
    "layers_per_block": [1, 2],
    "use_quant_conv": [False, True],
    "latent_channels": [16, 4],
    "down_block_types": [["DownEncoderBlock2D"] * 4, ["DownEncoderBlock2D"] * 3, ["AttnDownEncoderBlock2D"] * 4],
    "sample_size": [32, 1024, [64, 64]],
    "force_upcast": [True, False],
    "latents_mean": [None, [0.5] * 16],
    "latents_std": [None, [2.0] * 16],
    "_class_name": ["AutoencoderKL"],
    "scaling": [3.0],
}
ALL = {"transformer": TRANSFORMER, "vae": VAE}


def painted(model: LoadedModel) -> list[Tensor]:
    """Returns the predictions of one forward of two pictures, and both ways of the VAE."""
    draw = torch.Generator().manual_seed(3)
    transformer, vae = model.transformer, model.vae
    context = transformer.context(torch.randn(40, 48, generator=draw))
    latents = [torch.randn(16, *size, generator=draw) for size in SIZES]
    conditioning = [transformer.conditioning(context, *size) for size in SIZES]
    segments = [
        Segment(each, part, transformer.modulation(0.3)) for each, part in zip(latents, conditioning, strict=True)
    ]
    predictions = [each.full for each in transformer.forward(segments)]
    decoded = [vae.decode(each * 3.0) for each in latents]
    return [*predictions, *decoded, vae.encode(torch.rand(1, 3, 64, 48, generator=draw) * 2.0 - 1.0)]


class Results:
    """Identity and results of edited folders, each computed once."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._folder, self._scratch = folder, scratch
        self._count = 0
        self.of = cache(self._of)

    def _of(self, component: str, edit: str) -> tuple[str, list[Tensor]] | None:
        changed = json.loads(edit)
        config = edited(json.loads((self._folder / component / "config.json").read_text()), changed)
        self._count += 1
        folder = with_config(self._folder, self._scratch / str(self._count), config, component=component)

        def run() -> tuple[str, list[Tensor]]:
            with torch.inference_mode():
                results = painted(load_model(folder, torch.device("cpu"), torch.float32))
            return identify(folder, "tiny", self._scratch / "cache").image_digest, results

        found: tuple[str, list[Tensor]] | None = outcome(run, changed)
        shutil.rmtree(folder)
        return found

    def check_alike(self, component: str, first: Edit, second: Edit) -> None:
        found = [self.of(component, json.dumps(edit)) for edit in (first, second)]
        if found[0] is None or found[1] is None:
            return
        same = all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
        assert (found[0][0] == found[1][0]) == same, (component, first, second)


@pytest.fixture(scope="module")
def results(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(tiny, tmp_path_factory.mktemp("configurations"))


@pytest.mark.deep
@pytest.mark.parametrize("component", ALL)
def test_every_single_edit(results: Results, component: str) -> None:
    single: list[Edit] = [{name: value} for name, values in ALL[component].items() for value in values]
    for edit in single:
        results.check_alike(component, {}, edit)
    for name in ("shift_factor", "act_fn", "t_scale", "norm_eps"):
        values = ALL[component].get(name, [])
        for number, value in enumerate(values):
            for other in values[:number]:
                results.check_alike(component, {name: value}, {name: other})
    assert sum(results.of(component, json.dumps(edit)) is not None for edit in single) > len(single) / 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@pytest.mark.parametrize("component", ALL)
@given(data=st.data())
def test_digests_are_equal_exactly_where_pictures_are(results: Results, component: str, data: st.DataObject) -> None:
    first, second = (data.draw(edits(ALL[component], most=2)) for _ in range(2))
    for edit in (first, second):
        results.check_alike(component, {}, edit)
    results.check_alike(component, first, second)


def test_one_digest_covers_transformer_and_vae(tiny: Path, tmp_path: Path) -> None:
    before = identify(tiny, "tiny", tmp_path / "cache")
    for component, edit in (("transformer", {"t_scale": 500.0}), ("vae", {"norm_num_groups": 2})):
        config = edited(json.loads((tiny / component / "config.json").read_text()), edit)
        folder = with_config(tiny, tmp_path / component, config, component=component)
        after = identify(folder, "tiny", tmp_path / "cache")
        assert (after.transformer_digest, after.vae_digest) == (before.transformer_digest, before.vae_digest)
        assert after.configuration_digest != before.configuration_digest
        assert not generates_same(before.image_digest, after.image_digest)


def test_a_job_of_an_earlier_release_is_not_verified_and_continues() -> None:
    assert generates_same("a+b+c", "a+b+c") and generates_same("a+b", "a+b+c")
    for accepted in ("a+b+d", "a+d", "d+b", "a", "a+b+", "another", ""):
        assert not generates_same(accepted, "a+b+c")


def test_a_refusal_names_file_and_key(tiny: Path, tmp_path: Path) -> None:
    config = edited(json.loads((tiny / "transformer/config.json").read_text()), {"t_scale": "fast"})
    folder = with_config(tiny, tmp_path / "tiny", config, component="transformer")
    for work in (
        lambda: load_model(folder, torch.device("cpu"), torch.float32),
        lambda: identify(folder, "tiny", tmp_path),
    ):
        with pytest.raises(CheckpointError, match=r"transformer/config\.json: t_scale: expected a finite number"):
            work()
