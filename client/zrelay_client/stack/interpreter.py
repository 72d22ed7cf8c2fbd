"""Starts modules of this installation as processes that import nothing from the current folder."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def module_command(module: str, *arguments: str) -> list[str]:
    """Returns the command that runs a module of this installation.

    `python -m` alone puts the working directory first on the module path, so that a file `json.py` in a downloaded
    folder would run. `-P` leaves it out.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the variables for such a process: no path of theirs depends on the working directory.

    PYTHONSAFEPATH does for the processes that the child starts, for example the compile workers of torch, what `-P`
    does for the child. Empty and relative entries of PYTHONPATH mean the working directory and are left out.

    Args:
        environ: The variables to start from; those of this process if None.
    """
    child = {**(os.environ if environ is None else environ), "PYTHONSAFEPATH": "1"}
    folders = [folder for folder in child.pop("PYTHONPATH", "").split(os.pathsep) if Path(folder).is_absolute()]
    return {**child, "PYTHONPATH": os.pathsep.join(folders)} if folders else child
