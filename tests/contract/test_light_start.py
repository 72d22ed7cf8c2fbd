"""What must start at once runs where nothing heavy is installed: the client library and every `--help`."""

import subprocess
import sys

import pytest

from zrelay_shared import exits

HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "diffusers",
    "PIL",
    "accelerate",
    "grpc_reflection",
    "grpc_status",
    "safetensors",
}


@pytest.mark.parametrize(
    ("call", "absent"),
    [
        ("import zrelay_client; zrelay_client.Client; zrelay_client.AsyncClient", HEAVY),
        ("from zrelay_client.testing import FakeServices; FakeServices()", HEAVY),
        ("start('zrelay_client', '--help')", HEAVY | {"grpc"}),
        ("start('zrelay_client', 'generate', '--help')", HEAVY | {"grpc"}),
        ("start('zrelay_encoder', '--help')", HEAVY | {"grpc"}),
        ("start('zrelay_vision', '--help')", HEAVY | {"grpc"}),
        ("start('zrelay_generator', '--help')", HEAVY | {"grpc"}),
    ],
    ids=["library", "fakes", "client", "generate", "encoder", "vision", "generator"],
)
def test_what_is_light_runs_where_nothing_heavy_is_installed(call: str, absent: set[str]) -> None:
    result = without(absent, call)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "command", [("calibrate", "--encoder", "127.0.0.1:1", "-o", "a.safetensors"), ("analyze", "a")]
)
def test_statistics_without_numpy_fail_with_the_install_command(command: tuple[str, ...]) -> None:
    result = without(HEAVY, f"start('zrelay_client', *{command!r})")
    assert result.returncode == exits.REFUSED
    assert "need numpy, which is not installed: pip install 'zrelay[analysis]'" in result.stderr


def without(absent: set[str], call: str) -> "subprocess.CompletedProcess[str]":
    """Runs Python code in a process in which some modules cannot be imported."""
    script = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({sorted(absent)!r}))
def start(*arguments):
    sys.argv = list(arguments)
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
{call}
"""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


HELP = ["zrelay_client", "zrelay_client.cli", "zrelay_client.cli._main", "zrelay_shared", "zrelay_shared.exits"]
"""Modules of zrelay that `zrelay --help` imports."""
OPTIONS = [
    "zrelay_client.cli._options",
    "zrelay_shared.connection",
    "zrelay_shared.limits",
    "zrelay_shared.service",
    "zrelay_shared.service.options",
    "zrelay_shared.service.settings",
]
"""Modules that the help of a command imports, too: what its options are made of."""


OUTPUT, TEXTS = "zrelay_client.cli._output", "zrelay_shared.texts"
"""What prints, and what it imports."""
REQUESTS = "zrelay_shared.requests"
PATHS = "zrelay_shared.paths"


@pytest.mark.parametrize(
    ("command", "further"),
    [
        ((), []),
        (("generate",), [*OPTIONS, REQUESTS]),
        (("encode",), [*OPTIONS, OUTPUT, REQUESTS]),
        (("vision",), [*OPTIONS, OUTPUT, REQUESTS]),
        (("jobs",), [*OPTIONS, OUTPUT, REQUESTS, "zrelay_shared.errors"]),
        (("info",), [*OPTIONS, OUTPUT]),
        (("doctor",), [*OPTIONS, OUTPUT, PATHS]),
        (("config",), [*OPTIONS, OUTPUT, PATHS]),
        (("calibrate",), [*OPTIONS, OUTPUT, PATHS]),
        (("analyze",), [*OPTIONS, OUTPUT]),
        (("up",), [*OPTIONS, OUTPUT, PATHS, "zrelay_shared.signals"]),
        (("down",), [*OPTIONS, OUTPUT, PATHS]),
        (("demo",), [*OPTIONS, OUTPUT, REQUESTS, "zrelay_shared.signals"]),
        (("pair",), [*OPTIONS, OUTPUT, PATHS, "zrelay_shared.signals"]),
        (("join",), [*OPTIONS, OUTPUT, PATHS]),
        (("serve",), []),
        (("completion",), []),
    ],
    ids=lambda value: (value[0] if value else "zrelay") if isinstance(value, tuple) else "",
)
def test_help_imports_few_modules(command: tuple[str, ...], further: list[str]) -> None:
    """The start of `zrelay --help` is a performance goal (P9): click, and as little of zrelay as possible."""
    script = f"""
import sys, click
before = set(sys.modules)
from zrelay_client.cli import main
main([*{command!r}, "--help"])
print("=====", *sorted(set(sys.modules) - before))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    imported = ran.stdout.rpartition("=====")[2].split()
    ours = [name for name in imported if name.startswith("zrelay")]
    own = [f"zrelay_client.cli.{name}" for name in command]
    assert sorted(ours) == sorted([*HELP, *own, *further, *([TEXTS] if OUTPUT in further else [])])
    assert len(imported) <= 40, imported
