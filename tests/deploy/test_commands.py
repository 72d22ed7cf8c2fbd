"""Every deploy file starts a service exactly as `zrelay serve ROLE` does."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zrelay_shared.limits import DEFAULT_PORTS
from zrelay_shared.service.lifecycle import ServeOptions
from zrelay_shared.service.listening import parse_listen

_GRACE_S = next(f.default for f in dataclasses.fields(ServeOptions) if f.name == "grace_s")


def test_each_way_starts_each_role(launches: list[Any]) -> None:
    kinds: dict[str, set[str]] = {}
    for launch in launches:
        kinds.setdefault(launch.where.split()[0], set()).add(launch.role)
    roles = set(DEFAULT_PORTS)
    assert kinds == {"systemd": roles, "launchd": {"encoder"}, "compose": roles, "kubernetes": roles}


def test_argv(launches: list[Any]) -> None:
    for launch in launches:
        program, *rest = launch.argv
        name = "vision-model" if launch.role == "vision" else "model"
        folder = "/opt/zrelay" if launch.where.startswith("launchd") else "/srv/zrelay"
        expected = ["serve", launch.role, "--model", f"{folder}/{name}", "--listen", launch.listen]
        if launch.where.startswith(("compose", "kubernetes")):
            assert program == "zrelay", launch.where
            expected.append("--insecure-listen")
        else:
            assert program == "/opt/zrelay/bin/zrelay", launch.where
        assert rest == expected, launch.where


def test_listens_on_its_port(launches: list[Any]) -> None:
    """On this machine alone; on every address where a container's network or a network policy is the guard."""
    for launch in launches:
        insecure = "--insecure-listen" in launch.argv
        address = parse_listen(launch.listen, insecure=insecure)
        assert address.port == DEFAULT_PORTS[launch.role], launch.where
        assert address.host == ("0.0.0.0" if insecure else "127.0.0.1"), launch.where


def test_every_flag_is_known(launches: list[Any], known_flags: Callable[[str], set[str]]) -> None:
    for launch in launches:
        unknown = {word for word in launch.argv if word.startswith("--")} - known_flags(launch.role)
        assert not unknown, f"{launch.where}: `zrelay serve {launch.role}` has no {sorted(unknown)}"


def test_time_to_drain(launches: list[Any]) -> None:
    """Whatever stops a service waits longer than the service takes: its grace and a few seconds to end."""
    assert isinstance(_GRACE_S, float)
    for launch in launches:
        assert launch.stop_s >= _GRACE_S + 10, launch.where


def test_page_names_what_exists(deploy: Path) -> None:
    page = (deploy.parent / "docs/how-to/deploy.md").read_text()
    named = {path.rstrip("/.") for path in re.findall(r"(?<![\w/])deploy/[\w./-]+", page)}
    assert named
    assert [path for path in sorted(named) if not (deploy.parent / path).exists()] == []
