"""Writes all generated pages of the reference: `python docs/_generators`."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    for script in sorted(Path(__file__).parent.glob("[!_]*.py")):
        runpy.run_path(str(script), run_name="__main__")
