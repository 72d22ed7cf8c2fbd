"""The command line and the library generate an image through the fake services."""

from pathlib import Path

import pytest

from tests.helpers.command_line import run_zrelay
from zrelay_client import Client, read_provenance
from zrelay_client.testing import FakeServices
from zrelay_shared import exits


def test_the_library_generates_an_image() -> None:
    with FakeServices() as fake, Client(**fake.endpoints) as client:
        result = client.generate("a red fox", seed=7, width=64, height=64, num_inference_steps=2)
    assert (result.seed, len(result.images)) == (7, 1)


def test_the_command_line_generates_an_image(empty_home: Path) -> None:
    output = empty_home / "fox.png"
    with FakeServices() as fake:
        flags = [f"--{role}={endpoint}" for role, endpoint in fake.endpoints.items() if role != "vision"]
        run = run_zrelay("generate", "a red fox", *flags, "--size", "64x64", "--seed", "7", "--output", str(output))
    assert run.returncode == 0, run.stderr
    provenance = read_provenance(output.read_bytes())
    assert provenance is not None and provenance["prompt"] == "a red fox"


@pytest.mark.parametrize(("timeout", "code"), [("1e10", 0), ("1e300", 0), ("inf", exits.REFUSED), ("nan", exits.USAGE)])
def test_a_far_timeout_waits_long(empty_home: Path, timeout: str, code: int) -> None:
    with FakeServices() as fake:
        flags = [f"--{role}={endpoint}" for role, endpoint in fake.endpoints.items() if role != "vision"]
        run = run_zrelay("generate", "a red fox", *flags, "--size", "64x64", "-o", "fox.png", "--timeout", timeout)
    assert run.returncode == code, run.stderr
