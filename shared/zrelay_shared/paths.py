"""Locations of configuration, state, caches and logs on this machine.

If the process has no home folder, the system's folders are used: `/etc/zrelay/config.toml` and `/var/lib/zrelay`. It
has none where HOME is not set and the user id is unknown, as in a container, and where the home is `/`, does not exist
or may not be entered.
"""

import errno
import os
from pathlib import Path

STATE_REMEDY = "set ZRELAY_STATE to a folder that can be written"
CONFIG_REMEDY = "set ZRELAY_CONFIG to another file"


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


def security_dir() -> Path:
    """Returns the folder with the certificates, members and tokens of this installation."""
    return state_dir() / "security"


def credential(name: str) -> Path | None:
    """Returns a file that systemd hands to a service (LoadCredential=), None if it hands over no such file."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    file = Path(folder) / name if folder else None
    return file if file is not None and file.is_file() else None


def logs_dir() -> Path:
    """Returns the folder for logs of the services that `zrelay up` starts."""
    return state_dir() / "logs"


def expand(path: str) -> Path:
    """Returns a path with `~` expanded.

    Raises:
        FileNotFoundError: The home folder is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # the user after ~ does not exist, or there is no home folder
        message = "its home folder is unknown: write the path without ~"
        raise FileNotFoundError(errno.ENOENT, message, path) from None


def make_folder(folder: Path, remedy: str, *, mode: int = 0o777) -> None:
    """Creates a folder, unless it exists, and checks that files can be created in it.

    Args:
        folder: The folder.
        remedy: What to do where it cannot be written, for example STATE_REMEDY.
        mode: Its mode if it is created, less the umask.

    Raises:
        OSError: It cannot be written; the message holds the remedy.
    """
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise OSError(error.errno, f"this folder cannot be written ({error.strerror}): {remedy}", str(folder)) from None


def _base(variable: str, in_home: str, without_home: Path) -> Path:
    if named := os.environ.get(variable):
        return Path(named)
    home = _home()
    return without_home if home is None else home / in_home


def _home() -> Path | None:
    """Returns the home folder, None where there is none that this process can use."""
    try:
        home = Path.home()
    except RuntimeError:  # HOME is not set, and the user id has no entry in the user database
        return None
    # Docker sets HOME=/ for an unknown user id, and keeps the image's HOME, often /root, for any other.
    return home if home != Path(home.anchor) and home.is_absolute() and os.access(home, os.X_OK) else None
