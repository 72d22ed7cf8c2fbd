"""A client in Python with grpclib, which speaks HTTP/2 and gRPC with code of its own."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.jobs import PROMPT

from .conftest import Access, run

pytestmark = [pytest.mark.deep, pytest.mark.timeout(300)]


def test_the_documented_program(access: Access, tmp_path: Path) -> None:
    pytest.importorskip("grpclib", reason="grpclib is not installed: pip install grpclib")
    program = Path(__file__).with_name("generate_grpclib.py")
    ran = run(sys.executable, program, *access.flags, PROMPT, "image.png", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "STAGE_KIND_DENOISE: 8 of 8" in ran.stdout and "seed 18446744073709551615, 128 x 128" in ran.stdout
    with Image.open(tmp_path / "image.png") as image:
        assert image.size == (128, 128)
