"""Writes docs/reference/contract.md from the .proto files and their comments: `python docs/_generators/contract.py`.

`buf` compiles the files, because the generated Python code holds no comments.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/contract.md"
_PACKAGE = ".zrelay.v1."
_START = """\
# The contract

<!-- Written by docs/_generators/contract.py from proto/zrelay/v1; do not edit. -->

This page lists every call, message and enum of the package `zrelay.v1`, with the comments of the `.proto` files. The
rules that hold across calls (tensors, checks, limits, deadlines, repeated requests) are in [The protocol](protocol.md).

*optional* marks a field whose absence differs from its zero value.
"""
_ORDER = ("encoder", "vision", "generator", "generation", "jobs", "embeds", "tensor", "info", "pairing")
"""Order of the files on the page; others follow by name."""
_SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in FieldDescriptorProto.Type.items()
    if name not in ("TYPE_MESSAGE", "TYPE_ENUM", "TYPE_GROUP")
}


def page() -> str:
    """Returns the text of the page."""
    files = sorted(_files(), key=_place)
    parts = [_START]
    for file in files:
        comments = _Comments(file)
        parts.append(f"\n## {Path(file.name).name}\n\n{comments.of_file}\n")
        for index, service in enumerate(file.service):
            parts += _service(service, comments, (6, index))
        for index, message in enumerate(file.message_type):
            parts += _message(message, comments, (4, index))
        for index, enum in enumerate(file.enum_type):
            parts += _enum(enum, comments, (5, index))
    return "".join(parts)


def _files() -> list[FileDescriptorProto]:
    """Compiles the contract.

    Raises:
        SystemExit: `buf` is not installed, or a file does not compile.
    """
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    if buf is None:
        raise SystemExit("buf is missing: pip install buf-bin")
    built = subprocess.run([buf, "build", "-o", "-"], cwd=ROOT / "proto", capture_output=True, check=False)
    if built.returncode:
        raise SystemExit(built.stderr.decode())
    return [file for file in FileDescriptorSet.FromString(built.stdout).file if file.package == "zrelay.v1"]


def _place(file: FileDescriptorProto) -> tuple[int, str]:
    stem = Path(file.name).stem
    return (_ORDER.index(stem) if stem in _ORDER else len(_ORDER), stem)


class _Comments:
    """The comments of one file, by the path of the element that they describe."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._texts = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        detached = [place.leading_comments for place in file.source_code_info.location if tuple(place.path) == (12,)]
        self.of_file = _one_line(detached[0]) if detached else ""

    def __getitem__(self, path: tuple[int, ...]) -> str:
        return _one_line(self._texts.get(path, ""))


def _one_line(comment: str) -> str:
    """Joins the lines of a comment and escapes what Markdown would read as markup."""
    text = " ".join(line.strip() for line in comment.splitlines()).strip()
    return re.sub(r"([|<>*])", r"\\\1", text)


def _service(service: ServiceDescriptorProto, comments: _Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield f"\n### {service.name}\n\n{comments[path]}\n\n| call | meaning |\n|---|---|\n"
    for index, method in enumerate(service.method):
        request = ("stream of " if method.client_streaming else "") + _link(method.input_type)
        reply = ("stream of " if method.server_streaming else "") + _link(method.output_type)
        yield f"| `{method.name}`<br>{request}<br>returns {reply} | {comments[(*path, 2, index)]} |\n"


def _message(message: DescriptorProto, comments: _Comments, path: tuple[int, ...], outer: str = "") -> Iterator[str]:
    name = f"{outer}{message.name}"
    yield f"\n### {name}\n\n{comments[path]}\n"
    if message.field:
        yield "\n| field | type | meaning |\n|---|---|---|\n"
    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    for index, field in enumerate(message.field):
        meaning = comments[(*path, 2, index)]
        if field.HasField("oneof_index") and not field.proto3_optional:
            choice = message.oneof_decl[field.oneof_index].name
            meaning = f"{meaning} Part of the oneof `{choice}`."
        yield f"| `{field.name}` | {_type(field, entries)} | {meaning} |\n"
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _message(nested, comments, (*path, 3, index), f"{name}.")
    for index, enum in enumerate(message.enum_type):
        yield from _enum(enum, comments, (*path, 4, index), f"{name}.")


def _enum(enum: EnumDescriptorProto, comments: _Comments, path: tuple[int, ...], outer: str = "") -> Iterator[str]:
    yield f"\n### {outer}{enum.name}\n\n{comments[path]}\n\n| value | number | meaning |\n|---|---|---|\n"
    for index, value in enumerate(enum.value):
        yield f"| `{value.name}` | {value.number} | {comments[(*path, 2, index)]} |\n"


def _type(field: FieldDescriptorProto, entries: dict[str, DescriptorProto]) -> str:
    entry = entries.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        return f"map of {_type(entry.field[0], {})} to {_type(entry.field[1], {})}"
    kind = f"`{_SCALARS[field.type]}`" if field.type in _SCALARS else _link(field.type_name)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    return f"optional {kind}" if field.proto3_optional else kind


def _link(type_name: str) -> str:
    """Returns a link to the section of a message or enum, or the plain name of one of another package."""
    if not type_name.startswith(_PACKAGE):
        return f"`{type_name.lstrip('.')}`"
    name = type_name.removeprefix(_PACKAGE)
    return f"[{name}](#{re.sub(r'[^a-z0-9]', '', name.lower())})"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
