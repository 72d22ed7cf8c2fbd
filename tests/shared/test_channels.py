"""channels: what every channel of ours does."""

import json
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
    server: dict[str, Any] = dict(channels.SERVER_OPTIONS)
    for way in ("grpc.max_send_message_length", "grpc.max_receive_message_length"):
        assert client[way] == server[way] == limits.MAX_MESSAGE_BYTES
    assert server["grpc.http2.min_ping_interval_without_data_ms"] < client["grpc.keepalive_time_ms"]
    retries = json.loads(client["grpc.service_config"])["methodConfig"][0]["retryPolicy"]
    assert retries["retryableStatusCodes"] == ["UNAVAILABLE"]
