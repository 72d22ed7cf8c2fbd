"""Lets one process at a time use a state folder."""

import os
from pathlib import Path

from filelock import FileLock, Timeout

from zrelay_shared.errors import FailedPrecondition

_LOCK, _OWNER = "jobs.lock", "jobs.owner"


class FolderLock:
    """Held from creation to `release`, at the latest until the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Takes the lock.

        Raises:
            FailedPrecondition: Another process holds it (STATE_LOCKED).
            OSError: The folder cannot be written.
        """
        owner = folder / _OWNER
        # Acquired and released on different threads of the process.
        self._lock = FileLock(folder / _LOCK, mode=0o600, thread_local=False)
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            process = owner.read_text("ascii", "replace").strip()[:20] if owner.exists() else "unknown"
            raise FailedPrecondition(
                f"another generator (process {process}) keeps its jobs in {folder}: stop it, or give this one a folder "
                "of its own with --state DIR (--state none keeps jobs in memory only)",
                reason="STATE_LOCKED",
                metadata={"process": process},
            ) from error
        owner.write_text(str(os.getpid()), "ascii")

    def release(self) -> None:
        """Lets the folder go."""
        self._lock.release()
