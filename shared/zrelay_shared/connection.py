"""The table [profile.NAME.connection] of the configuration: how clients verify services, and prove who they are.

Its settings are options of `zrelay`, too, whose help must start at once: this module imports little.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zrelay_shared.service.settings import Setting, describe, setting

if TYPE_CHECKING:
    from pathlib import Path

SECTION = "connection"
PROFILE_NAME = r"(?=.*[a-z])[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?"
"""Names of profiles that `zrelay join` writes, and of their boxes."""
MAX_PROFILES = 100


@dataclass(frozen=True, slots=True)
class ConnectionConfig:
    """The files of TLS and of a bearer token. Machines that `zrelay join` has paired need none of them."""

    tls_authority: str | None = setting(
        None,
        group="Connection",
        metavar="FILE",
        default_text="those of the system",
        help="Certificate of the authority that services must have theirs from (PEM).",
        example="/path/to/authority.pem",
    )
    tls_certificate: str | None = setting(
        None,
        group="Connection",
        metavar="FILE",
        help="Certificate that proves to services who calls (PEM).",
        example="/path/to/client.pem",
    )
    tls_key: str | None = setting(
        None,
        group="Connection",
        metavar="FILE",
        help="Private key of --tls-certificate (PEM).",
        example="/path/to/client.key",
    )
    token_file: str | None = setting(
        None,
        group="Connection",
        metavar="FILE",
        help="File with a bearer token, which is sent over TLS alone.",
        example="/path/to/token",
    )


def connection_settings() -> tuple[Setting, ...]:
    """Returns the settings of the table."""
    return describe(ConnectionConfig, SECTION)


def profiles_dir() -> "Path":
    """Returns the folder of the profiles that `zrelay join` writes."""
    from zrelay_shared import paths

    return paths.state_dir() / "profiles"


def joined_profiles(folder: "Path | None" = None) -> tuple[str, ...]:
    """Returns the names of the profiles that `zrelay join` has written and this user can read, sorted.

    Args:
        folder: The folder of the profiles; by default that of this user.
    """
    import re

    try:
        found = [entry.stem for entry in (folder or profiles_dir()).iterdir() if entry.suffix == ".json"]
    except OSError:  # there is none, or it is another user's
        return ()
    return tuple(sorted(name for name in found if re.fullmatch(PROFILE_NAME, name)))[:MAX_PROFILES]
