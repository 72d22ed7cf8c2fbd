"""`zrelay doctor`: what it is content with, what it finds, and the fix it names."""

import asyncio
import json
from dataclasses import replace
from typing import Any

from zrelay_client import AsyncClient
from zrelay_client._checks import _memory
from zrelay_shared import exits


async def test_doctor_is_content(services: Any, zrelay: Any) -> None:
    endpoints = ["--encoder", services.endpoints["encoder"], "--generator", services.endpoints["generator"]]
    ran = await zrelay("doctor", *endpoints)
    assert ran.code == 0
    for line in (
        "ok    encoder port",
        "ok    generator health",
        "ok    encoder fits generator: exact",
        "ok    encode:",
    ):
        assert line in ran.out
    said = json.loads((await zrelay("doctor", "--json", *endpoints)).out)
    assert said["ok"] is True


async def test_doctor_warns_of_a_full_device(services: Any) -> None:
    async with AsyncClient(generator=services.endpoints["generator"]) as client:
        said = await client.generator_info()
    assert said.device is not None
    assert _memory("generator", said).state == "ok"
    full = replace(said, device=replace(said.device, memory_total_bytes=100, memory_free_bytes=1))
    assert _memory("generator", full).state == "warn"


async def test_doctor_finds_what_is_wrong(zrelay: Any) -> None:
    ran = await zrelay("doctor")
    assert ran.code == exits.REFUSED
    assert "zrelay up --detach" in ran.out
    ran = await zrelay("doctor", "--encoder", "no-such-host.invalid", "--generator", "127.0.0.1:1")
    assert ran.code == exits.UNREACHABLE
    assert "fail  encoder name" in ran.out
    assert "fail  generator port: cannot connect to 127.0.0.1:1" in ran.out
    assert "fix: start it there" in ran.out


async def test_doctor_finds_a_tunnel_without_a_far_end(services: Any, zrelay: Any) -> None:
    """ssh -L takes the connection and drops it when nothing listens on the other machine."""

    async def drop(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(drop, "127.0.0.1", 0) as tunnel:
        endpoint = f"127.0.0.1:{tunnel.sockets[0].getsockname()[1]}"
        ran = await zrelay("doctor", "--encoder", services.endpoints["encoder"], "--generator", endpoint)
    assert ran.code == exits.UNREACHABLE
    assert "ok    generator port" in ran.out
    assert "fail  generator health: the port answers, no service does: " in ran.out
    assert "fix: where this is an SSH tunnel" in ran.out
    assert "zrelay doctor" not in ran.out


async def test_doctor_finds_swapped_endpoints(services: Any, zrelay: Any) -> None:
    encoder, generator = services.endpoints["encoder"], services.endpoints["generator"]
    ran = await zrelay("doctor", "--encoder", generator, "--generator", encoder)
    assert ran.code == exits.REFUSED
    assert "fix: is that the encoder's endpoint, not another service's?" in ran.out


async def test_doctor_finds_an_encoder_that_does_not_fit(services: Any, zrelay: Any, stranger: str) -> None:
    ran = await zrelay("doctor", "--encoder", stranger, "--generator", services.endpoints["generator"])
    assert ran.code == exits.REFUSED
    assert "fail  encoder fits generator: " in ran.out
    assert "width" in ran.out
