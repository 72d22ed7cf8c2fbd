"""The systemd units: accepted without a word, hardened as far as a GPU allows, right about what they start."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tools import find_tool
from zrelay_shared import exits
from zrelay_shared.limits import DEFAULT_PORTS


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    tool = find_tool("systemd-analyze", "apt-get install systemd")
    return subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, timeout=60)


@pytest.fixture
def copies(deploy: Path, tmp_path: Path) -> list[Path]:
    """The units with a program that exists here, which `verify` insists on."""
    for unit in sorted((deploy / "systemd").glob("*.service")):
        text = unit.read_text()
        assert text.count("ExecStart=/opt/zrelay/bin/zrelay ") == 1
        (tmp_path / unit.name).write_text(text.replace("/opt/zrelay/bin/zrelay", str(shutil.which("true"))))
    return sorted(tmp_path.iterdir())


def test_verified(copies: list[Path]) -> None:
    """`verify` exits 0 on a misspelt key and only says so on stderr: any word there is a failure."""
    result = analyze("verify", "--man=no", *copies)
    assert (result.returncode, result.stderr) == (0, "")


def test_verify_would_tell(copies: list[Path]) -> None:
    copies[0].write_text(copies[0].read_text().replace("ProtectHome=", "ProtectHouse="))
    assert "ProtectHouse" in analyze("verify", "--man=no", copies[0]).stderr


def test_exposure(copies: list[Path]) -> None:
    """systemd's own score, 0 to 100: 19 to 20 is what is left when a GPU must work."""
    for unit in copies:
        result = analyze("security", "--offline=true", "--threshold=20", "--no-pager", unit)
        assert result.returncode == 0, result.stdout[-200:] + result.stderr


DROP_INS = ("paired", "given")


@pytest.mark.parametrize("name", DROP_INS)
def test_a_drop_in_is_verified_with_its_unit(deploy: Path, copies: list[Path], tmp_path: Path, name: str) -> None:
    for unit in copies:
        folder = tmp_path / f"{unit.name}.d"
        folder.mkdir()
        text = (deploy / f"systemd/{unit.name}.d/{name}.conf").read_text()
        (folder / f"{name}.conf").write_text(text.replace("/opt/zrelay/bin/zrelay", str(shutil.which("true"))))
    result = analyze("verify", "--man=no", *copies)
    assert (result.returncode, result.stderr) == (0, "")
    for unit in copies:  # the firewall is open, which counts 10 points
        result = analyze("security", "--offline=true", "--threshold=30", "--no-pager", unit)
        assert result.returncode == 0, result.stdout[-200:] + result.stderr


@pytest.mark.parametrize("name", DROP_INS)
def test_a_drop_in_serves_other_machines_with_tls(
    deploy: Path, units: dict[str, Any], known_flags: Callable[[str], set[str]], name: str
) -> None:
    for role, unit in units.items():
        text = (deploy / f"systemd/zrelay-{role}.service.d/{name}.conf").read_text()
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert lines[:2] == ["[Service]", "ExecStart="], "it replaces the command"
        command = shlex.split(lines[2].removeprefix("ExecStart="))
        [own] = unit["ExecStart"]
        words = shlex.split(own)
        port = DEFAULT_PORTS[role]
        assert command[: words.index("--listen")] == words[: words.index("--listen")]
        flags = dict(zip(command[3::2], command[4::2], strict=True))
        assert flags["--listen"] == f"0.0.0.0:{port}" and flags["--token-listen"] == f"0.0.0.0:{port + 100}"
        assert {word for word in command if word.startswith("--")} <= known_flags(role)
        assert "--insecure-listen" not in command
        assert {"IPAddressDeny=", "IPAddressAllow="} <= set(lines), "both are open together"
        credentials = {line.removeprefix("LoadCredential=").partition(":")[0] for line in lines if "LoadCr" in line}
        used = {value.removeprefix("%d/") for value in flags.values() if value.startswith("%d/")}
        if name == "given":
            assert credentials == used | {"tokens.json"}
            [default] = [line for line in lines if line.startswith("SetCredential=tokens.json:")]
            assert json.loads(default.partition(":")[2]) == {"version": 1, "records": []}
        else:
            assert "User=zrelay" in lines and flags["--security"] == "/etc/zrelay/security"


