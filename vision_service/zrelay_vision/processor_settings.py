"""Checks the settings of an image processor before transformers reads them. Every refusal names file and key."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from zrelay_shared.errors import CheckpointError

_RESAMPLING_FILTERS = 6
"""Number of Pillow's resampling filters, which have the numbers from 0."""


def check_settings(file: str, settings: Mapping[str, object], kind: Any, fixed: Mapping[str, tuple[str, int]]) -> None:
    """Checks that an engine can use a checkpoint's settings. Keys that are absent or null have transformers' defaults.

    Args:
        file: Folder and name of the file, for messages.
        settings: Its content.
        kind: transformers' class of the image processor.
        fixed: Settings that config.json determines: the key there, and its value.

    Raises:
        CheckpointError: A value is of another type or out of range, differs from config.json, or changes images in a
            way that the engine does not support.
    """
    for name, (accepts, expected) in _RULES.items():
        value = _value(settings, kind, name)
        if not accepts(value):
            raise _refusal(file, name, expected, value)
    for name, (key, wanted) in fixed.items():
        value = _value(settings, kind, name)
        if not _is_whole(value) or value != wanted:
            raise _refusal(file, name, f"{wanted}, as config.json says ({key})", value)


def _value(settings: Mapping[str, object], kind: Any, name: str) -> Any:
    value = settings.get(name)
    return getattr(kind, name, None) if value is None else value


def _refusal(file: str, name: str, expected: str, value: object) -> CheckpointError:
    text = json.dumps(value, default=str)
    got = text if len(text) <= 100 else f"{text[:100]}..."
    return CheckpointError(
        f"{file}: {name}: expected {expected}, got {got}; copy the file again from its checkpoint",
        metadata={"file": file, "key": name, "expected": expected, "got": got},
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_three_numbers(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))


_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "do_resize": (lambda value: value is True, "true, since the model reads images of certain sizes"),
    "do_rescale": (lambda value: isinstance(value, bool), "true or false"),
    "do_normalize": (lambda value: isinstance(value, bool), "true or false"),
    "resample": (
        lambda value: _is_whole(value) and 0 <= value < _RESAMPLING_FILTERS,
        f"the number of a resampling filter, 0 to {_RESAMPLING_FILTERS - 1}",
    ),
    "rescale_factor": (lambda value: _is_number(value) and value > 0, "a finite number above 0"),
    "image_mean": (_is_three_numbers, "a list of three finite numbers, for red, green and blue"),
    "image_std": (
        lambda value: _is_three_numbers(value) and min(value) > 0,
        "a list of three finite numbers above 0, for red, green and blue",
    ),
}
"""Setting -> whether a value is accepted, and what is expected."""
