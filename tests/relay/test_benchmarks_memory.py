"""The benchmarks of compute modes and of a full-size checkpoint run in miniature."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def ran(*arguments: str) -> Any:
    """The one object that a benchmark prints."""
    command = [sys.executable, *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.deep
def test_compute_modes() -> None:
    found = ran("benchmarks/compute_modes.py", "--scale", "small", "--blocks", "1", "--rounds", "1", "--tokens", "5")
    assert set(found["seconds"]) == {"encoder 5", "generator 5"}
    assert found["ratios_to_bfloat16"]["encoder 5"]["bfloat16"] == 1.0


@pytest.mark.deep
def test_full_size_in_miniature(tmp_path: Path) -> None:
    tokenizer = ROOT / "demo/zrelay_demo/checkpoint/tokenizer"
    options = ["--scale", "small", "--rounds", "1", "--tokenizer", str(tokenizer), "--results", str(tmp_path)]
    found = ran("benchmarks/full_size.py", "--dir", str(tmp_path / "model"), *options)
    assert set(found["encoder"]["prompt_s"]) == {"27", "100", "512"}
    assert found["generator"]["forward_s"] > 0 and found["generator"]["peaks"]["samples"] > 0
    assert len(list((tmp_path / "model/transformer").glob("*-of-*.safetensors"))) > 1
