"""The images' recipe and the compose files, by rules: neither docker nor a network is needed."""

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.tools import find_tool
from zrelay_shared.limits import DEFAULT_PORTS

Steps = list[tuple[str, str]]


@pytest.fixture(scope="module")
def stages(deploy: Path) -> dict[str, Steps]:
    """Each stage of the Dockerfile: its instructions in order, lines joined, comments dropped; FROM comes first."""
    lines = [line for line in (deploy / "docker/Dockerfile").read_text().splitlines() if not line.startswith("#")]
    found: dict[str, Steps] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            name = rest.split(" AS ")[1]
            found[name] = []
        found[name].append((instruction, " ".join(rest.split())))
    return found


def lineage(stages: dict[str, Steps], name: str) -> Steps:
    """A stage's instructions after those of the stage that it is built from."""
    parent = stages[name][0][1].split(" AS ")[0]
    return (lineage(stages, parent) if parent in stages else []) + stages[name]


def test_targets(stages: dict[str, Steps]) -> None:
    assert list(stages) == ["wheel", "base", "cpu", "cuda"]


def test_bases_are_pinned_to_a_minor_version(stages: dict[str, Steps]) -> None:
    bases = {steps[0][1].split(" AS ")[0] for steps in stages.values()} - set(stages)
    assert bases == {"python:3.11-slim-bookworm"}


