"""Folders with more than one set of weights, and weights of other layouts: loaded as hashed, or refused by name."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers.refusals import refused
from zrelay_shared.checkpoint_files import find_weights
from zrelay_shared.errors import CheckpointError
from zrelay_shared.torch_weights import STORED_DTYPES
from zrelay_shared.weight_formats import ACCEPTED_DTYPES

from .weight_files import write_weights

BASE = "diffusion_pytorch_model"


def write_index(folder: Path, weight_map: Mapping[str, str]) -> None:
    (folder / f"{BASE}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def shards(folder: Path, count: int = 2) -> list[str]:
    """Writes shards of one tensor each with their index, and returns their names."""
    names = [f"{BASE}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    for number, name in enumerate(names):
        write_weights(folder / name, {f"t{number}": "F32"})
    write_index(folder, {f"t{number}": name for number, name in enumerate(names)})
    return names


def chosen(folder: Path) -> list[str]:
    return [path.name for path in find_weights(folder, "", BASE, {})[0]]


def refusal_of(folder: Path) -> str:
    return refused(lambda: chosen(folder), CheckpointError).message


def test_a_single_file_and_shards_are_one_set_each(tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    one.mkdir()
    many.mkdir()
    write_weights(one / f"{BASE}.safetensors", {"t0": "F32"})
    assert chosen(one) == [f"{BASE}.safetensors"]
    assert shards(many) == chosen(many)


def test_an_index_of_the_single_file_is_the_same_set(tmp_path: Path) -> None:
    write_weights(tmp_path / f"{BASE}.safetensors", {"t0": "F32"})
    write_index(tmp_path, {"t0": f"{BASE}.safetensors"})
    assert chosen(tmp_path) == [f"{BASE}.safetensors"]


@pytest.mark.parametrize("kept", ["shards and index", "shards", "index"])
def test_a_single_file_beside_another_set_is_refused(tmp_path: Path, kept: str) -> None:
    names = shards(tmp_path)
    write_weights(tmp_path / f"{BASE}.safetensors", {"t0": "F32", "t1": "F32"})
    if "index" not in kept:
        (tmp_path / f"{BASE}.safetensors.index.json").unlink()
    if "shards" not in kept:
        for name in names:
            (tmp_path / name).unlink()
    message = refusal_of(tmp_path)
    assert f"{BASE}.safetensors" in message and names[0] in message and "move the other away" in message


def test_two_families_of_shards_are_refused(tmp_path: Path) -> None:
    three, two = shards(tmp_path, 3), shards(tmp_path, 2)
    message = refusal_of(tmp_path)
    assert two[0] in message and three[0] in message


def test_another_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / f"{BASE}.safetensors", {"t0": "F32"})
    write_weights(tmp_path / f"{BASE}_fp8.safetensors", {"t0": "F8_E4M3"})
    assert f"{BASE}_fp8.safetensors" in refusal_of(tmp_path)


@pytest.mark.parametrize("name", [f"{BASE}.fp16", f"{BASE}.fp16-00001-of-00002", f"{BASE}-00001-of-00002.fp16"])
def test_variants_are_ignored(tmp_path: Path, name: str) -> None:
    write_weights(tmp_path / f"{BASE}.safetensors", {"t0": "F32"})
    write_weights(tmp_path / f"{name}.safetensors", {"t0": "F16"})
    assert chosen(tmp_path) == [f"{BASE}.safetensors"]


def test_a_variant_alone_names_the_remedy(tmp_path: Path) -> None:
    write_weights(tmp_path / f"{BASE}.fp16.safetensors", {"t0": "F16"})
    assert f"{BASE}.fp16.safetensors" in refusal_of(tmp_path) and "rename" in refusal_of(tmp_path)


def test_a_stale_index_is_refused(tmp_path: Path) -> None:
    first, second = shards(tmp_path)
    write_index(tmp_path, {"t0": first, "t1": second, "t2": second})
    assert "lacks t2" in refusal_of(tmp_path)
    write_index(tmp_path, {"t0": first})
    assert second in refusal_of(tmp_path)
    write_weights(tmp_path / second, {"t1": "F32", "t9": "F32"})
    write_index(tmp_path, {"t0": first, "t1": second})
    assert "holds t9" in refusal_of(tmp_path) and "does not list" in refusal_of(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    first, second = shards(tmp_path)
    write_weights(tmp_path / second, {"t0": "F32", "t1": "F32"})
    message = refusal_of(tmp_path)
    assert "holds t0" in message and first in message and second in message


@pytest.mark.parametrize("dtype", ACCEPTED_DTYPES)
def test_accepted_dtypes(tmp_path: Path, dtype: str) -> None:
    write_weights(tmp_path / f"{BASE}.safetensors", {"t0": dtype})
    assert chosen(tmp_path)


def test_every_accepted_dtype_can_be_loaded() -> None:
    assert set(STORED_DTYPES) == set(ACCEPTED_DTYPES)


@pytest.mark.parametrize(
    ("tensors", "layout"),
    [
        ({"a.weight": "I8"}, "integer weights without scales (tensor a.weight is I8)"),
        ({"a.weight": "U8"}, "integer weights"),
        ({"a.weight": "F64"}, "tensor a.weight as F64"),
        ({"a.weight": "F8_E4M3", "a.scale_weight": "F32"}, "scaled float8"),
        ({"a.weight": "F8_E4M3", "scaled_fp8": "F8_E4M3"}, "scaled float8"),
        ({"a.weight": "F8_E4M3", "a.weight_scale_inv": "F32"}, "scaled float8"),
        ({"a.weight": "U8", "a.weight_scale": "F8_E4M3", "a.weight_scale_2": "F32"}, "NVFP4"),
        ({"a.weight": "U8", "a.weight.absmax": "F32", "a.weight.quant_state.bitsandbytes__nf4": "U8"}, "bitsandbytes"),
        ({"a.weight": "I8", "a.SCB": "F32"}, "bitsandbytes"),
        ({"a.qweight": "I32", "a.qzeros": "I32", "a.scales": "F16", "a.g_idx": "I32"}, "AWQ or GPTQ"),
        ({"a.qweight": "I8", "a.wscales": "BF16", "a.smooth_factor": "BF16"}, "Nunchaku"),
        ({"a.weight": "F8_E4M3", "a.comfy_quant": "U8", "a.weight_scale": "F32"}, "ComfyUI"),
        ({"a.weight_packed": "I32", "a.weight_scale": "F16"}, "compressed-tensors"),
        ({"a.weight._data": "I8", "a.weight._scale": "F32"}, "Quanto or torchao"),
        ({"a.weight": "F8_E4M3FNUZ"}, "float8 (FNUZ)"),
        ({"a.weight": "F8_E8M0"}, "MX"),
    ],
)
def test_other_layouts_are_refused_by_name(tmp_path: Path, tensors: dict[str, str], layout: str) -> None:
    write_weights(tmp_path / f"{BASE}.safetensors", tensors)
    message = refusal_of(tmp_path)
    assert layout in message and "; " in message


def test_metadata_and_configuration_of_quantised_weights(tmp_path: Path) -> None:
    write_weights(tmp_path / f"{BASE}.safetensors", {"t0": "F8_E4M3"}, {"_quantization_metadata": "{}"})
    assert "ComfyUI" in refusal_of(tmp_path)
    write_weights(tmp_path / f"{BASE}.safetensors", {"t0": "F32"})
    config = {"quantization_config": {"quant_method": "bitsandbytes"}}
    message = refused(lambda: find_weights(tmp_path, "", BASE, config), CheckpointError).message
    assert "quantization_config (bitsandbytes)" in message


def test_gguf_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "z-image-Q4_K.gguf").write_bytes(b"GGUF")
    assert "GGUF" in refusal_of(tmp_path)


def test_tensors_whose_names_only_look_quantised_are_accepted(tmp_path: Path) -> None:
    write_weights(tmp_path / f"{BASE}.safetensors", {"logit_scale": "F32", "embeddings.position_ids": "I64"})
    assert chosen(tmp_path)
