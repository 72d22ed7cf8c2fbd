"""What callers gave, as the plain values that messages take; a wrong one is refused by its name."""

import operator

from zrelay_shared.errors import InvalidArgument


def whole(name: str, value: object, least: int, most: int) -> int:
    """A whole number of a range. Raises InvalidArgument (<NAME>_INVALID)."""
    try:
        said = operator.index(value)  # type: ignore[arg-type]  # whatever is a whole number, numpy's included
    except TypeError as error:
        raise refusal(name, "a whole number", value) from error
    if not least <= said <= most:
        raise refusal(name, f"a whole number from {least} to {most}", value)
    return said


def number(name: str, value: object) -> float:
    """A number. Raises InvalidArgument (<NAME>_INVALID)."""
    if isinstance(value, str):
        raise refusal(name, "a number", value)
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise refusal(name, "a number", value) from error


def refusal(name: str, expected: str, got: object) -> InvalidArgument:
    """The refusal of a value: <NAME>_INVALID."""
    return InvalidArgument(
        f"{name}: expected {expected}, got {got!r}",
        field=name,
        reason=f"{name.upper()}_INVALID",
        metadata={"expected": expected, "got": got},
    )


def text_of(name: str, text: str) -> str:
    """A text that is Unicode. Raises InvalidArgument (<NAME>_INVALID, TEXT_INVALID)."""
    if not isinstance(text, str):
        raise refusal(name, "a text", type(text).__name__)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"{name}: expected valid Unicode, got bytes that are not UTF-8 at character {error.start}",
            field=name,
            reason="TEXT_INVALID",
        ) from error
    return text
