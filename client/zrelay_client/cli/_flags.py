"""Flags that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from zrelay_client import _settings
from zrelay_shared.errors import ZrelayError

F = TypeVar("F", bound=Callable[..., Any])
PLACE = click.Path(readable=False)
"""A file or folder, so that shells complete it; whether it is there and fits is said later, with what to do."""


def profile_option(help: str) -> Callable[[F], F]:
    """`--profile`, whose names shells complete."""
    return click.option("--profile", metavar="NAME", help=help, shell_complete=_profiles)


def endpoint_options(*roles: str) -> Callable[[F], F]:
    """`--encoder`, `--vision`, `--generator` as asked for, and `--profile`."""

    def add(function: F) -> F:
        function = profile_option("Profile of the configuration file.")(function)
        for role in reversed(roles):
            where = f"Where the {role} service is: HOST or HOST:PORT."
            function = click.option(f"--{role}", metavar="HOST:PORT", help=where)(function)
        return function

    return add


def _profiles(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    try:
        names = _settings.load().profiles
    except (ZrelayError, OSError):  # a broken file is no reason to write into somebody's prompt
        return []
    return [name for name in names if name.startswith(incomplete)]
