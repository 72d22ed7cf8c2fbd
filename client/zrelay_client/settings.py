"""The configuration as the client uses it, with the endpoints of the stack of `zrelay up` and of joined boxes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zrelay_client import profiles
from zrelay_client._transport.credentials import TlsOptions, Token
from zrelay_client._transport.endpoint import Endpoint, EndpointSource
from zrelay_client.profiles import AddressBook, JoinedProfile
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
        joined: The profiles of machines that `zrelay join` has paired. Their credentials are used wherever a box is
            named; the boxes of one profile supply the endpoints that nothing else sets.
        running_tls: How to connect to the services that `zrelay up --host` runs, None for those without TLS.
    """

    config: Config = field(default_factory=Config)
    running: Mapping[str, str] = field(default_factory=dict)
    joined: tuple[JoinedProfile, ...] = ()
    running_tls: TlsOptions | None = None

    @classmethod
    def load(cls, profile: str | None = None, flags: Mapping[str, object] | None = None) -> "Settings":
        """Reads the configuration file, the environment and the record of `zrelay up`.

        Args:
            profile: The profile of the configuration file.
            flags: Dotted key -> value of a flag, for example `encoder.endpoint`; None where the flag was not given.

        Raises:
            InvalidArgument: CONFIG_INVALID; the message names the file, or the variable, and the key.
            FailedPrecondition: STACK_RECORD_INVALID, the record of `zrelay up` is damaged; PROFILE_INVALID, that of
                joined boxes.
            OSError: A file cannot be read.
        """
        joined = profiles.load_all()
        names = [each.name for each in joined]
        loaded = config.load(paths.config_file(), os.environ, profile=profile, flags=flags, joined=names)
        complete = loaded.encoder.endpoint is not None and loaded.generator.endpoint is not None
        known = None if complete else record.readable(paths.state_dir())
        if known is None:
            return cls(loaded, joined=joined)
        return cls(loaded, known.endpoints, joined, record.own_tls(Path(known.security)) if known.security else None)

    @property
    def profiles(self) -> tuple[str, ...]:
        """Names of all profiles: those of the configuration file, and those of `zrelay join`."""
        return tuple(sorted({*self.config.profiles, *(each.name for each in self.joined)}))

    @property
    def boxes(self) -> JoinedProfile | None:
        """The joined profile whose boxes supply endpoints: that of the profile in use.

        If no flag and no variable chooses the profile, it is else the one named `default`, else the only one.
        """
        by_name = {each.name: each for each in self.joined}
        if self.config.profile in by_name or self._is_chosen:
            return by_name.get(self.config.profile or "")
        return by_name.get(profiles.DEFAULT_PROFILE, self.joined[0] if len(self.joined) == 1 else None)

    @property
    def addresses(self) -> AddressBook:
        """Reads endpoints, and adds the credentials of joined boxes and of the configuration.

        Raises InvalidArgument: TLS_FILES_INCOMPLETE.
        """
        given = self.config.connection
        files = [
            None if text is None else paths.expand(text)
            for text in (given.tls_authority, given.tls_certificate, given.tls_key)
        ]
        tls = TlsOptions(*files) if any(files) else None
        token = None if given.token_file is None else Token(paths.expand(given.token_file))
        boxes = self.boxes
        return AddressBook(self.joined, None if boxes is None else boxes.name, tls, token)

    @property
    def texts(self) -> dict[str, str]:
        """Role -> endpoints as they were written, joined by commas. A role without endpoints is left out."""
        found = {role: self._source(role)[0] for role in ROLES}
        return {role: text for role, text in found.items() if text is not None}

    def origin(self, role: str) -> str:
        """Returns where the endpoints of a role come from: "flag", "env NAME", a place in a file, or "zrelay up".

        Raises:
            InvalidArgument: ROLE_INVALID.
        """
        return self._source(role)[1]

    def endpoints(self, role: str) -> tuple[Endpoint, ...]:
        """Returns the endpoints of a role, an empty tuple where it has none.

        Raises:
            InvalidArgument: ENDPOINT_INVALID, BOX_UNKNOWN, TLS_FILES_INCOMPLETE, TOKEN_NEEDS_TLS, ROLE_INVALID.
        """
        text, origin = self._source(role)
        if text is not None and origin == "zrelay up":
            return (Endpoint.parse(role, text, origin, tls=self.running_tls),)
        return self.addresses.endpoints(role, text, origin)

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
        if self.profiles and self.config.profile is None:
            chosen = f", choose a profile with --profile ({', '.join(self.profiles)})"
        flags = " ".join(f"--{role} HOST:PORT" for role in missing)
        what = {1: "it", 2: "both"}.get(len(missing), "all")
        raise _missing(
            missing[0],
            f"no {' and no '.join(missing)} is configured: start {what} here with `zrelay up --detach`, or name "
            f"{'it' if len(missing) == 1 else 'them'} with {flags}{chosen} (`zrelay config` shows the settings)",
        )

    @property
    def _is_chosen(self) -> bool:
        """Whether a flag or a variable chooses the profile."""
        return self.config.profile is not None and self.config.origins.get("profile", "flag").startswith(
            ("flag", "env ")
        )

    def _source(self, role: str) -> tuple[str | None, str]:
        """Returns the endpoints of a role as text, and their origin."""
        configured = self.config.service(role).endpoint
        if configured is not None:
            return configured, self.config.origins.get(f"{role}.endpoint", "")
        joined = self._of_boxes(role)
        if role in self.running and not (joined is not None and self._is_chosen):
            return self.running[role], "zrelay up"
        return (None, "") if joined is None else joined

    def _of_boxes(self, role: str) -> tuple[str, str] | None:
        boxes = self.boxes
        named = [] if boxes is None else [f"box:{box.name}" for box in boxes.boxes if role in box.endpoints]
        return (",".join(named), f"{boxes.file}") if boxes is not None and named else None


def resolve(
    given: Mapping[str, EndpointSource], profile: str | None, roles: tuple[str, ...] = ROLES
) -> dict[str, tuple[Endpoint, ...]]:
    """Returns role -> endpoints of a client: those that are `given`, else those of the settings.

    Raises:
        InvalidArgument: ENDPOINT_INVALID, and as `Settings.load`.
    """
    settings = Settings.load(profile)
    addresses = settings.addresses
    return {role: addresses.endpoints(role, given.get(role)) or settings.endpoints(role) for role in roles}


def unknown_variables() -> list[str]:
    """Returns a message for each unknown `ZRELAY_*` variable."""
    return config.unknown_variables(os.environ)


def _missing(role: str, message: str) -> InvalidArgument:
    return InvalidArgument(message, field=role, reason="ENDPOINT_MISSING")
