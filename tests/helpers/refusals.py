"""Checks that a call is refused, and how."""

import re
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

import pytest

from zrelay_shared.errors import InvalidArgument, ZrelayError

E = TypeVar("E", bound=ZrelayError)


@overload
def refused(
    call: Callable[[], object], *, reason: str | None = ..., field: str | None = ..., match: str | None = ...
) -> InvalidArgument: ...


@overload
def refused(
    call: Callable[[], object],
    kind: type[E],
    *,
    reason: str | None = ...,
    field: str | None = ...,
    match: str | None = ...,
) -> E: ...


def refused(
    call: Callable[[], object],
    kind: type[ZrelayError] = InvalidArgument,
    *,
    reason: str | None = None,
    field: str | None = None,
    match: str | None = None,
) -> ZrelayError:
    """Calls `call`, which must raise `kind`, and returns the error.

    Args:
        call: What is expected to be refused.
        kind: The class of the error.
        reason: Its reason (UPPER_SNAKE), where it is checked.
        field: The refused field, where it is checked.
        match: A regular expression that the message must contain.
    """
    with pytest.raises(kind) as caught:
        call()
    _check(caught.value, reason, field, match)
    return caught.value


async def refused_async(
    awaitable: Awaitable[object],
    kind: type[E],
    *,
    reason: str | None = None,
    field: str | None = None,
    match: str | None = None,
) -> E:
    """Awaits `awaitable`, which must raise `kind`, and returns the error. Arguments as for `refused`."""
    with pytest.raises(kind) as caught:
        await awaitable
    _check(caught.value, reason, field, match)
    return caught.value


def _check(error: ZrelayError, reason: str | None, field: str | None, match: str | None) -> None:
    assert reason is None or error.reason == reason, f"expected reason {reason}, got {error.reason}: {error}"
    if field is not None:
        got = getattr(error, "field", None)
        assert got == field, f"expected field {field}, got {got}: {error}"
    assert match is None or re.search(match, error.message), f"expected {match!r} in {error.message!r}"
