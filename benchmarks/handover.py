"""P7: 7.7 MB of embeddings from one process through a client into another, against the same bytes over raw TCP.

The far ends are processes of their own with the real codec, checks and servers of the project, and a stored tensor in
place of a model. Raw TCP moves the same bytes down and up again with `recv_into`, no framing, no checks.
"""

import asyncio
import multiprocessing
import socket
import struct
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import link

SHAPE = (1504, 2560)
"""The longest prompt of the published Z-Image, in bf16: 7.7 MB."""

_BYTES = SHAPE[0] * SHAPE[1] * 2


def _serve(role: str, ready: Connection, far: link.RateLimitedLink | None) -> None:
    if far is not None:
        link.enter(far.namespace)
    from zrelay_shared.service import lifecycle
    from zrelay_shared.service.listening import ListenAddress

    async def run() -> None:
        async with lifecycle.running(
            stored_service(role), lifecycle.ServeOptions(ListenAddress(far.host if far else "127.0.0.1", 0))
        ) as server:
            await server.loaded
            ready.send(str(server.address))
            await asyncio.Event().wait()

    asyncio.run(run())


def stored_service(role: str) -> Any:
    """An encoder that answers every prompt with a stored tensor, or a generator that checks and discards it."""
    import torch

    from zrelay.v1 import encoder_pb2, generator_pb2
    from zrelay.v1.embeds_pb2 import EncoderFingerprint
    from zrelay_shared import rpc
    from zrelay_shared.errors import FeatureMissing
    from zrelay_shared.service import lifecycle, process
    from zrelay_shared.torch_tensors import from_wire, to_wire
    from zrelay_shared.wire import Parcel

    process.keep_large_buffers()
    torch.set_num_threads(1)
    stored = torch.randn(SHAPE).to(torch.bfloat16)

    class StoredTensorService(lifecycle.Service):
        async def load(self) -> None: ...
        async def drain(self, grace_s: float) -> None: ...
        async def close(self) -> None: ...

    class StoredTensorEncoder(StoredTensorService):
        descriptor = encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"]

        async def GetInfo(self, parcel: Parcel[Any], context: rpc.Context) -> Any:
            return encoder_pb2.EncoderServiceGetInfoResponse(ready=True)

        async def EncodePrompts(self, parcel: Parcel[Any], context: rpc.Context) -> Parcel[Any]:
            answer = Parcel(encoder_pb2.EncodePromptsResponse())
            embeds = answer.message.results.add().prompt_embeds
            embeds.fingerprint.CopyFrom(EncoderFingerprint(family="qwen3", width=SHAPE[1]))
            to_wire(answer, embeds.segments.add().prompt_embeds, stored)
            return answer

    class DiscardingGenerator(StoredTensorService):
        descriptor = generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"]

        async def Generate(self, parcel: Parcel[Any], context: rpc.Context) -> Any:
            tensor = parcel.message.spec.prompt.prompt_embeds.segments[0].prompt_embeds
            assert from_wire(parcel, tensor, field="prompt", rank=2).shape == SHAPE
            yield generator_pb2.GenerateResponse()

    async def unused(self: object, parcel: Parcel[Any], context: rpc.Context) -> None:
        raise FeatureMissing("not part of this measurement")

    service = StoredTensorEncoder() if role == "encoder" else DiscardingGenerator()
    for method in service.descriptor.methods:
        if not hasattr(service, method.name):
            setattr(type(service), method.name, unused)
    return service


async def hand_over(encode: Any, paint: Any) -> None:
    """Carries the stored tensor from an encoder to a generator.

    Args:
        encode, paint: Stubs (`zrelay_shared.rpc.Stub`) of the two.
    """
    from zrelay.v1 import encoder_pb2, generator_pb2
    from zrelay_shared.wire import Parcel

    answer = await encode.call("EncodePrompts", encoder_pb2.EncodePromptsRequest(), encoder_pb2.EncodePromptsResponse)
    job = Parcel(generator_pb2.GenerateRequest(), answer)
    job.message.spec.prompt.prompt_embeds.CopyFrom(answer.message.results[0].prompt_embeds)
    async for _ in paint.stream("Generate", job, generator_pb2.GenerateResponse):
        pass


