"""Checks the files of a tokenizer, and provides them to transformers. Loads no library."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from zrelay_shared.chat_templates import TEMPLATE_FILE, TEMPLATE_FOLDER
from zrelay_shared.checkpoint_files import is_broken_link, join, read_json, read_text, refusal, without_byte_order_marks
from zrelay_shared.strict_json import shown

FAST_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Values of tokenizer_class by which transformers loads tokenizer.json as it is."""

_QWEN_CLASSES = (None, "Qwen2Tokenizer", "Qwen2TokenizerFast")
_SLOW_FILES = ("vocab.json", "merges.txt")
_MAX_TOKEN_ID = 1 << 20
"""The largest vocabularies have 262,144 tokens. The tokenizer allocates memory up to the largest id: 2^31 took three
minutes."""
_OPTIONAL_JSON = ("vocab.json", "added_tokens.json", "special_tokens_map.json")


def has_tokenizer(folder: Path) -> bool:
    """Returns whether a folder has the files of a tokenizer: tokenizer.json, or vocab.json with merges.txt."""
    return (folder / FAST_FILE).is_file() or all((folder / name).is_file() for name in _SLOW_FILES)


def check_tokenizer(root: Path, inside: str) -> Path:
    """Checks the files of the tokenizer in `root/inside` without loading it, and returns that folder.

    Raises:
        CheckpointError: A file is missing or damaged, or the tokenizer is none of Qwen2's.
    """
    folder = root / inside
    for name in (FAST_FILE, CONFIG_FILE, *_SLOW_FILES, *_OPTIONAL_JSON, TEMPLATE_FILE):
        if is_broken_link(folder / name):
            raise refusal(root, join(inside, name), "is missing", "copy it again")
    if not has_tokenizer(folder):
        raise refusal(
            root,
            join(inside, FAST_FILE),
            "is missing",
            "a text encoder needs its tokenizer: tokenizer.json (or vocab.json and merges.txt), tokenizer_config.json "
            "and its chat template; copy them from the same checkpoint",
        )
    config = read_json(root, join(inside, CONFIG_FILE))
    kind = config.get("tokenizer_class")
    if config.get("auto_map"):
        raise refusal(
            root,
            join(inside, CONFIG_FILE),
            "names code of the checkpoint (auto_map)",
            "such code is never run; use a checkpoint whose tokenizer_class is Qwen2Tokenizer",
        )
    if kind not in _QWEN_CLASSES + GENERIC_CLASSES:
        raise refusal(
            root,
            join(inside, CONFIG_FILE),
            f"says tokenizer_class {kind!r}, expected Qwen2Tokenizer",
            "this folder holds another model's tokenizer; copy the right one from the checkpoint",
        )
    declared = config.get("added_tokens_decoder")
    keys = declared if isinstance(declared, dict) else ()
    ids = (int(key) if len(key) < 20 and key.isdecimal() else key for key in keys)
    _check_ids(root, join(inside, CONFIG_FILE), ids)
    if (folder / FAST_FILE).is_file():
        whole = read_json(root, join(inside, FAST_FILE))
        model = whole.get("model")
        found = model.get("type", "BPE") if isinstance(model, dict) else None
        if found != "BPE":
            raise refusal(
                root,
                join(inside, FAST_FILE),
                f"says model type {found!r}, expected 'BPE'",
                "copy it from the checkpoint",
            )
        vocabulary, added = model.get("vocab") if isinstance(model, dict) else None, whole.get("added_tokens")
        _check_ids(root, join(inside, FAST_FILE), vocabulary.values() if isinstance(vocabulary, dict) else ())
        tokens = added if isinstance(added, list) else ()
        _check_ids(root, join(inside, FAST_FILE), (one.get("id", 0) for one in tokens if isinstance(one, dict)))
    elif kind in GENERIC_CLASSES:
        raise refusal(root, join(inside, FAST_FILE), "is missing", f"tokenizer_class {kind!r} needs it; copy it again")
    for name in _OPTIONAL_JSON:
        if (folder / name).is_file():
            content = read_json(root, join(inside, name))
            if name != "special_tokens_map.json":
                _check_ids(root, join(inside, name), content.values())
    if (folder / "merges.txt").is_file():
        read_text(root, join(inside, "merges.txt"))
    return folder


def _check_ids(root: Path, file: str, ids: Iterable[object]) -> None:
    for one in ids:
        if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one <= _MAX_TOKEN_ID:
            problem = f"has token id {shown(one)}, expected a whole number of at most {_MAX_TOKEN_ID:,}"
            raise refusal(root, file, problem, "it is damaged; copy it again")


def readable_tokenizer(folder: Path) -> AbstractContextManager[Path]:
    """Provides a tokenizer's folder to transformers, which cannot read files that begin with a byte order mark."""
    known = [FAST_FILE, CONFIG_FILE, *_OPTIONAL_JSON, "merges.txt", "config.json", TEMPLATE_FILE]
    # tokenizer.NUMBER.json for other versions of transformers; *.model of SentencePiece
    others = [path.name for pattern in ("tokenizer.*.json", "*.model") for path in folder.glob(pattern)]
    templates = [f"{TEMPLATE_FOLDER}/{path.name}" for path in (folder / TEMPLATE_FOLDER).glob("*.jinja")]
    return without_byte_order_marks(folder, [*known, *others, *templates])
