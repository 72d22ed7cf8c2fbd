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
        self._real = real
        self.put = put

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


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
        accepted=b"accepted",
    )
    return replace(plain, **changed)


def ended(arrival: int, state: JobState = JobState.SUCCEEDED, **changed: Any) -> JobRecord:
    """Returns the record of the same job after its end."""
    return row(arrival, state=state, **{"ended_at": time.time(), "sequence": 3, **changed})


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., SqliteJobStore]]:
    """Opens the store of one folder, closing the one before."""
    stores: list[SqliteJobStore] = []

    def again(retention: Retention = KEEP, folder: Path = tmp_path / "state") -> SqliteJobStore:
        for store in stores:
            store.close()
        stores[:] = [open_store(folder, retention)]
        return stores[0]

    yield again
    for store in stores:
        store.close()
