"""What must start at once runs where nothing heavy is installed: the client library and every `--help`."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "transformers", "diffusers", "PIL", "accelerate", "grpc_reflection"}


@pytest.mark.parametrize(
    ("call", "absent"),
    [
        ("import zrelay_client; zrelay_client.Client; zrelay_client.AsyncClient", HEAVY),
        ("start('zrelay_client', '--help')", HEAVY | {"grpc"}),
        ("start('zrelay_client', 'generate', '--help')", HEAVY | {"grpc"}),
        ("start('zrelay_encoder', '--help')", HEAVY | {"grpc"}),
        ("start('zrelay_vision', '--help')", HEAVY | {"grpc"}),
        ("start('zrelay_generator', '--help')", HEAVY | {"grpc"}),
    ],
    ids=["library", "client", "generate", "encoder", "vision", "generator"],
)
def test_what_is_light_runs_where_nothing_heavy_is_installed(call: str, absent: set[str]) -> None:
    script = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({sorted(absent)!r}))
def start(*arguments):
    sys.argv = list(arguments)
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
{call}
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
