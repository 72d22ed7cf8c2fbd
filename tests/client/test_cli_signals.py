"""SIGTERM and SIGHUP of a command that waits: its jobs are cancelled at once, as with Ctrl-C."""

import asyncio
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.polling import until
from zrelay_client import Client
from zrelay_shared import exits
from zrelay_shared.signals import on_signals, on_termination

from .conftest import Services
from .test_cli_prompts import write

LONG = ("--size", "512x512", "--num-inference-steps", "100")
COMMANDS = {
    "one": ("a red circle", *LONG, "-o", "out.png"),
    "many": ("a red circle", *LONG, "-o", "out/", "--count", "2"),
    "prompts": ("--prompts", "prompts.jsonl", "-o", "out/"),
}


def start(services: Services, *args: str, ignore_hangup: bool = False, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "zrelay_client", "generate", *args, *services.flags]
    if ignore_hangup:
        command = ["nohup", *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, text=True, **pipes)


def running(services: Services) -> list[str]:
    with Client(generator=services.generator) as client:
        return [job.job_id for job in client.jobs.list(states=["running", "queued"])]


@pytest.fixture(autouse=True)
def idle_generator(services: Services) -> None:
    asyncio.run(services.idle())


def started(services: Services, process: subprocess.Popen[str]) -> None:
    until(lambda: running(services) or process.poll() is not None, "a job runs")
    assert process.poll() is None, process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_terminated_command_cancels_its_jobs(
    services: Services, empty_home: Path, command: str, number: signal.Signals
) -> None:
    write("prompts.jsonl", *({"prompt": "fox", "size": "512x512", "num_inference_steps": 100} for _ in range(2)))
    process = start(services, *COMMANDS[command])
    started(services, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert running(services) == []  # the command ends after the generator has confirmed the cancellation
    assert (process.returncode, out) == (128 + number, "")
    assert err.strip().startswith("terminated: ") and "Traceback" not in err
    assert not Path("out.png").exists()


def test_a_hangup_that_is_ignored_stays_ignored(services: Services, empty_home: Path) -> None:
    args = ("a red circle", "--size", "256x256", "--num-inference-steps", "30", "-o", "out.png")
    process = start(services, *args, ignore_hangup=True, stdin=subprocess.DEVNULL)
    started(services, process)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == exits.OK, err
    assert Path("out.png").exists()


def test_a_closed_terminal_cancels_the_job(services: Services, empty_home: Path) -> None:
    here, there = pty.openpty()
    process = start(services, *COMMANDS["one"], stdin=there, stdout=there, stderr=there, start_new_session=True)
    os.close(there)
    started(services, process)
    os.close(here)  # nothing reads the terminal any more: writing to it fails
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == exits.HUNG_UP
    assert running(services) == []


def test_a_second_signal_ends_the_command_at_once(services: Services, empty_home: Path) -> None:
    process = start(services, *COMMANDS["one"])
    started(services, process)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode in (-signal.SIGTERM, exits.TERMINATED)
    asyncio.run(services.idle())


def test_watching_ends_and_the_job_goes_on(services: Services, empty_home: Path) -> None:
    with Client(encoder=services.encoder, generator=services.generator) as client:
        job = client.submit("a red circle", width=512, height=512, num_inference_steps=100, preview_every=1)
        job_id = job.job_id
    command = [sys.executable, "-m", "zrelay_client", "jobs", "watch", job_id, "--generator", services.generator]
    watching = subprocess.Popen([*command, "--preview", "now.jpg"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(lambda: Path("now.jpg").exists() or watching.poll() is not None, "there is a preview")
    watching.send_signal(signal.SIGTERM)
    watching.communicate(timeout=10)
    assert running(services) == [job_id]
    with Client(generator=services.generator) as client:
        client.jobs.cancel(job_id)
    asyncio.run(services.idle())


def test_a_platform_without_the_signals_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGHUP")
    called: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    try:
        on_termination(called.append)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert called == [signal.SIGTERM]


async def test_an_ignored_hangup_gets_no_handler() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with on_signals(("SIGHUP",), lambda: None):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
