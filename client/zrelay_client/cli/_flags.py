"""Flags that several commands share."""

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from zrelay_client.settings import Settings
from zrelay_shared.errors import ZrelayError

F = TypeVar("F", bound=Callable[..., Any])
_SEVERAL = {
    "encoder": "; repeat it for others that stand in",
    "generator": "; repeat it for several that share the work",
}
PLACE = click.Path(readable=False)
"""A file or folder, so that shells complete it; whether it is there and fits is said later, with what to do."""


def profile_option(help: str) -> Callable[[F], F]:
    """`--profile`, whose names shells complete."""
    return click.option("--profile", metavar="NAME", help=help, shell_complete=_profiles)


def grouped(parameter: str, kind: type[Any], *options: Callable[[F], F]) -> Callable[[F], F]:
    """Options whose values reach the command as one `parameter`: a dataclass with a field for each."""

    def add(function: F) -> F:
        @functools.wraps(function)
        def gather(*args: Any, **values: Any) -> Any:
            mine = {item.name: values.pop(item.name) for item in fields(kind)}
            return function(*args, **{parameter: kind(**mine)}, **values)

        gathered: Any = gather
        for option in reversed(options):
            gathered = option(gathered)
        return gathered  # type: ignore[no-any-return]

    return add


def endpoint_options(*roles: str) -> Callable[[F], F]:
    """`--encoder`, `--vision`, `--generator` as asked for, and `--profile`. Several of a role come joined by commas."""

    def add(function: F) -> F:
        function = profile_option("Profile of the configuration file.")(function)
        for role in reversed(roles):
            several = role in _SEVERAL
            where = f"Where the {role} service is: HOST or HOST:PORT{_SEVERAL.get(role, '')}."
            option = click.option(f"--{role}", metavar="HOST:PORT", help=where, multiple=several, callback=_joined)
            function = option(function)
        return function

    return add


def _joined(context: click.Context, parameter: click.Parameter, value: Any) -> str | None:
    return (",".join(value) or None) if isinstance(value, tuple) else value


def _profiles(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    try:
        names = Settings.load().config.profiles
    except (ZrelayError, OSError):  # a broken file is no reason to write into somebody's prompt
        return []
    return [name for name in names if name.startswith(incomplete)]
