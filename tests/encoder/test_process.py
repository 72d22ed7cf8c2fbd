"""`python -m zrelay_encoder` as a real process."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import ended, log_until, run_service, start_service
from zrelay_shared import exits

MODULE = "zrelay_encoder"


def test_help_loads_no_torch() -> None:
    code = "import sys, zrelay_encoder.__main__; print('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_it_serves_and_ends_on_sigterm(demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path))
    address = tmp_path / "address"
    process = start_service(
        MODULE, "--model", str(demo_checkpoint), "--listen", "127.0.0.1:0", "--address-file", str(address)
    )
    said = log_until(process, "ready on")
    assert address.read_text().startswith("127.0.0.1:"), said
    process.send_signal(signal.SIGTERM)
    code, rest = ended(process)
    said += rest
    assert code == exits.OK, said
    assert str(demo_checkpoint) not in said


def test_what_cannot_be_loaded_is_reported_in_one_line(tmp_path: Path) -> None:
    code, said = run_service(MODULE, "--model", str(tmp_path / "absent"), "--listen", "127.0.0.1:0")
    assert code == exits.LOCAL_FILE
    assert "does not exist; give the folder of a Z-Image checkpoint" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("args", [("--listen", "0.0.0.0:0"), ("--listen", "nowhere")])
def test_a_bad_address_is_refused(tmp_path: Path, args: tuple[str, ...]) -> None:
    code, said = run_service(MODULE, "--model", str(tmp_path), *args)
    assert code == exits.REFUSED
    assert said.startswith("error: listen:")
    assert "Traceback" not in said


def test_model_is_required() -> None:
    code, said = run_service(MODULE)
    assert code == exits.USAGE
    assert "--model" in said