def _tcp(ready: Connection, far: link.RateLimitedLink | None) -> None:
    """Answers 'd' with the bytes and 'u' plus the bytes with 'k'."""
    if far is not None:
        link.enter(far.namespace)
    payload, buffer = bytes(_BYTES), bytearray(_BYTES)
    with socket.create_server((far.host if far else "127.0.0.1", 0)) as server:
        ready.send(server.getsockname()[1])
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while command := connection.recv(1):
                if command == b"d":
                    connection.sendall(payload)
                else:
                    _receive(connection, buffer)
                    connection.sendall(struct.pack("B", 1))


def _receive(connection: socket.socket, buffer: bytearray) -> None:
    view = memoryview(buffer)
    while view:
        view = view[connection.recv_into(view) :]


def measure(rounds: int = 60, far: link.RateLimitedLink | None = None) -> tuple[float, float]:
    """(median seconds of the hand-over, median seconds of raw TCP), in turns; the far ends beyond `far` where given."""
    context = multiprocessing.get_context("spawn")
    processes = []

    def started(target: Callable[..., None], *extra: str) -> Any:
        """Starts a far end, and returns its endpoint or port."""
        here, there = context.Pipe()
        process = context.Process(target=target, args=(*extra, there, far), daemon=True)
        process.start()
        processes.append(process)
        return here.recv()

    try:
        encoder, generator, port = started(_serve, "encoder"), started(_serve, "generator"), started(_tcp)
        return asyncio.run(_compare(encoder, generator, port, far.host if far else "127.0.0.1", rounds))
    finally:
        for process in processes:
            process.terminate()
            process.join()


async def _compare(encoder: str, generator: str, tcp_port: int, host: str, rounds: int) -> tuple[float, float]:
    import statistics

    from zrelay.v1 import encoder_pb2, generator_pb2
    from zrelay_shared.channels import dial
    from zrelay_shared.rpc import Stub
    from zrelay_shared.service import process

    process.keep_large_buffers()
    relay_s, tcp_s = [], []
    buffer = bytearray(_BYTES)
    async with dial(encoder) as down, dial(generator) as up:
        encode = Stub(down, encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"])
        paint = Stub(up, generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"])
        connection = socket.create_connection((host, tcp_port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for turn in range(rounds + 5):
            started = time.perf_counter()
            await hand_over(encode, paint)
            handed = time.perf_counter()
            connection.sendall(b"d")
            _receive(connection, buffer)
            connection.sendall(b"u")
            connection.sendall(buffer)
            connection.recv(1)
            moved = time.perf_counter()
            if turn >= 5:
                relay_s.append(handed - started)
                tcp_s.append(moved - handed)
        connection.close()
    return statistics.median(relay_s), statistics.median(tcp_s)


def on_link(mbit: int = 1000, rounds: int = 12) -> tuple[float, float]:
    """(median seconds of the hand-over, of raw TCP) over a link of that rate.

    Raw TCP is the link's limit: it pays the headers of 1,500-byte frames (4.5 %) that the nominal rate leaves out.
    """
    with link.limited(mbit) as far:
        return measure(rounds, far)


if __name__ == "__main__":
    relay, tcp = measure()
    print(f"hand-over {relay * 1e3:.2f} ms, raw TCP {tcp * 1e3:.2f} ms, ratio {relay / tcp:.2f}")
    if why := link.possible():
        print(f"no rate-limited link: {why}")
    else:
        relay, tcp = on_link()
        print(f"1 Gbit link: hand-over {relay * 1e3:.1f} ms, raw TCP {tcp * 1e3:.1f} ms, {relay / tcp:.3f}")
