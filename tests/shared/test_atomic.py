"""atomic: a file is whole or not there, whatever interrupts its writing."""

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from zrelay_shared import atomic


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "fox.png"
    atomic.write_bytes(path, b"one")
    atomic.write_bytes(path, memoryview(b"two"))
    assert path.read_bytes() == b"two"
    assert [item.name for item in tmp_path.iterdir()] == ["fox.png"]


def test_a_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        atomic.write_bytes(tmp_path / "fox.png", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "fox.png").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, b"old"])
def test_an_interrupted_block_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException], before: bytes | None
) -> None:
    path = tmp_path / "fox.png"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(error), atomic.writing(path) as file:
        file.write(b"half")
        file.flush()
        raise error
    assert [item.read_bytes() for item in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_killed_process_leaves_no_half_file_under_the_name(tmp_path: Path) -> None:
    path = tmp_path / "fox.png"
    path.write_bytes(b"old")
    script = textwrap.dedent("""
        import pathlib, sys, time
        from zrelay_shared import atomic
        with atomic.writing(pathlib.Path(sys.argv[1])) as file:
            file.write(b"half"); file.flush()
            print("writing", flush=True)
            time.sleep(60)
    """)
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    process.stdout.close()
    assert path.read_bytes() == b"old"
    assert all(item.suffix == ".part" for item in tmp_path.iterdir() if item != path)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "fox.png"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            atomic.write_bytes(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_errors_name_the_requested_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as absent:
        atomic.write_bytes(tmp_path / "absent" / "fox.png", b"x")
    assert absent.value.filename == str(tmp_path / "absent" / "fox.png")
    with pytest.raises(IsADirectoryError) as folder:
        atomic.write_bytes(tmp_path, b"x")
    assert folder.value.filename == str(tmp_path)
    (tmp_path / ("n" * 250)).write_bytes(b"")
    atomic.write_bytes(tmp_path / ("n" * 250), b"long names work")


def test_a_file_that_exists_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "fox.png"
    path.write_bytes(b"old")
    for mode in (0o664, 0o600, 0o444):
        path.chmod(mode)
        with atomic.writing(path) as file:
            (partial,) = tmp_path.glob(".fox.png.*.part")
            assert partial.stat().st_mode & 0o777 == mode, "nobody else reads a private file while it is written"
            file.write(b"new")
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", mode)


@pytest.mark.parametrize("relative", [True, False])
def test_a_write_through_links_replaces_their_target(tmp_path: Path, relative: bool) -> None:
    (tmp_path / "day").mkdir()
    real = tmp_path / "day" / "real.png"
    real.write_bytes(b"old")
    real.chmod(0o640)
    middle, latest = tmp_path / "middle.png", tmp_path / "latest.png"
    middle.symlink_to("day/real.png" if relative else real)
    latest.symlink_to("middle.png" if relative else middle)
    atomic.write_bytes(latest, b"new")
    assert (real.read_bytes(), real.stat().st_mode & 0o777) == (b"new", 0o640)
    assert latest.is_symlink() and middle.is_symlink()
    assert [item.name for item in real.parent.iterdir()] == ["real.png"]


def test_a_link_that_leads_to_no_file_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    expected = {
        "gone": "a symbolic link to gone, which does not exist: remove it, or name another file",
        "folder": f"a symbolic link to {tmp_path / 'folder'}, which is a folder: name a file in it",
        "pipe": f"a symbolic link to {tmp_path / 'pipe'}, which is not a regular file: choose another name",
        "link": "a symbolic link that leads back to itself: name another file",
        "file/x": "a symbolic link that cannot be followed: Not a directory: name another file",
    }
    link = tmp_path / "link"
    for target, message in expected.items():
        link.symlink_to(target)
        with pytest.raises(OSError) as refused:
            atomic.write_bytes(link, b"x")
        assert (refused.value.strerror, refused.value.filename) == (message, str(link))
        assert str(link.readlink()) == target
        link.unlink()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "folder", "pipe"]


def test_a_link_into_a_folder_that_cannot_be_written_names_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, link = tmp_path / "folder" / "real.png", tmp_path / "latest.png"
    real.parent.mkdir()
    real.write_bytes(b"old")
    link.symlink_to(real)

    def refuse(path: Path, *_: object) -> None:  # the tests may run as root, which writes everywhere
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError) as refused:
        atomic.write_bytes(link, b"x")
    assert refused.value.filename == str(link)
    assert refused.value.strerror == f"Permission denied (a symbolic link to {real})"


def test_a_device_or_pipe_is_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not a regular file"):
        atomic.write_bytes(pipe, b"x")
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_many_writers_of_one_name(tmp_path: Path) -> None:
    import threading

    path = tmp_path / "fox.png"
    contents = [bytes([i]) * 100_000 for i in range(8)]
    threads = [threading.Thread(target=atomic.write_bytes, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]
