"""The settings of a command: flags over variables over the file, then the stack of `zrelay up`."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from zrelay_client._stack import record
from zrelay_shared import config, paths
from zrelay_shared.errors import InvalidArgument

F = TypeVar("F", bound=Callable[..., Any])
_HELP = "where the {} service is: HOST or HOST:PORT"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service is, and what said so."""

    role: str
    target: str
    origin: str


def endpoint_options(*roles: str) -> Callable[[F], F]:
    """`--encoder`, `--vision`, `--generator` as asked for, and `--profile`."""

    def add(function: F) -> F:
        function = click.option("--profile", metavar="NAME", help="Profile of the configuration file.")(function)
        for role in reversed(roles):
            function = click.option(f"--{role}", metavar="HOST:PORT", help=_HELP.format(role).capitalize())(function)
        return function

    return add


def load(profile: str | None = None, flags: Mapping[str, object] | None = None) -> config.Config:
    """The effective configuration. `flags` are dotted keys, None for those not given. Raises as config.load."""
    return config.load(paths.config_file(), os.environ, profile=profile, flags=flags)


def strange_variables() -> list[str]:
    """`ZRELAY_*` variables that mean nothing, each with a hint."""
    return config.unknown_variables(os.environ)


def endpoints(settings: config.Config) -> dict[str, Endpoint]:
    """Role -> endpoint: as configured; where encoder or generator are not, the rest from the stack of `zrelay up`."""
    found = {}
    complete = settings.encoder.endpoint is not None and settings.generator.endpoint is not None
    known = None if complete else record.load(paths.state_dir())
    running = known.endpoints if known is not None else {}
    for role in config.ROLES:
        configured = settings.service(role).endpoint
        if configured is not None:
            found[role] = Endpoint(role, configured, settings.origins.get(f"{role}.endpoint", ""))
        elif role in running:
            found[role] = Endpoint(role, running[role], "zrelay up")
    return found


def require(found: Mapping[str, Endpoint], settings: config.Config, *roles: str) -> None:
    """Raises InvalidArgument (ENDPOINT_MISSING) that says what to do where one of the roles has no endpoint."""
    missing = [role for role in roles if role not in found]
    if not missing:
        return
    chosen = ""
    if settings.profiles and settings.profile is None:
        chosen = f", choose a profile with --profile ({', '.join(settings.profiles)})"
    flags = " ".join(f"--{role} HOST:PORT" for role in missing)
    raise InvalidArgument(
        f"no {' and no '.join(missing)} is configured: start both here with `zrelay up --detach`, or name them with "
        f"{flags}{chosen} (`zrelay config` shows the settings)",
        field=missing[0],
        reason="ENDPOINT_MISSING",
    )