def test_context_has_what_is_copied(stages: dict[str, Steps], deploy: Path) -> None:
    """Every source is there, .dockerignore lets in nothing else, and the wheel lacks none of its packages."""
    copied: set[str] = set()
    for steps in stages.values():
        for instruction, rest in steps:
            if instruction == "COPY" and "--from" not in rest:
                copied |= set(rest.split()[:-1])
            mounts = [
                dict(part.partition("=")[::2] for part in m.split(",")) for m in re.findall(r"--mount=(\S+)", rest)
            ]
            copied |= {mount["source"] for mount in mounts if "from" not in mount}
    root = deploy.parent
    assert [name for name in sorted(copied) if not (root / name).exists()] == []
    rules = [rule for rule in (root / ".dockerignore").read_text().splitlines() if not rule.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
    assert all(rule.startswith("**/") for rule in rules[1:] if not rule.startswith("!"))
    wheel = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {package.split("/")[0] for package in wheel["packages"]} <= copied


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_runs_zrelay_as_nobody_in_particular(stages: dict[str, Steps], target: str) -> None:
    steps = lineage(stages, target)
    assert [json.loads(rest) for instruction, rest in steps if instruction == "ENTRYPOINT"] == [["zrelay"]]
    assert steps[-1] == ("USER", "10001:10001"), "a number, and nothing after it"
    exposed = next(rest for instruction, rest in steps if instruction == "EXPOSE")
    assert [int(port) for port in exposed.split()] == sorted(DEFAULT_PORTS.values())


def installs(steps: Steps) -> list[list[str]]:
    """Words of each `pip install`, without the mounts before it."""
    return [shlex.split(rest.partition("pip install ")[2]) for verb, rest in steps if verb == "RUN" and "pip i" in rest]


def test_cpu_image_holds_no_cuda(stages: dict[str, Steps], deploy: Path) -> None:
    first, second = installs(lineage(stages, "cpu"))
    assert first[-1] == "torch"
    assert first[first.index("--index-url") + 1] == "https://download.pytorch.org/whl/cpu"
    assert "--no-deps" in first, "or the index of torch would choose other packages' versions"
    assert "--upgrade" not in second
    assert "--index-url" not in second
    pins = (deploy.parent / "constraints.txt").read_text().splitlines()
    assert [pin for pin in pins if re.fullmatch(r"torch==\d+\.\d+\.\d+", pin)], "torch pinned, whatever its build"


def test_everything_installed_is_pinned(stages: dict[str, Steps]) -> None:
    for target in ("cpu", "cuda"):
        for words in installs(lineage(stages, target)):
            assert words[words.index("--constraint") + 1] == "/constraints.txt"
            assert words[-1] == "torch" or words[-1].startswith("zrelay[all] @ file://")


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml", "compose.tls.yaml"])
def test_compose_schema(deploy: Path, name: str, tmp_path: Path) -> None:
    """The compose specification's own schema, which has every key; a misspelt one is told."""
    checker = find_tool("check-jsonschema", "pip install check-jsonschema")
    text = (deploy / "docker" / name).read_text().replace("!override ", "")  # a tag of compose, which YAML allows
    (tmp_path / "right.yaml").write_text(text)
    (tmp_path / "wrong.yaml").write_text(
        re.sub("^    (image|command):", "    imago:", text.replace("  image:", "  imago:"), flags=re.MULTILINE)
    )
    command = [checker, "--builtin-schema", "vendor.compose-spec"]
    for path, code in ((tmp_path / "right.yaml", 0), (tmp_path / "wrong.yaml", 1)):
        result = subprocess.run([*command, path], capture_output=True, text=True, timeout=60)
        assert result.returncode == code, result.stdout


def test_compose_services(compose: dict[str, Any], health_names: dict[str, str]) -> None:
    assert compose["services"].keys() == DEFAULT_PORTS.keys()
    for role, service in compose["services"].items():
        port = DEFAULT_PORTS[role]
        assert service["image"] == "zrelay:cpu"
        assert service["container_name"] == f"zrelay-{role}"
        assert service["ports"] == [f"127.0.0.1:{port}:{port}"], "published on this machine alone"
        probe = ["CMD", "python", "-P", "-m", "zrelay_shared.healthcheck", f"127.0.0.1:{port}", health_names[role]]
        assert service["healthcheck"]["test"] == probe
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        model, state = service["volumes"]
        assert model["target"] == service["command"][service["command"].index("--model") + 1]
        assert model["read_only"] is True
        assert model["bind"] == {"create_host_path": False}, "a missing folder is an error, not a new empty folder"
        assert state == f"{role}-state:/var/lib/zrelay"
        assert service["networks"] == [role], "the services never talk to each other"
    assert set(compose["volumes"]) == {f"{role}-state" for role in DEFAULT_PORTS}


def test_compose_tls(
    compose: dict[str, Any], deploy: Path, health_names: dict[str, str], known_flags: Callable[[str], set[str]]
) -> None:
    text = (deploy / "docker/compose.tls.yaml").read_text()
    over = yaml.safe_load(text.replace("!override ", ""))
    assert text.count("ports: !override [") == 3, "else compose adds the ports to those on loopback"
    assert over["services"].keys() == compose["services"].keys()
    for role, service in over["services"].items():
        port, command = DEFAULT_PORTS[role], service["command"]
        assert command[:6] == compose["services"][role]["command"][:6] and "--insecure-listen" not in command
        flags = dict(zip(command[2::2], command[3::2], strict=True))
        assert flags.keys() <= known_flags(role)
        files = [flags[f"--tls-{name}"] for name in ("certificate", "key", "ca")]
        assert files == [f"/run/secrets/{name}" for name in service["secrets"]]
        assert over["secrets"].keys() == set(service["secrets"])
        assert flags["--health-listen"] == f"127.0.0.1:{port + 200}", "of the container alone"
        probe = [f"127.0.0.1:{port + 200}", health_names[role]]
        assert service["healthcheck"]["test"][-2:] == probe
        assert service["ports"] == [f"${{ZRELAY_ADDRESS:-0.0.0.0}}:{port}:{port}"]


def test_compose_build(compose: dict[str, Any], deploy: Path, stages: dict[str, Steps]) -> None:
    over = yaml.safe_load((deploy / "docker/compose.cuda.yaml").read_text())
    assert over["services"].keys() == compose["services"].keys()
    for target, services in (("cpu", compose["services"]), ("cuda", over["services"])):
        for service in services.values():
            assert service["build"]["target"] == target
            assert target in stages
            assert service["image"] == f"zrelay:{target}"
    build = compose["services"]["encoder"]["build"]
    context = (deploy / "docker" / build["context"]).resolve()
    assert context == deploy.parent
    assert (context / build["dockerfile"]).exists()


def test_state_is_where_the_volume_is(stages: dict[str, Steps]) -> None:
    settings = " ".join(rest for instruction, rest in stages["base"] if instruction == "ENV")
    variables = dict(word.split("=", 1) for word in settings.split())
    assert variables["ZRELAY_STATE"] == variables["HOME"] == "/var/lib/zrelay"
    caches = [path for path in variables.values() if path.startswith("/var/lib/zrelay/cache/")]
    assert len(caches) == 5, "as in the systemd units"
