"""The configuration as the client uses it, with the endpoints that come from it or from the stack of `zrelay up`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from zrelay_client._transport.endpoint import Endpoint, EndpointSource, parse_endpoints
from zrelay_client.stack import record
from zrelay_shared import config, paths
from zrelay_shared.config import ROLES, Config, checked_role
from zrelay_shared.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Settings:
    """The loaded configuration, and the endpoints of the services.

        settings = Settings.load(profile="home")
        with Client.from_settings(settings) as client: ...

    Attributes:
        config: The values of the configuration with their origins.
        running: Role -> endpoint of the services that `zrelay up` runs. They supply the endpoints that the
            configuration does not set, if it does not set both encoder and generator.
    """

    config: Config = field(default_factory=Config)
    running: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, profile: str | None = None, flags: Mapping[str, object] | None = None) -> "Settings":
        """Reads the configuration file, the environment and the record of `zrelay up`.

        Args:
            profile: The profile of the configuration file.
            flags: Dotted key -> value of a flag, for example `encoder.endpoint`; None where the flag was not given.

        Raises:
            InvalidArgument: CONFIG_INVALID; the message names the file, or the variable, and the key.
            FailedPrecondition: STACK_RECORD_INVALID, the record of `zrelay up` is damaged.
            OSError: The file cannot be read.
        """
        loaded = config.load(paths.config_file(), os.environ, profile=profile, flags=flags)
        complete = loaded.encoder.endpoint is not None and loaded.generator.endpoint is not None
        known = None if complete else record.readable(paths.state_dir())
        return cls(loaded, known.endpoints if known is not None else {})

    @property
    def texts(self) -> dict[str, str]:
        """Role -> endpoints as they were written, joined by commas. A role without endpoints is left out."""
        found = {role: self._source(role)[0] for role in ROLES}
        return {role: text for role, text in found.items() if text is not None}

    def origin(self, role: str) -> str:
        """Returns where the endpoints of a role come from: "flag", "env NAME", a place in the file, or "zrelay up".

        Raises:
            InvalidArgument: ROLE_INVALID.
        """
        return self._source(role)[1]

    def endpoints(self, role: str) -> tuple[Endpoint, ...]:
        """Returns the endpoints of a role, an empty tuple where it has none.

        Raises:
            InvalidArgument: ENDPOINT_INVALID, ROLE_INVALID.
        """
        text, origin = self._source(role)
        return parse_endpoints(role, text, origin)

    def require(self, *roles: str) -> None:
        """Checks that roles have an endpoint.

        Raises:
            InvalidArgument: ENDPOINT_MISSING; the message says what to do. ROLE_INVALID.
        """
        texts = self.texts
        missing = [role for role in roles if checked_role(role) not in texts]
        if not missing:
            return
        known = record.readable(paths.state_dir())
        for service in known.services if known is not None and known.alive else ():
            if service.role in missing and not service.process.alive:
                raise _missing(
                    service.role,
                    f"the {service.role} that `zrelay up` started has ended, its log is {service.log}: end the rest "
                    "with `zrelay down`, and start again with `zrelay up --detach`",
                )
        if missing == ["vision"] and known is not None and known.alive and "vision" not in known.endpoints:
            raise _missing(
                "vision",
                "the stack of `zrelay up` runs without a vision service: end it with `zrelay down`, start it again "
                "with `zrelay up --detach --qwen3-vl FOLDER` (for Omni `--siglip FOLDER`), or name one with "
                "--vision HOST:PORT",
            )
        chosen = ""
        if self.config.profiles and self.config.profile is None:
            chosen = f", choose a profile with --profile ({', '.join(self.config.profiles)})"
        flags = " ".join(f"--{role} HOST:PORT" for role in missing)
        what = {1: "it", 2: "both"}.get(len(missing), "all")
        raise _missing(
            missing[0],
            f"no {' and no '.join(missing)} is configured: start {what} here with `zrelay up --detach`, or name "
            f"{'it' if len(missing) == 1 else 'them'} with {flags}{chosen} (`zrelay config` shows the settings)",
        )

    def _source(self, role: str) -> tuple[str | None, str]:
        """Returns the endpoints of a role as text, and their origin."""
        configured = self.config.service(role).endpoint
        if configured is not None:
            return configured, self.config.origins.get(f"{role}.endpoint", "")
        return self.running.get(role), "zrelay up" if role in self.running else ""


def resolve(
    given: Mapping[str, EndpointSource], profile: str | None, roles: tuple[str, ...] = ROLES
) -> dict[str, tuple[Endpoint, ...]]:
    """Returns role -> endpoints of a client: those that are `given`, else those of the settings.

    Raises:
        InvalidArgument: ENDPOINT_INVALID, and as `Settings.load`.
    """
    named = {role: parse_endpoints(role, given.get(role)) for role in roles}
    if profile is None and any(named.values()):
        return named
    flags = {f"{role}.endpoint": ",".join(map(str, found)) for role, found in named.items() if found}
    settings = Settings.load(profile, flags)
    return {role: found or settings.endpoints(role) for role, found in named.items()}


def unknown_variables() -> list[str]:
    """Returns a message for each unknown `ZRELAY_*` variable."""
    return config.unknown_variables(os.environ)


def _missing(role: str, message: str) -> InvalidArgument:
    return InvalidArgument(message, field=role, reason="ENDPOINT_MISSING")
