"""The record of the services that `zrelay up` started: `stack.json` in the state folder."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from zrelay_client._transport.credentials import TlsOptions
from zrelay_client.stack.processes import ProcessId
from zrelay_shared import atomic, paths, private, strict_json
from zrelay_shared.errors import FailedPrecondition


@dataclass(frozen=True, slots=True)
class StackService:
    """A service that `zrelay up` started; `endpoint` is "" until it listens."""

    role: str
    process: ProcessId
    endpoint: str
    log: str

    @property
    def summary(self) -> str:
        """Its role, and its endpoint or its state."""
        if not self.process.alive:
            return f"{self.role} has ended"
        return f"{self.role} on {self.endpoint}" if self.endpoint else f"{self.role} is starting"


@dataclass(frozen=True, slots=True)
class StackRecord:
    """The services of one `zrelay up`, their model, and the seconds that they get to finish.

    `security` is the folder of the certificates with which they listen, "" if they listen without TLS.
    """

    model: str
    grace_s: float
    services: tuple[StackService, ...]
    security: str = ""

    @property
    def alive(self) -> bool:
        """Whether any of its services still runs."""
        return any(service.process.alive for service in self.services)

    @property
    def endpoints(self) -> dict[str, str]:
        """Role -> endpoint of the services that are running and listening."""
        return {s.role: s.endpoint for s in self.services if s.endpoint and s.process.alive}


def own_tls(security: Path) -> TlsOptions:
    """Returns how a machine connects to its own services: with the certificate that they show."""
    return TlsOptions(security / "authority.pem", security / "server.pem", security / "server.key")


def load(state: Path) -> StackRecord | None:
    """Returns the record, None where there is none.

    Raises:
        FailedPrecondition: STACK_RECORD_INVALID, the file is damaged.
    """
    file = _file(state)
    try:
        content = strict_json.parse(private.read_text(file))
        services = tuple(
            StackService(
                s["role"], ProcessId(int(s["process"]["pid"]), s["process"]["started"]), s["endpoint"], s["log"]
            )
            for s in content["services"]
        )
        return StackRecord(content["model"], float(content["grace_s"]), services, str(content.get("security", "")))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise FailedPrecondition(
            f"{file} was not written by `zrelay up`, or is damaged: end its services by hand, and remove the file",
            reason="STACK_RECORD_INVALID",
        ) from error


def readable(state: Path) -> StackRecord | None:
    """Returns the record as `load` does, None also where this user may not read it: the services are another user's."""
    try:
        return load(state)
    except (PermissionError, NotADirectoryError):
        return None


def save(state: Path, record: StackRecord) -> None:
    """Writes the record into a folder that exists; the file is replaced as a whole."""
    atomic.write_bytes(_file(state), json.dumps(asdict(record), indent=2).encode() + b"\n", private=True)


def remove(state: Path) -> None:
    """Removes the record."""
    _file(state).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(state: Path) -> Iterator[None]:
    """Holds the lock of this state folder's stack, so that only one `up` or `down` changes it at a time.

    Raises:
        FailedPrecondition: STACK_BUSY, another command holds it.
        OSError: The folder cannot be written.
    """
    from filelock import FileLock, Timeout  # only for `up` and `down`: other commands must start at once

    private.make_folder(state, paths.STATE_REMEDY)
    file = state / "stack.lock"
    private.refuse_link(file)
    lock = FileLock(file, timeout=0, mode=private.FILE_MODE)
    try:
        lock.acquire()
    except Timeout as error:
        raise FailedPrecondition(
            "another `zrelay up` or `zrelay down` is running on this machine: wait until it has finished",
            reason="STACK_BUSY",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _file(state: Path) -> Path:
    return state / "stack.json"
