"""Every benchmark of the step engine runs, in miniature; its figures mean nothing here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zrelay_demo import CHECKPOINT

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.timeout(900), pytest.mark.deep]


def run(script: str, *arguments: str) -> dict[str, Any]:
    """The one object that a benchmark prints."""
    command = [sys.executable, f"benchmarks/{script}.py", "--json", *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_engine() -> None:
    measured = run("engine", "--checkpoints", "tiny", "--rounds", "1", "--only", "P3,P4,P5,P10")
    wanted = {"P3.tiny", "P3.tiny.64", "P3.tiny.96", "P4.tiny", "P4.loss.tiny", "P5.tiny"}
    assert set(measured) == wanted | {"P10.tiny", "P10.tiny.encoder"}
    assert all(measured[name] > 0 for name in measured if name != "P4.loss.tiny")


def test_fleet() -> None:
    flags = ["--generators", "1,2", "--window", "1", "--job-s", "0.3", "--queued", "40", "--watched", "10"]
    measured = run("fleet", *flags)
    assert set(measured) == {"P11", "P11.2", "P11.memory", "P11.flat", "P11.cost", "P11.client"}
    assert measured["P11.2"] > 0


def test_gpu_on_a_cpu() -> None:
    flags = ["--device", "cpu", "--dtype", "float32", "--model", str(CHECKPOINT), "--sizes", "64,96", "--rounds", "1"]
    measured = run("gpu", *flags, "--steps", "2")
    for side in (64, 96):
        assert {f"forward.{side}", f"floor.{side}", f"ms.{side}", f"decode.{side}"} <= set(measured)
    assert {"mixed.three-sizes", "packed.eight-of-64", "P1.96", "P1.96.ratio"} <= set(measured)
    assert all(value > 0 for value in measured.values())


def test_soak() -> None:
    """Long enough to run every kind of turn, too short to judge memory by."""
    report = run("soak", "--minutes", "0.15", "--callers", "3")
    assert report["wrong"] == []
    assert len(report["told"]) == 4
