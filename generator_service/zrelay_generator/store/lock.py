"""One process for one state folder."""

import fcntl
import os
from pathlib import Path

from zrelay_shared.errors import FailedPrecondition

_NAME = "jobs.lock"


class FolderLock:
    """Held from creation to `release`, at the latest to the end of the process, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Raises FailedPrecondition (STATE_LOCKED) where another process holds it; OSError."""
        self._file = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._file, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise FailedPrecondition(
                f"another generator (process {holder}) keeps its jobs in {folder}: end it, or give this one a folder "
                "of its own with --state DIR (--state none keeps jobs in memory only)",
                reason="STATE_LOCKED",
                metadata={"process": holder},
            ) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        os.close(self._file)
