"""Writes docs/reference/errors.md from the error classes and reasons: `python docs/_generators/errors.py`.

`reasons.toml` beside it holds the meaning of each reason.
"""

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Container, Iterator
from pathlib import Path

from zrelay_shared import status
from zrelay_shared.errors import FailedPrecondition, FeatureMissing, InvalidArgument, PayloadCorrupt

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/errors.md"
_SOURCES = {
    "all": ("shared/zrelay_shared",),
    "encoder": ("encoder_service",),
    "vision": ("vision_service",),
    "generator": ("generator_service",),
    "client": ("client",),
}
"""Who raises an error -> where the code is."""
_USERS = {"pictures.py": {"vision", "generator"}}
"""Shared module that only some services use -> these services."""
_COMPUTED = {
    "CFG_NORMALIZATION_INVALID": "generator",
    "CFG_TRUNCATION_INVALID": "generator",
    "GUIDANCE_SCALE_INVALID": "generator",
    "HEIGHT_INVALID": "generator",
    "JOB_ID_INVALID": "generator",
    "JOB_ID_MISSING": "generator",
    "REQUEST_ID_INVALID": "generator",
    "REQUEST_ID_MISSING": "generator",
    "SIGLIP_COUNT_INVALID": "generator",
    "TEXT_LIMIT_INVALID": "encoder",
    "TOKEN_WEIGHTS_INVALID": "vision",
    "WIDTH_INVALID": "generator",
}
"""Reasons that are made from the name of a variable field, so that no literal shows them."""
_PLAIN = {"INVALID_ARGUMENT", "INTERNAL", "UNAVAILABLE"}
"""Reasons that equal their code and have a row; others of the kind are in the table of classes only."""
_FIELD_HELPERS = {"invalid": (0, "_INVALID"), "known_enum": (2, "_UNKNOWN"), "enum_choice": (3, "_UNKNOWN")}
"""Helper of the service kit -> position of its `field`, and the end of the default reason."""
_REASON = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
_START = """\
# Errors

<!-- Written by docs/_generators/errors.py from the code and reasons.toml; do not edit. -->

Every error is a gRPC status with `google.rpc` details in `grpc-status-details-bin`. `ErrorInfo` is always present. Its
domain is `zrelay`, its `reason` is one of those below, and its `metadata` has `expected` and `got` if there is a value
to name. The message is for people: it states what was expected, what was received, and what to do. Programs should use
the code and the reason, and treat a reason that they do not know by its code.

Retry `UNAVAILABLE`, and `RESOURCE_EXHAUSTED` with `RetryInfo`, after the given delay. Do not retry anything else
unchanged.

Messages are cut at 1,200 bytes, metadata at 1,400, and lists at 20 names followed by the number of the others, because
details of more than 4 KiB would not fit into HTTP/2 headers. A message never contains a traceback, a path on the server
or a token.

## Classes

Python clients catch these classes, which `zrelay_client` exports. A class is indented below its base class.
*Further details* are `google.rpc` messages besides `ErrorInfo`.

| class and code | reasons | further details | raised when |
|---|---|---|---|
"""
_REASONS = """
## Reasons

Reasons that end in `_INVALID`, `_UNKNOWN` or `_MISSING` often begin with the name of the field; the `BadRequest` detail
has its full path. *Raised by* names the services; *client* marks errors that the Python client raises itself.

| reason | raised by | meaning |
|---|---|---|
"""


def page() -> str:
    """Returns the text of the page.

    Raises:
        SystemExit: The code has a reason that reasons.toml does not explain, or the reverse.
    """
    meanings = tomllib.loads(Path(__file__).with_name("reasons.toml").read_text(encoding="utf-8"))
    raised_by = reasons(meanings)
    if missing := sorted(raised_by.keys() - meanings.keys()):
        raise SystemExit(f"docs/_generators/reasons.toml does not explain {', '.join(missing)}")
    if unused := sorted(meanings.keys() - raised_by.keys()):
        raise SystemExit(f"docs/_generators/reasons.toml explains what the code does not have: {', '.join(unused)}")
    rows = (f"| `{reason}` | {_raisers(raised_by[reason])} | {meanings[reason]} |\n" for reason in sorted(meanings))
    return _START + "".join(_classes()) + _REASONS + "".join(rows)


def reasons(known: Container[str]) -> dict[str, set[str]]:
    """Returns every error reason of the code, and who raises it.

    Args:
        known: Reasons that also count where they are a plain argument of a call, and not only as `reason=`.
    """
    found: defaultdict[str, set[str]] = defaultdict(set)
    for kind in status.CLASSES:
        for reason in (kind.default_reason, *kind.further_reasons):
            if reason != kind.code or reason in _PLAIN:
                found[reason].add("all")
    for reason, raiser in _COMPUTED.items():
        found[reason].add(raiser)
    for raiser, folders in _SOURCES.items():
        for folder in folders:
            for path in (ROOT / folder).rglob("*.py"):
                if "testing" not in path.parts:  # fakes, which raise the errors of the services
                    for reason in _in_code(ast.parse(path.read_text(encoding="utf-8")), known):
                        found[reason] |= _USERS.get(path.name, {raiser}) if raiser == "all" else {raiser}
    return dict(found)


def _in_code(tree: ast.AST, known: Container[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "reason":
            yield from _literals(node.value)
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in _FIELD_HELPERS and not any(keyword.arg == "reason" for keyword in node.keywords):
                position, end = _FIELD_HELPERS[name]
                field = _last_part(node.args[position]) if len(node.args) > position else ""
                if field:
                    yield f"{field.upper()}{end}"
            for argument in node.args:
                yield from (reason for reason in _literals(argument, deep=False) if reason in known or "refus" in name)


def _literals(node: ast.AST, *, deep: bool = True) -> Iterator[str]:
    for part in ast.walk(node) if deep else (node,):
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and _REASON.fullmatch(part.value):
            yield part.value


def _last_part(node: ast.expr) -> str:
    """Returns the last part of a field path, "" if it is computed."""
    if isinstance(node, ast.JoinedStr):
        node = node.values[-1]
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    return text.rpartition(".")[2].partition("[")[0]


def _raisers(names: set[str]) -> str:
    if "all" in names:
        return "all"
    return ", ".join(name for name in _SOURCES if name in names)


def _classes() -> Iterator[str]:
    for kind in status.CLASSES:
        indent = "&nbsp;" * 4 * (len(kind.__mro__) - len(status.CLASSES[0].__mro__))
        name = f"{indent}`{kind.__name__}`"
        shown = ", ".join(f"`{reason}`" for reason in (kind.default_reason, *kind.further_reasons))
        if kind in (InvalidArgument, FailedPrecondition, status.BY_CODE["NOT_FOUND"]):
            shown += ", or its own"
        details = []
        if issubclass(kind, (InvalidArgument, PayloadCorrupt)):
            details.append("BadRequest")
        if issubclass(kind, FeatureMissing):
            details.append("BadRequest, if a field asks for the feature")
        if issubclass(kind, FailedPrecondition):
            details.append("PreconditionFailure")
        if kind.default_retry_after_s is not None:
            details.append("RetryInfo")
        summary = (kind.__doc__ or "").partition("\n")[0]
        summary = re.sub(r": `InvalidArgument\(.*", "; the `BadRequest` detail names it.", summary)
        summary = re.sub(r": `[^`]*\(.*$", ".", summary)
        yield f"| {name}<br>{indent}`{kind.code}` | {shown} | {', '.join(details)} | {summary} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
