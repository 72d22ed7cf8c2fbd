"""channels: what every channel of ours does."""

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from zrelay.v1 import generator_pb2 as pb
from zrelay_shared import channels, limits, rpc
from zrelay_shared.wire import Parcel

from .conftest import StartFake


async def test_a_proxy_of_the_web_is_passed_by(fake: StartFake, monkeypatch: pytest.MonkeyPatch) -> None:
    async def GetJob(parcel: Parcel[pb.GetJobRequest], context: rpc.Context) -> pb.GetJobResponse:
        return pb.GetJobResponse()

    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = await fake(GetJob=GetJob)
    assert await server.stub.call("GetJob", pb.GetJobRequest(), pb.GetJobResponse, timeout=20)


def test_both_ends_agree() -> None:
    client: dict[str, Any] = dict(channels.CLIENT_OPTIONS)
    server: dict[str, Any] = dict(channels.server_options())
    for way in ("grpc.max_send_message_length", "grpc.max_receive_message_length"):
        assert client[way] == server[way] == limits.MAX_MESSAGE_BYTES
    retries = json.loads(client["grpc.service_config"])["methodConfig"][0]["retryPolicy"]
    assert retries["retryableStatusCodes"] == ["UNAVAILABLE"]


PING, ACK = 6, 1


class RawConnection:
    """An HTTP/2 connection without calls that sends pings."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def flood(self, pings: int) -> int:
        """Sends pings without a pause. Returns how many are answered before the server ends the connection."""
        self._writer.write(_frame(PING, 0, bytes(8)) * pings)
        answers = 0
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while answers < pings:
                head = await self._reader.readexactly(9)
                await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                answers += head[3] == PING and head[4] == ACK
        return answers


def _frame(kind: int, flags: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, 0) + payload


@contextlib.asynccontextmanager
async def raw_connection(endpoint: str) -> AsyncIterator[RawConnection]:
    host, port = endpoint.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, b""))
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.close()


@pytest.mark.hostile
async def test_a_flood_of_pings_is_answered(fake: StartFake) -> None:
    """gRPC ends a connection that pings too often only after quadratic work, which delays all callers."""
    async with raw_connection((await fake()).endpoint) as connection:
        assert await connection.flood(20_000) == 20_000
