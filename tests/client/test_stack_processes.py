"""Processes that `zrelay up` starts: who is meant, and who is ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zrelay_client.stack import record
from zrelay_client.stack.processes import ProcessId, end, start_mark
from zrelay_shared.errors import FailedPrecondition

WAIT = "import sys; print('up', flush=True); sys.stdin.read()"
IGNORE = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAIT}"


def started(code: str) -> tuple[subprocess.Popen[bytes], ProcessId]:
    """A process that runs until its stdin ends, and its identity."""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    mark = start_mark(process.pid)
    assert mark is not None
    return process, ProcessId(process.pid, mark)


@pytest.fixture
def waiting() -> Iterator[tuple[subprocess.Popen[bytes], ProcessId]]:
    process, identity = started(WAIT)
    yield process, identity
    process.kill()
    process.communicate()


def test_a_process_is_ended_with_sigterm(waiting: tuple[subprocess.Popen[bytes], ProcessId]) -> None:
    process, identity = waiting
    assert identity.alive and start_mark(identity.pid) == identity.started
    assert end([identity], grace_s=60.0) == []
    assert not identity.alive, "a zombie does not count"
    assert process.wait() == -signal.SIGTERM
    assert start_mark(identity.pid) is None
    assert end([identity], grace_s=60.0) == []


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    process, identity = started(IGNORE)
    assert end([identity], grace_s=0.0) == [identity]
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("mark", ["", "ended", "another boot:1.00", "before the reboot"])
def test_another_process_with_the_pid_is_left_alone(
    waiting: tuple[subprocess.Popen[bytes], ProcessId], mark: str
) -> None:
    process, identity = waiting
    stranger = ProcessId(identity.pid, mark)
    assert not stranger.alive
    assert end([stranger], grace_s=0.0) == []
    assert process.poll() is None


def test_a_start_at_another_time_is_another_process() -> None:
    mark = start_mark(os.getpid())
    assert mark is not None
    boot, _, seconds = mark.rpartition(":")
    assert ProcessId(os.getpid(), f"{boot}:{float(seconds) + 1:.2f}").alive, "clocks are rounded to a second"
    assert not ProcessId(os.getpid(), f"{boot}:{float(seconds) + 60:.2f}").alive


def test_one_command_changes_a_stack_at_a_time(tmp_path: Path) -> None:
    with record.locked(tmp_path), pytest.raises(FailedPrecondition) as refusal, record.locked(tmp_path):
        pytest.fail("two commands hold the lock")
    assert refusal.value.reason == "STACK_BUSY"
    with record.locked(tmp_path):
        pass
