"""Random edits of config.json: the configuration's digest is the same exactly where the embeddings are."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.encoder.helpers import BLOCKS, load
from tests.helpers.configurations import ABSENT, ROPES, Edit, edited, edits, outcome, with_config
from zrelay_encoder.model.encoder import load_model
from zrelay_shared import checkpoints
from zrelay_shared.configuration import read_component
from zrelay_shared.errors import CheckpointError
from zrelay_shared.fingerprint import compare
from zrelay_shared.weight_files import WeightFiles

CANARIES = [[(7 * at + 3) % 768 for at in range(length)] for length in (512, 512, 31)]
"""Token ids of prompts that reach the usual limit, and of a short one."""

CHOICES: dict[str, list[Any]] = {
    "hidden_act": ["silu", "swish", "gelu", "gelu_new", "relu", "SILU", ABSENT],
    "rms_norm_eps": [1e-6, 1e-5, 0.000001, 1, 1.0, "small", -1.0, ABSENT],
    "num_hidden_layers": [BLOCKS, float(BLOCKS), BLOCKS - 1, BLOCKS + 1, BLOCKS + 9, 0],
    "num_attention_heads": [4, 2, 8, 3],
    "num_key_value_heads": [2, 1, 4, 2.0, None],
    "head_dim": [16, 8, 32, 16.0, None],
    "attention_bias": [False, True, 0],
    "hidden_size": [32, 64],
    "max_position_embeddings": [2048, 512, 40960],
    "use_sliding_window": [False, True],
    "max_window_layers": [2, 28],
    "layer_types": [["full_attention"] * BLOCKS, ["sliding_attention"] * BLOCKS, None, ABSENT],
    "attention_dropout": [0.5],
    "initializer_range": [1.0],
    "use_cache": [False],
    "tie_word_embeddings": [False],
    "dtype": ["float16"],
    "pad_token_id": [0],
    "eos_token_id": [[1, 2]],
    "partial_rotary_factor": [0.5, 1.0],
    "original_max_position_embeddings": [512],
    "something_new": [{"a": 1}],
    "quantization": [None],
}


@cache
def result(folder: Path, edit: str) -> tuple[str, list[torch.Tensor]] | None:
    """Returns digest and embeddings of a folder with an edited config.json, None if it is refused."""
    component = checkpoints.open_text_encoder(folder).component
    changed = json.loads(edit)
    component = replace(component, config=edited({**component.config, "layer_types": None}, changed))

    def run() -> tuple[str, list[torch.Tensor]]:
        model = load_model(component, WeightFiles(component), -2, torch.device("cpu"), torch.float32)
        return read_component(component).digest, model(CANARIES, model.plan)

    found: tuple[str, list[torch.Tensor]] | None = outcome(run, changed)
    return found


def check_alike(folder: Path, first: Edit, second: Edit) -> None:
    found = [result(folder, json.dumps(edit)) for edit in (first, second)]
    if found[0] is None or found[1] is None:
        return
    same = all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    assert (found[0][0] == found[1][0]) == same, (first, second)


CONFIGURATION = st.builds(lambda rope, other: {**other, **rope}, st.sampled_from(ROPES), edits(CHOICES, most=2))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(first=CONFIGURATION, second=CONFIGURATION)
def test_digests_are_equal_exactly_where_embeddings_are(tiny: Path, first: Edit, second: Edit) -> None:
    for edit in (first, second):
        check_alike(tiny, {}, edit)
    check_alike(tiny, first, second)


@pytest.mark.deep
def test_every_single_edit(tiny: Path) -> None:
    single = [*ROPES, *({name: value} for name, values in CHOICES.items() for value in values)]
    for edit in single:
        check_alike(tiny, {}, edit)
    accepted = [edit for edit in single if result(tiny, json.dumps(edit)) is not None]
    assert len(accepted) > len(single) / 2


def test_every_pair_of_ropes(tiny: Path) -> None:
    for number, first in enumerate(ROPES):
        for second in ROPES[:number]:
            check_alike(tiny, first, second)


def test_another_rope_base_is_another_encoder(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    changed = edited(config, {"rope_parameters": ABSENT, "rope_theta": 1e6})
    spelled = edited(config, {"rope_parameters": ABSENT, "rope_theta": config["rope_parameters"]["rope_theta"]})
    usual, other, same = (
        load(folder).encoder.fingerprint
        for folder in (
            tiny,
            with_config(tiny, tmp_path / "other", changed),
            with_config(tiny, tmp_path / "same", spelled),
        )
    )
    assert compare(usual, same).relation == "exact" and same.digest == usual.digest
    found = compare(usual, other)
    assert found.relation == "experimental"
    assert [difference.split(":")[0] for difference in found.differences] == ["configuration_digest"]


@pytest.mark.parametrize(("key", "value"), [("rope_theta", "x"), ("hidden_act", "none"), ("rms_norm_eps", None)])
def test_a_refusal_names_file_and_key(tiny: Path, tmp_path: Path, key: str, value: object) -> None:
    config = edited(json.loads((tiny / "config.json").read_text()), {"rope_parameters": ABSENT, key: value})
    folder = with_config(tiny, tmp_path / "qwen", config)
    with pytest.raises(CheckpointError, match=rf"qwen/config\.json: {key}: expected"):
        load(folder)
