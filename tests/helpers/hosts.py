"""Hosts with a network namespace, a host name and folders of their own, on which the commands of a page run."""

import os
import plistlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from link import SwitchedHost

from zrelay_client.stack.bundle import demo_checkpoint

from .polling import DEADLINE_S, until

ROOT = Path(__file__).parents[2]
_AGENT = "deploy/launchd/org.zrelay.encoder.plist"
_SET_UP = ("python3", "python3.12", "pip", "mkdir", "cp", "chmod", "useradd", "install")
"""Programs that only bring files to a machine. Hosts have those of the checkout."""


@dataclass(frozen=True)
class Step:
    """A command of a page, and the host that it is for."""

    host: str
    words: tuple[str, ...]


def steps(page: str, section: str) -> list[Step]:
    """Returns the commands of a section of a page in docs.

    A paragraph that ends with a colon names the host of the commands below it, as in "On the Mac:".
    """
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    [content] = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    found, host = [], ""
    for paragraph in content.split("\n\n"):
        if paragraph.startswith("    "):
            found += [Step(host, tuple(shlex.split(line))) for line in paragraph.splitlines()]
        elif paragraph.endswith(":"):
            host = re.findall(r"[Oo]n the (Mac|GPU box|laptop)\b", paragraph)[-1]
    assert found, section
    return found


