"""What commands print on a terminal and elsewhere, and the folders that `--output` creates."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zrelay_shared import exits

from .conftest import Services, Zrelay

pty = pytest.importorskip("pty")
QUICK = ["--size", "64x64", "--num-inference-steps", "2"]
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def on_terminal(*args: str, columns: int = 80, **environ: str) -> tuple[int, str]:
    """Runs `zrelay` on a terminal.

    Returns:
        The exit code, and everything that was written to the terminal.
    """
    near, far = pty.openpty()
    command = [sys.executable, "-m", "zrelay_client", *args]
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    env |= {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "50", **environ}
    process = subprocess.Popen(command, stdin=far, stdout=far, stderr=far, env=env)
    os.close(far)
    written = b""
    while True:
        try:
            part = os.read(near, 65536)
        except OSError:  # Linux' end of a terminal
            break
        if not part:
            break
        written += part
    os.close(near)
    return process.wait(timeout=60), written.decode().replace("\r\n", "\n")


@pytest.fixture
def generate(services: Services, zrelay: Zrelay) -> Any:
    """`zrelay generate` with a small image of few steps."""

    async def run(*args: str) -> Any:
        return await zrelay("generate", "fox", *args, *QUICK, *services.flags)

    return run


def test_a_terminal_shows_a_bar_with_stages_and_is_clean_afterwards(services: Services, empty_home: Path) -> None:
    code, written = on_terminal("generate", "fox", "-o", "a.png", "--num-inference-steps", "30", *services.flags)
    assert code == 0, written
    assert "denoise" in written and "━" in written and "/30" in written
    assert "\x1b[?25l" in written and written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is shown"
    assert COLOUR.search(written)
    last = ESCAPE.sub("", written).splitlines()
    assert "a.png" in " ".join(last) and "encode" in last[-2] + last[-1]


def test_a_batch_shows_counts(services: Services, empty_home: Path) -> None:
    code, written = on_terminal("generate", "fox", "-o", "out/", "--count", "3", *QUICK, *services.flags)
    assert code == 0, written
    assert "/3 images" in written and "left" in written
    assert len(list(Path("out").iterdir())) == 3


def test_colours_and_dumb_terminals(services: Services, empty_home: Path) -> None:
    arguments = ["generate", "fox", "--num-inference-steps", "30", *services.flags]
    code, plain = on_terminal(*arguments, "-o", "a.png", NO_COLOR="1")
    assert code == 0 and "━" in plain
    assert not re.search(r"\x1b\[[0-9;]*3[0-9][0-9;]*m", plain), "no colour"
    for term in ("dumb", "unknown"):
        code, dumb = on_terminal(*arguments, "-o", f"{term}.png", TERM=term)
        assert code == 0 and "━" not in dumb and "\x1b" not in dumb


def test_tables_fit_the_terminal(services: Services, empty_home: Path) -> None:
    subprocess.run([sys.executable, "-m", "zrelay_client", "generate", "fox", *QUICK, *services.flags], check=True)
    for command in (["jobs", "list", "--limit", "3"], ["info"], ["doctor"], ["config"]):
        endpoints = {"list": services.flags[2:], "config": []}.get(command[-1], services.flags)
        endpoints = services.flags[2:] if command[0] == "jobs" else endpoints
        for columns in (60, 120):
            code, written = on_terminal(*command, *endpoints, columns=columns)
            lines = ESCAPE.sub("", written).splitlines()
            assert code == 0 and lines, written
            assert max(len(line.rstrip()) for line in lines if not line.startswith("no configuration")) <= columns


def test_a_narrow_terminal_shows_generators_and_notes_of_jobs_on_lines_of_their_own(
    services: Services, empty_home: Path
) -> None:
    zrelay = [sys.executable, "-m", "zrelay_client"]
    long = ["--size", "512x512", "--num-inference-steps", "100", "--seed", "4294967295"]
    detach = [*zrelay, "generate", "fox", "--detach", *long, *services.flags]
    job_id = subprocess.run(detach, capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run([*zrelay, "jobs", "cancel", job_id, *services.flags[2:]], check=True)
    one = ["--generator", services.generator]
    two = [*one, "--generator", services.generator.replace("127.0.0.1", "localhost")]
    for columns in (60, 80):
        code, written = on_terminal("jobs", "list", "--limit", "5", *one, columns=columns)
        assert code == 0 and "GENERATOR" not in written, written
        code, written = on_terminal("jobs", "list", "--limit", "5", *two, columns=columns)
        lines = [line.rstrip() for line in COLOUR.sub("", written).splitlines()]
        assert any(line.startswith(job_id) and line.endswith("4294967295") for line in lines), written
        assert any(line.startswith(f"  {services.generator}") for line in lines), written
        assert max(map(len, lines)) <= columns


def test_rich_is_imported_only_where_it_draws(services: Services, empty_home: Path) -> None:
    script = "import sys\nfrom zrelay_client.cli import main\nmain(sys.argv[1:])\nprint('rich' in sys.modules)"
    for command in (["generate", "fox", *QUICK, *services.flags], ["info", *services.flags], ["config"], ["--help"]):
        ran = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines()[-1] == "False"


async def test_info_prints_no_python_representations(services: Services, zrelay: Zrelay, vision: str) -> None:
    shown = (await zrelay("info", *services.flags, "--vision", vision)).stdout
    assert not re.search(r"\w+\(\w+=|None|True|False|\[|\{|'", shown), shown
    engines = shown[shown.index("engines") :]
    assert re.search(r"\n +siglip\n +ready +yes\n", engines)
    values = json.loads((await zrelay("info", *services.flags, "--vision", vision, "--json")).stdout)
    assert {engine["name"] for engine in values["vision"]["engines"]} == {"siglip", "qwen3_vl"}


async def test_a_folder_with_a_slash_is_created(generate: Any, zrelay: Zrelay, services: Services) -> None:
    ran = await generate("-o", "foxes/", "--seed", "7")
    assert (ran.returncode, ran.stdout) == (0, "foxes/fox-7.png\n"), ran.stderr
    ran = await generate("-o", "a/b/c/", "--count", "2", "--seed", "1")
    assert sorted(ran.stdout.split()) == ["a/b/c/fox-1.png", "a/b/c/fox-2.png"], ran.stderr
    ran = await generate("-o", "v1.5/", "--preview", "steps/all/", "--seed", "3")
    assert ran.stdout == "v1.5/fox-3.png\n" and list(Path("steps/all").iterdir())
    left = await generate("--detach", "--seed", "9")
    job_id = left.stdout.strip()
    for verb, folder in (("fetch", "f/g"), ("watch", "w/g")):
        ran = await zrelay("jobs", verb, job_id, "-o", f"{folder}/", *services.flags[2:])
        assert ran.stdout == f"{folder}/fox-9.png\n", ran.stderr


async def test_force_replaces_files_in_a_folder(generate: Any, zrelay: Zrelay, services: Services) -> None:
    job_id = (await generate("--detach", "--seed", "1")).stdout.strip()
    for args in (["--seed", "1"], ["--seeds", "1,1"]):
        for _ in range(2):
            ran = await generate("-o", "a/", "--force", *args)
            assert ran.returncode == 0, ran.stderr
    assert sorted(ran.stdout.split()) == ["a/fox-1-2.png", "a/fox-1.png"], "images of one command do not replace others"
    for args in ([], [job_id]):
        ran = await zrelay("jobs", "fetch", job_id, *args, "-o", "b/", "--force", *services.flags[2:])
        assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["b/fox-1.png", "b/fox-1-2.png"]


async def test_a_folder_that_cannot_be_created(generate: Any) -> None:
    Path("taken").write_text("a file")
    for output in ("taken/", "taken/deep/er/"):
        ran = await generate("-o", output)
        assert ran.returncode == exits.LOCAL_FILE, ran.stderr
        assert "the folder cannot be created: taken is a file" in ran.stderr
    if os.geteuid() != 0:
        Path("locked").mkdir(mode=0o500)
        ran = await generate("-o", "locked/new/")
        assert ran.returncode == exits.LOCAL_FILE and "cannot be created in locked" in ran.stderr


async def test_a_file_is_expected_where_there_is_one_output(zrelay: Zrelay) -> None:
    for command in (["encode", "fox"], ["vision", "encode", "a.png"], ["calibrate"]):
        ran = await zrelay(*command, "-o", "new/", "--force")
        assert ran.returncode == exits.LOCAL_FILE and "new/: expected a file, got a folder" in ran.stderr, ran.stderr
        assert list(Path().iterdir()) == []


async def test_a_refused_command_creates_nothing(generate: Any, zrelay: Zrelay, services: Services) -> None:
    for args, code in (
        (["--width", "100"], exits.REFUSED),  # by the generator
        (["--quality", "-1"], exits.REFUSED),  # by the client
        (["--guidance-scale", "x"], exits.USAGE),
        (["--image", "gone.png"], exits.LOCAL_FILE),
    ):
        ran = await zrelay("generate", "fox", "-o", "new/", "--preview", "steps/", *args, *services.flags)
        assert ran.returncode == code, ran.stderr
    ran = await zrelay("jobs", "fetch", "unknown", "-o", "new/", *services.flags[2:])
    assert ran.returncode == exits.REFUSED
    assert list(Path().iterdir()) == []
