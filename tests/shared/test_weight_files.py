"""The loader reads each byte once, in any number of threads, and refuses what is not exactly the module's weights."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.helpers.refusals import refused
from zrelay_shared.checkpoints import ComponentFolder
from zrelay_shared.errors import Cancelled, CheckpointError
from zrelay_shared.torch_weights import load_weights
from zrelay_shared.weight_files import CHUNK_BYTES, StoredTensor, WeightFiles, weights_digest

CPU = torch.device("cpu")
WIDE = CHUNK_BYTES // 4 // 1000 + 100
"""Rows of 1000 float32 values that take more than one chunk."""


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(1000, WIDE, bias=False)
        self.bias = nn.Parameter(torch.zeros(7))


def on_meta() -> Network:
    with torch.device("meta"):
        return Network()


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "wide.weight": torch.randn(WIDE, 1000, generator=generator),
        "bias": torch.randn(7, generator=generator),
    }


def component(folder: Path, **files: dict[str, torch.Tensor]) -> ComponentFolder:
    for name, content in files.items():
        save_file(content, folder / f"{name}.safetensors")
    paths = tuple(folder / f"{name}.safetensors" for name in sorted(files))
    return ComponentFolder("transformer", folder, {}, paths, None)


def loaded(weights: WeightFiles, dtype: torch.dtype = torch.float32) -> Network:
    module = on_meta()
    load_weights(module, weights, CPU, dtype)
    return module


def load_refused(folder: Path, dtype: torch.dtype = torch.float32, **files: dict[str, torch.Tensor]) -> str:
    weights = WeightFiles(component(folder, **files))
    return refused(lambda: loaded(weights, dtype), CheckpointError).message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loading_gives_the_tensors_and_the_digest(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = tensors()
    files = component(tmp_path, a={"bias": stored["bias"]}, b={"wide.weight": stored["wide.weight"]})
    weights = WeightFiles(files)
    module = loaded(weights, dtype)
    assert all(torch.equal(module.state_dict()[name], tensor.to(dtype)) for name, tensor in stored.items())
    assert weights.digest == weights_digest(files) and not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_each_byte_is_read_once_in_order(tmp_path: Path, threads: int) -> None:
    weights = WeightFiles(component(tmp_path, a=tensors()))
    found: dict[StoredTensor, bytearray] = {tensor: bytearray() for tensor in weights.tensors}
    weights.read({tensor: found[tensor].extend for tensor in weights.tensors}, threads=threads)
    raw = (tmp_path / "a.safetensors").read_bytes()
    assert all(found[tensor] == raw[tensor.entry.begin : tensor.entry.end] for tensor in weights.tensors)
    assert weights.digest == weights_digest(component(tmp_path, a=tensors()))


def test_a_known_digest_reads_only_what_is_needed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = WeightFiles(component(tmp_path, a=tensors()), cache=cache)
    first.read({})
    again = WeightFiles(component_of(tmp_path), cache=cache)
    assert again.digest == first.digest
    read: list[int] = []
    again.read({again.tensors[0]: lambda chunk: read.append(len(chunk))})
    entry = again.tensors[0].entry
    assert sum(read) == entry.end - entry.begin


def component_of(folder: Path) -> ComponentFolder:
    return ComponentFolder("transformer", folder, {}, (folder / "a.safetensors",), None)


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_file_that_changes_is_refused(tmp_path: Path, when: str) -> None:
    weights = WeightFiles(component(tmp_path, a=tensors()))
    path = tmp_path / "a.safetensors"

    def touch(_: memoryview) -> None:
        os.utime(path, ns=(1, 1))

    if when == "before":
        touch(memoryview(b""))
    error = refused(lambda: weights.read({weights.tensors[0]: touch}, threads=1), CheckpointError)
    assert "a.safetensors has changed" in error.message and not weights.digest


def test_a_replaced_file_is_refused_although_size_and_time_are_equal(tmp_path: Path) -> None:
    weights = WeightFiles(component(tmp_path, a=tensors()))
    path = tmp_path / "a.safetensors"
    stat = path.stat()
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.rename(path)
    assert "has changed" in refused(lambda: weights.read({}), CheckpointError).message


def test_cancelling_ends_within_a_chunk(tmp_path: Path) -> None:
    weights = WeightFiles(component(tmp_path, a=tensors()))
    read: list[int] = []
    with pytest.raises(Cancelled):
        weights.read({t: lambda chunk: read.append(1) for t in weights.tensors}, cancelled=lambda: len(read) > 0)
    assert not weights.digest and len(read) <= 16


def test_missing_left_over_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    stored = tensors()
    assert "lack bias" in load_refused(tmp_path, a={"wide.weight": stored["wide.weight"]})
    assert "hold wide.bias" in load_refused(tmp_path, a=stored | {"wide.bias": torch.zeros(3)})
    message = load_refused(tmp_path, a=stored | {"bias": torch.zeros(3)})
    assert "tensor bias has shape [3], config.json requires [7]" in message


def test_a_tensor_that_is_stored_twice_is_refused(tmp_path: Path) -> None:
    stored = tensors()
    assert "the same tensor" in load_refused(tmp_path, a=stored, b={"bias": stored["bias"].clone()})
    files = component(tmp_path, a=stored | {"model.bias": stored["bias"].clone()})
    with pytest.raises(CheckpointError, match="'bias' occurs twice"):
        weights_digest(files)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    stored = tensors()
    stored["wide.weight"][-1, -1] = value  # in the last chunk
    message = load_refused(tmp_path, torch.bfloat16, a={name: tensor.to(dtype) for name, tensor in stored.items()})
    assert "a.safetensors: tensor wide.weight holds NaN or infinity" in message and "--dtype" not in message


def test_a_value_that_the_dtype_cannot_hold_is_named(tmp_path: Path) -> None:
    stored = tensors() | {"bias": torch.full((7,), 1e6)}
    message = load_refused(tmp_path, torch.float16, a=stored)
    assert "tensor bias has values that float16 cannot hold; start with --dtype bfloat16" in message
    loaded(WeightFiles(component(tmp_path, a=stored)), torch.bfloat16)


def test_only_a_dtype_that_holds_the_value_is_advised(tmp_path: Path) -> None:
    for value, dtype, advised in ((3.4e38, torch.bfloat16, "float32"), (3.4e38, torch.float16, "float32")):
        message = load_refused(tmp_path, dtype, a=tensors() | {"bias": torch.full((7,), value)})
        assert message.endswith(f"cannot hold; start with --dtype {advised}")
    message = load_refused(tmp_path, torch.float16, a=tensors() | {"bias": torch.full((7,), 1e6)})
    assert message.endswith("start with --dtype bfloat16 or float32")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16, torch.float16])
def test_plain_float8_is_converted_exactly(tmp_path: Path, dtype: torch.dtype, target: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    every = every[every.float().isfinite()]
    module = nn.Module()
    module.register_parameter("all", nn.Parameter(torch.empty(len(every), device="meta")))
    load_weights(module, WeightFiles(component(tmp_path, a={"all": every})), CPU, target)
    assert torch.equal(module.state_dict()["all"].double(), every.double())
