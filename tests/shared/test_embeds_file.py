"""embeds_file: the hand-over format, its golden header, and every way a file can be wrong."""

import contextlib
import json
import random
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.refusals import refused
from zrelay.v1.embeds_pb2 import PromptEmbeds, PromptReport
from zrelay.v1.generation_pb2 import GenerationSpec
from zrelay_shared import embeds_file, tensors
from zrelay_shared.errors import InvalidArgument, PayloadCorrupt, ZrelayError
from zrelay_shared.fingerprint import EncoderFingerprint, from_message, to_message
from zrelay_shared.wire import Parcel

ONE, TWO = bytes(range(12)), bytes(range(100, 108))
FINGERPRINT = EncoderFingerprint(family="qwen3", width=3, model_id="demo", layer_weights=((-2, 0.3), (-3, 0.7)))
DIGEST = "c2472132fab7990c649b91e5f1494f83345d09031822aec59507a0bb4d11017c"

GOLDEN_HEADER = {
    "__metadata__": {
        "format": "zrelay.prompt_embeds.v1",
        "prompt_embeds": {
            "segments": [{"prompt_embeds": {"dtype": "TENSOR_DTYPE_BF16", "shape": ["2", "3"], "crc32c": 0x5383AABA}}],
            "fingerprint": {
                "family": "qwen3",
                "model_id": "demo",
                "width": 3,
                "hidden_layer": -2,
                "before_final_norm": True,
                "layer_weights": [{"hidden_layer": -2, "weight": 0.3}, {"hidden_layer": -3, "weight": 0.7}],
                "think_mode": "THINK_MODE_NONE",
                "quantization": "none",
                "digest": DIGEST,
            },
            "report": {"formatted_tokens": 2, "token_count": 2},
        },
        "negative_prompt_embeds": {
            "segments": [{"prompt_embeds": {"dtype": "TENSOR_DTYPE_F32", "shape": ["1", "2"], "crc32c": 0xA548E908}}],
        },
        "prompt": "ein Fuchs, größer",
    },
    "prompt_embeds.0": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "negative_prompt_embeds.0": {"dtype": "F32", "shape": [1, 2], "data_offsets": [12, 20]},
}


def example() -> Parcel[GenerationSpec]:
    spec = Parcel(GenerationSpec())
    prompt = spec.message.prompt.prompt_embeds
    attach(spec, prompt, "BF16", (2, 3), ONE)
    prompt.fingerprint.CopyFrom(to_message(FINGERPRINT))
    prompt.report.CopyFrom(PromptReport(formatted_tokens=2, token_count=2))
    attach(spec, spec.message.negative_prompt.prompt_embeds, "F32", (1, 2), TWO)
    spec.message.provenance.prompt = "ein Fuchs, größer"
    spec.message.sampling.seed = 7  # not part of the hand-over
    return spec


