"""A generator whose file descriptors run out while it serves: callers wait, and nothing is a bug."""

import asyncio
import sqlite3
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.descriptors import few_free
from tests.helpers.jobs import SMALL
from tests.helpers.polling import until_async
from zrelay_generator.jobs.manager import Intervals
from zrelay_generator.store.disk import DiskHealth
from zrelay_shared.errors import Unavailable

from .fixture_types import RequestOf, Serve
from .generator_client import GeneratorClient

pytestmark = pytest.mark.hostile

QUICK = Intervals(heartbeat_s=0.1, retain_s=0.1)


@pytest.mark.deep
async def test_a_generator_without_descriptors_serves_again_once_it_has_some(
    serve_kept: Serve, request_of: RequestOf, caplog: pytest.LogCaptureFixture
) -> None:
    caller = await serve_kept(parts={"intervals": QUICK})
    assert await succeeds(caller, request_of, "before")
    with few_free():
        await asyncio.sleep(QUICK.heartbeat_s * 2)  # heartbeats fail as well
        with pytest.raises(Unavailable) as refusal:
            await succeeds(caller, request_of, "meanwhile")
        with suppress(Unavailable):
            await caller.info()
    assert refusal.value.reason == "DESCRIPTORS_EXHAUSTED" and refusal.value.retry_after_s
    await until_async(lambda: accepts(caller, request_of), "the generator accepts jobs again", 60)
    assert "incident" not in caplog.text and "Traceback" not in caplog.text, caplog.text


async def succeeds(caller: GeneratorClient, request_of: RequestOf, request_id: str) -> bool:
    """Whether a job succeeds. Raises the refusal."""
    events = await caller.generate(request_of(request_id=request_id, **SMALL))
    return bool(events[-1].WhichOneof("event") == "done")


async def accepts(caller: GeneratorClient, request_of: RequestOf) -> bool:
    with suppress(Unavailable):
        return await succeeds(caller, request_of, "after")
    return False


def test_the_state_folder_without_a_descriptor_is_no_broken_disk(tmp_path: Path) -> None:
    disk = DiskHealth()
    file = tmp_path / "content"
    file.write_bytes(b"x")
    for work in (disk.reading, disk.writing):
        with few_free(), pytest.raises(Unavailable) as refusal, work():
            file.read_bytes()
        assert refusal.value.reason == "DESCRIPTORS_EXHAUSTED" and refusal.value.retry_after_s
    with few_free(), pytest.raises(Unavailable) as refusal, disk.writing():
        sqlite3.connect(tmp_path / "jobs.db")
    assert refusal.value.reason == "DESCRIPTORS_EXHAUSTED"
    with pytest.raises(Unavailable) as refusal, disk.reading():
        (tmp_path / "nothing").read_bytes()
    assert refusal.value.reason == "STATE_UNWRITABLE"
