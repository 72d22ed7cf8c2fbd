"""The state folder of an earlier release: its jobs are listed, fetched and continued.

`data/state_before_records` was written by a generator of the commit before job records, which was killed while it
generated the second of three jobs. `jobs.sql` is the dump of its jobs.db.
"""

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from zrelay.v1.generation_pb2 import GenerationSpec
from zrelay_generator.jobs.live import complete_stored_job
from zrelay_generator.priority import Priority
from zrelay_generator.store.clock import MAX_GAP_S
from zrelay_generator.store.opening import DATABASE, salvaged
from zrelay_generator.store.records import JobState
from zrelay_generator.store.retention import Retention
from zrelay_generator.store.sqlite import open_store
from zrelay_shared.errors import Cancelled

DATA = Path(__file__).parent / "data" / "state_before_records"
KEEP_ALL = Retention(results_s=1e12, results=100, result_bytes=1 << 30, content_bytes=1 << 30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the state folder."""
    folder = tmp_path / "state"
    shutil.copytree(DATA, folder)
    with sqlite3.connect(folder / DATABASE) as db:
        db.executescript((folder / "jobs.sql").read_text(encoding="utf-8"))
    db.close()
    return folder


async def test_a_state_folder_of_an_earlier_release_opens(folder: Path) -> None:
    store = open_store(folder, KEEP_ALL)
    try:
        done, cancelled = await store.by_id("64553143b9ddd714", None), await store.by_id("c057c57a1101551e", None)
        assert done is not None and done.state is JobState.SUCCEEDED and done.priority is Priority.NORMAL
        assert cancelled is not None and cancelled.state is JobState.CANCELLED
        assert isinstance(cancelled.error, Cancelled)
        (image,) = complete_stored_job(done, await store.results(done.arrival)).log.images
        data = await store.read(image.file_sha256)
        assert data.startswith(b"\x89PNG") and (image.seed, image.width) == (7, 64)

        (unfinished,), unreadable = await store.unfinished()
        assert (unfinished.job_id, unfinished.state, unreadable) == ("adba249123ff561c", JobState.QUEUED, [])
        spec = GenerationSpec.FromString(await store.spec(unfinished.arrival))
        assert (spec.sampling.width, spec.sampling.num_inference_steps, spec.sampling.seed) == (512, 100, 8)
        assert await store.needed([spec.prompt.content.sha256], "") == {spec.prompt.content.sha256}
        assert await store.read(spec.prompt.content.sha256)
        owners = ("", "member another")
        sizes = [await store.known_size(spec.prompt.content.sha256, owner) for owner in owners]
        assert sizes[0] and sizes[1] is None, "it belongs to callers without an identity"
        assert [await store.by_id(done.job_id, owner) for owner in owners] == [done, None]
        assert await store.retain() == 0
        assert store.clock.now_s - done.ended_s < 2 * MAX_GAP_S, "they grow old from now on, whatever the time is"
    finally:
        store.close()


async def test_a_damaged_database_of_an_earlier_release_is_salvaged(folder: Path) -> None:
    salvaged(folder / DATABASE)[0].close()
    store = open_store(folder, replace(KEEP_ALL, results_s=24 * 3600.0))
    try:
        assert len((await store.unfinished())[0]) == 1
        assert len(await store.before(1 << 62, [JobState.SUCCEEDED, JobState.CANCELLED], 9, None)) == 2
        assert await store.retain() == 0
    finally:
        store.close()
