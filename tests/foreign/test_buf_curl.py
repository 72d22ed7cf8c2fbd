"""`buf curl`, which learns the contract by reflection."""

import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.jobs import PROMPT
from tests.helpers.tools import find_tool

from .conftest import Access, run

pytestmark = [pytest.mark.deep, pytest.mark.timeout(300)]
SCRIPT = Path(__file__).with_name("generate.sh")


def options(access: Access, folder: Path) -> list[str]:
    """Returns the options of `buf curl` for a caller. A token stands in a file, because others can read arguments."""
    files = access.files
    found = [word for name, flag in _FLAGS.items() if name in files for word in (flag, str(files[name]))]
    if "token" in files:
        (folder / "headers").write_text(f"authorization: Bearer {files['token'].read_text().strip()}\n")
        found += ["--header", f"@{folder / 'headers'}"]
        # Reflection is a call of its own.
        found += ["--reflect-header", f"@{folder / 'headers'}"]
    return found


_FLAGS = {"ca": "--cacert", "cert": "--cert", "key": "--key"}


def urls(access: Access) -> list[str]:
    """Returns the URLs of encoder and generator."""
    scheme = "https" if access.files else "http"
    return [f"{scheme}://{access.encoder}", f"{scheme}://{access.generator}"]


def test_the_documented_script(access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_tool("buf", "pip install buf-bin")
    find_tool("jq", "apt-get install jq")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    ran = run("sh", SCRIPT, *urls(access), PROMPT, "image.png", *options(access, tmp_path), folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "STAGE_KIND_DENOISE: 8 of 8" in ran.stdout and "seed 18446744073709551615, 128 x 128" in ran.stdout
    with Image.open(tmp_path / "image.png") as image:
        assert image.size == (128, 128)


def test_reflection_lists_the_services(access: Access, tmp_path: Path) -> None:
    buf = find_tool("buf", "pip install buf-bin")
    _, generator = urls(access)
    ran = run(buf, "curl", "--protocol", "grpc", "--list-services", *options(access, tmp_path), generator)
    assert ran.returncode == 0, ran.stderr
    assert "zrelay.v1.GeneratorService" in ran.stdout.split()


@pytest.mark.parametrize("method", ["GetInfo", "ListJobs"])
def test_a_caller_without_credentials_is_refused(accesses: dict[str, Access], method: str) -> None:
    buf = find_tool("buf", "pip install buf-bin")
    token = accesses["token"]
    url = f"{urls(token)[1]}/zrelay.v1.GeneratorService/{method}"
    command = [buf, "curl", "--protocol", "grpc", "--schema", "proto", "--cacert", token.files["ca"]]
    ran = run(*command, url, folder=SCRIPT.parents[2])
    assert ran.returncode != 0
    refusal = json.loads(ran.stderr)
    assert refusal["code"] == "unauthenticated" and "zrelay pair --token" in refusal["message"]
