"""Random edits of config.json: the configuration's digest is the same exactly where grids, scores and states are."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.helpers.configurations import ABSENT, Edit, edited, outcome, with_config
from tests.helpers.images import picture
from tests.vision.helpers import load_qwen, load_siglip
from zrelay_vision.images.store import DecodedImage
from zrelay_vision.qwen3_vl.states import StatesParameters, TokenMode

Outputs: TypeAlias = list[torch.Tensor]

SIGLIP: dict[str, dict[str, list[Any]]] = {
    "vision_config": {
        "hidden_act": ["gelu_pytorch_tanh", "gelu", "relu", "swish", "silu", "loud"],
        "layer_norm_eps": [1e-6, 0.000001, 1e-3, 1, 1.0, -1],
        "num_hidden_layers": [3, 2, 3.0, 4],
        "num_attention_heads": [3, 2, 6, 7, 3.0],
        "num_patches": [64, 49, ABSENT],
        "attention_dropout": [0.5],
        "head_dim": [8],
        "initializer_range": [1.0],
    },
    "text_config": {
        "hidden_act": ["gelu_pytorch_tanh", "gelu", "quick_gelu"],
        "layer_norm_eps": [1e-6, 1e-3, 1, 1.0],
        "num_hidden_layers": [2, 1],
        "num_attention_heads": [2, 4, 1],
        "projection_size": [96, None],
        "pad_token_id": [0, 3],
        "eos_token_id": [1, 2],
        "max_position_embeddings": [64, 32],
    },
}
QWEN: dict[str, dict[str, list[Any]]] = {
    "text_config": {
        "hidden_act": ["silu", "swish", "gelu"],
        "rms_norm_eps": [1e-6, 1e-3, 1, 1.0],
        "num_hidden_layers": [7, 6],
        "num_key_value_heads": [2, 2.0, None],
        "max_position_embeddings": [2048, 128000],
        "layer_types": [["full_attention"] * 7],
        "head_dim": [16, 8],
        "rope_parameters": [
            {"rope_type": "default", "rope_theta": 10000, "mrope_section": [4, 2, 2]},
            {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [9, 2, 2], "mrope_interleaved": False},
            {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 3, 2]},
            {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 30, 2]},
            {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 3]},
            {"rope_type": "default", "rope_theta": 10000.0},
            {"rope_type": "default", "mrope_section": [4, 2, 2]},
            {"rope_type": "linear", "factor": 1.0, "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
            {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
            {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2]},
        ],
    },
    "vision_config": {
        "hidden_act": ["gelu_pytorch_tanh", "gelu", "silu"],
        "depth": [3, 2, 3.0],
        "num_heads": [2, 4, 3],
        "num_attention_heads": [2, 4],
        "deepstack_visual_indexes": [[0, 1, 2], [2, 1, 0], [0, 1], [0, 1, 9], [0, 0, 1]],
        "spatial_merge_size": [2, 1],
        "rope_parameters": [{"rope_theta": 10000}, {"rope_type": "axial", "rope_theta": 500.0}, {"rope_type": "yarn"}],
        "rope_theta": [10000.0, 500.0],
        "head_dim": [8],
        "initializer_range": [1.0],
    },
}


class Results:
    """Digest and outputs of edited folders, each computed once."""

    def __init__(self, folder: Path, scratch: Path, run: Callable[[Path], tuple[str, Outputs]]) -> None:
        self._folder, self._scratch, self._run = folder, scratch, run
        self._config = json.loads((folder / "config.json").read_text())
        self.of = cache(self._of)

    def _of(self, edit: str) -> tuple[str, Outputs] | None:
        changed = json.loads(edit)
        parts = {part: edited(self._config[part], values) for part, values in changed.items()}
        folder = with_config(self._folder, self._scratch / "edited", {**self._config, **parts})
        names = {name: None for values in changed.values() for name in values} or {"config": None}
        found: tuple[str, Outputs] | None = outcome(lambda: self._run(folder), names)
        shutil.rmtree(folder)
        return found

    def check_alike(self, first: Edit, second: Edit) -> None:
        found = [self.of(json.dumps(edit)) for edit in (first, second)]
        if found[0] is None or found[1] is None:
            return
        same = all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
        assert (found[0][0] == found[1][0]) == same, (first, second)


PICTURES = tuple(DecodedImage(str(size), *size, picture(*size)) for size in ((64, 48), (33, 90)))


def run_siglip(folder: Path) -> tuple[str, Outputs]:
    engine = load_siglip(folder)
    grids = engine.encode(PICTURES, target_area=None, cancelled=lambda: False)
    scores = engine.score(PICTURES, ("a small red circle", "b"), cancelled=lambda: False)
    assert engine.fingerprint is not None
    return engine.fingerprint.configuration_digest, [*grids, scores.cosines]


def run_qwen(folder: Path) -> tuple[str, Outputs]:
    engine = load_qwen(folder, hidden_layer=-2)
    states = []
    for each in PICTURES:
        image: Any = each.image
        parameters = StatesParameters(-2, TokenMode.FULL, "a circle", "look")
        prepared = engine.prepare(each.sha256, image.size, image.copy, parameters, None)
        states.append(engine.run(prepared, lambda: False).hidden_states)
    assert engine.fingerprint is not None
    return engine.fingerprint.configuration_digest, states


@pytest.fixture(scope="module")
def siglip(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The demo's SigLIP2 with a scale and a bias that tell pairs apart."""
    scratch = tmp_path_factory.mktemp("siglip")
    folder = Path(shutil.copytree(demo_models / "siglip", scratch / "models"))
    tensors = load_file(folder / "model.safetensors")
    tensors["logit_scale"], tensors["logit_bias"] = torch.tensor([4.5]), torch.tensor([0.5])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Results(folder, scratch, run_siglip)


