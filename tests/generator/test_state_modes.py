"""The state folder of a generator: private whatever the umask is, and never reached through a link."""

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from zrelay_generator.store.opening import FolderLock
from zrelay_generator.store.sqlite import open_store
from zrelay_shared.errors import FailedPrecondition

from .stores import KEEP


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """The umask that closes nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.lstat().st_mode) for path in (folder, *folder.rglob("*"))}


PRIVATE = {
    "state": 0o700,
    "blobs": 0o700,
    "jobs.db": 0o600,
    "jobs.db-wal": 0o600,
    "jobs.db-shm": 0o600,
    "jobs.lock": 0o600,
    "jobs.owner": 0o600,
}


def test_a_new_state_folder_is_private(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state", KEEP)
    try:
        assert modes(tmp_path / "state") == PRIVATE
    finally:
        store.close()


def test_the_state_folder_of_an_older_zrelay_is_made_private(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = tmp_path / "state"
    open_store(state, KEEP).close()
    for path in (state, *state.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    with caplog.at_level(logging.WARNING):
        store = open_store(state, KEEP)
    try:
        assert modes(state) == PRIVATE
        assert [record.message for record in caplog.records] == [
            f"{state} was open to other users of this machine: 5 folders and files are private now"
        ]
    finally:
        store.close()


@pytest.mark.parametrize("name", ["jobs.db", "jobs.db-wal", "jobs.lock", "jobs.owner"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_in_place_of_a_file_is_refused(tmp_path: Path, name: str, exists: bool) -> None:
    state, target = tmp_path / "state", tmp_path / "precious"
    state.mkdir()
    if exists:
        target.write_bytes(b"precious")
    (state / name).symlink_to(target)
    with pytest.raises(FailedPrecondition, match=f"{name} is a symbolic link") as refusal:
        open_store(state, KEEP)
    assert refusal.value.reason == "STATE_UNWRITABLE"
    assert target.exists() is exists and (not exists or target.read_bytes() == b"precious")


def test_the_owner_of_a_lock_is_a_number_or_unknown(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    try:
        for text, process in (("4711", "4711"), ("\x1b[2J4711", "unknown")):
            (tmp_path / "jobs.owner").write_text(text)
            with pytest.raises(FailedPrecondition) as refusal:
                FolderLock(tmp_path)
            assert refusal.value.metadata == {"process": process}
    finally:
        lock.release()
