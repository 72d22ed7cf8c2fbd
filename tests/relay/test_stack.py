"""`zrelay up`, `down`, `demo` and `serve` as processes: what starts, what dies, what is left."""

import json
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.helpers.jobs import PROMPT, QUICK_FLAGS
from tests.helpers.polling import until
from tests.helpers.processes import Machine, gone
from zrelay_client.stack.bundle import demo_checkpoint
from zrelay_client.stack.processes import ProcessId, start_mark
from zrelay_shared import exits


def lines_until_ready(process: subprocess.Popen[str]) -> list[str]:
    """What a foreground `up` says on stdout once its services serve."""
    assert process.stdout is not None
    return [process.stdout.readline().strip() for _ in range(2)]


def test_a_second_up_says_that_one_runs(here: Machine) -> None:
    ran = here.process("up", "--detach")
    assert ran.returncode == exits.REFUSED
    assert "a stack runs already" in ran.stderr
    assert "zrelay down" in ran.stderr


def modes(folder: Path) -> dict[str, int]:
    """Returns the mode of a folder and of all that is in it, sockets and links excluded."""
    found = [path for path in (folder, *folder.rglob("*")) if path.is_file() or path.is_dir()]
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in found}


def test_the_state_of_a_stack_is_private_and_an_image_is_not(here: Machine) -> None:
    found = modes(here.state)
    assert {"jobs.db", "blobs", "cache", "logs", "logs/generator.log", "stack.json", "encoder.address"} <= set(found)
    private = {name: 0o700 if (here.state / name).is_dir() else 0o600 for name in found}
    assert found == private
    ran = here.process("generate", PROMPT, *QUICK_FLAGS, "-o", "fox.png")
    assert ran.returncode == 0, ran.stderr
    mask = os.umask(0o022)
    os.umask(mask)
    assert stat.S_IMODE((here.here / "fox.png").stat().st_mode) == 0o666 & ~mask
    assert modes(here.state).items() >= private.items()


def test_links_in_a_state_folder_are_refused(machine: Machine, tmp_path: Path) -> None:
    machine.state.mkdir()
    target = tmp_path / "precious"
    target.write_text("precious")
    for name in ("stack.lock", "stack.json"):
        (machine.state / name).symlink_to(target)
        ran = machine.zrelay("down")
        assert (ran.returncode, f"{name} is a symbolic link" in ran.stderr) == (exits.LOCAL_FILE, True), ran.stderr
        (machine.state / name).unlink()
    assert target.read_text() == "precious"


@pytest.mark.deep
def test_up_makes_the_state_of_an_older_zrelay_private(machine: Machine) -> None:
    logs = machine.state / "logs"
    logs.mkdir(parents=True)
    (logs / "encoder.log").write_text("a prompt")
    for path in (machine.state, logs):
        path.chmod(0o755)
    ran = machine.process("up", "--detach", "--no-vision")
    assert f"{machine.state} was open to other users of this machine: 3 folders and files are private now" in ran.stderr
    assert machine.zrelay("down").returncode == 0
    assert all(mode & 0o077 == 0 for mode in modes(machine.state).values())


def test_a_dying_service_is_reported_with_its_last_lines_and_ends_the_rest(machine: Machine) -> None:
    process = machine.start("up", "--no-vision")
    ready = lines_until_ready(process)
    assert [line.split()[0] for line in ready] == ["encoder", "generator"]
    pids = machine.pids()
    os.kill(pids[0], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == exits.UNREACHABLE
    assert "error: the encoder was ended by signal 9; its last lines:" in err
    assert "EncoderService ready" in err
    assert gone(pids)
    assert not (machine.state / "stack.json").exists()
    assert (machine.state / "logs" / "encoder.log").exists()


@pytest.mark.deep
def test_ctrl_c_ends_a_stack_in_the_foreground(machine: Machine) -> None:
    process = machine.start("up", "--no-vision")
    lines_until_ready(process)
    pids = machine.pids()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert gone(pids)


def test_a_service_that_cannot_load_is_reported_with_its_last_lines(machine: Machine, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(demo_checkpoint(), model)
    scheduler = model / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "use_karras_sigmas": True}))
    ran = machine.process("up", "--detach", "--model", str(model))
    assert ran.returncode == exits.LOCAL_FILE, ran.stderr
    assert "error: the generator ended with exit code 5; its last lines:" in ran.stderr
    assert "scheduler/scheduler_config.json says use_karras_sigmas" in ran.stderr
    assert not (machine.state / "stack.json").exists()


