"""Profiles of joined machines: the boxes that `zrelay join` has paired this user with, and their credentials.

A profile is a file `profiles/NAME.json` in the state folder, readable by its owner alone:

    {
      "version": 1,
      "boxes": [
        {
          "name": "gpu",
          "hosts": ["gpu.local", "192.168.1.5"],
          "endpoints": {"generator": "gpu.local:7503"},
          "authority": "-----BEGIN CERTIFICATE-----...",
          "certificate": "-----BEGIN CERTIFICATE-----...",
          "key": "/home/me/gpu.key",
          "token_file": null
        }
      ]
    }

Each box has its own certificate authority. Certificates and keys stand in the file, or are paths of PEM files, relative
to the file's folder.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zrelay_client._transport.credentials import Pem, TlsOptions, Token
from zrelay_client._transport.endpoint import Endpoint, EndpointSource, is_loopback, parse_endpoints
from zrelay_shared import atomic, paths, private, strict_json
from zrelay_shared.config import ROLES
from zrelay_shared.connection import PROFILE_NAME, joined_profiles
from zrelay_shared.connection import profiles_dir as profiles_dir
from zrelay_shared.errors import FailedPrecondition, InvalidArgument, NotFound, invalid, listed

DEFAULT_PROFILE = "default"
"""The profile of `zrelay join` where none is named."""
MAX_BOXES = 100
MAX_FILE_BYTES = 4 << 20
_LOCK_S = 10.0
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Box:
    """A machine that this user has joined.

    Attributes:
        name: Its name: 1 to 63 lower-case letters, digits, dots, hyphens and underscores, with at least one letter.
        endpoints: Role -> HOST:PORT of its services.
        tls: Its certificate authority, and the client's certificate and key for it.
        hosts: Further host names and addresses that its certificate is valid for. Loopback ones, which mean another
            machine here, count for nothing.
        token_file: A bearer token that calls send, None for none.

    Raises:
        InvalidArgument: BOX_INVALID, a name or a role cannot be used; ENDPOINT_INVALID.
    """

    name: str
    endpoints: Mapping[str, str]
    tls: TlsOptions
    hosts: tuple[str, ...] = ()
    token_file: Path | None = None

    def __post_init__(self) -> None:
        checked_name(self.name, "box", "BOX_INVALID")
        for role, address in self.endpoints.items():
            Endpoint.parse(role, address)

    def endpoint(self, role: str, origin: str = "") -> Endpoint | None:
        """Returns the endpoint of a role with the credentials of this box, None if it has no such service."""
        address = self.endpoints.get(role)
        if address is None:
            return None
        return Endpoint(role, Endpoint.parse(role, address).address, origin, self.tls, self.token)

    @property
    def token(self) -> Token | None:
        """The bearer token that calls send."""
        return None if self.token_file is None else Token(self.token_file)

    @property
    def addresses(self) -> frozenset[tuple[str, int]]:
        """Hosts, in lower case, and ports of its services."""
        found = [Endpoint.parse(role, text).host_and_port for role, text in self.endpoints.items()]
        places = [place for place in found if place is not None]
        further = {host.strip("[]").lower() for host in self.hosts}
        hosts = {host.lower() for host, _ in places} | {host for host in further if not is_loopback(host)}
        return frozenset((host, port) for host in hosts for _, port in places)


@dataclass(frozen=True, slots=True)
class JoinedProfile:
    """The boxes of one profile.

    Attributes:
        name: Its name.
        boxes: Its boxes, in the order in which they were joined.
        file: Where it is kept.
    """

    name: str
    boxes: tuple[Box, ...]
    file: Path = field(compare=False)

    def box(self, name: str) -> Box | None:
        """Returns the box of a name, None if there is none."""
        return next((box for box in self.boxes if box.name == name), None)


@dataclass(frozen=True, slots=True)
class AddressBook:
    """Reads endpoints as users write them, and adds the credentials that belong to each.

    An endpoint is written as `Endpoint.parse` reads it, or as the name of a box: `NAME` or `box:NAME`. The host and
    port of a box get the credentials of that box. Given files are used in place of them, and for all other hosts but
    this machine, whose services need none. `tls:HOST:PORT` uses TLS on this machine, too.

    Attributes:
        profiles: The profiles of joined machines.
        first: Name of the profile whose boxes are preferred to boxes of the same name in others.
        tls, token: Given files, None for none.
    """

    profiles: tuple[JoinedProfile, ...] = ()
    first: str | None = None
    tls: TlsOptions | None = None
    token: Token | None = None

    @classmethod
    def of_joined(cls) -> "AddressBook":
        """Returns the address book of all joined boxes. Raises as `load`."""
        return cls(load_all())

    def endpoints(self, role: str, source: EndpointSource, origin: str = "") -> tuple[Endpoint, ...]:
        """Returns the endpoints of a role without repetitions; those that are given as Endpoint stay as they are.

        Raises:
            InvalidArgument: ENDPOINT_INVALID, BOX_UNKNOWN, TOKEN_NEEDS_TLS, ROLE_INVALID.
        """
        return parse_endpoints(role, source, origin, self.endpoint)

    def endpoint(self, role: str, text: str, origin: str = "") -> Endpoint:
        """Returns one endpoint. Raises as `endpoints`."""
        stripped = text.strip()
        named = stripped.removeprefix("box:")
        if named != stripped and not named.isdecimal():  # box:1 is port 1 of a host
            return self._endpoint_of(self._box(role, named), role, origin)
        if stripped != "localhost" and self._named(stripped):
            return self._endpoint_of(self._box(role, stripped), role, origin)
        plain = stripped.removeprefix("tls:")
        found = Endpoint.parse(role, plain, origin)
        if plain != stripped:
            return replace(found, tls=self.tls or TlsOptions(), token=self.token)
        box = self._at(found)
        tls = box.tls if box is not None else None
        if self.tls is not None and not found.is_local:
            tls = self.tls
        token = self.token or (box.token if box is not None else None)
        return replace(found, tls=tls, token=token)

    def _endpoint_of(self, box: Box, role: str, origin: str) -> Endpoint:
        found = box.endpoint(role, origin)
        if found is None:
            has = ", ".join(box.endpoints) or "nothing"
            raise InvalidArgument(
                f"{role}: expected a box with a service of this role, got {box.name}, which serves {has}: name "
                "another, or join it again when it serves more",
                field=role,
                reason="BOX_UNKNOWN",
            )
        return found if self.token is None else replace(found, token=self.token)

    def _named(self, name: str) -> dict[str, Box]:
        """Returns profile -> box of this name; only that of the preferred profile, if it has one."""
        found = {profile.name: box for profile in self.profiles if (box := profile.box(name)) is not None}
        return {self.first: found[self.first]} if self.first in found else found

    def _box(self, role: str, name: str) -> Box:
        found = self._named(name)
        if len(found) == 1:
            return next(iter(found.values()))
        known = sorted({box.name for profile in self.profiles for box in profile.boxes})
        remedy = f"the profiles {listed(sorted(found))} have one each: choose one with --profile"
        if not found:
            remedy = (
                f"joined are {listed(known)}" if known else "none is joined: `zrelay pair` there, `zrelay join` here"
            )
        raise invalid(role, "the name of one joined box", strict_json.shown(name), reason="BOX_UNKNOWN", remedy=remedy)

    def _at(self, endpoint: Endpoint) -> Box | None:
        """Returns the box with a service at the host and port of an endpoint."""
        place = endpoint.host_and_port
        if place is None:
            return None
        wanted = (place[0].lower(), place[1])
        ordered = sorted(self.profiles, key=lambda profile: profile.name != self.first)
        return next((box for profile in ordered for box in profile.boxes if wanted in box.addresses), None)


def names(folder: Path | None = None) -> tuple[str, ...]:
    """Returns the names of all profiles that this user can read, sorted; by default of this user's folder."""
    return joined_profiles(folder)


