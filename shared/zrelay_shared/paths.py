"""Locations of configuration, state, caches and logs on this machine.

If the process has no home folder, as in a container with an unknown user id, the system's folders are used:
`/etc/zrelay/config.toml` and `/var/lib/zrelay`.
"""

import os
from pathlib import Path


def config_file() -> Path:
    """Returns `$ZRELAY_CONFIG`, else `zrelay/config.toml` in `$XDG_CONFIG_HOME` or `~/.config`."""
    if named := os.environ.get("ZRELAY_CONFIG"):
        return Path(named)
    return _base("XDG_CONFIG_HOME", ".config", Path("/etc")) / "zrelay" / "config.toml"


def state_dir() -> Path:
    """Returns `$ZRELAY_STATE`, else systemd's `$STATE_DIRECTORY`, else `zrelay` in `$XDG_STATE_HOME` or
    `~/.local/state`."""
    for variable in ("ZRELAY_STATE", "STATE_DIRECTORY"):
        if named := os.environ.get(variable):
            return Path(named)
    return _base("XDG_STATE_HOME", ".local/state", Path("/var/lib")) / "zrelay"


def cache_dir() -> Path:
    """Returns the folder for files that can be made again, such as digests of weights."""
    return state_dir() / "cache"


def logs_dir() -> Path:
    """Returns the folder for logs of the services that `zrelay up` starts."""
    return state_dir() / "logs"


def _base(variable: str, in_home: str, without_home: Path) -> Path:
    if named := os.environ.get(variable):
        return Path(named)
    try:
        return Path.home() / in_home
    except RuntimeError:  # no HOME, and the user id has no entry in the user database
        return without_home
