"""The client on native Windows, as far as another platform can show: without the modules, attributes and event loop
methods that Windows does not have."""

import ast
import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.structure import parsed
from tests.contract.test_dependencies import FILES, SERVES, reachable
from tests.helpers.jobs import QUICK_FLAGS
from zrelay_shared import exits
from zrelay_shared.signals import on_signals

from .conftest import Services

POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty"}
POSIX_ATTRIBUTES = {
    "os": {
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "chroot", "fchmod", "fchown", "fork"),
        *("forkpty", "getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "initgroups", "killpg"),
        *("lchown", "mkfifo", "mknod", "nice", "openpty", "posix_fadvise", "pread", "pwrite", "register_at_fork"),
        *("sched_getaffinity", "sched_setaffinity", "setgid", "setpgid", "setsid", "setuid", "statvfs", "sysconf"),
        *("sysconf_names", "uname", "wait", "wait3", "wait4"),
    },
    "signal": {
        *("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGTSTP"),
        *("SIGUSR1", "SIGUSR2", "SIGWINCH", "alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer"),
        *("sigwait", "siginterrupt"),
    },
    "socket": {"AF_UNIX", "SO_REUSEPORT"},
    "time": {"tzset", "clock_settime"},
}
"""Attributes that these modules lack on Windows (their documentation says "Availability: Unix")."""

NEEDED_HERE = {"AF_UNIX", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "fchmod"}
"""Attributes that asyncio and filelock use on this platform whenever they run."""

SIMULATION = """
import asyncio, builtins, os, runpy, select, shutil, signal, socket, subprocess, sys, tempfile, threading, time
import click, crc32c, filelock, google.protobuf.json_format, grpc.aio, grpc_health.v1.health_pb2, numpy, psutil

def no_signal_handlers(self, *args):
    raise NotImplementedError

for loop in (asyncio.SelectorEventLoop,):
    loop.add_signal_handler = loop.remove_signal_handler = no_signal_handlers
for module, names in {attributes!r}.items():
    for name in names:
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
imported = builtins.__import__
def without_posix(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {{}}).get("__name__", "")
    if name in {modules!r} and importer.startswith("zrelay"):
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    return imported(name, globals, locals, fromlist, level)
builtins.__import__ = without_posix
"""
"""Takes away from zrelay what Windows lacks. Python and the libraries need it here, and are loaded before."""


