"""Messages that cost a server far more than a caller, and a process that sends them to a service.

The process is another one, so that the work of sending does not count as the server's.
"""

import contextlib
import sys
from collections.abc import Callable

import grpc

MIB = 1 << 20


def varint(value: int) -> bytes:
    """Returns a number as protobuf writes it."""
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(payload: bytes, *numbers: int) -> bytes:
    """Returns a message whose length-delimited field with this path of numbers holds `payload`."""
    for number in reversed(numbers):
        payload = varint(number << 3 | 2) + varint(len(payload)) + payload
    return payload


def hostile(size: int) -> dict[str, tuple[str, Callable[[], bytes]]]:
    """Returns the method and the builder of each message, by what it holds. `size` is that of the largest."""
    encoder, vision, generator = "EncoderService", "VisionService", "GeneratorService"
    return {
        "empty prompts": (f"{encoder}/EncodePrompts", lambda: b"\x0a\x00" * (size // 2)),
        "empty prompts below the limit of the size": (f"{encoder}/EncodePrompts", lambda: b"\x0a\x00" * (size // 8)),
        "unknown fields": (f"{encoder}/FormatPrompt", lambda: b"\x78\x01" * (size // 8)),
        "one prompt": (f"{encoder}/EncodePrompts", lambda: field(b"a" * (size // 4), 1, 1)),
        "conversations": (f"{encoder}/FormatPrompt", lambda: field(field(b"\x0a\x00" * 200, 2), 1) * 60),
        "the longest prompts": (f"{encoder}/FormatPrompt", lambda: field(b"a " * (size // 2048), 1, 1) * 64),
        "the longest prompts, encoded": (f"{encoder}/EncodePrompts", lambda: field(b"a " * (size // 2048), 1, 1) * 64),
        "packed weights": (f"{vision}/ConditionPrompt", lambda: field(bytes(size), 5, 7)),
        "texts": (f"{vision}/ScoreImages", lambda: field(b"a", 2) * 16_000),
        "a large image": (f"{vision}/EncodeImages", lambda: field(b"\xff" * (size // 4 * 3), 1, 1) + b"\x10\x02"),
        "packed states": (f"{generator}/ListJobs", lambda: field(b"\x01" * size, 3)),
        "packed states, small": (f"{generator}/ListJobs", lambda: field(b"\x01" * 60_000, 3)),
        "a long id": (f"{generator}/Generate", lambda: field(b"a" * size, 1)),
        "a long job id": (f"{generator}/GetJob", lambda: field(b"a" * 60_000, 1)),
        "sigmas": (f"{generator}/Generate", lambda: field(b"\0\0\x80\x3f" * (size // 4), 2, 3, 8)),
        "layers": (f"{generator}/Generate", lambda: field(b"\x01" * size, 2, 8, 2)),
        "labels": (f"{generator}/Generate", lambda: field(field(b"\x0a\x00", 3) * 16_000, 2, 15)),
        "a long text": (f"{generator}/Generate", lambda: field(b"\0" * size, 2, 15, 1)),
        "a large picture": (f"{generator}/Generate", lambda: field(b"\xff" * (size // 2), 2, 4, 1, 1)),
    }


def main(endpoint: str, service: str, size: str) -> None:
    """Sends every message for a service and prints how each call ends."""
    metadata: tuple[tuple[str, str | bytes], ...] = tuple((f"key-{number}", "v" * 200) for number in range(30))
    with grpc.insecure_channel(endpoint, options=[("grpc.max_receive_message_length", -1)]) as channel:
        for name, (method, build) in hostile(int(size)).items():
            if method.startswith(service):
                opened: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/zrelay.v1.{method}")
                call = opened(build(), metadata=metadata, timeout=60)
                with contextlib.suppress(grpc.RpcError):
                    list(call)
                print(f"{name}|{call.code().name}|{call.details()}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
