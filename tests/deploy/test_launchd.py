"""The Mac's agent: a plist that launchd would take (there is no plutil here: plistlib and the keys' own types)."""

from pathlib import Path
from typing import Any


def test_keys(plist: dict[str, Any], deploy: Path) -> None:
    assert plist["Label"] == "org.zrelay.encoder"
    assert (deploy / "launchd/org.zrelay.encoder.plist").exists(), "launchctl expects LABEL.plist"
    types = {
        "Label": str,
        "ProgramArguments": list,
        "WorkingDirectory": str,
        "EnvironmentVariables": dict,
        "RunAtLoad": bool,
        "KeepAlive": dict,
        "ThrottleInterval": int,
        "ExitTimeOut": int,
        "ProcessType": str,
        "Umask": int,
        "StandardOutPath": str,
        "StandardErrorPath": str,
    }
    assert {key: type(value) for key, value in plist.items()} == types
    assert plist["RunAtLoad"] is True
    assert plist["KeepAlive"] == {"SuccessfulExit": False}
    assert plist["ProcessType"] == "Interactive"
    assert plist["Umask"] == 0o077
    assert all(isinstance(word, str) for word in plist["ProgramArguments"])
    assert all(isinstance(value, str) for value in plist["EnvironmentVariables"].values())


def test_paths_are_absolute_and_literal(plist: dict[str, Any]) -> None:
    """launchd expands neither ~ nor variables."""
    paths = [plist[key] for key in ("WorkingDirectory", "StandardOutPath", "StandardErrorPath")]
    paths += [plist["ProgramArguments"][0], plist["EnvironmentVariables"]["ZRELAY_STATE"]]
    assert all(path.startswith("/opt/zrelay") and "$" not in path and "~" not in path for path in paths)