def load(name: str = DEFAULT_PROFILE, folder: Path | None = None) -> JoinedProfile:
    """Reads a profile.

    Args:
        name: Its name.
        folder: The folder of the profiles; by default that of this user.

    Raises:
        NotFound: PROFILE_UNKNOWN.
        FailedPrecondition: PROFILE_INVALID, the file is damaged.
        OSError: The file cannot be read.
    """
    folder = folder or profiles_dir()
    file = _file(name, folder)
    try:
        with private.open_file(file, "rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        others = names(folder)
        known = f"there are: {listed(others)}" if others else "there is none"
        raise NotFound(
            f"no profile {name!r} in {folder}; {known}: `zrelay join CODE --profile {name}` makes it",
            reason="PROFILE_UNKNOWN",
        ) from None
    try:
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"has more than {MAX_FILE_BYTES >> 20} MiB")
        content = strict_json.parse(data)
        if content["version"] != _VERSION:
            raise ValueError(f"has version {strict_json.shown(content['version'])}, this zrelay reads {_VERSION}")
        boxes = tuple(_box(each, folder) for each in content["boxes"])
        if len({box.name for box in boxes}) != len(boxes):
            raise ValueError("names a box twice")
    except (ValueError, KeyError, TypeError, AttributeError, InvalidArgument) as error:
        raise FailedPrecondition(
            f"{file}: no profile of joined boxes ({_why(error)}): correct it, or remove it and join again",
            reason="PROFILE_INVALID",
        ) from error
    return JoinedProfile(name, boxes, file)


def load_all(folder: Path | None = None) -> tuple[JoinedProfile, ...]:
    """Reads all profiles of this user. Raises as `load`."""
    folder = folder or profiles_dir()
    return tuple(load(name, folder) for name in names(folder))


