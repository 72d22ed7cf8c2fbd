"""Reference statistics: the file as specified, and which set is used for a prompt."""

import json
import math
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from zrelay_shared import reference_file
from zrelay_shared.errors import CheckpointError, InvalidArgument
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.reference_file import ReferenceSet
from zrelay_vision.conditioning.reference import MUST_MATCH, open_reference_sets

ENCODER = EncoderFingerprint(
    family="qwen3",
    width=4,
    model_id="a model",
    weights_digest="a" * 64,
    tokenizer_digest="b" * 64,
    chat_template_digest="c" * 64,
    compute_dtype="bfloat16",
    backend="torch-cpu",
    configuration_digest="d" * 64,
)


def a_set(encoder: EncoderFingerprint = ENCODER, tokens: int = 3, scale: float = 1.0) -> ReferenceSet:
    values = [scale * value for value in (1.0, -2.0, 0.5, 8.0)]
    return ReferenceSet(
        fingerprint=encoder,
        mean=array("f", values),
        std=array("f", [abs(value) for value in values]),
        mean_with_first=array("f", values),
        std_with_first=array("f", [2 * abs(value) for value in values]),
        token_rms=array("f", sorted(float(index) for index in range(tokens))),
        prompts=2,
        tokens=tokens,
        corpus="words sha256:0123456789ab",
    )


def test_a_set_survives_its_file(tmp_path: Path) -> None:
    reference_file.write(tmp_path / "a.safetensors", a_set())
    assert reference_file.read(tmp_path / "a.safetensors") == a_set()
    assert a_set().median_token_rms == 1.0


def test_any_safetensors_reader_opens_it(tmp_path: Path) -> None:
    reference_file.write(tmp_path / "a.safetensors", a_set())
    tensors = load_file(tmp_path / "a.safetensors")
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "mean": [4], "std": [4], "mean_with_first": [4], "std_with_first": [4], "token_rms": [3],
    }  # fmt: skip
    assert tensors["mean"].tolist() == [1.0, -2.0, 0.5, 8.0]
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["prompts"], metadata["tokens"]) == ("zrelay.reference_statistics.v1", "2", "3")
    assert json.loads(metadata["encoder"])["digest"] == ENCODER.message_digest


@pytest.mark.parametrize("cut", [0, 7, 40, -1])
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "a.safetensors"
    reference_file.write(file, a_set())
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(InvalidArgument, match="make it again with `zrelay calibrate -o a") as refused:
        reference_file.read(file)
    assert refused.value.reason == "REFERENCE_FILE_INVALID"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"reference_statistics.v1", b"reference_statistics.v2"),
        (b'\\"width\\": 4', b'\\"width\\": 5'),  # another encoder than its digest says
        (b'"mean"', b'"MEAN"'),
        (b'"F32"', b'"I32"'),
        (b'"tokens": "3"', b'"tokens": "4"'),
        (b'"tokens": "3"', b'"tokens": "x"'),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    file = tmp_path / "a.safetensors"
    reference_file.write(file, a_set())
    raw = file.read_bytes()
    assert old in raw
    file.write_bytes(raw.replace(old, new, 1))
    with pytest.raises(InvalidArgument) as refused:
        reference_file.read(file)
    assert refused.value.reason == "REFERENCE_FILE_INVALID"


@pytest.mark.parametrize(
    ("field", "value"),
    [("mean", [1.0]), ("std", [1.0, 1.0, 1.0, math.nan]), ("std", [1.0, 1.0, 1.0, -1.0]), ("token_rms", [1.0])],
)
def test_numbers_that_cannot_be_are_refused(field: str, value: list[float]) -> None:
    changed: dict[str, Any] = {field: array("f", value)}
    with pytest.raises(ValueError, match=f"{field}: expected"):
        replace(a_set(), **changed)


def test_the_set_of_the_prompts_encoder_speaks(tmp_path: Path) -> None:
    other = replace(ENCODER, weights_digest="d" * 64)
    reference_file.write(tmp_path / "a.safetensors", a_set())
    reference_file.write(tmp_path / "b.safetensors", a_set(other, scale=3.0))
    (tmp_path / "notes.txt").write_text("not a set")
    sets = open_reference_sets(tmp_path)
    assert set(sets.digests) == {ENCODER.digest, other.digest}
    found = sets.reference_for(ENCODER)
    assert found is not None
    assert torch.equal(found.mean, torch.tensor([1.0, -2.0, 0.5, 8.0])) and found.std.dtype == torch.float32
    assert (found.encoder_digest, found.hidden_layer, found.tokens, found.prompts) == (ENCODER.digest, -2, 3, 2)
    assert found.token_rms == 1.0
    of_other = sets.reference_for(other)
    assert of_other is not None and of_other.mean[3] == 24.0


@pytest.mark.parametrize("field", MUST_MATCH)
def test_a_set_of_another_space_does_not(tmp_path: Path, field: str) -> None:
    reference_file.write(tmp_path / "a.safetensors", a_set())
    others: dict[str, Any] = {
        "width": 5,
        "hidden_layer": -3,
        "before_final_norm": False,
        "layer_weights": ((-2, 0.5), (-3, 0.5)),
    }
    other = replace(ENCODER, **{field: others.get(field, "other")})
    assert open_reference_sets(tmp_path).reference_for(other) is None


def test_what_bends_a_single_prompt_changes_no_set(tmp_path: Path) -> None:
    reference_file.write(tmp_path / "a.safetensors", a_set())
    bent = replace(
        ENCODER,
        think_mode="empty",
        compute_dtype="float32",
        backend="torch-cuda",
        chat_template_digest="e" * 64,
        modifications=("padding", "conditioning"),
        model_id="elsewhere",
    )
    assert open_reference_sets(tmp_path).reference_for(bent) is not None


def test_the_larger_corpus_speaks_where_two_fit(tmp_path: Path) -> None:
    reference_file.write(tmp_path / "a.safetensors", a_set(tokens=3))
    reference_file.write(tmp_path / "b.safetensors", a_set(replace(ENCODER, backend="torch-cuda"), tokens=9, scale=2.0))
    found = open_reference_sets(tmp_path).reference_for(ENCODER)
    assert found is not None and found.tokens == 9


def test_no_folder_is_no_sets_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    assert open_reference_sets(None).digests == open_reference_sets(tmp_path / "nowhere").digests == ()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match="expected the folder of the sets that `zrelay calibrate` wrote, got a file"
    ):
        open_reference_sets(tmp_path / "file")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: expected .* or move it elsewhere"):
        open_reference_sets(tmp_path)
