"""Turns a saved pipeline folder into a bundle: removes local paths, keeps tokenizer ids stable, adds zrelay.json."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_PATH_KEYS = ("_name_or_path", "name_or_path", "is_local", "local_files_only")


@dataclass(frozen=True)
class Defaults:
    """Content of zrelay.json: the checkpoint's name and the default options, named as in diffusers."""

    name: str = "zrelay-demo"
    width: int = 128
    height: int = 128
    num_inference_steps: int = 8
    guidance_scale: float = 0.0
    shift: float = 3.0
    max_sequence_length: int = 512


def tidy(folder: Path, defaults: Defaults) -> None:
    """Changes a pipeline folder in place so that it can be distributed."""
    for path in sorted(folder.rglob("*.json")):
        if path.name not in ("tokenizer.json", "vocab.json"):
            without_paths(path)
    _tokenizer_files(folder / "tokenizer")
    index = _read(folder / "model_index.json")
    index["text_encoder"] = ["transformers", "Qwen3Model"]
    _write(folder / "model_index.json", index)
    _write(folder / "zrelay.json", asdict(defaults))


def size_bytes(folder: Path) -> int:
    """Returns the total size of all files under `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def without_paths(path: Path) -> None:
    """Removes the keys that hold local paths from a JSON file."""
    config = _read(path)
    for key in _PATH_KEYS:
        config.pop(key, None)
    _write(path, config)


def _tokenizer_files(folder: Path) -> None:
    """Writes vocab.json, merges.txt and `added_tokens_decoder`, so that every loader gives the same ids.

    transformers 5 saves the special tokens only in tokenizer.json; a loader that reads vocab.json and merges.txt would
    give them other ids.
    """
    whole = _read(folder / "tokenizer.json")
    vocab, merges = whole["model"]["vocab"], whole["model"]["merges"]
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in merges)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
    config = _read(folder / "tokenizer_config.json")
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = whole["added_tokens"]
    config["added_tokens_decoder"] = {str(token["id"]): {key: token[key] for key in fields} for token in added}
    _write(folder / "tokenizer_config.json", config)


def _read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