def windows(code: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Runs code in a process in which our modules find what they find on Windows."""
    removed = {module: sorted(names - NEEDED_HERE) for module, names in POSIX_ATTRIBUTES.items()}
    script = SIMULATION.format(attributes=removed, modules=sorted(POSIX_MODULES)) + code
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ZRELAY_")}
    environ |= {"ZRELAY_STATE": str(cwd / "state"), "ZRELAY_CONFIG": str(cwd / "config.toml")}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=120, check=False)


def zrelay_on_windows(cwd: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    return windows(f"sys.argv = ['zrelay', *{args!r}]\nrunpy.run_module('zrelay_client', run_name='__main__')\n", cwd)


def test_state_is_written_and_read(tmp_path: Path) -> None:
    """Permission bits mean nothing on Windows: nothing fails for want of them."""
    code = """
from pathlib import Path
from zrelay_client.stack import record
from zrelay_shared import paths, private
state = paths.state_dir()
with record.locked(state):
    private.make_folder(state / "logs", paths.STATE_REMEDY)
    record.save(state, record.StackRecord("model", 1.0, ()))
    with private.open_file(state / "logs" / "encoder.log", "wb") as log:
        log.write(b"ready")
print(record.load(state), private.tighten(state), private.read_text(state / "logs" / "encoder.log"))
"""
    ran = windows(code, tmp_path)
    assert ran.stdout == "StackRecord(model='model', grace_s=1.0, services=(), security='')  ready\n", ran.stderr


def test_the_simulation_takes_away_what_windows_lacks(tmp_path: Path) -> None:
    probe = "exec(compile('import fcntl', 'probe', 'exec'), {'__name__': 'zrelay_probe'})"
    assert "No module named 'fcntl'" in windows(probe, tmp_path).stderr
    assert "has no attribute 'SIGKILL'" in windows("signal.SIGKILL", tmp_path).stderr


def test_every_module_of_the_client_is_imported(tmp_path: Path) -> None:
    modules = sorted(name for name in FILES if name.startswith("zrelay_client") and not name.endswith("__main__"))
    code = f"import importlib\nfor name in {modules!r}:\n    importlib.import_module(name)\n"
    ran = windows(code, tmp_path)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("args", [("--help",), ("generate", "--help"), ("config", "show"), ("config", "path")])
def test_commands_without_services(tmp_path: Path, args: tuple[str, ...]) -> None:
    ran = zrelay_on_windows(tmp_path, *args)
    assert ran.returncode == 0, ran.stderr


def test_info_and_generate_against_real_services(services: Services, tmp_path: Path) -> None:
    info = zrelay_on_windows(tmp_path, "info", *services.flags)
    assert info.returncode == 0 and "generator" in info.stdout, info.stderr
    ran = zrelay_on_windows(tmp_path, "generate", "a red circle", *QUICK_FLAGS, "-o", "a.png", *services.flags)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    again = zrelay_on_windows(
        tmp_path, "generate", "a red circle", *QUICK_FLAGS, "-o", "a.png", "--force", *services.flags
    )
    assert again.returncode == 0, again.stderr


def test_ctrl_c_stops_a_generation_at_the_generator(services: Services, tmp_path: Path) -> None:
    """The signal comes while the job runs: the command ends with the exit code of an interruption."""
    code = f"""
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
from zrelay_client.cli._output import Console
shown = Console.status
def status(self, text, **options):
    if "accepted" in text:
        threading.Timer(0.1, interrupt).start()
    shown(self, text, **options)
Console.status = status
arguments = ['generate', 'a red circle', '--size', '512x512', '--num-inference-steps', '100', '-o', 'a.png']
sys.argv = ['zrelay', *arguments, *{services.flags!r}]
runpy.run_module('zrelay_client', run_name='__main__')
"""
    ran = windows(code, tmp_path)
    assert ran.returncode == exits.INTERRUPTED, ran.stderr
    assert not (tmp_path / "a.png").exists()
    asyncio.run(services.idle())


@pytest.mark.parametrize("has_handlers", [True, False], ids=["posix", "windows"])
def test_signals_run_an_action_and_leave_the_former_handler(has_handlers: bool) -> None:
    class WindowsLoop(asyncio.SelectorEventLoop):
        def add_signal_handler(self, sig: int, callback: object, *args: object) -> None:
            raise NotImplementedError

    async def work() -> None:
        received = asyncio.Event()
        with on_signals(("SIGINT", "SIGNOSUCH"), received.set) as installed:
            assert installed
            signal.raise_signal(signal.SIGINT)
            await asyncio.wait_for(received.wait(), 10)

    before = signal.getsignal(signal.SIGINT)
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop if has_handlers else WindowsLoop) as runner:
        runner.run(work())
    assert signal.getsignal(signal.SIGINT) == before


async def test_another_thread_installs_no_handlers() -> None:
    async def installed() -> bool:
        with on_signals(("SIGINT",), lambda: None) as handled:
            return handled

    assert not await asyncio.to_thread(asyncio.run, installed())


def test_nothing_that_the_client_imports_uses_what_windows_lacks() -> None:
    """Where it is used, `hasattr`, `os.name` or the `try:` of an import must guard it on the same line or the one
    before."""
    found: list[str] = []
    for name in sorted(reachable("zrelay_client") - {SERVES}):
        lines = FILES[name].read_text(encoding="utf-8").splitlines()
        for node in ast.walk(parsed(FILES[name])):
            used, guard = "", r"hasattr|os\.name"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used = node.attr if node.attr in POSIX_ATTRIBUTES.get(node.value.id, ()) else ""
            elif isinstance(node, ast.Import):
                used = next((alias.name for alias in node.names if alias.name in POSIX_MODULES), "")
                guard += r"|^try:"
            elif isinstance(node, ast.ImportFrom):
                used = node.module if node.module in POSIX_MODULES else ""
            line = getattr(node, "lineno", 0)
            if used and not re.search(guard, "\n".join(lines[line - 2 : line])):
                found.append(f"{name}:{line}: {used}")
    assert found == []
