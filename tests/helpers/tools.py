"""Programs that tests run and that a machine may lack."""

import shutil
import sys
from pathlib import Path

import pytest


def find_tool(name: str, source: str) -> str:
    """Returns the path of a program: beside Python's, else on the PATH. Skips the test where there is none.

    Args:
        name: The program.
        source: Where it comes from, e.g. "pip install buf-bin". `.ci/run` installs it, and fails where a test skips.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: {source}")
    return found