def attach(spec: Parcel[GenerationSpec], embeds: PromptEmbeds, dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    tensor = embeds.segments.add().prompt_embeds
    tensor.CopyFrom(tensors.header(dtype, shape, data))
    spec.attach(tensor, data)


def split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def join(header: object, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@pytest.fixture
def path(tmp_path: Path) -> Path:
    embeds_file.write(tmp_path / "fox.safetensors", example())
    return tmp_path / "fox.safetensors"


def refused_file(path: Path, raw: bytes) -> ZrelayError:
    """Reads a file of these bytes, which must be refused, and returns the error."""
    path.write_bytes(raw)
    error = refused(lambda: embeds_file.read(path), ZrelayError)
    assert isinstance(error, InvalidArgument | PayloadCorrupt)
    assert error.message.startswith("fox.safetensors: ") and str(path.parent) not in error.message
    return error


def test_round_trip(path: Path) -> None:
    spec, expected = embeds_file.read(path), example()
    expected.message.ClearField("sampling")
    assert GenerationSpec.FromString(spec.to_bytes()) == GenerationSpec.FromString(expected.to_bytes())
    assert from_message(spec.message.prompt.prompt_embeds.fingerprint) == FINGERPRINT
    again = path.with_name("again.safetensors")
    embeds_file.write(again, spec)
    assert again.read_bytes() == path.read_bytes()


def test_golden_header(path: Path) -> None:
    header, body = split(path.read_bytes())
    assert body == ONE + TWO and (len(path.read_bytes()) - len(body)) % 8 == 0
    assert list(header) == list(GOLDEN_HEADER)
    metadata = header["__metadata__"]
    assert all(isinstance(value, str) for value in metadata.values())  # safetensors' own rule
    for key in ("prompt_embeds", "negative_prompt_embeds"):
        metadata[key] = json.loads(metadata[key])
    assert header == GOLDEN_HEADER


def test_a_prompt_alone_and_a_prompt_that_is_not_stored(tmp_path: Path) -> None:
    spec = example()
    spec.message.ClearField("negative_prompt")
    spec.message.ClearField("provenance")
    embeds_file.write(tmp_path / "a.safetensors", spec)
    read = embeds_file.read(tmp_path / "a.safetensors").message
    assert not read.HasField("negative_prompt") and not read.HasField("provenance")
    assert b"Fuchs" not in (tmp_path / "a.safetensors").read_bytes()


def test_several_segments(tmp_path: Path) -> None:
    spec = example()
    for tokens in (1, 4, 2):
        attach(spec, spec.message.prompt.prompt_embeds, "BF16", (tokens, 3), bytes(6 * tokens))
    embeds_file.write(tmp_path / "omni.safetensors", spec)
    read = embeds_file.read(tmp_path / "omni.safetensors")
    segments = read.message.prompt.prompt_embeds.segments
    assert [list(segment.prompt_embeds.shape) for segment in segments] == [[2, 3], [1, 3], [4, 3], [2, 3]]
    assert [len(read.bytes_of(segment.prompt_embeds)) for segment in segments] == [12, 6, 24, 12]


def test_any_safetensors_reader_opens_it(path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors import safe_open
    from safetensors.torch import load_file

    loaded = load_file(path)
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == {
        "prompt_embeds.0": (2, 3),
        "negative_prompt_embeds.0": (1, 2),
    }
    assert loaded["prompt_embeds.0"].view(dtype=torch.uint8).numpy().tobytes() == ONE
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == embeds_file.FORMAT


def test_embeddings_by_name_alone_are_not_written(tmp_path: Path) -> None:
    spec = Parcel(GenerationSpec(prompt={"content": {"sha256": "00" * 32}}))
    with pytest.raises(ValueError, match="by value, got content"):
        embeds_file.write(tmp_path / "a.safetensors", spec)
    assert not list(tmp_path.iterdir())


def test_a_damaged_byte_is_payload_corrupt(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    for at in (-1, -len(ONE + TWO)):
        damaged = bytearray(raw)
        damaged[at] ^= 4
        assert isinstance(refused_file(path, bytes(damaged)), PayloadCorrupt)


def test_every_truncation_is_refused(path: Path) -> None:
    raw = path.read_bytes()
    for size in range(0, len(raw), 7):
        assert refused_file(path, raw[:size]).reason == "EMBEDS_FILE_INVALID"
    assert refused_file(path, raw + b"\0").reason == "EMBEDS_FILE_INVALID"


@pytest.mark.parametrize(
    "raw",
    [
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        struct.pack("<Q", 2**63) + bytes(100),
        struct.pack("<Q", 100) + b"[" * 100,
        join(b"[" * 100_000, b""),
        join(b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b""),
        join([], b""),
        join(b"\xff\xfe{}", b""),
        join({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        join({"__metadata__": []}, b""),
        join({"__metadata__": {"format": "zrelay.prompt_embeds.v1"}}, b""),
        join({"__metadata__": {"format": "pt", "prompt_embeds": "{}"}}, b""),
        join({"__metadata__": {"format": "zrelay.prompt_embeds.v1", "prompt_embeds": "{}"}}, b""),
    ],
)
def test_files_that_are_something_else(path: Path, raw: bytes) -> None:
    assert refused_file(path, raw).reason == "EMBEDS_FILE_INVALID"


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0, 1000]},
        {"data_offsets": [8, 20]},  # overlaps the next
        {"data_offsets": [-12, 0]},
        {"data_offsets": [12, 0]},
        {"data_offsets": [0.0, 12.0]},
        {"data_offsets": None},
        {"dtype": "F16"},
        {"dtype": ""},
        {"dtype": 1},
        {"shape": [3, 2]},
        {"shape": [6]},
        {"shape": [2, 3.0]},
        {"shape": [2**62, 2**62]},
        {"shape": [-2, -3]},
        {"shape": float("inf")},
    ],
    ids=str,
)
def test_a_header_that_lies(path: Path, change: dict[str, object]) -> None:
    header, body = split(path.read_bytes())
    header["prompt_embeds.0"].update(change)
    assert refused_file(path, join(header, body)).reason == "EMBEDS_FILE_INVALID"


def test_metadata_that_is_not_what_zrelay_writes(path: Path) -> None:
    header, body = split(path.read_bytes())
    wrong: tuple[object, ...] = (
        7,
        None,
        {},
        [],
        "",
        "[]",
        "{",
        '{"segments": 3}',
        '{"segments": [{}]}',
        "[" * 99_000,
        '{"x":"\ud800"}',
    )
    for said in wrong:
        changed = json.loads(json.dumps(header))
        changed["__metadata__"]["prompt_embeds"] = said
        refused_file(path, join(changed, body))
    header["__metadata__"]["prompt"] = "\ud800"
    refused_file(path, join(header, body))
    header["__metadata__"]["prompt"] = "a fox"
    del header["prompt_embeds.0"]["dtype"]
    refused_file(path, join(header, body))
    del header["prompt_embeds.0"]
    refused_file(path, join(header, body))


def test_a_file_over_the_message_limit(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(100 << 20)
    with pytest.raises(InvalidArgument, match="at most 67108864 bytes"):
        embeds_file.read(path)


@settings(max_examples=100)
@given(st.integers(0, 2**32), st.sampled_from(["bytes", "header", "noise"]))
def test_never_fails_in_any_other_way(seed: int, how: str) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fox.safetensors"
        embeds_file.write(path, example())
        raw = bytearray(path.read_bytes())
        if how == "noise":
            raw = bytearray(rng.randbytes(rng.randrange(60)))
        for _ in range(rng.randrange(1, 6)):
            if raw:
                at = rng.randrange(len(raw) if how == "bytes" else min(1200, len(raw)))
                raw[at] = rng.choice((rng.randrange(256), *b'0{}[],":'))
        path.write_bytes(raw)
        with contextlib.suppress(InvalidArgument, PayloadCorrupt):
            embeds_file.read(path)
