"""Reference statistics: the file as specified, the arithmetic against torch, and which set speaks for a prompt."""

import json
import math
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from zrelay_client._vision_numbers import Gatherer, Moments, Rows, correlation, floats, median, rms
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
    assert json.loads(metadata["encoder"])["digest"] == ENCODER.digest


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


def rows_of(tensor: torch.Tensor, *, has_first: bool = True) -> Rows:
    return Rows(array("f", tensor.flatten().tolist()), tensor.shape[1], has_first)


def test_moments_are_torchs() -> None:
    torch.manual_seed(0)
    prompts = [torch.randn(length, 6) * 50 + 7 for length in (9, 1, 4, 30)]
    gatherer = Gatherer(6)
    for prompt in prompts:
        gatherer.add(rows_of(prompt))
    gatherer.finish()
    rest, whole = torch.cat([prompt[1:] for prompt in prompts]), torch.cat(prompts)
    both = gatherer.rest.with_also(gatherer.first)
    for moments, values in ((gatherer.rest, rest), (both, whole)):
        assert moments.count == len(values)
        assert torch.allclose(torch.tensor(moments.mean), values.mean(0), rtol=1e-5)
        assert torch.allclose(torch.tensor(moments.std), values.std(0, correction=0), rtol=1e-5)
    assert torch.allclose(torch.tensor(gatherer.token_rms), rest.square().mean(1).sqrt(), rtol=1e-5)


def test_a_large_mean_does_not_swallow_a_small_deviation() -> None:
    moments = Moments(1)
    moments.add(array("f", [2752.0, 2752.5, 2753.0, 2752.5]))
    assert math.isclose(moments.std[0], math.sqrt(0.125), rel_tol=1e-6)


def test_embeddings_that_do_not_fit_are_refused() -> None:
    gatherer = Gatherer(2)
    with pytest.raises(ValueError, match="width: expected 2 dimensions, got 3"):
        gatherer.add(rows_of(torch.ones(2, 3)))
    with pytest.raises(ValueError, match="expected finite"):
        gatherer.add(rows_of(torch.tensor([[1.0, 1.0], [math.inf, 1.0]])))


@pytest.mark.parametrize(("name", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)])
def test_bytes_become_the_numbers_that_torch_reads(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = (torch.randn(64) * 300).to(dtype)
    data = memoryview(values.view(torch.uint8).numpy().tobytes())
    assert list(floats(name, data)) == values.float().tolist()
    with pytest.raises(ValueError, match="dtype: expected BF16, F16 or F32, got U8"):
        floats("U8", data)


@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3, width=32)] * 2), min_size=3, max_size=20))
def test_correlation_is_torchs(pairs: list[tuple[float, float]]) -> None:
    one, other = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))
    if one.std() > 1e-3 and other.std() > 1e-3:
        wanted = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
        assert math.isclose(correlation(one.tolist(), other.tolist()), wanted, abs_tol=1e-6)


def test_small_numbers() -> None:
    assert correlation([1.0, 1.0], [1.0, 2.0]) == 0.0
    assert rms([3.0, 4.0]) == math.sqrt(12.5)
    assert median([3.0, 1.0, 2.0]) == 2.0
    with pytest.raises(ValueError, match="at least one"):
        median([])
