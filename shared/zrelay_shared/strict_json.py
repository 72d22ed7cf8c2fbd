"""Parses JSON that somebody else wrote: one exception for everything that is wrong with it, in linear time and memory.

`json.loads` accepts NaN and repeated keys, converts numbers of any length (in quadratic time), and fails on deep
nesting with RecursionError. Its callers then fail in other ways: a lone surrogate cannot be printed, an integer of
4,000 digits cannot be formatted, and a list of a thousand levels cannot be compared.
"""

import json
import math
import re
from typing import Any

MAX_DEPTH = 64
"""Levels of arrays and objects. The files of the published checkpoints have at most 6."""

MAX_NUMBER_CHARS = 64
"""Characters of one number. Tokenizers have a model_max_length of 31 digits; a double needs 24 characters."""

MAX_VALUES = 4_000_000
"""Commas and opening brackets of one text, which is the number of its values: three times Gemma's tokenizer.json. An
empty array takes 56 bytes of memory and 3 of the text."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SHOWN_CHARS = 40


class JsonError(ValueError):
    """A text is not JSON, or exceeds a limit of this module. The message says what is wrong with it."""


class JsonSyntaxError(JsonError):
    """A text is not JSON at all."""


def parse(text: str | bytes, *, max_values: int = MAX_VALUES) -> Any:
    """Returns the content of a JSON text. Raises nothing but JsonError.

    Args:
        text: The text, or its UTF-8 bytes.
        max_values: Number of commas and opening brackets that are allowed.

    Raises:
        JsonError: The text is not JSON or names a key twice in one object. Or it has NaN or an infinity, a number that
            is longer than MAX_NUMBER_CHARS or too large for a double, half of a surrogate pair, more than MAX_DEPTH
            levels, or more than `max_values` values.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError:
            raise JsonSyntaxError("is not UTF-8 text") from None
    if sum(map(text.count, ",[{")) > max_values:
        raise JsonError(f"has more than {max_values:,} values")
    try:
        content = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
        )
    except json.JSONDecodeError as error:
        raise JsonSyntaxError(f"is not JSON (line {error.lineno}, column {error.colno}: {error.msg})") from None
    except RecursionError:
        raise JsonError(f"has more than {MAX_DEPTH} levels") from None
    _check_depth(content)
    if _SURROGATE.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise JsonError("has half of a surrogate pair in a string") from None
    return content


def shown(value: object) -> str:
    """Returns a value as messages show it: its repr, cut after 40 characters."""
    text = repr(value[: _SHOWN_CHARS + 1] if isinstance(value, str | list | tuple) else value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonError(f"names {shown(twice)} twice")
    return content


def _integer(digits: str) -> int:
    return int(_bounded(digits))


def _float(digits: str) -> float:
    value = float(_bounded(digits))
    if math.isinf(value):
        raise JsonError(f"has the number {digits}, which is too large")
    return value


def _bounded(digits: str) -> str:
    if len(digits) > MAX_NUMBER_CHARS:
        raise JsonError(f"has a number of {len(digits):,} characters; at most {MAX_NUMBER_CHARS} are allowed")
    return digits


def _constant(name: str) -> float:
    raise JsonError(f"has {name}, which is not JSON")


def _check_depth(content: object) -> None:
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent if isinstance(parent, list) else ())
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise JsonError(f"has more than {MAX_DEPTH} levels")
