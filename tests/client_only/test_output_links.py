"""Output through symbolic links: the target is written, and a link that leads to no file is refused with its reason."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_line import Completed, run_zrelay
from zrelay_client.testing import FakeServices
from zrelay_shared import exits


@pytest.fixture
def zrelay(empty_home: Path) -> Iterator[Any]:
    """Runs a command that uses the fake services, in an empty folder."""
    with FakeServices() as fake:
        flags = [f"--{role}={endpoint}" for role, endpoint in fake.endpoints.items() if role != "vision"]

        def run(*args: str) -> Completed:
            return run_zrelay(*args, *flags)

        yield run


def generate(zrelay: Any, output: str, *args: str) -> Completed:
    ran: Completed = zrelay("generate", "fox", "--size", "64x64", "--seed", "7", "-o", output, *args)
    return ran


@pytest.fixture
def latest() -> tuple[Path, Path]:
    """A link and its target, in two folders."""
    Path("day").mkdir()
    target, link = Path("day/real.png"), Path("latest.png")
    target.write_bytes(b"old")
    target.chmod(0o664)
    link.symlink_to(target)
    return link, target


def test_an_image_is_written_to_the_target_of_a_link(zrelay: Any, latest: tuple[Path, Path]) -> None:
    link, target = latest
    kept = generate(zrelay, "latest.png")
    assert (kept.returncode, target.read_bytes()) == (exits.LOCAL_FILE, b"old")
    assert "latest.png: the file exists already: pass --force" in kept.stderr
    ran = generate(zrelay, "latest.png", "--force")
    assert (ran.returncode, ran.stdout) == (0, "latest.png\n"), ran.stderr
    assert link.is_symlink() and target.read_bytes().startswith(b"\x89PNG")
    assert target.stat().st_mode & 0o777 == 0o664


def test_embeddings_are_written_to_the_target_of_a_link(zrelay: Any, latest: tuple[Path, Path]) -> None:
    link, target = latest
    ran = zrelay("encode", "fox", "-o", "latest.png", "--force")
    assert ran.returncode == 0, ran.stderr
    assert link.is_symlink() and len(target.read_bytes()) > 100


def test_config_init_writes_the_target_of_a_link(empty_home: Path) -> None:
    real, link = empty_home / "real.toml", empty_home / "config.toml"
    real.write_text("[generate]\n")
    real.chmod(0o600)
    link.symlink_to(real)
    ran = run_zrelay("config", "init", "--force")
    assert ran.returncode == 0, ran.stderr
    assert link.is_symlink() and "[profile.home.encoder]" in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("args", [[], ["--force"]])
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("gone.png", "a symbolic link to gone.png, which does not exist: remove it, or name another file"),
        ("latest.png", "a symbolic link that leads back to itself: name another file"),
    ],
)
def test_a_link_to_no_file_is_refused_before_any_work(zrelay: Any, target: str, message: str, args: list[str]) -> None:
    Path("latest.png").symlink_to(target)
    for command in (["generate", "fox"], ["encode", "fox"]):
        ran = zrelay(*command, "-o", "latest.png", *args)
        assert (ran.returncode, ran.stderr) == (exits.LOCAL_FILE, f"error: latest.png: {message}\n")
    assert not Path("gone.png").exists() and Path("latest.png").is_symlink()
    ran = generate(zrelay, "latest.png/", *args)
    assert (ran.returncode, "latest.png is a symbolic link to nothing" in ran.stderr) == (exits.LOCAL_FILE, True)


def test_a_preview_through_a_dangling_link_is_refused_before_any_work(zrelay: Any) -> None:
    Path("now.jpg").symlink_to("gone.jpg")
    ran = generate(zrelay, "fox.png", "--preview", "now.jpg")
    assert ran.returncode == exits.LOCAL_FILE and "now.jpg: a symbolic link to gone.jpg, which does not" in ran.stderr
    assert not Path("fox.png").exists()


def test_a_link_to_a_folder_is_that_folder_for_images_and_no_file_for_embeddings(zrelay: Any) -> None:
    Path("folder").mkdir()
    Path("latest").symlink_to("folder")
    assert generate(zrelay, "latest").stdout == "latest/fox-7.png\n"
    ran = zrelay("encode", "fox", "-o", "latest", "--force")
    assert (ran.returncode, "expected a file, got a folder" in ran.stderr) == (exits.LOCAL_FILE, True)


def test_a_link_into_a_folder_that_cannot_be_written_names_its_target(
    zrelay: Any, latest: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tempfile.TemporaryFile

    def refuse(dir: Path) -> Any:  # the tests may run as root, which writes everywhere
        if dir.name == "day":
            raise PermissionError(13, "Permission denied", str(dir))
        return real(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    ran = generate(zrelay, "latest.png", "--force")
    target = latest[1].resolve()
    expected = f"a symbolic link to {target}: no file can be written there: Permission denied"
    assert (ran.returncode, ran.stderr) == (exits.LOCAL_FILE, f"error: latest.png: {expected}\n")


def test_a_name_made_of_the_prompt_steps_over_a_dangling_link(zrelay: Any) -> None:
    Path("fox-7.png").symlink_to("gone.png")
    ran = zrelay("generate", "fox", "--size", "64x64", "--seed", "7")
    assert (ran.stdout, Path("gone.png").exists()) == ("fox-7-2.png\n", False), ran.stderr
