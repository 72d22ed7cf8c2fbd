"""`python -m zrelay_vision` as a real process, and the folders that it takes."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.helpers.processes import ended, log_until, run_service, start_service
from zrelay_shared import exits
from zrelay_shared.errors import CheckpointError
from zrelay_shared.vision_folders import engines_in
from zrelay_vision.__main__ import main

MODULE = "zrelay_vision"


def test_help_loads_no_torch() -> None:
    code = (
        "import sys, zrelay_vision.__main__; import zrelay_vision.qwen3_vl.folder, zrelay_vision.siglip.folder;"
        "print({'torch', 'transformers', 'PIL', 'numpy', 'grpc'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_it_serves_a_folder_of_engines_and_ends_on_sigterm(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path / "state"))
    (tmp_path / "model").mkdir()
    shutil.copytree(tiny, tmp_path / "model" / "qwen3_vl")
    address = tmp_path / "address"
    process = start_service(
        MODULE, "--model", str(tmp_path / "model"), "--listen", "127.0.0.1:0", "--address-file", str(address)
    )
    said = log_until(process, "ready on")
    assert address.read_text().startswith("127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    code, rest = ended(process)
    said += rest
    assert code == exits.OK, said
    assert "2 of 7 blocks, for layer -6" in said and str(tmp_path) not in said
    assert list((tmp_path / "state" / "cache").glob("weights-*.json"))


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--qwen3-vl", "config.json is missing; give the folder of a Qwen3-VL checkpoint"),
        ("--siglip", "config.json is missing"),
        ("--model", "holds no engine: neither qwen3_vl/ nor siglip/"),
    ],
)
def test_what_cannot_be_loaded_is_reported_in_one_line(tmp_path: Path, flag: str, told: str) -> None:
    code, said = run_service(MODULE, flag, str(tmp_path), "--listen", "127.0.0.1:0")
    assert code == exits.LOCAL_FILE and told in said and "Traceback" not in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--device", "warp"), ("--dtype", "int3"), ("--grace-s", "-1"), ("--hidden-layer", "0"), ("--max-waiting", "0"),
     ("--state-cache-mib", "-1")],
)  # fmt: skip
def test_flags_that_cannot_be_are_refused(flag: str, value: str) -> None:
    ended = CliRunner().invoke(main, ["--listen", "127.0.0.1:0", flag, value])
    assert ended.exit_code == 2 and value in ended.output


def test_which_engines_a_folder_holds(tmp_path: Path) -> None:
    def made(path: Path, kind: str) -> Path:
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps({"model_type": kind}))
        return path

    both = tmp_path / "both"
    one, other = made(both / "qwen3_vl", "qwen3_vl"), made(both / "siglip", "siglip2")
    assert engines_in(both) == (one, other)
    assert engines_in(one) == (one, None) and engines_in(other) == (None, other)
    shutil.rmtree(one)
    assert engines_in(both) == (None, other)
    for wrong in (tmp_path, made(tmp_path / "qwen3", "qwen3"), tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="--qwen3-vl"):
            engines_in(wrong)