def test_a_record_of_processes_that_are_gone_is_no_stack(machine: Machine) -> None:
    mine = start_mark(os.getpid())
    assert mine is not None
    assert ProcessId(os.getpid(), mine).alive
    machine.state.mkdir()
    stranger = {"pid": os.getpid(), "started": "another time"}
    service = {"role": "generator", "process": stranger, "endpoint": "127.0.0.1:1", "log": "x"}
    record = {"model": "x", "grace_s": 1.0, "services": [service]}
    (machine.state / "stack.json").write_text(json.dumps(record))
    assert "no encoder and no generator" in machine.zrelay("generate", PROMPT).stderr
    ran = machine.zrelay("down")
    assert (ran.returncode, ran.stderr) == (0, "nothing runs\n")
    assert not (machine.state / "stack.json").exists()
    (machine.state / "stack.json").write_text("{")
    assert machine.zrelay("down").returncode == exits.REFUSED
    (machine.state / "stack.json").unlink()


@pytest.mark.deep
def test_a_stack_that_lost_a_service_is_reported_ended_and_started_again(machine: Machine) -> None:
    machine.state.mkdir()
    stranger = {"pid": os.getpid(), "started": "before the reboot"}
    service = {"role": "generator", "process": stranger, "endpoint": "127.0.0.1:1", "log": "x"}
    (machine.state / "stack.json").write_text(json.dumps({"model": "x", "grace_s": 1.0, "services": [service]}))
    ran = machine.process("up", "--detach", "--no-vision", "--json")  # a record from before a reboot is in nobody's way
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["endpoints"] == machine.endpoints()
    pids = machine.pids()
    os.kill(pids[1], signal.SIGKILL)
    until(lambda: gone(pids[1:]), "the generator is gone")
    refused = machine.zrelay("generate", PROMPT)
    assert refused.returncode == exits.REFUSED
    assert "the generator that `zrelay up` started has ended" in refused.stderr
    assert "generator has ended" in machine.process("up", "--detach").stderr
    down = machine.zrelay("down")
    assert (down.returncode, down.stderr) == (0, "encoder ended\n")
    assert gone(pids)
    assert not (machine.state / "stack.json").exists()
    assert start_mark(os.getpid()) is not None  # the stranger's pid is ours: it was left alone


def test_a_port_that_is_taken(here: Machine, machine: Machine) -> None:
    taken = next(service["endpoint"] for service in here.record()["services"])
    ran = machine.process("serve", "encoder", "--model", str(demo_checkpoint()), "--listen", taken)
    assert ran.returncode == exits.UNREACHABLE, ran.stderr
    assert "taken" in ran.stderr


def test_listening_beyond_this_machine_is_refused(machine: Machine) -> None:
    ran = machine.process("serve", "encoder", "--model", str(demo_checkpoint()), "--listen", "0.0.0.0:7501")
    assert ran.returncode == exits.REFUSED
    assert "SSH tunnel" in ran.stderr


def test_a_folder_that_is_no_checkpoint(machine: Machine, tmp_path: Path) -> None:
    ran = machine.process("serve", "generator", "--model", str(tmp_path), "--listen", "127.0.0.1:0")
    assert ran.returncode == exits.LOCAL_FILE, ran.stderr
    assert "Traceback" not in ran.stderr


def test_ctrl_c_ends_demo_and_leaves_nothing(machine: Machine) -> None:
    process = machine.start("demo")
    until(lambda: len(psutil.Process(process.pid).children()) == 2, "both services are started")
    children = [child.pid for child in psutil.Process(process.pid).children()]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (exits.INTERRUPTED, "")
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err
    assert gone(children)
    assert list((machine.here / "out").iterdir()) == []
    assert not machine.state.exists()


def test_demo_leaves_a_picture_and_nothing_else(machine: Machine) -> None:
    (machine.here / "out").mkdir()
    (machine.here / "out" / "demo.png").write_bytes(b"an earlier picture")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    ran = machine.process("demo")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"generated '{PROMPT}': out/demo.png\n"
    assert (machine.here / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (machine.here / "out").iterdir()] == ["demo.png"]
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    assert not machine.state.exists()