@dataclass
class Host:
    """A host.

    Attributes:
        name: Its host name.
        place: Its place in the network.
        root: The folder of its files.
        services: Role -> the process of its service.
    """

    name: str
    place: SwitchedHost
    root: Path
    services: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _changed: dict[str, str] = field(default_factory=dict)

    @property
    def here(self) -> Path:
        """The working folder of its commands."""
        return self.root / "here"

    def start(self, *words: str, state: str = "/home/state", **options: Any) -> subprocess.Popen[Any]:
        """Starts `zrelay` with arguments.

        Args:
            words: The arguments.
            state: The state folder, as it is named on the host.
            options: For Popen.
        """
        self.here.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ZRELAY_")}
        own = {"ZRELAY_STATE": self.path(state), "ZRELAY_CONFIG": self.path("/home/config.toml")}
        named = ["sh", "-c", 'hostname "$0" && exec "$@"', self.name, str(Path(sys.executable).with_name("zrelay"))]
        command = ["ip", "netns", "exec", self.place.namespace, "unshare", "--uts", *named, *words]
        return subprocess.Popen(command, cwd=self.here, env=inherited | own, **options)

    def zrelay(self, *words: str, state: str = "/home/state", stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Runs `zrelay` to its end."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = self.start(*words, state=state, text=True, **pipes)
        try:
            out, err = process.communicate(stdin, timeout=DEADLINE_S)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def path(self, path: str) -> str:
        """Returns where a path of the host is."""
        return str(self.root / path.removeprefix("/"))

    def serve(self, role: str, command: list[str], state: str) -> None:
        """Starts a service by the command of a unit, whose model and folders alone are replaced."""
        assert command[:3] == ["/opt/zrelay/bin/zrelay", "serve", role]
        words = command[1:]
        words[words.index("--model") + 1] = str(demo_checkpoint())
        if "--security" in words:
            place = words.index("--security") + 1
            words[place] = self.path(words[place])
        with self.log(role).open("wb") as log:
            self.services[role] = self.start(*words, state=state, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def ready(self) -> None:
        """Waits until its services are ready."""
        until(lambda: all(map(self._ready, self.services)), f"the services of {self.name} are ready")

    def log(self, name: str) -> Path:
        """Returns the log of a role, or of a command, since its last start."""
        self.root.mkdir(parents=True, exist_ok=True)
        return self.root / f"{name}.log"

    def _ready(self, role: str) -> bool:
        log = self.log(role).read_text()
        assert self.services[role].poll() is None, log
        return "ready on " in log

    def start_unit(self, role: str) -> None:
        """Starts a service as systemd does with the drop-in paired.conf, and waits until it is ready."""
        unit = f"zrelay-{role}.service"
        lines = [
            line
            for file in (unit, f"{unit}.d/paired.conf")
            for line in (ROOT / "deploy/systemd" / file).read_text().splitlines()
        ]
        command = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")][-1]
        [folder] = [line.removeprefix("StateDirectory=") for line in lines if line.startswith("StateDirectory=")]
        self.serve(role, shlex.split(command), f"/var/lib/{folder}")
        self.ready()

    def start_agent(self) -> None:
        """Starts the encoder as launchd does."""
        agent = self._agent()
        self.serve("encoder", agent["ProgramArguments"], agent["EnvironmentVariables"]["ZRELAY_STATE"])

    def replace_in_agent(self, key: str, value: str) -> None:
        """Changes a word of the command of the encoder, as `plutil -replace` does."""
        self._changed[key] = value

    def _agent(self) -> dict[str, Any]:
        agent: dict[str, Any] = plistlib.loads((ROOT / _AGENT).read_bytes())
        for key, value in self._changed.items():
            name, _, index = key.partition(".")
            agent[name][int(index)] = value
        return agent

    def kill(self, role: str) -> None:
        """Ends a service as a power cut does, with SIGKILL."""
        process = self.services.pop(role)
        process.kill()
        process.wait()

    def stop(self, role: str) -> None:
        """Ends a service as its supervisor does, with SIGTERM."""
        process = self.services.pop(role)
        process.terminate()
        assert process.wait(DEADLINE_S) == 0, self.log(role).read_text()


@dataclass
class Script:
    """Runs the commands of a page on hosts. A code that `zrelay pair` prints is the input of the next `zrelay join`.

    Attributes:
        hosts: Hosts by the names that the page uses.
    """

    hosts: dict[str, Host]
    _pairing: subprocess.Popen[str] | None = None
    _code: str = ""

    def run(self, steps: list[Step]) -> None:
        """Runs commands, which must succeed."""
        for step in steps:
            self._run(step, self.hosts[step.host])

    def close(self) -> None:
        """Ends what runs on the hosts."""
        if self._pairing is not None:
            self._pairing.kill()
            self._pairing.communicate()
        for host in self.hosts.values():
            for role in [*host.services]:
                host.kill(role)

    def _run(self, step: Step, host: Host) -> None:
        words = list(_without_user(step.words))
        variables = {}
        while "=" in words[0]:
            name, _, variables[name] = words.pop(0).partition("=")
        state = variables.pop("ZRELAY_STATE", "/home/state")
        assert not variables, step
        match [Path(words[0]).name, *words[1:]]:
            case ["zrelay", *arguments]:
                self._zrelay(host, arguments, state)
            case ["systemctl", "enable", "--now", unit]:
                host.start_unit(unit.removeprefix("zrelay-"))
            case ["systemctl", "daemon-reload"] | ["ufw", *_]:
                pass
            case ["launchctl", "bootstrap", *_]:
                host.start_agent()
            case ["launchctl", "bootout", *_]:
                host.stop("encoder")
            case ["plutil", "-replace", key, "-string", value, _]:
                host.replace_in_agent(key, value)
            case [program, *_]:
                assert program in _SET_UP, step

    def _zrelay(self, host: Host, arguments: list[str], state: str) -> None:
        match arguments:
            case ["pair", *options] if not {"--revoke", "--list"} & {*options} and options[-1:] != ["--renew"]:
                assert self._pairing is None, "a code was not used"
                with host.log("pair").open("wb") as log:
                    self._pairing = host.start(*arguments, state=state, text=True, stdout=subprocess.PIPE, stderr=log)
                assert self._pairing.stdout is not None
                self._code = self._pairing.stdout.readline()
                assert self._code.startswith("zr1"), host.log("pair").read_text()
            case ["join", "-"]:
                assert self._pairing is not None, "there is no code"
                _succeeded(host.zrelay(*arguments, state=state, stdin=self._code))
                self._pairing.communicate(timeout=DEADLINE_S)
                assert self._pairing.returncode == 0
                self._pairing = None
            case _:
                for each in self.hosts.values():
                    each.ready()
                _succeeded(host.zrelay(*arguments, state=state))


def _succeeded(ran: subprocess.CompletedProcess[str]) -> None:
    assert ran.returncode == 0, f"{ran.args}: {ran.stdout}{ran.stderr}"


def _without_user(words: tuple[str, ...]) -> Iterator[str]:
    """Yields a command without `sudo -u USER env` before it."""
    rest = list(words)
    if rest[0] == "sudo":
        rest = rest[3:] if rest[1] == "-u" else rest[1:]
    yield from rest[1:] if rest[0] == "env" else rest
