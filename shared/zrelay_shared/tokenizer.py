"""Loads the tokenizer of a Qwen3 or Qwen3-VL checkpoint, and computes its identity from what was loaded.

Encoder, vision service and generator use the same function, so that a digest describes how the encoder tokenizes. The
digests do not depend on how the tokenizer is stored: with or without tokenizer.json, by which version of transformers.
transformers is imported when a tokenizer is loaded.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from zrelay_shared.checkpoint_files import read_json, refusal
from zrelay_shared.errors import CheckpointError, listed
from zrelay_shared.tokenizer_files import CONFIG_FILE, FAST_FILE, GENERIC_CLASSES, readable_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Json: TypeAlias = Mapping[str, Any]

_PAD_TOKEN = "<|endoftext|>"
_SPECIAL_NAMES = (
    "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end vision_start "
    "vision_end vision_pad image_pad video_pad"
)
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_SPECIAL = frozenset(f"<|{name}|>" for name in _SPECIAL_NAMES.split())
"""Tokens that are written as special, whatever their flag: it changes no ids, unless special tokens are split."""
_FOR_UNKNOWN_CHARACTERS = ("unk_token", "fuse_unk", "byte_fallback")
_IDEMPOTENT = ("NFC", "NFD", "NFKC", "NFKD")
"""Normalisers that change nothing when they run again."""
_CHANGING_NAMES = ("strftime_now", "lipsum")
"""Functions of chat templates whose result is another one each time. The filter `random` is one too."""
_TEMPLATE_VARIABLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class TokenizerIdentity:
    """Digests of a loaded tokenizer.

    Attributes:
        tokenizer_digest: SHA-256 (hex) of everything that determines token ids.
        chat_template_digest: SHA-256 (hex) of its chat template.
    """

    tokenizer_digest: str
    chat_template_digest: str


def load_tokenizer(folder: Path, chat_template: str) -> "PreTrainedTokenizerBase":
    """Loads a tokenizer that `check_tokenizer` has checked.

    Args:
        folder: The folder with its files.
        chat_template: The text of the template; templates in the folder are not used.

    Raises:
        CheckpointError: The tokenizer cannot be loaded, or it does not give a prompt the same ids every time.
    """
    _check_template(folder, chat_template)
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer  # slow, and not always needed

    config = read_json(folder, CONFIG_FILE)
    kind: Any = PreTrainedTokenizerFast if config.get("tokenizer_class") in GENERIC_CLASSES else Qwen2Tokenizer
    try:
        with readable_tokenizer(folder) as readable:
            tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(
                readable, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # transformers and tokenizers raise their own types for damaged files
        if keys := sorted(key for key in config if callable(getattr(kind, key, None))):
            problem = f"has {listed(keys)}, which is no setting that transformers can read"
            raise refusal(folder, CONFIG_FILE, problem, "remove it, or copy the file again") from error
        raise CheckpointError(
            f"{folder.name}: the tokenizer cannot be read ({type(error).__name__}); copy its files again from the "
            "checkpoint"
        ) from error
    tokenizer.chat_template = chat_template
    _check_loaded(folder, config, tokenizer)
    return tokenizer


def check_rows(folder: Path, tokenizer: "PreTrainedTokenizerBase", rows: int) -> None:
    """Checks that the embedding has a row for each token.

    Args:
        folder: The tokenizer's folder, for the message.
        tokenizer: The tokenizer with all added tokens.
        rows: Rows of the embedding, `vocab_size` of config.json.

    Raises:
        CheckpointError: The ids of some tokens are beyond the embedding.
    """
    beyond = sorted((at, token) for token, at in tokenizer.get_vocab().items() if at >= rows)
    if not beyond:
        return
    at, token = beyond[0]
    more = f" (and {len(beyond) - 1} more)" if len(beyond) > 1 else ""
    raise CheckpointError(
        f"{folder.name}: token {token!r} has id {at}{more}, but the embedding has {rows} rows (vocab_size in "
        "config.json); remove the tokens that were added to the tokenizer, or copy tokenizer and model again from one "
        "checkpoint",
        metadata={"file": folder.name, "token": token, "id": at, "rows": rows},
    )


def padding_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Returns the token id that pads prompts: `<|endoftext|>`, as in Qwen3, else the tokenizer's own pad token.

    Copies of a checkpoint that name another pad token, as some training programs write them, give the same ids.
    """
    found = tokenizer.backend_tokenizer.token_to_id(_PAD_TOKEN)
    return int(found if found is not None else tokenizer.pad_token_id or 0)


