"""Where things are on this machine: configuration, state, cache, logs."""

import os
from pathlib import Path


def config_file() -> Path:
    """`$ZRELAY_CONFIG`, else `zrelay/config.toml` under `$XDG_CONFIG_HOME` or `~/.config`."""
    if named := os.environ.get("ZRELAY_CONFIG"):
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "zrelay" / "config.toml"


def state_dir() -> Path:
    """`$ZRELAY_STATE`, else systemd's `$STATE_DIRECTORY`, else `zrelay` under `$XDG_STATE_HOME` or `~/.local/state`."""
    for variable in ("ZRELAY_STATE", "STATE_DIRECTORY"):
        if named := os.environ.get(variable):
            return Path(named)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "zrelay"


def cache_dir() -> Path:
    """What can be made again: digests of weights, ..."""
    return state_dir() / "cache"


def logs_dir() -> Path:
    """Logs of the services that `zrelay up` started."""
    return state_dir() / "logs"
