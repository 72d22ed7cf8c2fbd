"""Commands that start processes import nothing from the folder in which they run, which may be a downloaded one."""

import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.contract.structure import PACKAGES, ROOT, shipped
from zrelay_client.stack.bundle import omni_checkpoint
from zrelay_client.stack.interpreter import child_environment
from zrelay_shared import exits

ZRELAY = Path(sys.executable).with_name("zrelay")
MARK = "imported.txt"


class Planted:
    """A folder with a module of the name of every module that is installed, each of which reports its import.

    Attributes:
        here: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.here, self._mark = root / "downloaded", root / MARK
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("ZRELAY_")}
        self._environ |= {"ZRELAY_STATE": str(root / "state"), "ZRELAY_CONFIG": str(root / "config.toml")}
        self.here.mkdir()
        module = f"with open({str(self._mark)!r}, 'a') as file:\n    file.write(__name__ + ' ')\n"
        for name in {*sys.stdlib_module_names, *packages_distributions(), *PACKAGES, "sitecustomize", "usercustomize"}:
            (self.here / f"{name}.py").write_text(module)

    def zrelay(self, *args: str) -> "subprocess.CompletedProcess[str]":
        """Runs the installed command in the folder."""
        command = [str(ZRELAY), *args]
        return subprocess.run(command, cwd=self.here, env=self._environ, capture_output=True, text=True, check=False)

    def imported(self) -> list[str]:
        """Returns the names of the planted modules that were imported."""
        return self._mark.read_text().split() if self._mark.exists() else []


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize("role", ["encoder", "vision", "generator"])
def test_serve_imports_nothing_from_the_current_folder(planted: Planted, role: str) -> None:
    ran = planted.zrelay("serve", role, "--model", str(planted.here), "--listen", "127.0.0.1:0")
    assert planted.imported() == []
    assert ran.returncode == exits.LOCAL_FILE and "error: " in ran.stderr, "the service ran, and refused the folder"


def test_the_demo_checkpoint_is_written_without_the_current_folder(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(planted.here)
    assert (omni_checkpoint(tmp_path / "omni") / "model_index.json").is_file()
    assert planted.imported() == []


@pytest.mark.deep
def test_up_imports_nothing_from_the_current_folder(planted: Planted) -> None:
    try:
        ran = planted.zrelay("up", "--detach")
        assert ran.returncode == exits.OK, ran.stderr
        assert ran.stdout.count("127.0.0.1:") == 3
    finally:
        assert planted.zrelay("down").returncode == exits.OK
    assert planted.imported() == []


def test_children_search_absolute_folders_alone() -> None:
    here = os.pathsep.join(["", ".", "lib", "/opt/lib", ""])
    assert child_environment({"PYTHONPATH": here, "A": "b"}) == {
        "PYTHONPATH": "/opt/lib",
        "PYTHONSAFEPATH": "1",
        "A": "b",
    }
    assert child_environment({"PYTHONPATH": os.pathsep}) == {"PYTHONSAFEPATH": "1"}


def test_one_module_makes_the_commands_that_run_modules() -> None:
    makers = [name for name, path in shipped(ROOT).items() if '"-m"' in path.read_text(encoding="utf-8")]
    assert makers == ["zrelay_client.stack.interpreter"]