def identify_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> TokenizerIdentity:
    """Returns the digests of a tokenizer and of its chat template. `load_tokenizer` made the tokenizer."""
    return TokenizerIdentity(tokenizer_digest(tokenizer), template_digest(tokenizer, str(tokenizer.chat_template)))


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Returns the digest of everything in a loaded tokenizer that determines token ids: SHA-256 as 64 hex digits.

    This is the vocabulary, merges, added tokens, the normaliser, the pre-tokeniser and inserted tokens. Padding,
    truncation, decoding and the chat template do not count. Settings count where they differ from Qwen3's.
    """
    backend: Any = tokenizer.backend_tokenizer
    state: Json = json.loads(backend.to_str())
    added = {token["content"] for token in state["added_tokens"]}
    state = {**state, "model": _without_unreachable(state)}
    if tokenizer.split_special_tokens:
        state = {**state, "added_tokens": _found_when_split(state["added_tokens"])}
    decisive = _decisive(state) | {"post_processor": _inserted(tokenizer)}
    if tokenizer.split_special_tokens or _PAD_TOKEN not in added:
        decisive["padding_id"] = padding_id(tokenizer)
    return _sha256(_canonical(decisive))


def template_digest(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    r"""Returns the digest of a chat template.

    As in Jinja, newlines are read as \n and a final newline is ignored. The special tokens that the template can
    insert by name, for example `eos_token`, count where its text contains their name.
    """
    named = {name: str(value) for name in _TEMPLATE_VARIABLES if (value := getattr(tokenizer, name)) and name in text}
    content = text.replace("\r\n", "\n").removesuffix("\n").encode("utf-8")
    return _sha256(content + b"\n" + _canonical(named) if named else content)


def _check_template(folder: Path, text: str) -> None:
    """Refuses a template that does not format a prompt the same way every time. Raises CheckpointError."""
    import jinja2  # comes with transformers; the client has neither

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    try:
        tokens = [(kind, value) for _, kind, value in environment.lex(text) if kind != "whitespace"]
    except jinja2.TemplateSyntaxError:
        return  # formatting the first prompt fails with the reason
    names = {value for kind, value in tokens if kind == "name" and value in _CHANGING_NAMES}
    values = [value for _, value in tokens]
    piped = any(before in ("|", "filter") and value == "random" for before, value in pairwise(values))
    mapped = any(
        (name, bracket, value[1:-1]) == ("map", "(", "random")
        for name, bracket, value in zip(values, values[1:], values[2:], strict=False)
    )
    names |= {"random"} if piped or mapped else set()
    if names:
        raise CheckpointError(
            f"{folder.name}: the chat template uses {listed(sorted(names))}, so a prompt would get another text "
            "each time; use a template without it",
            metadata={"file": folder.name},
        )


def _check_loaded(folder: Path, config: Json, tokenizer: "PreTrainedTokenizerBase") -> None:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if type(getattr(backend, "model", None)).__name__ != "BPE":
        raise CheckpointError(f"{folder.name}: expected a byte-level BPE tokenizer, got {type(tokenizer).__name__}")
    if backend.model.dropout:
        raise refusal(
            folder,
            FAST_FILE,
            f"says dropout {backend.model.dropout}",
            "a text would get other ids each time; set it to null",
        )
    declared = config.get("added_tokens_decoder")
    for key, token in declared.items() if isinstance(declared, dict) else ():
        content = token.get("content") if isinstance(token, dict) else None
        if isinstance(content, str) and backend.token_to_id(content) != int(key):
            raise refusal(
                folder,
                CONFIG_FILE,
                f"says that {content!r} is token {key}, but it loads as {backend.token_to_id(content)}",
                "its added tokens and its vocabulary are of different tokenizers; copy all files again",
            )


def _decisive(state: Json) -> dict[str, object]:
    """Returns the part of a serialised `tokenizers.Tokenizer` that determines ids, without default settings."""
    settings, steps = dict(state["model"]), _steps(state["pre_tokenizer"], "pretokenizers")
    merges: Sequence[Any] = settings.pop("merges")
    if _is_byte_level(state) and settings["vocab"].keys() >= _BYTE_CHARACTERS:
        settings = {key: value for key, value in settings.items() if key not in _FOR_UNKNOWN_CHARACTERS}
    added = sorted(state["added_tokens"], key=lambda token: int(token["id"]))
    added = [token | {"special": token["content"] in _SPECIAL} for token in added]
    return {
        "model": _without_defaults(settings),
        "merges": [pair.split(" ") if isinstance(pair, str) else pair for pair in merges],
        "added_tokens": [_without_defaults(token) for token in added],
        "normalizer": _joined(_steps(state["normalizer"], "normalizers"), "normalizers"),
        "pre_tokenizer": _joined(steps, "pretokenizers"),
    }


def _without_unreachable(state: Json) -> Json:
    """Returns the model of a serialised tokenizer without entries of its vocabulary that no text can reach.

    The model finds an entry as a character, through a merge, as the unknown token, or, with `ignore_merges`, as a whole
    word. Affixes and byte fallback form further names. All other entries change nothing. Files list added tokens there
    too: an added token is found before the model runs, and has the same id without the entry.
    """
    model: Json = state["model"]
    if any(model.get(name) for name in ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")):
        return model
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    reached = {part for first, second in pairs for part in (first, second, first + second)} | {model.get("unk_token")}
    ids = {token["content"]: token["id"] for token in state["added_tokens"]}
    byte_level, byte_fallback = _is_byte_level(state), bool(model.get("byte_fallback"))

    def counts(content: str, at: int) -> bool:
        return (
            content in reached
            or (content in _BYTE_CHARACTERS if byte_level else len(content) == 1)
            or (byte_fallback and _BYTE_TOKEN.fullmatch(content) is not None)
            or ids.get(content, at) != at
        )

    return {**model, "vocab": {content: at for content, at in model["vocab"].items() if counts(content, at)}}


def _is_byte_level(state: Json) -> bool:
    """Returns whether the model reads byte characters and no others."""
    steps = _steps(state["pre_tokenizer"], "pretokenizers")
    return bool(steps) and steps[-1].get("type") == "ByteLevel"


def _found_when_split(added: Sequence[Json]) -> list[Json]:
    """Returns the added tokens that determine ids where texts are split at special tokens (`split_special_tokens`).

    A special token is then text like any other. It counts only where its content overlaps that of a plain token: the
    search for added tokens finds it first, and passes over the other one.
    """
    plain = [token for token in added if not token["special"]]
    special = [{**token, "split": True} for token in added if token["special"]]
    return plain + [one for one in special if any(_overlap(one["content"], other["content"]) for other in plain)]


def _overlap(one: str, other: str) -> bool:
    """Returns whether one text contains the other, or ends as the other begins."""
    sizes = range(1, min(len(one), len(other)))
    ends = any(one.endswith(other[:size]) or other.endswith(one[:size]) for size in sizes)
    return ends or one in other or other in one


def _without_defaults(settings: Json) -> dict[str, object]:
    """Returns the settings without null, false, "" and 0.0, which some writers leave out."""
    return {
        key: value
        for key, value in settings.items()
        if not (value is None or value is False or value == "" or (isinstance(value, float) and value == 0))
    }


def _steps(part: Json | None, members: str) -> list[Json]:
    """Returns the steps of a normaliser or pre-tokeniser, without nested sequences and repetitions.

    They have no `trim_offsets`, which changes character offsets but no ids.
    """
    if part is None:
        return []
    if part.get("type") == "Sequence":
        steps = [step for inner in part[members] for step in _steps(inner, members)]
        repeats = [one == other and one["type"] in _IDEMPOTENT for one, other in pairwise(steps)]
        return [step for step, again in zip(steps, [False, *repeats], strict=False) if not again]
    return [{key: value for key, value in part.items() if key != "trim_offsets"}]


def _joined(steps: Sequence[Json], members: str) -> object:
    if len(steps) > 1:
        return {"type": "Sequence", members: list(steps)}
    return steps[0] if steps else None


def _byte_characters() -> frozenset[str]:
    """Returns the 256 characters by which byte-level BPE writes bytes: printable ones, and those after 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return frozenset(map(chr, printable)) | frozenset(chr(256 + at) for at in range(256 - len(printable)))


def _inserted(tokenizer: "PreTrainedTokenizerBase") -> object:
    """Returns the ids of a text with the tokens that the post-processor inserts around it; None if it inserts none."""
    ids: list[int] = tokenizer("a", padding=False, truncation=False).input_ids
    bare: list[int] = tokenizer("a", padding=False, truncation=False, add_special_tokens=False).input_ids
    return None if ids == bare else ids


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


_BYTE_CHARACTERS = _byte_characters()
