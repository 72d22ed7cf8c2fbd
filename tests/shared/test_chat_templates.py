"""The chat template is the one that transformers takes, from whichever file a version of it wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from transformers import AutoTokenizer, Qwen3VLProcessor

from tests.helpers.refusals import refused
from zrelay_shared.chat_templates import read_chat_template
from zrelay_shared.errors import CheckpointError

DEMO = Path(__file__).parents[2] / "demo/zrelay_demo/checkpoint/tokenizer"
NAMED = [{"name": "default", "template": "named"}, {"name": "tool_use", "template": "tools"}]

Write: TypeAlias = Callable[[Path], None]


def write(**files: object) -> Write:
    """Returns a function that writes files: texts of templates, and the field chat_template of JSON files."""
    names = {"jinja": "chat_template.jinja", "config": "tokenizer_config.json", "json": "chat_template.json"}
    names |= {"processor": "processor_config.json"}

    def apply(folder: Path) -> None:
        for key, content in files.items():
            path = folder / names.get(key, f"additional_chat_templates/{key}.jinja")
            path.parent.mkdir(exist_ok=True)
            text = content if path.suffix == ".jinja" else json.dumps({"chat_template": content})
            path.write_text(str(text), encoding="utf-8")

    return apply


TOKENIZERS: dict[str, tuple[Write, str]] = {
    "file": (write(jinja="file", config="config"), "file"),
    "field": (write(config="config"), "config"),
    "named": (write(config=NAMED), "named"),
    "named in an object": (write(config={"default": "named", "rag": "x"}), "named"),
    "file and folder": (write(jinja="file", rag="x", config=NAMED), "file"),
    "folder alone": (write(default="folder", rag="x", config="config"), "folder"),
    "the same twice": (write(jinja="file", default="file"), "file"),
    "named, but empty": (write(jinja="file", config=[]), "file"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer(tmp_path: Path, name: str) -> None:
    files, wanted = TOKENIZERS[name]
    files(tmp_path)
    assert read_chat_template(tmp_path, "") == wanted
    for file in ("tokenizer.json", "vocab.json", "merges.txt"):
        (tmp_path / file).write_bytes((DEMO / file).read_bytes())
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(config | {"tokenizer_class": "Qwen2Tokenizer"}))
    assert AutoTokenizer.from_pretrained(tmp_path).get_chat_template() == wanted


PROCESSORS: dict[str, tuple[Write, str]] = {
    "file": (write(jinja="file", config="config"), "file"),
    "folder": (write(jinja="file", rag="x"), "file"),
    "older file": (write(jinja="file", json="older"), "older"),
    "processor": (write(jinja="file", json="older", processor="processor"), "processor"),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor(tmp_path: Path, name: str) -> None:
    files, wanted = PROCESSORS[name]
    files(tmp_path)
    assert read_chat_template(tmp_path, "", processor=True) == wanted
    found = Qwen3VLProcessor.get_processor_dict(tmp_path)[0]["chat_template"]
    assert (found if isinstance(found, str) else found["default"]) == wanted


def test_where_only_zrelay_looks(tmp_path: Path) -> None:
    """transformers reads chat_template.json for processors alone, tokenizer_config.json for tokenizers alone."""
    write(json="older")(tmp_path)
    assert read_chat_template(tmp_path, "") == "older"
    (tmp_path / "chat_template.json").unlink()
    write(config=NAMED)(tmp_path)
    assert read_chat_template(tmp_path, "", processor=True) == "named"


REFUSED: dict[str, tuple[Write, str]] = {
    "nothing": (write(), "chat_template.jinja is missing, and tokenizer_config.json has no chat_template"),
    "no default": (
        write(config=[{"name": "tool_use", "template": "x"}, {"name": "rag", "template": "y"}]),
        "tokenizer_config.json has no chat template named 'default', only rag, tool_use",
    ),
    "no default in the folder": (
        write(rag="x", config="config"),
        "additional_chat_templates has no chat template named 'default', only rag",
    ),
    "two defaults": (
        write(jinja="one", default="two"),
        "chat_template.jinja and additional_chat_templates/default.jinja are different default chat templates",
    ),
    "an empty file": (write(jinja=" \n"), "chat_template.jinja is empty"),
    "a number": (write(config=7), "tokenizer_config.json has a chat_template that is neither a text nor named texts"),
    "a list of texts": (write(config=["a"]), "neither a text nor named texts"),
    "a name without a text": (write(config=[{"name": "default"}]), "neither a text nor named texts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path: Path, name: str) -> None:
    files, message = REFUSED[name]
    files(tmp_path)
    assert message in refused(lambda: read_chat_template(tmp_path, ""), CheckpointError).message


def test_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    for file in ("chat_template.jinja", "additional_chat_templates/default.jinja"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
        assert read_chat_template(tmp_path, "") == "a\nb\n"
        (tmp_path / file).write_bytes("a".encode("utf-16"))
        assert "is UTF-16" in refused(lambda: read_chat_template(tmp_path, ""), CheckpointError).message
        (tmp_path / file).unlink()
