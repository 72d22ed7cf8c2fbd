"""The benchmark is one command that prints one object."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.deep
def test_one_goal_as_json() -> None:
    command = [sys.executable, "benchmarks/relay.py", "--only", "P9", "--json", "--rounds", "1"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    measured = json.loads(ran.stdout)
    assert set(measured) == {"P9", "P9.memory"}
    assert all(value > 0 for value in measured.values())


@pytest.mark.deep
def test_the_cost_of_tls_as_json() -> None:
    command = [sys.executable, "benchmarks/security.py", "--only", "S2,S3", "--json", "--rounds", "1"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    measured = json.loads(ran.stdout)
    assert set(measured) == {"S2", "S3"} and all(value > 0 for value in measured.values())
