"""The other commands: help, config, info, doctor, serve, completion, and the way failures are told."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete

from tests.helpers.command_line import run_zrelay
from zrelay_client.cli import _main, cli
from zrelay_client.stack.processes import start_mark
from zrelay_shared import __version__, exits

from .conftest import Services, Zrelay

HEAVY = ("torch", "numpy", "transformers", "diffusers", "PIL")


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('=====', *sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(said.stdout.rpartition("=====")[2].split())


def test_help_loads_click_and_little_else() -> None:
    loaded = modules_after("from zrelay_client.cli import main\nmain(['--help'])\nmain(['generate', '--help'])")
    assert not loaded & {*HEAVY, "grpc", "google.protobuf", "zrelay_client.client"}


def test_names_are_resolved_by_the_system_which_knows_local_ones() -> None:
    """gRPC's own resolver asks DNS alone. The C library also takes 127.1 for an address; DNS has no such name."""
    script = (
        "import asyncio\nfrom zrelay_client import AsyncClient\n"
        "async def main():\n    async with AsyncClient(encoder='127.1:1') as client: await client.encoder_info()\n"
        "try: asyncio.run(main())\nexcept Exception as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "cannot reach the encoder service at 127.1:1: connection refused" in said


def test_the_library_loads_nothing_heavy() -> None:
    assert not modules_after("from zrelay_client import *") & set(HEAVY)


async def test_version_and_help(zrelay: Zrelay) -> None:
    assert (await zrelay("--version")).stdout == f"zrelay, version {__version__}\n"
    said = (await zrelay("--help")).stdout
    for code in vars(exits).values():
        assert type(code) is not int or f" {code}  " in said
    for name in _main.COMMANDS:
        assert f"  {name} " in said


@pytest.mark.parametrize("name", list(_main.COMMANDS))
async def test_every_command_has_help(zrelay: Zrelay, name: str) -> None:
    ran = await zrelay(name, "--help")
    assert ran.returncode == 0
    assert f"Usage: zrelay {name}" in ran.stdout
    with click.Context(cli) as ctx:
        command = cli.get_command(ctx, name)
    assert command is not None
    assert command.name == name


async def test_an_unknown_command(zrelay: Zrelay) -> None:
    ran = await zrelay("paint")
    assert ran.returncode == exits.USAGE
    assert "No such command" in ran.stderr


def test_a_bug_is_one_line_and_debug_shows_where() -> None:
    @click.command()
    @click.option("--debug", is_flag=True)
    def wrong(debug: bool) -> None:
        raise ZeroDivisionError("division by zero")

    ran = run_zrelay(command=wrong)
    assert ran.returncode == exits.BUG
    assert ran.stderr.startswith("error: a bug in zrelay: ZeroDivisionError")
    assert ran.stderr.count("\n") == 1
    assert "Traceback" in run_zrelay("--debug", command=wrong).stderr


async def test_config_shows_values_and_origins(zrelay: Zrelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no configuration file" in (await zrelay("config")).stderr
    made = await zrelay("config", "init")
    assert made.stdout == (await zrelay("config", "path")).stdout == f"{tmp_path / 'config.toml'}\n"
    assert (await zrelay("config", "init")).returncode == exits.LOCAL_FILE
    monkeypatch.setenv("ZRELAY_ENCODER", "mac:1")
    monkeypatch.setenv("ZRELAY_ENCODR", "mac:1")
    said = json.loads((await zrelay("config", "--profile", "home", "--json")).stdout)
    assert said["encoder.endpoint"] == {"value": "mac:1", "from": "env ZRELAY_ENCODER"}
    assert said["generator.endpoint"]["value"] == "127.0.0.1:7503"
    assert "[profile.home.generator]" in said["generator.endpoint"]["from"]
    assert said["generator.max_wait_s"] == {"value": 600, "from": "default"}
    assert said["generator.keep_results_h"] == {"value": 24, "from": "default"}
    assert said["encoder.model"] == {"value": None, "from": "default"}
    assert json.loads((await zrelay("config", "show", "--profile", "home", "--json")).stdout) == said
    lines = (await zrelay("config", "show", "--profile", "home")).stdout.splitlines()
    assert lines[0].split() == ["SETTING", "VALUE", "FROM"]
    assert len(lines) == 1 + len(said)
    assert any(line.startswith("encoder.threads ") and "<all cores but one>" in line for line in lines)
    checked = await zrelay("config", "check")
    assert checked.returncode == 0
    assert "ZRELAY_ENCODR is not a variable of zrelay" in checked.stderr


async def test_config_shows_none(zrelay: Zrelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that a user set to none, a value that nothing sets, and the word of think_mode look different."""
    (tmp_path / "config.toml").write_text(
        '[profile.home.encoder]\nthreads = 3\ncache = "none"\n[encode]\nthink_mode = "none"\n'
    )
    monkeypatch.setenv("ZRELAY_ENCODER_THREADS", "none")
    monkeypatch.setenv("ZRELAY_VISION", "none")
    shown = json.loads((await zrelay("config", "--profile", "home", "--json")).stdout)
    assert shown["encoder.threads"] == {"value": None, "from": "env ZRELAY_ENCODER_THREADS"}
    assert shown["encoder.cache"] == {"value": None, "from": f"{tmp_path / 'config.toml'} [profile.home.encoder]"}
    assert shown["generator.threads"] == shown["encoder.address_file"] == {"value": None, "from": "default"}
    assert shown["encode.think_mode"]["value"] == "none"
    rows = dict(line.split(maxsplit=1) for line in (await zrelay("config", "--profile", "home")).stdout.splitlines())
    for name, start in {
        "encoder.threads": "none (all cores but one)  env ZRELAY_ENCODER_THREADS",
        "encoder.cache": "none  ",  # off, which is not its default
        "vision.endpoint": "none  ",
        "generator.threads": "<all cores but one>  default",
        "encoder.address_file": "<not set>  default",
        "encode.think_mode": '"none"  ',
    }.items():
        assert re.sub(" {2,}", "  ", rows[name]).startswith(start), rows[name]
    monkeypatch.setenv("ZRELAY_ENCODER_THREADS", "None")
    refused = await zrelay("config", "check")
    assert "ZRELAY_ENCODER_THREADS: expected a whole number or none, got 'None'" in refused.stderr


async def test_config_warns_of_unknown_variables(zrelay: Zrelay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZRELAY_GENERATE_WITDH", "a secret")
    for args in ([], ["--json"], ["show"], ["check"]):
        ran = await zrelay("config", *args)
        warning = "warning: ZRELAY_GENERATE_WITDH is not a variable of zrelay; did you mean 'ZRELAY_GENERATE_WIDTH'?\n"
        assert (ran.returncode, warning in ran.stderr) == (0, True), ran.stderr
        assert "a secret" not in ran.stdout + ran.stderr


async def test_the_example_changes_nothing_until_it_is_edited(zrelay: Zrelay, tmp_path: Path) -> None:
    await zrelay("config", "init")
    assert "used: none" in (await zrelay("config", "check")).stdout
    assert "choose one with --profile (home)" in (await zrelay("config")).stderr
    stack_of(tmp_path, encoder=start_mark(os.getpid()), generator=start_mark(os.getpid()))
    said = json.loads((await zrelay("config", "--json")).stdout)
    assert {said[f"{role}.endpoint"]["from"] for role in ("encoder", "generator")} == {"zrelay up"}


async def test_the_commented_settings_of_the_example_are_right(zrelay: Zrelay, tmp_path: Path) -> None:
    await zrelay("config", "init")
    file = tmp_path / "config.toml"
    lines = [line.removeprefix("# ") if " = " in line else line for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines))
    assert (await zrelay("config", "check")).returncode == 0
    assert "generate.timeout_s" in (await zrelay("config")).stdout


async def test_broken_configuration_is_reported_with_its_line(zrelay: Zrelay, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[profile.home]\nx = = 1\n")
    ran = await zrelay("generate", "fox")
    assert ran.returncode == exits.REFUSED
    assert "line 2" in ran.stderr


async def test_info_of_services(services: Services, zrelay: Zrelay) -> None:
    endpoints = ["--encoder", services.encoder, "--generator", services.generator]
    ran = await zrelay("info", *endpoints)
    assert f"encoder at {services.endpoints['encoder']}: ready" in ran.stdout
    limits = json.loads((await zrelay("info", "--json", *endpoints)).stdout)["generator"]["limits"]
    assert any(line.split() == ["text_limit", str(limits["text_limit"])] for line in ran.stdout.splitlines())
    assert (await zrelay("info")).returncode == exits.REFUSED


async def test_serve_asks_for_a_model_and_names_the_extra(zrelay: Zrelay, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = await zrelay("serve", "generator")
    assert ran.returncode == exits.USAGE
    assert "--model DIR" in ran.stderr
    monkeypatch.setitem(sys.modules, "diffusers", None)  # as where it is not installed
    ran = await zrelay("serve", "generator", "--model", "x")
    assert "pip install 'zrelay[generator]'" in ran.stderr


async def test_up_names_everything_that_is_missing_at_once(zrelay: Zrelay, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("diffusers", "PIL"):
        monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    ran = await zrelay("up")
    assert ran.returncode == exits.REFUSED
    assert "cannot serve the vision and the generator: it lacks PIL, diffusers; " in ran.stderr
    assert "pip install 'zrelay[vision,generator]'" in ran.stderr


async def test_serve_becomes_the_service(zrelay: Zrelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *args: seen.append(args))
    (tmp_path / "config.toml").write_text(
        '[profile.a.generator]\nmodel = "~/m"\ndevice = "cpu"\nlisten = "127.0.0.1:9"\ninsecure_listen = true\n'
    )
    ran = await zrelay(
        "serve", "generator", "--profile", "a", "--device", "cuda", "--", "--grace-s", "2", "--address-file", "f"
    )
    assert ran.returncode == 0, ran.stderr
    flags = ["--profile", "a", "--device", "cuda", "--grace-s", "2", "--address-file", "f"]
    ((program, command, environ),) = seen
    assert (program, command) == (sys.executable, [sys.executable, "-P", "-m", "zrelay_generator", *flags])
    assert environ["PYTHONSAFEPATH"] == "1"


async def test_serve_lists_the_settings_of_a_role_in_groups(zrelay: Zrelay) -> None:
    ran = await zrelay("serve", "generator", "--help")
    assert ran.returncode == 0
    for text in ("\nQueue:\n", "\nStorage:\n", "  --max-steps N", "[default: 100]", "  --profile NAME"):
        assert text in ran.stdout
    assert "--max-steps" in (await zrelay("serve", "generator", "--", "--help")).stdout
    assert "No such command" in (await zrelay("serve", "mars")).stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_completion(zrelay: Zrelay, shell: str) -> None:
    assert "_ZRELAY_COMPLETE" in (await zrelay("completion", shell)).stdout


@pytest.mark.parametrize(
    ("args", "incomplete", "values"),
    [
        (["generate", "-o"], "out/f", ["out/f"]),
        (["generate", "--prompt-embeds"], "", [""]),
        (["info"], "out/f", ["out/f"]),
        (["up", "--model"], "/mod", ["/mod"]),
        (["generate", "--profile"], "h", ["here", "home"]),
        (["serve", "encoder", "--profile"], "o", ["office"]),
    ],
)
def test_what_is_completed(empty_home: Path, args: list[str], incomplete: str, values: list[str]) -> None:
    (empty_home / "config.toml").write_text("".join(f"[profile.{name}]\n" for name in ("home", "here", "office")))
    found = ShellComplete(cli, {}, "zrelay", "_ZRELAY_COMPLETE").get_completions(args, incomplete)
    assert [item.value for item in found] == values
    assert {item.type for item in found} == {"plain" if "--profile" in args else "file"}
    (empty_home / "config.toml").write_text("= broken")
    assert ShellComplete(cli, {}, "zrelay", "_ZRELAY_COMPLETE").get_completions(["generate", "--profile"], "") == []


async def test_down_with_nothing_up(zrelay: Zrelay) -> None:
    ran = await zrelay("down")
    assert (ran.returncode, ran.stderr) == (0, "nothing runs\n")
    assert json.loads((await zrelay("down", "--json")).stdout) == {"stopped": []}


def stack_of(home: Path, **started: str | None) -> None:
    """A record as `zrelay up` leaves it: role -> when its process, which has this one's pid, was started."""
    services = [
        {
            "role": role,
            "process": {"pid": os.getpid(), "started": mark},
            "endpoint": "127.0.0.1:1",
            "log": f"{role}.log",
        }
        for role, mark in started.items()
    ]
    (home / "state").mkdir(exist_ok=True)
    (home / "state" / "stack.json").write_text(json.dumps({"model": "x", "grace_s": 1.0, "services": services}))


async def test_a_stack_that_lost_a_service_says_so(zrelay: Zrelay, tmp_path: Path) -> None:
    stack_of(tmp_path, encoder=start_mark(os.getpid()), generator="ended")
    ran = await zrelay("generate", "fox")
    assert ran.returncode == exits.REFUSED
    assert "the generator that `zrelay up` started has ended, its log is generator.log" in ran.stderr
    assert "`zrelay down`" in ran.stderr
    ran = await zrelay("up")
    assert ran.returncode == exits.REFUSED
    assert "a stack runs already (encoder on 127.0.0.1:1, generator has ended)" in ran.stderr


async def test_a_stack_from_before_a_reboot_is_none(zrelay: Zrelay, tmp_path: Path) -> None:
    stack_of(tmp_path, encoder="before the reboot", generator="before the reboot")  # the pids run, as others
    assert "no encoder and no generator is configured" in (await zrelay("generate", "fox")).stderr
    ran = await zrelay("down")
    assert (ran.returncode, ran.stderr) == (0, "nothing runs\n")
    assert not (tmp_path / "state" / "stack.json").exists()


async def test_up_refuses_what_is_no_checkpoint(zrelay: Zrelay, tmp_path: Path) -> None:
    ran = await zrelay("up", "--model", str(tmp_path))
    assert ran.returncode == exits.LOCAL_FILE
    assert "model_index.json" in ran.stderr


async def test_demo_writes_a_file_and_not_to_stdout(zrelay: Zrelay) -> None:
    ran = await zrelay("demo", "-o", "-")
    assert (ran.returncode, ran.stdout) == (exits.USAGE, "")
    assert "zrelay generate -o -" in ran.stderr
