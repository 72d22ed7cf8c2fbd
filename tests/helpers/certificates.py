"""Certificates for tests: authorities, and what they issue, with chosen names and times."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from zrelay_shared.security import certificates
from zrelay_shared.security.certificates import Authority


@dataclass(frozen=True)
class KeyPair:
    """A private key and the certificate that was issued for it, as PEM."""

    key: bytes
    certificate: bytes

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Writes both to a folder, and returns the files of certificate and key."""
        files = folder / f"{name}.pem", folder / f"{name}.key"
        files[0].write_bytes(self.certificate)
        files[1].write_bytes(self.key)
        return files


@cache
def authority(name: str = "tests") -> Authority:
    """Returns an authority of its own for each name. It is valid since 400 days ago, so that it can issue the past."""
    return Authority.create(name, datetime.now(UTC) - timedelta(days=400))


def issued(
    name: str = "mac",
    *,
    by: Authority | None = None,
    starts_in: timedelta = timedelta(0),
    days: int = 365,
    server_names: Sequence[str] = (),
) -> KeyPair:
    """Returns a key and a certificate for it.

    Args:
        name: The common name.
        by: The authority, by default that of `authority()`.
        starts_in: When it begins to be valid, counted from now.
        days: Days for which it is valid.
        server_names: Names of a server.
    """
    key = certificates.new_key()
    starts = datetime.now(UTC) + starts_in
    request = certificates.new_request(key, name)
    return KeyPair(key, (by or authority()).issue(request, name, starts, server_names=server_names, days=days))


@dataclass
class Clock:
    """A clock that a test sets."""

    now: datetime = field(default_factory=lambda: datetime(2026, 3, 1, 12, 0, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **amount: float) -> None:
        """Moves the clock forward by the arguments of `timedelta`."""
        self.now += timedelta(**amount)
