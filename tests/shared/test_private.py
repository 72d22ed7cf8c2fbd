"""private: whose files those of zrelay are, and that no link leads elsewhere."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from zrelay_shared import atomic, paths, private

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """The umask that closes nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_new_files_and_folders_are_private(tmp_path: Path) -> None:
    state = tmp_path / "state"
    private.make_folder(state, paths.STATE_REMEDY)
    with private.open_file(state / "log", "wb") as file:
        file.write(b"\xc3\xa9")
    atomic.write_bytes(state / "record", b"new", private=True)
    assert [mode(path) for path in (state, state / "log", state / "record")] == [0o700, 0o600, 0o600]
    assert private.read_text(state / "log") == "é"
    (state / "record").chmod(0o664)
    atomic.write_bytes(state / "record", b"newer", private=True)
    assert mode(state / "record") == 0o600, "and does not keep what an older zrelay gave it"


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_not_followed(tmp_path: Path, exists: bool) -> None:
    target, link = tmp_path / "precious", tmp_path / "stack.json"
    if exists:
        target.write_bytes(b"precious")
    link.symlink_to(target)
    for how in ("rb", "wb", "ab", "xb"):
        with pytest.raises(OSError, match=r"stack\.json is a symbolic link, .*: remove it") as error:
            private.open_file(link, how)
        assert error.value.filename == str(link)
    atomic.write_bytes(link, b"state", private=True)
    assert not link.is_symlink() and link.read_bytes() == b"state"
    assert target.exists() is exists and (not exists or target.read_bytes() == b"precious")


def older_state(folder: Path) -> None:
    """Writes the state of an older zrelay, and files that are not zrelay's, all of them open to others."""
    for name in ("logs/encoder.log", "cache/ab/digest.json", "jobs.db", "jobs.db-wal", "stack.json", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    (folder / "private").mkdir(mode=0o755)


def test_the_state_of_an_older_zrelay_is_made_private(tmp_path: Path) -> None:
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    older_state(state)
    elsewhere.write_bytes(b"")
    (state / "jobs.lock").symlink_to(elsewhere)
    message = private.tighten(state)
    assert message == f"{state} was open to other users of this machine: 9 folders and files are private now"
    ours = [state, *(path for name in ("logs", "cache") for path in (state / name, *(state / name).rglob("*")))]
    assert {mode(path) for path in ours if path.is_dir()} == {0o700}
    files = [*(path for path in ours if path.is_file()), state / "jobs.db", state / "jobs.db-wal", state / "stack.json"]
    assert {mode(path) for path in files} == {0o600}
    assert (mode(state / "notes.txt"), mode(state / "private"), mode(elsewhere)) == (0o666, 0o755, 0o666)
    assert private.tighten(state) == ""
    assert private.tighten(tmp_path / "absent") == ""


@pytest.mark.parametrize("shared", [stat.S_ISGID, stat.S_ISVTX], ids=["setgid", "sticky"])
def test_a_folder_that_is_shared_on_purpose_keeps_its_mode(tmp_path: Path, shared: int) -> None:
    state = tmp_path / "state"
    older_state(state)
    state.chmod(0o770 | shared)
    assert private.tighten(state)
    assert mode(state) == 0o770 | shared
    assert (mode(state / "logs"), mode(state / "jobs.db")) == (0o700, 0o600)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_what_belongs_to_another_user_is_left_alone(tmp_path: Path) -> None:
    state = tmp_path / "state"
    older_state(state)
    for path in (state, state / "jobs.db"):
        os.chown(path, 12345, 12345)
    assert private.tighten(state)
    assert (mode(state), mode(state / "jobs.db"), mode(state / "jobs.db-wal")) == (0o777, 0o666, 0o600)


def test_a_pipe_does_not_hold_up_a_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "jobs.db")
    with contextlib.suppress(OSError):
        private.tighten(tmp_path)
    assert mode(tmp_path / "jobs.db") == 0o666
