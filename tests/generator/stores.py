"""Opens the store of one folder again and again, and makes records for it."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from zrelay_generator.priority import Priority
from zrelay_generator.store.blobs import Blobs, Buffer
from zrelay_generator.store.clock import SYSTEM_CLOCKS, SystemClocks
from zrelay_generator.store.records import JobRecord, JobState
from zrelay_generator.store.retention import Retention
from zrelay_generator.store.sqlite import SqliteJobStore, open_store

KEEP = Retention(results_s=3600.0, results=100, result_bytes=1 << 20, content_bytes=1 << 20)


def named(data: bytes) -> str:
    """Returns the name of a content: its SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


KEPT = ({named(b"kept"): b"kept"}, {named(b"kept"): 4})
"""Inputs of a job, and their sizes."""


Put = Callable[[str, Buffer], None]
"""Stores a content under its digest, as `Blobs.put` does."""


class InterceptedBlobs:
    """The contents of a store whose writes go through a function of a test."""

    def __init__(self, real: Blobs, put: Put) -> None:
        self._real, self._put = real, put

    def put(self, sha256: str, data: Buffer, *, anew: bool = False) -> None:
        """Calls the function of the test."""
        self._put(sha256, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Machine:
    """The clocks of a machine, which a test sets.

    Attributes:
        wall_s: What the system's time shows.
        up_s: Seconds since the boot.
        boots: Number of boots.
    """

    def __init__(self, wall_s: float = 1e9, boots: int = 1) -> None:
        self.wall_s, self.up_s, self.boots = wall_s, 100.0 / boots, boots
        self.clocks = SystemClocks(lambda: self.wall_s, lambda: self.up_s, lambda: f"boot-{self.boots}")

    def passes(self, seconds: float) -> None:
        """Lets time pass while the machine runs or is suspended."""
        self.wall_s += seconds
        self.up_s += seconds

    def booted(self, wall_s: float) -> "Machine":
        """Returns the machine after another boot, with another system time."""
        return Machine(wall_s, self.boots + 1)


@contextmanager
def intercepted_writes(store: SqliteJobStore, put: Callable[[Put, str, Buffer], None]) -> Iterator[None]:
    """Replaces writes of contents in a block: `put` receives the real function, the digest and the bytes."""
    real = store.blobs
    store.blobs = InterceptedBlobs(real, partial(put, real.put))
    try:
        yield
    finally:
        store.blobs = real


def row(arrival: int, **changed: Any) -> JobRecord:
    """Returns the record of a job that was just accepted."""
    plain = JobRecord(
        arrival=arrival,
        job_id=f"job-{arrival}",
        request_id=f"request-{arrival}",
        identity="0" * 64,
        priority=Priority.NORMAL,
        caller="ipv4:127.0.0.1",
        model="1" * 64,
        work_s=1.5,
        input_bytes=0,
        accepted_at=1e9,
        accepted_s=1e9,
        accepted=b"accepted",
    )
    return replace(plain, **changed)


def ended(arrival: int, state: JobState = JobState.SUCCEEDED, **changed: Any) -> JobRecord:
    """Returns the record of the same job after its end."""
    now = time.time()
    return row(arrival, state=state, **{"ended_at": now, "ended_s": now, "sequence": 3, **changed})


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., SqliteJobStore]]:
    """Opens the store of one folder, closing the one before."""
    stores: list[SqliteJobStore] = []

    def again(
        retention: Retention = KEEP, folder: Path = tmp_path / "state", clocks: SystemClocks = SYSTEM_CLOCKS
    ) -> SqliteJobStore:
        for store in stores:
            store.close()
        stores[:] = [open_store(folder, retention, clocks)]
        return stores[0]

    yield again
    for store in stores:
        store.close()
