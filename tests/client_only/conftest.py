"""Fixtures of the tests that need the base installation and no service: neither torch nor numpy."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing configured, nothing running, an empty working folder: the folder of configuration and state."""
    for name in [name for name in os.environ if name.startswith("ZRELAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ZRELAY_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path / "state"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path
