"""Digests of weights, tokenizer and chat template that do not depend on how they are stored.

All are SHA-256 as 64 hex digits. The digest of the weights covers the canonical tensors (names without the `model.`
prefix, no LM head), so that a re-sharded, re-saved or bare copy of the same model has the same digest.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path

from zrelay_shared import atomic
from zrelay_shared.checkpoints import ComponentFolder
from zrelay_shared.errors import CheckpointError
from zrelay_shared.paths import STATE_REMEDY
from zrelay_shared.safetensors_header import TensorEntry, read_header

CHUNK_BYTES = 4 * 1024 * 1024
_CACHE_VERSION = 1
_PREFIX = "model."
_LM_HEAD = "lm_head."

log = logging.getLogger(__name__)


def weights_digest(
    component: ComponentFolder, *, cache: Path | None = None, progress: Callable[[int], None] | None = None
) -> str:
    """Returns the digest of a component's tensors: SHA-256 of the sorted lines [name, dtype, shape, SHA-256 of bytes].

    Args:
        component: The component; its files are read once, sequentially, `CHUNK_BYTES` at a time.
        cache: Folder for digests, keyed by path, size, mtime and inode of the files. A hit reads no weights.
        progress: Called with the number of bytes of each chunk.

    Raises:
        CheckpointError: A file has changed while it was read.
    """
    identity = _identity(component.weights)
    entry = None if cache is None else cache / f"weights-{_sha256(str(component.path.resolve()).encode())[:24]}.json"
    if entry is not None and (known := _cached(entry, identity)) is not None:
        return known
    log.info(
        "reading %.1f GB of weights for their digest", sum(path.stat().st_size for path in component.weights) / 1e9
    )
    digest = _digest_tensors(_hashed_tensors(component.weights, progress or _ignore))
    if _identity(component.weights) != identity:
        raise CheckpointError(f"{component.path.name}: its weights changed while they were read; start again")
    if entry is not None:
        _remember(entry, identity, digest)
    return digest


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


def canonical_name(name: str) -> str | None:
    """Returns the name of a tensor without its `model.` prefix; None for the LM head, which no encoder runs."""
    bare = name.removeprefix(_PREFIX)
    return None if bare.startswith(_LM_HEAD) else bare


def _ignore(_: int) -> None:
    return


def _hashed_tensors(
    files: Sequence[Path], progress: Callable[[int], None]
) -> Iterator[tuple[str, str, Sequence[int], str]]:
    buffer = bytearray(CHUNK_BYTES)
    for path in files:
        entries = read_header(path)
        with path.open("rb", buffering=0) as file:
            for entry in entries:
                name = canonical_name(entry.name)
                if name is not None:
                    yield name, entry.dtype, entry.shape, _hash_range(file, entry, buffer, progress)


def _hash_range(file: FileIO, entry: TensorEntry, buffer: bytearray, progress: Callable[[int], None]) -> str:
    digest, view, at = hashlib.sha256(), memoryview(buffer), entry.begin
    file.seek(at)
    while at < entry.end:
        got = file.readinto(view[: min(len(buffer), entry.end - at)])
        if got == 0:
            raise CheckpointError(f"tensor {entry.name!r}: the file ended at byte {at}, expected {entry.end}")
        digest.update(view[:got])
        progress(got)
        at += got
    return digest.hexdigest()


def _digest_tensors(tensors: Iterator[tuple[str, str, Sequence[int], str]]) -> str:
    lines: dict[str, bytes] = {}
    for name, dtype, shape, bytes_digest in tensors:
        if name in lines:
            raise CheckpointError(f"tensor {name!r} occurs twice in the weights; copy the checkpoint again")
        lines[name] = _canonical([name, dtype, list(shape), bytes_digest])
    return _sha256(b"\n".join(lines[name] for name in sorted(lines)))


def _identity(files: Sequence[Path]) -> list[list[object]]:
    stats = [(path.resolve(), path.stat()) for path in files]
    return [[str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino] for path, stat in stats]


def _cached(entry: Path, identity: list[list[object]]) -> str | None:
    """Returns the cached digest of exactly these files; None if there is none, or the entry is damaged or outdated."""
    try:
        kept = json.loads(entry.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    if not isinstance(kept, dict) or kept.get("version") != _CACHE_VERSION or kept.get("files") != identity:
        return None
    digest = kept.get("digest")
    return digest if isinstance(digest, str) and len(digest) == 64 else None


def _remember(entry: Path, identity: list[list[object]], digest: str) -> None:
    """Writes a cache entry atomically. A failure only costs time at the next start, so it is logged and not raised."""
    content = json.dumps({"version": _CACHE_VERSION, "files": identity, "digest": digest})
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(entry, content.encode())
    except OSError as error:
        log.warning(
            "the digest of the weights cannot be cached in %s (%s), and the next start reads them again: make the "
            "folder writable, or %s",
            entry.parent,
            error.strerror,
            STATE_REMEDY,
        )


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
