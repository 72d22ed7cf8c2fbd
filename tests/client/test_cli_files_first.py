"""Files that a command is given are looked at before anything slow: no service is started or even asked for."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from zrelay_client.image_files import check_image
from zrelay_shared import exits

from .conftest import Zrelay

NOWHERE = ("--encoder", "127.0.0.1:1", "--generator", "127.0.0.1:1", "--vision", "127.0.0.1:1")
COMMANDS = (
    ("demo", "--reference"),
    ("demo", "--omni"),
    ("generate", "a fox", *NOWHERE, "--reference"),
    ("generate", "a fox", *NOWHERE, "--omni"),
    ("generate", "a fox", *NOWHERE, "--image"),
    ("generate", "a fox", *NOWHERE, "--detach", "--omni"),
    ("generate", "a fox", *NOWHERE, "--count", "2", "--omni"),
    ("vision", "score", "--vision", "127.0.0.1:1", "--text", "a fox"),
    ("vision", "encode", "--vision", "127.0.0.1:1", "-o", "x.safetensors"),
)


@pytest.fixture
def starts_nothing() -> Iterator[None]:
    """Fails the test where it leaves a process; a command that had started one would also have said so."""
    before = {child.pid for child in psutil.Process().children()}
    yield
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_a_file_that_is_none(zrelay: Zrelay, starts_nothing: None, command: tuple[str, ...]) -> None:
    Path("notes.png").write_text("not a picture")
    Path("folder.png").mkdir()
    for name, code, says in (
        ("missing.png", exits.LOCAL_FILE, "No such file"),
        ("folder.png", exits.LOCAL_FILE, "Is a directory"),
        ("notes.png", exits.REFUSED, "expected an image (PNG, JPEG or WebP)"),
    ):
        ran = await zrelay(*command, name)
        assert ran.returncode == code and says in ran.stderr and name in ran.stderr, ran.stderr
        assert ran.stderr.count("\n") == 1


def test_a_pipe_is_left_to_who_reads_it(empty_home: Path) -> None:
    os.mkfifo("pipe.png")
    check_image("pipe.png")  # opening it would wait for a writer


async def test_states_of_a_file_are_looked_at(zrelay: Zrelay) -> None:
    Path("states.safetensors").write_bytes(b"\x08" + b"\0" * 7 + b"{}      ")
    ran = await zrelay("generate", "a fox", *NOWHERE, "--reference", "states.safetensors")
    assert ran.returncode == exits.REFUSED and "zrelay vision encode" in ran.stderr


async def test_up_looks_at_every_folder(zrelay: Zrelay, tmp_path: Path, starts_nothing: None) -> None:
    for flag in ("--qwen3-vl", "--siglip"):
        ran = await zrelay("up", flag, str(tmp_path))
        assert ran.returncode == exits.LOCAL_FILE and f"{flag} {tmp_path}: expected a checkpoint folder" in ran.stderr


async def test_calibrate_looks_at_the_usual_place(zrelay: Zrelay, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "references").write_text("in the way")
    ran = await zrelay("calibrate", "--encoder", "127.0.0.1:1")
    assert ran.returncode == exits.LOCAL_FILE and "references" in ran.stderr
