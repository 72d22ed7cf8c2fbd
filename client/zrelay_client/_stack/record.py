"""What runs on this machine, written down: `stack.json` in the state folder."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from zrelay_client._stack.processes import ProcessId
from zrelay_shared import atomic
from zrelay_shared.errors import FailedPrecondition


@dataclass(frozen=True, slots=True)
class StackService:
    """A service that `zrelay up` started; `endpoint` is "" until it listens."""

    role: str
    process: ProcessId
    endpoint: str
    log: str

    @property
    def told(self) -> str:
        """Its role, and where it is or what became of it."""
        if not self.process.alive:
            return f"{self.role} has ended"
        return f"{self.role} on {self.endpoint}" if self.endpoint else f"{self.role} still starts"


@dataclass(frozen=True, slots=True)
class StackRecord:
    """The services of one `zrelay up`, the model they run and the time they get to finish, in seconds."""

    model: str
    grace_s: float
    services: tuple[StackService, ...]

    @property
    def alive(self) -> bool:
        """Whether any of its services still runs."""
        return any(service.process.alive for service in self.services)

    @property
    def endpoints(self) -> dict[str, str]:
        """Role -> endpoint of the services that run and listen."""
        return {s.role: s.endpoint for s in self.services if s.endpoint and s.process.alive}


def load(state: Path) -> StackRecord | None:
    """The record, None where there is none. Raises FailedPrecondition (STACK_RECORD_INVALID) where it is damaged."""
    file = _file(state)
    try:
        said = json.loads(file.read_text())
        services = tuple(
            StackService(
                s["role"], ProcessId(int(s["process"]["pid"]), s["process"]["started"]), s["endpoint"], s["log"]
            )
            for s in said["services"]
        )
        return StackRecord(said["model"], float(said["grace_s"]), services)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(
            f"{file} is not what `zrelay up` writes: end the services it started by hand, and remove it",
            reason="STACK_RECORD_INVALID",
        ) from error


def save(state: Path, record: StackRecord) -> None:
    """Writes the record, whole or not at all."""
    state.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(_file(state), json.dumps(asdict(record), indent=2).encode() + b"\n")


def remove(state: Path) -> None:
    """Forgets it."""
    _file(state).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(state: Path) -> Iterator[None]:
    """Alone among the `up` and `down` commands of this state folder."""
    import fcntl  # not everywhere where a client runs

    state.mkdir(parents=True, exist_ok=True)
    with (state / "stack.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FailedPrecondition(
                "another `zrelay up` or `zrelay down` is at work on this machine: wait until it is done",
                reason="STACK_BUSY",
            ) from error
        yield


def _file(state: Path) -> Path:
    return state / "stack.json"
