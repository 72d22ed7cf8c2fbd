"""The other commands: help, config, info, doctor, serve, completion, and the way failures are told."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from zrelay_client.cli import _root, cli
from zrelay_shared import __version__, exits

HEAVY = ("torch", "numpy", "transformers", "diffusers", "PIL")


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('=====', *sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(said.stdout.rpartition("=====")[2].split())


def test_help_loads_click_and_little_else() -> None:
    loaded = modules_after("from zrelay_client.cli import main\nmain(['--help'])\nmain(['generate', '--help'])")
    assert not loaded & {*HEAVY, "grpc", "google.protobuf", "zrelay_client._async_client"}


def test_the_library_loads_nothing_heavy() -> None:
    assert not modules_after("from zrelay_client import *") & set(HEAVY)


async def test_version_and_help(zrelay: Any) -> None:
    assert (await zrelay("--version")).out == f"zrelay, version {__version__}\n"
    said = (await zrelay("--help")).out
    for name in vars(exits):
        if name.isupper() and not name.startswith("_"):
            assert f" {getattr(exits, name)}  " in said
    for name in _root._COMMANDS:
        assert f"  {name} " in said


@pytest.mark.parametrize("name", list(_root._COMMANDS))
async def test_every_command_has_help(zrelay: Any, name: str) -> None:
    ran = await zrelay(name, "--help")
    assert ran.code == 0
    assert f"Usage: zrelay {name}" in ran.out
    with click.Context(cli) as ctx:
        command = cli.get_command(ctx, name)
    assert command is not None
    assert command.name == name


async def test_an_unknown_command(zrelay: Any) -> None:
    ran = await zrelay("paint")
    assert ran.code == exits.USAGE
    assert "No such command" in ran.err


async def test_a_bug_is_one_line_and_debug_shows_where(zrelay: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zrelay_client.cli._settings.load", lambda *_: 1 / 0)
    ran = await zrelay("config")
    assert ran.code == exits.BUG
    assert ran.err.startswith("error: a bug in zrelay: ZeroDivisionError")
    assert ran.err.count("\n") == 1
    assert "Traceback" in (await zrelay("--debug", "config")).err


async def test_config_shows_values_and_origins(zrelay: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing is configured" in (await zrelay("config")).out
    made = await zrelay("config", "init")
    assert made.out == (await zrelay("config", "path")).out == f"{tmp_path / 'config.toml'}\n"
    assert (await zrelay("config", "init")).code == exits.LOCAL_FILE
    monkeypatch.setenv("ZRELAY_ENCODER", "mac:1")
    monkeypatch.setenv("ZRELAY_ENCODR", "mac:1")
    said = json.loads((await zrelay("config", "--json")).out)
    assert said["encoder.endpoint"] == {"value": "mac:1", "from": "env ZRELAY_ENCODER"}
    assert said["generator.endpoint"]["value"] == "127.0.0.1:7503"
    assert "[profile.home.generator]" in said["generator.endpoint"]["from"]
    checked = await zrelay("config", "check")
    assert checked.code == 0
    assert "ZRELAY_ENCODR means nothing" in checked.err


async def test_the_commented_settings_of_the_example_are_right(zrelay: Any, tmp_path: Path) -> None:
    await zrelay("config", "init")
    file = tmp_path / "config.toml"
    lines = [line.removeprefix("# ") if " = " in line else line for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines))
    assert (await zrelay("config", "check")).code == 0
    assert "generate.timeout_s" in (await zrelay("config")).out


async def test_broken_configuration_is_told_with_its_line(zrelay: Any, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[profile.home]\nx = = 1\n")
    ran = await zrelay("generate", "fox")
    assert ran.code == exits.REFUSED
    assert "line 2" in ran.err


async def test_info_of_services(fakes: Any, zrelay: Any) -> None:
    endpoints = ["--encoder", fakes.endpoints["encoder"], "--generator", fakes.endpoints["generator"]]
    ran = await zrelay("info", *endpoints)
    assert f"encoder at {fakes.endpoints['encoder']}: ready" in ran.out
    assert "text_limit     77" in ran.out
    assert json.loads((await zrelay("info", "--json", *endpoints)).out)["generator"]["limits"]["text_limit"] == 77
    assert (await zrelay("info")).code == exits.REFUSED


async def test_doctor_is_content(fakes: Any, zrelay: Any) -> None:
    endpoints = ["--encoder", fakes.endpoints["encoder"], "--generator", fakes.endpoints["generator"]]
    ran = await zrelay("doctor", *endpoints)
    assert ran.code == 0
    for line in (
        "ok    encoder port",
        "ok    generator health",
        "ok    encoder fits generator: exact",
        "ok    encode:",
    ):
        assert line in ran.out
    assert "warn  generator memory" in ran.out
    said = json.loads((await zrelay("doctor", "--json", *endpoints)).out)
    assert said["ok"] is True


async def test_doctor_finds_what_is_wrong(fakes: Any, zrelay: Any, tmp_path: Path) -> None:
    ran = await zrelay("doctor")
    assert ran.code == exits.REFUSED
    assert "zrelay up --detach" in ran.out
    ran = await zrelay("doctor", "--encoder", "no-such-host.invalid", "--generator", "127.0.0.1:1")
    assert ran.code == exits.UNREACHABLE
    assert "fail  encoder name" in ran.out
    assert "fail  generator port: cannot connect to 127.0.0.1:1" in ran.out
    assert "fix: start it there" in ran.out


async def test_doctor_finds_an_encoder_of_another_family(fakes: Any, zrelay: Any) -> None:
    from dataclasses import replace

    fakes.generator.expected = replace(fakes.generator.expected, tokenizer_digest="d" * 64)
    endpoints = ["--encoder", fakes.endpoints["encoder"], "--generator", fakes.endpoints["generator"]]
    ran = await zrelay("doctor", *endpoints)
    assert ran.code == exits.REFUSED
    assert "fail  encoder fits generator: these embeddings come from another encoder" in ran.out


async def test_serve_asks_for_a_model_and_names_the_extra(zrelay: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = await zrelay("serve", "generator")
    assert ran.code == exits.REFUSED
    assert "--model FOLDER" in ran.err
    monkeypatch.setattr("zrelay_client._stack.extras._NEEDS", {"generator": ("no_such_module",)})
    ran = await zrelay("serve", "generator", "--model", "x")
    assert "pip install 'zrelay[generator]'" in ran.err


async def test_serve_becomes_the_service(zrelay: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda *args: seen.append(args))
    (tmp_path / "config.toml").write_text(
        '[profile.a.generator]\nmodel = "/m"\ndevice = "cpu"\nlisten = "127.0.0.1:9"\ninsecure_listen = true\n'
    )
    ran = await zrelay(
        "serve", "generator", "--profile", "a", "--device", "cuda", "--grace-s", "2", "--address-file", "f"
    )
    assert ran.code == 0
    flags = ["--model", "/m", "--listen", "127.0.0.1:9", "--device", "cuda", "--grace-s", "2"]
    command = [sys.executable, "-m", "zrelay_generator", *flags, "--insecure-listen", "--address-file", "f"]
    assert seen == [(sys.executable, command)]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_completion(zrelay: Any, shell: str) -> None:
    assert "_ZRELAY_COMPLETE" in (await zrelay("completion", shell)).out


async def test_down_with_nothing_up(zrelay: Any) -> None:
    ran = await zrelay("down")
    assert (ran.code, ran.err) == (0, "nothing runs\n")


async def test_up_refuses_what_is_no_checkpoint(zrelay: Any, tmp_path: Path) -> None:
    ran = await zrelay("up", "--model", str(tmp_path))
    assert ran.code == exits.LOCAL_FILE
    assert "model_index.json" in ran.err