def save(box: Box, profile: str = DEFAULT_PROFILE, *, folder: Path | None = None) -> Path:
    """Adds a box to a profile, in place of one of the same name. Makes the profile if there is none.

    The file is replaced as a whole, and readable by its owner alone.

    Args:
        box: The box.
        profile: Name of the profile.
        folder: The folder of the profiles; by default that of this user.

    Returns:
        The file.

    Raises:
        InvalidArgument: PROFILE_NAME_INVALID, the profile's name cannot be used; TLS_FILE_INVALID.
        FailedPrecondition: PROFILE_INVALID, the file is damaged; PROFILES_LOCKED; PROFILE_FULL.
        OSError: The file cannot be written, or a PEM file of the box cannot be read.
    """
    folder = folder or profiles_dir()
    box.tls.read()
    with _changing(folder):
        file = _file(profile, folder)
        boxes = load(profile, folder).boxes if file.exists() else ()
        kept = [each if each.name != box.name else box for each in boxes]
        kept += [box] if box not in kept else []
        if len(kept) > MAX_BOXES:
            raise FailedPrecondition(
                f"the profile {profile!r} has {MAX_BOXES} boxes, the most that it may have: use another profile",
                reason="PROFILE_FULL",
            )
        _write(file, kept)
        return file


def remove(box: str, profile: str = DEFAULT_PROFILE, *, folder: Path | None = None) -> None:
    """Removes a box from a profile, and the profile with its last box.

    Args:
        box: Name of the box.
        profile: Name of the profile.
        folder: The folder of the profiles; by default that of this user.

    Raises:
        NotFound: PROFILE_UNKNOWN; BOX_UNKNOWN, the profile has no such box.
        FailedPrecondition: PROFILE_INVALID, PROFILES_LOCKED.
        OSError: The file cannot be written.
    """
    folder = folder or profiles_dir()
    with _changing(folder):
        found = load(profile, folder)
        kept = [each for each in found.boxes if each.name != box]
        if len(kept) == len(found.boxes):
            known = listed([each.name for each in found.boxes])
            raise NotFound(f"no box {box!r} in the profile {profile!r}; there are: {known}", reason="BOX_UNKNOWN")
        if kept:
            _write(found.file, kept)
        else:
            found.file.unlink()


def checked_name(name: str, field: str, reason: str) -> str:
    """Returns the name of a box or a profile. Raises InvalidArgument with the reason."""
    if not re.fullmatch(PROFILE_NAME, name):
        expected = "1 to 63 lower-case letters, digits, dots, hyphens or underscores, with a letter"
        raise invalid(field, expected, strict_json.shown(name), reason=reason)
    return name


def _file(name: str, folder: Path) -> Path:
    return folder / f"{checked_name(name, 'profile', 'PROFILE_NAME_INVALID')}.json"


def _box(values: Mapping[str, Any], folder: Path) -> Box:
    tls = TlsOptions(*(_source(values.get(key), folder) for key in ("authority", "certificate", "key")))
    token = values.get("token_file")
    endpoints = {str(role): _text(address) for role, address in dict(values["endpoints"]).items()}
    hosts = tuple(_text(host) for host in values.get("hosts", ()))
    return Box(_text(values["name"]), endpoints, tls, hosts, None if token is None else _path(token, folder))


def _source(value: object, folder: Path) -> Pem | None:
    if value is None:
        return None
    text = _text(value)
    return text.encode() if text.lstrip().startswith("-----BEGIN ") else _path(text, folder)


def _path(value: object, folder: Path) -> Path:
    return folder / paths.expand(_text(value))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {strict_json.shown(value)}")
    return value


def _why(error: Exception) -> str:
    if isinstance(error, InvalidArgument):
        return error.message
    return f"the key {error} is missing" if isinstance(error, KeyError) else f"{error}"


def _write(file: Path, boxes: list[Box]) -> None:
    content = {"version": _VERSION, "boxes": [_values(box) for box in boxes]}
    atomic.write_bytes(file, json.dumps(content, indent=2).encode() + b"\n", private=True)


def _values(box: Box) -> dict[str, object]:
    return {
        "name": box.name,
        "hosts": list(box.hosts),
        "endpoints": {role: str(box.endpoint(role)) for role in ROLES if role in box.endpoints},
        "authority": _written(box.tls.authority),
        "certificate": _written(box.tls.certificate),
        "key": _written(box.tls.key),
        "token_file": None if box.token_file is None else str(box.token_file.absolute()),
    }


def _written(source: Pem | None) -> str | None:
    if source is None:
        return None
    return source.decode("ascii") if isinstance(source, bytes) else str(source.absolute())


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout  # only for `join`: other commands must start at once

    private.make_folder(folder.parent, paths.STATE_REMEDY)
    private.make_folder(folder, paths.STATE_REMEDY)
    lock = folder / ".lock"
    private.refuse_link(lock)
    try:
        with FileLock(lock, timeout=_LOCK_S, mode=private.FILE_MODE):
            yield
    except Timeout as error:
        raise FailedPrecondition(
            f"another command has changed {folder} for {_LOCK_S:.0f} s: wait until it has finished",
            reason="PROFILES_LOCKED",
        ) from error
