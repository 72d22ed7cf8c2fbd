"""Digests of tokenizer and chat template that do not depend on how they are stored: SHA-256 as 64 hex digits."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from zrelay_shared.errors import CheckpointError


def tokenizer_digest(folder: Path) -> str:
    """Returns the digest of everything in a tokenizer's folder that determines token ids: vocabulary, merges, added
    tokens, normaliser and pre-tokenizer.

    It is read from tokenizer.json, else from vocab.json, merges.txt and the added tokens of tokenizer_config.json.
    Padding, truncation, decoding and the spelling of merges do not count.

    Raises:
        CheckpointError: The files are not those of a tokenizer.
    """
    try:
        if (folder / "tokenizer.json").is_file():
            decisive = _from_tokenizer_json(_load(folder / "tokenizer.json"))
        else:
            decisive = _from_vocab_and_merges(folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder.name}: its files are not what a tokenizer writes ({type(error).__name__}); copy them again"
        ) from error
    return _sha256(_canonical(decisive))


def template_digest(text: str) -> str:
    r"""Returns the digest of a chat template. As in Jinja, newlines are read as \n and a final newline is ignored."""
    return _sha256(text.replace("\r\n", "\n").removesuffix("\n").encode("utf-8"))


def _from_tokenizer_json(whole: Mapping[str, object]) -> object:
    model = whole.get("model")
    settings = dict(model) if isinstance(model, dict) else {}
    merges = settings.pop("merges", [])
    return {
        "model": _without_defaults(settings),
        "merges": [pair.split(" ") if isinstance(pair, str) else pair for pair in merges],
        "added_tokens": _added(whole.get("added_tokens")),
        "normalizer": whole.get("normalizer"),
        "pre_tokenizer": _without_offsets(whole.get("pre_tokenizer")),
        "post_processor": _inserted_tokens(whole.get("post_processor")),
    }


def _from_vocab_and_merges(folder: Path) -> object:
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    config = folder / "tokenizer_config.json"
    added = _load(config).get("added_tokens_decoder") if config.is_file() else None
    named = [{"id": int(key), **token} for key, token in added.items()] if isinstance(added, dict) else []
    return {
        "model": {"vocab": _load(folder / "vocab.json")},
        "merges": [line.split(" ") for line in lines if line and not line.startswith("#version")],
        "added_tokens": _added(named),
    }


def _added(tokens: object) -> object:
    found = tokens if isinstance(tokens, list) else []
    return sorted((_without_defaults(token) for token in found), key=lambda token: int(str(token["id"])))


def _without_defaults(settings: Mapping[str, object]) -> dict[str, object]:
    """Returns the settings without null, "" and false, which some writers leave out."""
    return {key: value for key, value in settings.items() if value is not None and value is not False and value != ""}


def _without_offsets(value: object) -> object:
    """Returns a pre-tokenizer without `trim_offsets`, which changes character offsets but no ids."""
    if isinstance(value, dict):
        return {key: _without_offsets(item) for key, item in value.items() if key != "trim_offsets"}
    return [_without_offsets(item) for item in value] if isinstance(value, list) else value


def _inserted_tokens(post_processor: object) -> object:
    """Returns a post-processor that adds ids; None for one that only changes offsets (ByteLevel) or adds nothing."""
    if not isinstance(post_processor, dict) or post_processor.get("type") == "ByteLevel":
        return None
    if post_processor.get("type") == "TemplateProcessing" and not post_processor.get("special_tokens"):
        return None
    return post_processor


def _load(path: Path) -> Mapping[str, object]:
    content: Mapping[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
