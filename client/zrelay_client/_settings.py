"""The configuration as the client uses it: the settings, and endpoints from them or from the stack of `zrelay up`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zrelay_client._stack import record
from zrelay_shared import config, paths
from zrelay_shared.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service is (several endpoints are joined by commas), and the origin of that value."""

    role: str
    target: str
    origin: str


def load(profile: str | None = None, flags: Mapping[str, object] | None = None) -> config.Config:
    """Returns the effective configuration. Arguments and errors are those of `config.load`."""
    return config.load(paths.config_file(), os.environ, profile=profile, flags=flags)


def unknown_variables() -> list[str]:
    """Returns a message for each unknown `ZRELAY_*` variable."""
    return config.unknown_variables(os.environ)


def endpoints(settings: config.Config) -> dict[str, Endpoint]:
    """Returns role -> endpoint.

    The configuration comes first. Where encoder or generator are not configured, the stack of `zrelay up` supplies the
    endpoints that are missing.
    """
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


def joined(given: str | Sequence[str] | None) -> str | None:
    """Returns the endpoints of a role as the settings hold them, joined by commas; None where none is given."""
    text = given if given is None or isinstance(given, str) else ",".join(given)
    return text or None


def targets(profile: str | None, given: Mapping[str, str | Sequence[str] | None]) -> dict[str, str | None]:
    """Returns role -> endpoint or None; what is `given` takes precedence over `endpoints`. Raises as `load`."""
    found = endpoints(load(profile, {f"{role}.endpoint": joined(endpoint) for role, endpoint in given.items()}))
    return {role: found[role].target if role in found else None for role in config.ROLES}


def require(found: Mapping[str, Endpoint], settings: config.Config, *roles: str) -> None:
    """Checks that roles have an endpoint.

    Raises:
        InvalidArgument: ENDPOINT_MISSING; the message says what to do.
    """
    missing = [role for role in roles if role not in found]
    if not missing:
        return
    known = record.load(paths.state_dir())
    for service in known.services if known is not None and known.alive else ():
        if service.role in missing and not service.process.alive:
            raise InvalidArgument(
                f"the {service.role} that `zrelay up` started has ended, its log is {service.log}: end the rest with "
                "`zrelay down`, and start again with `zrelay up --detach`",
                field=service.role,
                reason="ENDPOINT_MISSING",
            )
    if missing == ["vision"] and known is not None and known.alive and "vision" not in known.endpoints:
        raise InvalidArgument(
            "the stack of `zrelay up` runs without a vision service: end it with `zrelay down`, start it again with "
            "`zrelay up --detach --qwen3-vl FOLDER` (for Omni `--siglip FOLDER`), or name one with --vision HOST:PORT",
            field="vision",
            reason="ENDPOINT_MISSING",
        )
    chosen = ""
    if settings.profiles and settings.profile is None:
        chosen = f", choose a profile with --profile ({', '.join(settings.profiles)})"
    flags = " ".join(f"--{role} HOST:PORT" for role in missing)
    what = {1: "it", 2: "both"}.get(len(missing), "all")
    raise InvalidArgument(
        f"no {' and no '.join(missing)} is configured: start {what} here with `zrelay up --detach`, or name "
        f"{'it' if len(missing) == 1 else 'them'} with {flags}{chosen} (`zrelay config` shows the settings)",
        field=missing[0],
        reason="ENDPOINT_MISSING",
    )
