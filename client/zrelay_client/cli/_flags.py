"""Flags that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
_HELP = "where the {} service is: HOST or HOST:PORT"


def endpoint_options(*roles: str) -> Callable[[F], F]:
    """`--encoder`, `--vision`, `--generator` as asked for, and `--profile`."""

    def add(function: F) -> F:
        function = click.option("--profile", metavar="NAME", help="Profile of the configuration file.")(function)
        for role in reversed(roles):
            function = click.option(f"--{role}", metavar="HOST:PORT", help=_HELP.format(role).capitalize())(function)
        return function

    return add
