"""Reads the chat template of a checkpoint from all places where transformers keeps one, in transformers' order."""

from collections.abc import Mapping
from pathlib import Path

from zrelay_shared.checkpoint_files import join, read_json, read_text, refusal
from zrelay_shared.errors import listed

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
_DEFAULT = "default"
_REMEDY = "prompts are formatted with it; copy it from the same checkpoint"
_TOKENIZER_ORDER = ("", "tokenizer_config.json", "chat_template.json")
_PROCESSOR_ORDER = ("processor_config.json", "chat_template.json", "", "tokenizer_config.json")


def read_chat_template(root: Path, inside: str, *, processor: bool = False) -> str:
    r"""Returns the chat template in the folder `root/inside`, with \n as line end.

    Of several named templates it is the one named `default`. The first place that has a template counts:

    - a tokenizer: chat_template.jinja with additional_chat_templates/, tokenizer_config.json, chat_template.json;
    - a processor: processor_config.json, chat_template.json, then as a tokenizer.

    Args:
        root: The folder as the user gave it, for messages.
        inside: The folder with the files, relative to `root`.
        processor: Whether the template belongs to the processor of a multimodal model.

    Raises:
        CheckpointError: There is no template, none is named `default`, or a file is damaged.
    """
    for file in _PROCESSOR_ORDER if processor else _TOKENIZER_ORDER:
        templates = _in_config(root, join(inside, file)) if file else _in_files(root, inside)
        if templates:
            shown = join(inside, file or TEMPLATE_FOLDER)
            if _DEFAULT not in templates:
                names = listed(sorted(templates))
                raise refusal(root, shown, f"has no chat template named {_DEFAULT!r}, only {names}", _REMEDY)
            return templates[_DEFAULT]
    problem = "is missing, and tokenizer_config.json has no chat_template"
    raise refusal(root, join(inside, TEMPLATE_FILE), problem, _REMEDY)


def _in_files(root: Path, inside: str) -> Mapping[str, str]:
    """Returns the templates that have files of their own, by name."""
    files = {path.stem: join(inside, f"{TEMPLATE_FOLDER}/{path.name}") for path in _extra_files(root / inside)}
    single = join(inside, TEMPLATE_FILE)
    if not (root / single).is_file():
        return {name: _text(root, file) for name, file in files.items()}
    text = _text(root, single)
    if (other := files.pop(_DEFAULT, None)) and _text(root, other) != text:
        raise refusal(root, single, f"and {other} are different default chat templates", "remove one of them")
    return {_DEFAULT: text} | {name: _text(root, file) for name, file in files.items()}


def _extra_files(folder: Path) -> list[Path]:
    return sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))


def _text(root: Path, file: str) -> str:
    text = read_text(root, file)
    if not text.strip():
        raise refusal(root, file, "is empty", "it should hold a chat template; copy it again")
    return text


def _in_config(root: Path, file: str) -> Mapping[str, str]:
    """Returns the field `chat_template`: one template, a list of named ones, or an object of named ones."""
    found = read_json(root, file).get("chat_template") if (root / file).is_file() else None
    if not found:
        return {}
    if isinstance(found, str):
        return {_DEFAULT: found}
    items = found.items() if isinstance(found, dict) else _named(found)
    if not (items and all(isinstance(name, str) and isinstance(text, str) and text.strip() for name, text in items)):
        raise refusal(
            root, file, "has a chat_template that is neither a text nor named texts", "copy it again from its source"
        )
    return dict(items)


def _named(found: object) -> list[tuple[object, object]]:
    entries = [entry if isinstance(entry, dict) else {} for entry in found] if isinstance(found, list) else []
    return [(entry.get("name"), entry.get("template")) for entry in entries]