@pytest.fixture(scope="module")
def qwen(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(tiny, tmp_path_factory.mktemp("qwen"), run_qwen)


def edits_of(choices: dict[str, dict[str, list[Any]]]) -> list[Edit]:
    return [{part: {key: value}} for part, keys in choices.items() for key, values in keys.items() for value in values]


def check_every(results: Results, choices: dict[str, dict[str, list[Any]]]) -> None:
    single = edits_of(choices)
    for edit in single:
        results.check_alike({}, edit)
    assert sum(results.of(json.dumps(edit)) is not None for edit in single) > len(single) / 2


@pytest.mark.deep
def test_every_edit_of_siglip(siglip: Results) -> None:
    check_every(siglip, SIGLIP)


@pytest.mark.deep
def test_every_edit_of_qwen3_vl(qwen: Results) -> None:
    check_every(qwen, QWEN)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(first=st.sampled_from(edits_of(SIGLIP)), second=st.sampled_from(edits_of(SIGLIP)))
def test_digests_are_equal_exactly_where_grids_and_scores_are(siglip: Results, first: Edit, second: Edit) -> None:
    siglip.check_alike(first, second)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(first=st.sampled_from(edits_of(QWEN)), second=st.sampled_from(edits_of(QWEN)))
def test_digests_are_equal_exactly_where_states_are(qwen: Results, first: Edit, second: Edit) -> None:
    qwen.check_alike(first, second)


def test_numbers_of_the_image_processor_may_be_whole(demo_models: Path, tmp_path: Path) -> None:
    digests = []
    for name, mean in (("whole", [0, 0, 0]), ("real", [0.0, 0.0, 0.0]), ("other", [0.5, 0.0, 0.0])):
        folder = Path(shutil.copytree(demo_models / "siglip", tmp_path / name))
        settings_of = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(json.dumps({**settings_of, "image_mean": mean}))
        fingerprint = load_siglip(folder).fingerprint
        assert fingerprint is not None
        digests.append(fingerprint.processor_digest)
    assert digests[0] == digests[1] != digests[2]
