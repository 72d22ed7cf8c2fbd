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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zrelay_client._transport.credentials import Pem, TlsOptions, Token
from zrelay_client._transport.endpoint import Endpoint
from zrelay_shared import atomic, paths, private, strict_json
from zrelay_shared.config import ROLES
from zrelay_shared.errors import FailedPrecondition, InvalidArgument, NotFound, invalid, listed

DEFAULT_PROFILE = "default"
"""The profile of `zrelay join` where none is named."""
MAX_PROFILES, MAX_BOXES = 100, 100
MAX_FILE_BYTES = 4 << 20
_NAME = re.compile(r"(?=.*[a-z])[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_LOCK_S = 10.0
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Box:
    """A machine that this user has joined.

    Attributes:
        name: Its name: 1 to 63 lower-case letters, digits, dots, hyphens and underscores, with at least one letter.
        endpoints: Role -> HOST:PORT of its services.
        tls: Its certificate authority, and the client's certificate and key for it.
        hosts: Further host names and addresses that its certificate is valid for.
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
        hosts = {host.lower() for host, _ in places} | {host.strip("[]").lower() for host in self.hosts}
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


def profiles_dir() -> Path:
    """Returns the folder of the profiles."""
    return paths.state_dir() / "profiles"


def names(folder: Path | None = None) -> tuple[str, ...]:
    """Returns the names of all profiles that this user can read, sorted."""
    try:
        found = [entry.stem for entry in (folder or profiles_dir()).iterdir() if entry.suffix == ".json"]
    except OSError:  # there is none, or it is another user's
        return ()
    return tuple(sorted(name for name in found if _NAME.fullmatch(name)))[:MAX_PROFILES]


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
        known = f"there are: {listed(list(names(folder)))}" if names(folder) else "there is none"
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
            f"{file}: no profile of joined boxes ({_why(error)}): correct it, or remove it and join again with `zrelay join`",
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
    if not _NAME.fullmatch(name):
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
