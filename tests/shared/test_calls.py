"""Open calls: callers that send half a request, send nothing, or do not read what they asked for."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc.aio
import psutil
import pytest

from tests.helpers.http2_streams import RawConnection, raw_connection
from tests.helpers.identities import by_agent, dial_as
from tests.helpers.large_messages import with_unknown_bytes
from tests.helpers.polling import eventually
from zrelay.v1 import generator_pb2 as pb
from zrelay_shared import channels, rpc
from zrelay_shared.callers import Identify, address_of, by_address
from zrelay_shared.calls import CallLimits, OpenCalls
from zrelay_shared.errors import FeatureMissing, QuotaExceeded
from zrelay_shared.limits import MIB
from zrelay_shared.wire import Parcel

pytestmark = pytest.mark.hostile

GENERATOR = pb.DESCRIPTOR.services_by_name["GeneratorService"]
GET, WATCH = f"/{GENERATOR.full_name}/GetJob", f"/{GENERATOR.full_name}/WatchJob"
ELSEWHERE = "127.0.0.2"
"""Another caller than 127.0.0.1."""


class Server:
    """A server whose GetJob answers `size` bytes and whose WatchJob yields such messages, `hold` after each."""

    def __init__(self, limits: CallLimits, size: int = 0) -> None:
        self.calls, self.port, self._size = OpenCalls(limits), 0, size
        self.open_streams = 0
        self.hold: Callable[[], Any] = asyncio.Event().wait

    async def GetJob(self, parcel: Parcel[pb.GetJobRequest], context: rpc.Context) -> pb.GetJobResponse:
        return with_unknown_bytes(pb.GetJobResponse(), self._size)

    async def WatchJob(
        self, parcel: Parcel[pb.WatchJobRequest], context: rpc.Context
    ) -> AsyncIterator[pb.WatchJobResponse]:
        self.open_streams += 1
        try:
            while True:
                yield pb.WatchJobResponse(event={"image": {"data": bytes(self._size)}})
                await self.hold()
        finally:
            self.open_streams -= 1

    async def get(self) -> None:
        """Calls GetJob from 127.0.0.1."""
        async with channels.dial(f"127.0.0.1:{self.port}") as channel:
            await rpc.Stub(channel, GENERATOR).call("GetJob", pb.GetJobRequest(), pb.GetJobResponse, timeout=60)

    async def watch(self) -> None:
        """Reads the first message of a WatchJob from 127.0.0.1."""
        async with channels.dial(f"127.0.0.1:{self.port}") as channel:
            events = rpc.Stub(channel, GENERATOR).stream("WatchJob", pb.WatchJobRequest(), pb.WatchJobResponse)
            async with aclosing(events):
                await anext(events)


async def _refuse(parcel: object, context: rpc.Context) -> NoReturn:
    raise FeatureMissing("not here")


@asynccontextmanager
async def serving(limits: CallLimits, size: int = 0, identify: Identify = by_address) -> AsyncIterator[Server]:
    served = Server(limits, size)
    server = grpc.aio.server(options=channels.server_options())
    handlers = {method.name: getattr(served, method.name, _refuse) for method in GENERATOR.methods}
    rpc.add_service(server, GENERATOR, SimpleNamespace(**handlers), calls=served.calls, identify=identify)
    served.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        await served.get()  # grpcio keeps the first call of a method until the server ends
        await served.watch()
        await eventually(lambda: not len(served.calls) and not served.open_streams, "both are over")
        yield served
    finally:
        await server.stop(None)


def half(connection: RawConnection, path: str, size: int = 100) -> int:
    """Begins a message of `size` bytes and sends half of it."""
    stream = connection.begin(path)
    connection.data(stream, b"\0" + size.to_bytes(4, "big") + bytes(size // 2))
    return stream


@pytest.mark.parametrize("path", [GET, WATCH])
@pytest.mark.parametrize("begin", [RawConnection.begin, half])
async def test_a_request_that_does_not_arrive_is_refused(path: str, begin: Callable[[RawConnection, str], int]) -> None:
    async with serving(CallLimits(receive_s=0.1)) as server, raw_connection(server.port) as slow:
        await slow.end_of(begin(slow, path))
        await eventually(lambda: not len(server.calls), "the call is over")


async def test_a_request_that_ends_without_a_message_is_refused() -> None:
    async with serving(CallLimits()) as server, raw_connection(server.port) as empty:
        stream = empty.begin(GET)
        empty.data(stream, b"", end=True)
        await empty.end_of(stream)


async def test_one_caller_cannot_take_the_calls_of_others() -> None:
    async with serving(CallLimits(calls=8)) as server, raw_connection(server.port, host=ELSEWHERE) as greedy:
        streams = [greedy.call(WATCH, pb.WatchJobRequest()) for _ in range(7)]
        await eventually(lambda: any(map(greedy.ended, streams)), "one is refused")
        await eventually(lambda: len(server.calls) == server.open_streams == 6, "the others are open")
        await server.get()


async def test_calls_are_counted_by_identity() -> None:
    """Two callers of one address, such as members behind one router."""
    async with serving(CallLimits(calls=8), identify=by_agent) as server, AsyncExitStack() as stack:
        opened = []
        for name in ("greedy", "modest"):
            channel = await stack.enter_async_context(dial_as(name, f"127.0.0.1:{server.port}"))
            stub = rpc.Stub(channel, GENERATOR)
            with pytest.raises(QuotaExceeded):
                while True:
                    events = stub.stream("WatchJob", pb.WatchJobRequest(), pb.WatchJobResponse)
                    await anext(await stack.enter_async_context(aclosing(events)))
                    opened.append(name)
        assert opened == ["greedy"] * 6 + ["modest"] * 2, "the second has what the first left"


async def test_a_caller_with_too_many_calls_reads_why() -> None:
    async with (
        serving(CallLimits(calls=4)) as server,
        channels.dial(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = rpc.Stub(channel, GENERATOR)
        streams = [stub.stream("WatchJob", pb.WatchJobRequest(), pb.WatchJobResponse) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        with pytest.raises(QuotaExceeded, match=r"3 calls of one caller are open.*--max-calls") as refusal:
            await server.get()
        assert refusal.value.reason == "CALLS_EXCEEDED" and refusal.value.retry_after_s
        await streams[0].aclose()
        await eventually(lambda: len(server.calls) == 2, "the call is over")
        await server.get()


async def test_calls_that_send_nothing_make_room_for_those_that_do() -> None:
    async with serving(CallLimits(calls=8)) as server, raw_connection(server.port) as idle:
        streams = [idle.begin(GET) for _ in range(6)]
        await eventually(lambda: len(server.calls) == 6, "the calls are open")
        await server.get()
        await idle.end_of(streams[0])
        assert not any(map(idle.ended, streams[1:]))


async def test_slow_requests_of_one_caller_are_few() -> None:
    limits = CallLimits(prompt_receive_s=0.05, slow_requests=8)
    async with serving(limits) as server, raw_connection(server.port) as slow:
        streams = [half(slow, GET) for _ in range(3)]
        await eventually(lambda: any(map(slow.ended, streams)), "one is refused")
        await eventually(lambda: len(server.calls) == 2, "the others are open")
        await server.get()


@pytest.mark.parametrize("path", [GET, WATCH])
async def test_a_caller_that_does_not_read_is_given_up(path: str) -> None:
    limits = CallLimits(prompt_send_s=0.05, send_s=0.1, send_rate=1e9)
    async with serving(limits, MIB) as server, raw_connection(server.port) as deaf:
        stream = deaf.call(path, pb.GetJobRequest())
        await eventually(lambda: deaf.frames(stream), "the answer has begun")
        await eventually(lambda: not len(server.calls) and not server.open_streams, "the call is over")
        await server.get()  # grpcio keeps the latest call of a method until the next one
        await server.watch()
        await deaf.end_of(stream)


async def test_messages_of_slow_readers_are_bounded_in_total() -> None:
    limits = CallLimits(prompt_send_s=0.05, slow_bytes=10 * MIB)
    async with serving(limits, 2 * MIB) as server, raw_connection(server.port) as deaf:
        streams = [deaf.call(WATCH, pb.WatchJobRequest()) for _ in range(2)]
        await eventually(lambda: all(map(deaf.frames, streams)), "both have begun")
        await eventually(lambda: len(server.calls) == 1, "one is given up")
        await server.watch()
        await eventually(lambda: any(map(deaf.ended, streams)), "it is over")
        await eventually(lambda: len(server.calls) == 1, "the other one is open")


async def test_a_reader_that_pauses_between_messages_is_kept() -> None:
    async with (
        serving(CallLimits(prompt_send_s=0.02, send_s=0.03)) as server,
        channels.dial(f"127.0.0.1:{server.port}") as channel,
    ):
        go_on = asyncio.Event()
        server.hold = go_on.wait
        stream = rpc.Stub(channel, GENERATOR).stream("WatchJob", pb.WatchJobRequest(), pb.WatchJobResponse)
        await anext(stream)
        await asyncio.sleep(0.1)  # longer than a message may take
        go_on.set()
        await anext(stream)
        await stream.aclose()


@pytest.mark.deep
async def test_readers_that_stop_cost_bounded_memory() -> None:
    """12 readers of 32 MiB each would hold 384 MiB."""
    limits = CallLimits(prompt_send_s=0.2, slow_bytes=256 * MIB)
    resident = psutil.Process().memory_info
    async with serving(limits, 32 * MIB) as server, raw_connection(server.port) as deaf:
        before = resident().rss
        for _ in range(12):
            stream = deaf.call(WATCH, pb.WatchJobRequest())
            await eventually(functools.partial(deaf.frames, stream), "the stream is open")
            await eventually(lambda: len(server.calls) <= 2, "those that are too many are given up")
        await server.get()
        await eventually(lambda: resident().rss - before < 192 * MIB, "the memory of those is free")  # the others wait


@pytest.mark.parametrize(
    ("peer", "caller"),
    [
        ("ipv4:192.0.2.1:50000", "ipv4:192.0.2.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50000", "ipv6:2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:50000", "ipv6:2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:50000", "ipv4:192.0.2.1"),
        ("ipv6:%5B::1%5D:50000", "ipv6:::1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50000", "ipv6:fe80::1"),
        ("unix:/run/zrelay.sock", "unix:/run/zrelay.sock"),
    ],
)
def test_a_caller_is_a_host(peer: str, caller: str) -> None:
    """A host has 2^64 IPv6 addresses of its network."""
    context: Any = SimpleNamespace(peer=lambda: peer)
    assert address_of(context) == caller
