"""A short campaign of `make hostile` against real services, in which every promise is kept."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ATTACKS = "messages,rapid-reset,header-coding,spoiled,kill"


@pytest.mark.deep
@pytest.mark.hostile
def test_a_short_campaign_breaks_no_promise() -> None:
    command = [sys.executable, str(ROOT / "benchmarks/hostile.py"), "--minutes", "0.1", "--only", ATTACKS, "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    figures = json.loads(ran.stdout)
    assert figures["broken promises"] == figures["caller: failed jobs"] == figures["incidents in logs"] == 0
    assert figures["kill: delivered whole"] == figures["kill: accepted jobs"] > 0
    assert figures["caller: images under attack"] > 0
