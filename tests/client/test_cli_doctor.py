"""`zrelay doctor`: what it is content with, what it finds, and the fix it names."""

import asyncio
import json
from dataclasses import replace

import pytest

from zrelay_client import AsyncClient
from zrelay_client.doctor import check_memory, check_pair
from zrelay_demo import CHECKPOINT
from zrelay_shared import exits

from .conftest import Services, Zrelay


async def test_doctor_is_content(services: Services, zrelay: Zrelay) -> None:
    endpoints = ["--encoder", services.encoder, "--generator", services.generator]
    ran = await zrelay("doctor", *endpoints)
    assert ran.returncode == 0
    for line in (
        "ok    encoder port",
        "ok    generator health",
        "ok    encoder fits generator: exact",
        "ok    encode:",
    ):
        assert line in ran.stdout
    said = json.loads((await zrelay("doctor", "--json", *endpoints)).stdout)
    assert said["ok"] is True


async def test_doctor_warns_of_a_full_device(services: Services) -> None:
    async with AsyncClient(generator=services.generator) as client:
        said = await client.generator_info()
    assert said.device is not None
    assert check_memory("generator", said).state == "ok"
    full = replace(said, device=replace(said.device, memory_total_bytes=100, memory_free_bytes=1))
    assert check_memory("generator", full).state == "warn"


async def test_doctor_reports_a_digest_that_is_still_computed(services: Services) -> None:
    async with AsyncClient(encoder=services.encoder, generator=services.generator) as client:
        encoder, generator = await client.encoder_info(), await client.generator_info()
    assert generator.expected_encoder is not None
    pending = replace(generator, expected_encoder=replace(generator.expected_encoder, weights_digest=""))
    found = check_pair(encoder, pending)
    assert found.state == "warn" and found.message.startswith("still computing: ") and "in a minute" in found.fix
    bare = replace(generator.expected_encoder, weights_digest="", tokenizer_digest="", chat_template_digest="")
    found = check_pair(encoder, replace(generator, expected_encoder=bare))
    assert found.message.startswith("unverified") and "add text_encoder/" in found.fix


async def test_doctor_finds_what_is_wrong(zrelay: Zrelay) -> None:
    ran = await zrelay("doctor")
    assert ran.returncode == exits.REFUSED
    assert "zrelay up --detach" in ran.stdout
    ran = await zrelay("doctor", "--encoder", "no-such-host.invalid", "--generator", "127.0.0.1:1")
    assert ran.returncode == exits.UNREACHABLE
    assert "fail  encoder name" in ran.stdout
    assert "fail  generator port: cannot connect to 127.0.0.1:1" in ran.stdout
    assert "fix: start it there" in ran.stdout


async def test_doctor_finds_a_tunnel_without_a_far_end(services: Services, zrelay: Zrelay) -> None:
    """ssh -L takes the connection and drops it when nothing listens on the other machine."""

    async def drop(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(drop, "127.0.0.1", 0) as tunnel:
        endpoint = f"127.0.0.1:{tunnel.sockets[0].getsockname()[1]}"
        ran = await zrelay("doctor", "--encoder", services.encoder, "--generator", endpoint)
    assert ran.returncode == exits.UNREACHABLE
    assert "ok    generator port" in ran.stdout
    assert "fail  generator health: the port answers, no service does: " in ran.stdout
    assert "fix: where this is an SSH tunnel" in ran.stdout
    assert "zrelay doctor" not in ran.stdout


async def test_doctor_finds_swapped_endpoints(services: Services, zrelay: Zrelay) -> None:
    encoder, generator = services.encoder, services.generator
    ran = await zrelay("doctor", "--encoder", generator, "--generator", encoder)
    assert ran.returncode == exits.REFUSED
    assert "fix: is that the encoder's endpoint, not another service's?" in ran.stdout


async def test_doctor_finds_an_encoder_that_does_not_fit(services: Services, zrelay: Zrelay, stranger: str) -> None:
    ran = await zrelay("doctor", "--encoder", stranger, "--generator", services.generator)
    assert ran.returncode == exits.REFUSED
    assert "fail  encoder fits generator: " in ran.stdout
    assert "width" in ran.stdout


async def test_doctor_prints_a_plan_without_loading(zrelay: Zrelay) -> None:
    ran = await zrelay("doctor", "--model", str(CHECKPOINT), "--role", "generator", "--device", "cpu")
    assert ran.returncode == 0 and ran.stdout.startswith("generator on cpu: ")
    said = json.loads((await zrelay("doctor", "--model", str(CHECKPOINT), "--role", "encoder", "--json")).stdout)
    assert said["plan"]["dtype"] in {option["dtype"] for option in said["plan"]["options"]}
    assert said["plan"]["room_bytes"] > 0
    assert (await zrelay("doctor", "--role", "encoder")).returncode == exits.USAGE


async def test_doctor_refuses_what_does_not_fit(zrelay: Zrelay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZRELAY_GENERATOR_MEMORY_BUDGET_MIB", "100")
    ran = await zrelay("doctor", "--model", str(CHECKPOINT), "--role", "generator")
    assert ran.returncode == exits.REFUSED and "the generator does not fit: " in ran.stderr
