"""paths: which folders are used with and without a home, and what the refusals name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zrelay_shared import paths

VARIABLES = ("ZRELAY_CONFIG", "ZRELAY_STATE", "STATE_DIRECTORY", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "HOME")
IN_SYSTEM = (Path("/etc/zrelay/config.toml"), Path("/var/lib/zrelay"))
NO_FOLDER = pytest.mark.skipif(os.name == "nt", reason="Windows has no HOME")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def used() -> tuple[Path, Path]:
    return paths.config_file(), paths.state_dir()


@NO_FOLDER
def test_a_home_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert used() == (tmp_path / ".config/zrelay/config.toml", tmp_path / ".local/state/zrelay")


@NO_FOLDER
@pytest.mark.parametrize("home", ["/", "/nonexistent", "relative", "", __file__ + "/x"])
def test_a_home_that_is_none_is_replaced_by_the_folders_of_the_system(
    monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("HOME", home)
    assert used() == IN_SYSTEM


def test_an_unknown_user_without_home_uses_the_folders_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")  # as pathlib does

    monkeypatch.setattr(Path, "home", unknown)
    assert used() == IN_SYSTEM
    monkeypatch.setenv("ZRELAY_STATE", "/data")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/settings")
    assert used() == (Path("/settings/zrelay/config.toml"), Path("/data"))


def test_a_folder_that_cannot_be_made_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "state"):
        with pytest.raises(OSError, match=r"cannot be written .*: set ZRELAY_STATE to a folder") as error:
            paths.make_folder(folder, paths.STATE_REMEDY)
        assert error.value.filename == str(folder)
    paths.make_folder(tmp_path / "a/b", paths.STATE_REMEDY)
    assert (tmp_path / "a/b").is_dir()


def test_a_folder_that_cannot_be_written_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as on a read-only file system, for root too
    with pytest.raises(OSError, match=r"cannot be written .*: set ZRELAY_STATE to a folder"):
        paths.make_folder(tmp_path, paths.STATE_REMEDY)


@NO_FOLDER
def test_the_home_of_an_unknown_user_is_refused_as_a_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match="its home folder is unknown: write the path without ~"):
        paths.expand("~nobody-of-this-name/model")
    assert paths.expand("/model") == Path("/model")


def as_unknown_user(home: str | None, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs `zrelay` as a user id that has no entry in the user database, and that may read but not write."""
    reading = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
    user = ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", *reading)
    environ = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environ |= {} if home is None else {"HOME": home}
    line = [*user, sys.executable, "-m", "zrelay_client", *command]
    return subprocess.run(line, cwd=cwd, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not Path("/usr/bin/setpriv").exists(),
    reason="needs root and setpriv",
)
@pytest.mark.parametrize("home", [None, "/nonexistent", "read-only", "/root"])
def test_commands_of_a_user_without_a_home(tmp_path: Path, home: str | None) -> None:
    if home == "read-only":
        home = str(tmp_path / "home")
        Path(home).mkdir(mode=0o555)
    for command in (["--help"], ["config"], ["down"]):
        ran = as_unknown_user(home, *command, cwd=tmp_path)
        assert (ran.returncode, "Traceback" in ran.stderr) == (0, False), ran.stderr
    for command in (["info"], ["jobs", "list"], ["generate", "red", "-o", "-"]):
        ran = as_unknown_user(home, *command, cwd=tmp_path)
        assert (ran.returncode, "is configured: start" in ran.stderr) == (3, True), ran.stderr
    for command, variable in (
        (["up", "--detach"], "ZRELAY_STATE"),
        (["calibrate"], "ZRELAY_STATE"),
        (["config", "init"], "ZRELAY_CONFIG"),
    ):
        ran = as_unknown_user(home, *command, cwd=tmp_path)
        assert (ran.returncode, variable in ran.stderr) == (5, True), ran.stderr
