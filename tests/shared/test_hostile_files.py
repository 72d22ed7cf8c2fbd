"""Files that are made to do harm: safetensors headers, embeddings, JSON of checkpoints, and the configuration file.

Each is refused with the one exception of its reader, in linear time, with a short message that a terminal can show.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.refusals import refused
from zrelay_demo import CHECKPOINT
from zrelay_shared import config, embeds_file, reference_file, safetensors_file, strict_json, vision_file
from zrelay_shared.checkpoint_files import find_weights, read_json
from zrelay_shared.errors import CheckpointError, InvalidArgument, ZrelayError
from zrelay_shared.safetensors_header import SafetensorsError, read_header
from zrelay_shared.tokenizer_files import check_tokenizer

pytestmark = pytest.mark.hostile

_LONGEST_MESSAGE = 1500
_LIMIT_S = 5.0
"""Ten times what the slowest of these takes, and a third of what each took when its time was quadratic."""


def header_file(path: Path, header: bytes) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"0000")
    return path


def tensor(**changes: str) -> bytes:
    """Returns a header of one tensor, some fields of which are other JSON texts."""
    fields = {"dtype": '"F32"', "shape": "[1]", "data_offsets": "[0,4]"} | changes
    return f'{{"a":{{{",".join(f"{json.dumps(key)}:{value}" for key, value in fields.items())}}}}}'.encode()


def metadata(value: str) -> bytes:
    return f'{{"__metadata__":{value}}}'.encode()


def numbers(count: int, digits: int) -> str:
    return f"[{','.join(['9' * digits] * count)}]"


HEADERS = {
    "a shape of numbers of 4,299 digits, 1.7 MB": tensor(shape=numbers(400, 4299)),
    "a shape of 200,000 dimensions": tensor(shape=numbers(200_000, 1)),
    "a shape whose product has 1,200 digits": tensor(shape=numbers(64, 19)),
    "offsets of 4,299 digits": tensor(data_offsets=f"[0,{'9' * 4299}]"),
    "a number of 5,000 digits": tensor(shape=f"[{'1' * 5000}]"),
    "an offset beyond any file": tensor(shape=f"[{1 << 62}]", data_offsets=f"[0,{1 << 64}]"),
    "a dtype that cannot be hashed": tensor(dtype="[]"),
    "a fraction as a dimension": tensor(shape="[1.0]"),
    "a dimension that is true": tensor(shape="[true]"),
    "an infinite dimension": tensor(shape="[1e999]"),
    "NaN": metadata('{"a":NaN}'),
    "metadata that is a list": metadata("[]"),
    "metadata that is a number": metadata('{"a":1}'),
    "metadata of 900 levels": metadata(f'{{"a":{"[" * 900}{"]" * 900}}}'),
    "metadata of 100,000 levels": metadata("[" * 100_000),
    "five million empty lists": metadata(f"[{'[],' * 2_500_000}[]]"),
    "metadata named twice": b'{"__metadata__":{},"__metadata__":{}}',
    "a tensor named twice": b'{"a":1,"a":1}',
    "half of a surrogate pair": b'{"\\ud800":1}',
    "a name that moves the cursor": b'{"\\u001b[2J":1}',
    "a name that runs from right to left": '{"\u202e":1}'.encode(),
    "a name of a megabyte": f'{{"{"x" * 1_000_000}":1}}'.encode(),
    "a dtype of a megabyte": tensor(dtype=json.dumps("x" * 1_000_000)),
    "no UTF-8": b'{"\xff":1}',
    "UTF-16": "{}".encode("utf-16"),
    "nothing": b"",
}


def check_message(error: Exception) -> None:
    message = str(error)
    assert len(message) <= _LONGEST_MESSAGE and message.isprintable(), ascii(message[:200])


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_is_one_exception_in_linear_time(tmp_path: Path, name: str) -> None:
    path = header_file(tmp_path / "m.safetensors", HEADERS[name])
    started = time.monotonic()
    for read in (read_header, lambda path: safetensors_file.read(path, max_bytes=1 << 26)):
        with pytest.raises(SafetensorsError) as caught:
            read(path)
        check_message(caught.value)
    assert time.monotonic() - started < _LIMIT_S


@pytest.mark.parametrize("read", [embeds_file.read, vision_file.read, reference_file.read], ids=lambda f: f.__module__)
@pytest.mark.parametrize("name", ["a shape of numbers of 4,299 digits, 1.7 MB", "NaN", "half of a surrogate pair"])
def test_a_hostile_header_of_our_own_formats_is_refused(
    tmp_path: Path, read: Callable[[Path], object], name: str
) -> None:
    path = header_file(tmp_path / "m.safetensors", HEADERS[name])
    check_message(refused(lambda: read(path), InvalidArgument))


MESSAGES = {
    "numbers that are too long": f'{{"fingerprint":{{"width":{"1" * 4000}}}}}',
    "levels": '{"segments":' * 200 + "1" + "}" * 200,
    "a million dimensions": f'{{"segments":[{{"prompt_embeds":{{"shape":{numbers(1_000_000, 1)}}}}}]}}',
    "a number for an object": '{"fingerprint":1}',
    "a list for an object": "[]",
    "null": "null",
    "NaN": '{"fingerprint":{"layer_weights":[{"weight":NaN}]}}',
    "a key twice": '{"segments":[],"segments":[]}',
    "half of a surrogate pair": '{"fingerprint":{"model_id":"\\ud800"}}',
}


@pytest.mark.parametrize("name", MESSAGES)
def test_hostile_messages_in_the_metadata_are_refused(tmp_path: Path, name: str) -> None:
    started = time.monotonic()
    for module, keys in ((embeds_file, ("prompt_embeds",)), (vision_file, ("images",)), (reference_file, ("encoder",))):
        path = tmp_path / "m.safetensors"
        texts = {"format": module.FORMAT, **dict.fromkeys(keys, MESSAGES[name])}
        safetensors_file.write(path, [], texts)
        check_message(refused(lambda module=module, path=path: module.read(path), InvalidArgument))  # type: ignore[misc]
    assert time.monotonic() - started < _LIMIT_S


JSON_TEXTS = {
    "[" * 100_000: "levels",
    "[" * 65 + "]" * 65: "levels",
    '{"a":' * 65 + "1" + "}" * 65: "levels",
    "1" * 65: "65 characters",
    "-" + "1" * 4299: "4,300 characters",
    "0." + "1" * 100_000: "100,002 characters",
    "1e999": "too large",
    "NaN": "NaN",
    "[-Infinity]": "-Infinity",
    '{"a":1,"b":{"c":1,"c":2}}': "'c' twice",
    '"\\uD800"': "surrogate",
    '["\\udfff\\ud800"]': "surrogate",
    "[" + "1," * 4_000_000 + "1]": "4,000,000 values",
    "{": "line 1, column 2",
    "": "not JSON",
}


@pytest.mark.parametrize("text", JSON_TEXTS, ids=lambda text: text[:20])
def test_hostile_json_is_one_exception(tmp_path: Path, text: str) -> None:
    with pytest.raises(strict_json.JsonError, match=JSON_TEXTS[text]):
        strict_json.parse(text)
    (tmp_path / "config.json").write_text(text)
    check_message(refused(lambda: read_json(tmp_path, "config.json"), CheckpointError))


def test_json_within_the_limits_is_read_as_the_library_does() -> None:
    text = json.dumps({"max": 10**30, "a": [1.5, -1e308, 5e-324, True, None, "\ud83d\ude00", {"": []}], "b": "\\ud800"})
    assert strict_json.parse(text) == strict_json.parse(text.encode()) == json.loads(text)
    deep = "[" * strict_json.MAX_DEPTH + "]" * strict_json.MAX_DEPTH
    assert strict_json.parse(deep) == json.loads(deep)


@pytest.mark.parametrize(
    "weight_map",
    [{"a": "x" * 300 + ".safetensors"}, {"a": "\0.safetensors"}, {"a": "/etc/a.safetensors"}, {"a": "../a.safetensors"},
     {"a": "\x1b[2J.safetensors"}, {"a": "x" * 1_000_000}, {"a": 1}, {"a": []}, [], {}],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_a_hostile_index_is_refused(tmp_path: Path, weight_map: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    check_message(refused(lambda: find_weights(tmp_path, "", "model", {}), CheckpointError))


@pytest.mark.parametrize("token_id", [2**31, 10**60, -1, True, None, "1", [1]], ids=str)
@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("tokenizer.json", ("model", "vocab", "!")),
        ("tokenizer.json", ("added_tokens", 0, "id")),
        ("vocab.json", ("!",)),
    ],
)
def test_a_token_id_that_would_allocate_gigabytes_is_refused(
    tmp_path: Path, file: str, place: tuple[Any, ...], token_id: object
) -> None:
    folder = Path(shutil.copytree(CHECKPOINT / "tokenizer", tmp_path / "tokenizer"))
    content = json.loads((folder / file).read_text())
    inside = content
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = token_id
    (folder / file).write_text(json.dumps(content))
    check_message(refused(lambda: check_tokenizer(tmp_path, "tokenizer"), CheckpointError, match="token id"))


@pytest.mark.parametrize("token_id", ["2147483648", "-1", "x", "9" * 5000, "\u0663" * 20], ids=lambda text: text[:12])
def test_a_declared_token_id_is_bounded(tmp_path: Path, token_id: str) -> None:
    folder = Path(shutil.copytree(CHECKPOINT / "tokenizer", tmp_path / "tokenizer"))
    file = folder / "tokenizer_config.json"
    declared = {"added_tokens_decoder": {token_id: {"content": "a"}}}
    file.write_text(json.dumps(json.loads(file.read_text()) | declared))
    check_message(refused(lambda: check_tokenizer(tmp_path, "tokenizer"), CheckpointError, match="token id"))


CONFIGURATIONS = {
    "levels": "a=" + "[" * 5000 + "]" * 5000,
    "tables in tables": "a={" + "a={" * 3000 + "}" * 3001,
    "a long number": "a=" + "9" * 5000,
    "a key of 100,000 parts": "a." * 100_000 + "a=1",
    "a table of 100,000 parts": "[" + "a." * 100_000 + "a]",
    "two megabytes": "#" * 2_000_000,
    "a value of a megabyte": f"profile='{'x' * 1_000_000}'",
    "a name of a megabyte": f"{'x' * 1_000_000}=1",
    "a name that moves the cursor": '"\\u001b[2J"=1',
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_hostile_configuration_file_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(CONFIGURATIONS[name])
    started = time.monotonic()
    with pytest.raises(ZrelayError) as caught:
        config.read(file)
    assert len(caught.value.message) <= _LONGEST_MESSAGE, len(caught.value.message)
    assert time.monotonic() - started < _LIMIT_S
