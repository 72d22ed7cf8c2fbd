"""The health command's exit codes, against a real server that loads, serves and drains."""

import asyncio
import socket
import sys

from zrelay_shared import healthcheck
from zrelay_shared.service.lifecycle import ServeOptions, running
from zrelay_shared.service.listening import ListenAddress

from .services import NAME, ControlledService


async def run(*arguments: str) -> tuple[int, str]:
    """Exit code and output of the command, as docker runs it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "zrelay_shared.healthcheck",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode().strip()


async def test_loading_is_alive_but_not_ready() -> None:
    service = ControlledService()
    async with running(service, ServeOptions(ListenAddress("127.0.0.1", 0))) as server:
        where = str(server.address)
        assert await run(where, NAME) == (1, "NOT_SERVING")
        assert await run(where, "liveness") == (0, "SERVING")
        service.load_now.set()
        await server.loaded
        assert await run(where, NAME) == (0, "SERVING")
        assert await run(where) == (0, "SERVING")
        assert await run(where, "zrelay.v1.EncoderService") == (1, "NOT_FOUND")


async def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        assert await run(f"127.0.0.1:{taken.getsockname()[1]}") == (1, "UNAVAILABLE")


def test_silence_ends_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert healthcheck.check(f"127.0.0.1:{silent.getsockname()[1]}", deadline_s=0.3) == "DEADLINE_EXCEEDED"


async def test_usage() -> None:
    for arguments in ((), ("--help",), ("a", "b", "c")):
        code, output = await run(*arguments)
        assert code == 2
        assert output.startswith("usage: ")