def test_the_three_differ_in_role_alone(deploy: Path) -> None:
    texts = []
    for role, port, model, what in (
        ("encoder", 7501, "model", "prompt to prompt_embeds"),
        ("vision", 7502, "vision-model", "reference image to prompt_embeds and siglip_embeds"),
        ("generator", 7503, "model", "prompt_embeds to image"),
    ):
        text = (deploy / f"systemd/zrelay-{role}.service").read_text()
        words = {
            f"({what})": "WHAT",
            f"/srv/zrelay/{model}": "MODEL",
            f":{port}": "PORT",
            role.upper(): "ROLE",
            role: "ROLE",
        }
        for old, new in words.items():
            assert old in text
            text = text.replace(old, new)
        texts.append(text)
    assert texts[0] == texts[1] == texts[2]


def test_keys(units: dict[str, Any]) -> None:
    for role, unit in units.items():
        expected = {
            "Type": ["notify"],
            "DynamicUser": ["yes"],
            "StateDirectory": [f"zrelay/{role}"],
            "ProtectSystem": ["strict"],
            "Restart": ["on-failure"],
            "EnvironmentFile": [f"-/etc/zrelay/{role}.env"],
            "IPAddressDeny": ["any"],
            "IPAddressAllow": ["localhost"],
            "WantedBy": ["multi-user.target"],
        }
        assert {key: unit.get(key) for key in expected} == expected
        assert 10 <= int(unit["WatchdogSec"][0]) <= 60
        assert int(unit["StartLimitBurst"][0]) * int(unit["RestartSec"][0]) < int(unit["StartLimitIntervalSec"][0])
        hopeless = {str(code) for code in (exits.USAGE, exits.REFUSED, exits.LOCAL_FILE)}
        assert set(unit["RestartPreventExitStatus"][0].split()) == hopeless
        state = f"%S/zrelay/{role}"
        caches = dict(value.split("=", 1) for value in unit["Environment"])
        assert caches.pop("HF_HUB_OFFLINE") == "1"
        assert caches.pop("HOME") == state
        assert len(caches) == 5
        assert all(path.startswith(f"{state}/cache/") for path in caches.values())


def test_nothing_that_hides_a_gpu(units: dict[str, Any]) -> None:
    """ProtectClock too: it sets DeviceAllow, and with that every device not named is denied."""
    harmful = {"PrivateDevices", "MemoryDenyWriteExecute", "ProtectClock", "DevicePolicy", "DeviceAllow", "ProcSubset"}
    assert [harmful & set(unit) for unit in units.values()] == [set(), set(), set()]


def test_the_process_keeps_what_the_unit_expects(zrelay: Path, tmp_path: Path) -> None:
    """NotifyAccess=main: READY, the watchdog's beats and STOPPING come from the very process that was started."""
    inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    inbox.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    inbox.settimeout(1)
    inbox.bind(str(tmp_path / "notify"))
    environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
    command = [str(zrelay), "serve", "vision", "--listen", "127.0.0.1:0"]
    log = tmp_path / "log"
    with log.open("wb") as stderr, inbox:
        process = subprocess.Popen(command, env=environment, stderr=stderr)
        try:
            heard = receive_until(inbox, process, {"READY=1", "WATCHDOG=1"}, log)
            process.send_signal(signal.SIGTERM)
            heard += receive_until(inbox, process, {"STOPPING=1"}, log)
            assert process.wait(60) == exits.OK
        finally:
            process.kill()
            process.wait()
    assert heard.count("READY=1") == heard.count("STOPPING=1") == 1


def receive_until(inbox: socket.socket, process: subprocess.Popen[bytes], wanted: set[str], log: Path) -> list[str]:
    """Messages until all of `wanted` came, every one of them sent by `process` itself."""
    heard: list[str] = []
    deadline = time.monotonic() + 180
    while not wanted <= set(heard):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"heard only {set(heard)}: {log.read_text()}"
        with contextlib.suppress(TimeoutError):
            data, ancillary, _, _ = inbox.recvmsg(4096, socket.CMSG_SPACE(12))
            assert struct.unpack("3i", ancillary[0][2])[0] == process.pid
            heard += data.decode().splitlines()
    return heard
