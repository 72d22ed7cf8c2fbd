"""Makes an environment with the libraries of tests/floors.txt, which shares all others with the one that runs this.

python -m tests.helpers.floors .venv-floors
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

FLOORS = Path(__file__).parents[1] / "floors.txt"


def make(folder: Path) -> None:
    """Makes the environment. Raises CalledProcessError."""
    venv.create(folder, clear=True, symlinks=True)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "-r", str(FLOORS)], check=True)
    own = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    # Folders that a .pth file adds come after the environment's own, and addsitedir reads the .pth files in them.
    shared = sysconfig.get_path("purelib")
    (Path(own) / "shared.pth").write_text(f"import site; site.addsitedir({shared!r})\n", encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
