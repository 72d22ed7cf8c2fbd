"""File descriptors of the process: their limit, the share of connections, and the error once none is free."""

import errno
import os

from zrelay_shared.errors import Unavailable

WANTED_DESCRIPTORS = 65_536
"""Soft limit that a service sets itself where the hard limit permits it. Many systems start a process with 1,024, macOS
with 256."""
MAX_CONNECTIONS = 4096
"""Most connections of a service, however many descriptors there are."""
RETRY_S = 5.0
"""Seconds until a caller should try again."""
_EXHAUSTION = (errno.EMFILE, errno.ENFILE)
_LIMIT_HINT = "its operator should raise the limit (LimitNOFILE= or ulimit -n) if this happens again"

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]


def raise_limit(wanted: int = WANTED_DESCRIPTORS) -> int:
    """Raises the soft limit of descriptors to `wanted`, or to the hard limit if that is lower.

    Returns:
        The soft limit in force, at most `wanted`.
    """
    if resource is None:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= target:
        return target
    while target > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
            return target
        except (OSError, ValueError):  # macOS refuses more than kern.maxfilesperproc
            target //= 2
    return soft


def connection_share(limit: int) -> int:
    """Returns how many connections a service accepts under a limit of descriptors: at most half of them.

    The other half is for the service's own files, so that callers with many connections cannot take them.
    """
    return max(1, min(MAX_CONNECTIONS, limit // 2))


def any_free() -> bool:
    """Whether the process can open a descriptor."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno not in _EXHAUSTION
    return True


def exhausted(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, states that no descriptor is free."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _EXHAUSTION:
            return True
        # SQLite does not report the cause.
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_CANTOPEN") and not any_free():
            return True
        error = error.__cause__ or error.__context__
    return False


def refusal() -> Unavailable:
    """Returns the error that a caller receives if no descriptor was free for its call."""
    return Unavailable(
        f"this service has no free file descriptor at the moment: try again in a few seconds; {_LIMIT_HINT}",
        reason="DESCRIPTORS_EXHAUSTED",
        retry_after_s=RETRY_S,
    )
