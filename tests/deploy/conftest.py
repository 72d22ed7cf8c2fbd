"""What the deploy files say, read once: how each starts a service, and what the services' own command understands."""

import plistlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.tools import find_tool
from zrelay.v1 import encoder_pb2, generator_pb2, vision_pb2

ROOT = Path(__file__).parents[2]
ROLES = ("encoder", "vision", "generator")
_CONTRACT = {"encoder": encoder_pb2, "vision": vision_pb2, "generator": generator_pb2}

Unit = dict[str, list[str]]
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Launch:
    """One place that starts a service."""

    where: str
    role: str
    argv: list[str]
    stop_s: int
    """Seconds from SIGTERM to SIGKILL."""

    @property
    def listen(self) -> str:
        return self.argv[self.argv.index("--listen") + 1]


@pytest.fixture(scope="session")
def deploy() -> Path:
    """The folder under test."""
    return ROOT / "deploy"


@pytest.fixture(scope="session")
def health_names() -> dict[str, str]:
    """The contract's service of each role, which is also its health name."""
    return {role: next(iter(m.DESCRIPTOR.services_by_name.values())).full_name for role, m in _CONTRACT.items()}


@pytest.fixture(scope="session")
def units(deploy: Path) -> dict[str, Unit]:
    """Each systemd unit by role: key to values in order, whatever the section (no key is in two)."""
    found = {}
    for role in ROLES:
        unit: Unit = {}
        for line in (deploy / f"systemd/zrelay-{role}.service").read_text().splitlines():
            if line and not line.startswith(("#", "[")):
                key, _, value = line.partition("=")
                unit.setdefault(key, []).append(value)
        found[role] = unit
    return found


@pytest.fixture(scope="session")
def plist(deploy: Path) -> dict[str, Any]:
    """The Mac's agent."""
    content: dict[str, Any] = plistlib.loads((deploy / "launchd/org.zrelay.encoder.plist").read_bytes())
    return content


@pytest.fixture(scope="session")
def compose(deploy: Path) -> dict[str, Any]:
    """compose.yaml, its anchors resolved."""
    content: dict[str, Any] = yaml.safe_load((deploy / "docker/compose.yaml").read_text())
    return content


@pytest.fixture(scope="session")
def base(deploy: Path) -> dict[str, list[Manifest]]:
    """The Kubernetes base as written, by file name without suffix."""
    folder = deploy / "kubernetes/base"
    return {path.stem: list(yaml.safe_load_all(path.read_text())) for path in folder.glob("*.yaml")}


@pytest.fixture(scope="session")
def render(deploy: Path) -> Callable[[str], list[Manifest]]:
    """Renders a folder of deploy/kubernetes as `kubectl apply -k` would; skips where there is no kubectl."""
    rendered: dict[str, list[Manifest]] = {}

    def of(folder: str) -> list[Manifest]:
        kubectl = find_tool("kubectl", "https://kubernetes.io/docs/tasks/tools/")
        if folder not in rendered:
            command = [kubectl, "kustomize", str(deploy / "kubernetes" / folder)]
            result = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert (result.returncode, result.stderr) == (0, "")
            rendered[folder] = list(yaml.safe_load_all(result.stdout))
        return rendered[folder]

    return of


@pytest.fixture(scope="session")
def launches(
    units: dict[str, Unit], plist: dict[str, Any], compose: dict[str, Any], base: dict[str, list[Manifest]]
) -> list[Launch]:
    """Every place of every deploy file that starts a service."""
    found = []
    for role, unit in units.items():
        (command,) = unit["ExecStart"]
        found.append(Launch(f"systemd {role}", role, shlex.split(command), int(unit["TimeoutStopSec"][0])))
    found.append(Launch("launchd encoder", "encoder", plist["ProgramArguments"], plist["ExitTimeOut"]))
    for role, service in compose["services"].items():
        seconds = int(service["stop_grace_period"].removesuffix("s"))
        found.append(Launch(f"compose {role}", role, ["zrelay", *service["command"]], seconds))
    pod = base["pod.patch"][0]["spec"]["template"]["spec"]
    (_, pause) = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    for role in ROLES:
        (container,) = base[role][0]["spec"]["template"]["spec"]["containers"]
        seconds = pod["terminationGracePeriodSeconds"] - int(pause)
        found.append(Launch(f"kubernetes {role}", role, container["command"] + container["args"], seconds))
    return found


@pytest.fixture(scope="session")
def zrelay() -> Path:
    """The installed command."""
    return Path(sys.executable).with_name("zrelay")


@pytest.fixture(scope="session")
def known_flags(zrelay: Path) -> Callable[[str], set[str]]:
    """The flags that `zrelay serve ROLE --help` lists."""
    known: dict[str, set[str]] = {}

    def of(role: str) -> set[str]:
        if role not in known:
            result = subprocess.run([zrelay, "serve", role, "--help"], capture_output=True, text=True, timeout=60)
            assert result.returncode == 0, result.stderr
            known[role] = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", result.stdout))
        return known[role]

    return of
