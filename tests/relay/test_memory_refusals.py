"""A service that does not fit ends with a message and an exit code, before it loads; it is not killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from zrelay_demo import CHECKPOINT
from zrelay_shared import exits

_LIMITED = """
import resource, sys
import zrelay_{role}.{module}  # what the service imports before it plans
from zrelay_{role}.__main__ import main
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (600 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main()
"""
"""A process whose RLIMIT_AS leaves 600 MiB: enough for its threads, too little for the plan with its reserve."""


def ended(*command: str) -> tuple[int, str]:
    """Runs a command to its end. Returns its exit code and its messages."""
    ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    return ran.returncode, ran.stderr


@pytest.mark.parametrize("role", ["encoder", "generator"])
def test_a_budget_that_is_too_small(role: str, tmp_path: Path) -> None:
    state = ["--state", str(tmp_path)] if role == "generator" else []
    options = ["--model", str(CHECKPOINT), "--listen", "127.0.0.1:0", "--device", "cpu", *state]
    code, messages = ended("-m", f"zrelay_{role}", *options, "--memory-budget-mib", "100")
    assert code == exits.REFUSED, messages
    assert f"the {role} does not fit: " in messages and "0.1 may be used on cpu" in messages


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced on Linux")
def test_a_limit_of_the_process(tmp_path: Path) -> None:
    script = _LIMITED.format(role="generator", module="service")
    options = ["--model", str(CHECKPOINT), "--listen", "127.0.0.1:0", "--device", "cpu", "--state", str(tmp_path)]
    code, messages = ended("-c", script, *options)
    assert code == exits.REFUSED, messages
    assert "free by RLIMIT_AS" in messages
