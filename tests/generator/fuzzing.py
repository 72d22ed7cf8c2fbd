"""A generator process to be cruel to, and messages of which any field is anything."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2_grpc

from tests.helpers.polling import until
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import generator_pb2_grpc as rpc
from zrelay_shared.limits import MAX_MESSAGE_BYTES

PROPER = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
MOST_MORE_MIB = 200
"""Memory that the process may take beyond what it had after its first pictures."""
FLAGS = ("--max-side", "128", "--max-steps", "8", "--max-images", "2", "--threads", "1")


class FuzzedGenerator:
    """A generator process and a plain protobuf client of it."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.process = process
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)])
        self.stub: Any = rpc.GeneratorServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)

    def call(self, method: str, *raws: bytes, timeout: float = 120.0) -> "grpc._CallIterator[bytes]":
        """A call of a method with requests of these bytes."""
        described = pb.DESCRIPTOR.services_by_name["GeneratorService"].methods_by_name[method]
        path = f"/zrelay.v1.GeneratorService/{method}"
        if described.client_streaming:
            streamed: grpc.StreamStreamMultiCallable[bytes, bytes] = self.channel.stream_stream(path)
            return streamed(iter(raws), timeout=timeout)
        single: grpc.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(path)
        return single(raws[0], timeout=timeout)

    def status(self, method: str, *raws: bytes) -> tuple[grpc.StatusCode, str]:
        """How a call ends."""
        call = self.call(method, *raws)
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            pass
        return call.code(), call.details()

    def wait_until_idle(self) -> None:
        """Returns once no job waits or runs."""

        def idle() -> bool:
            queue = self.stub.GetInfo(pb.GeneratorServiceGetInfoRequest()).queue
            return not queue.waiting + queue.running

        until(idle, "the generator is idle")

    def resident_mib(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20


@contextmanager
def started(model: Path, folder: Path, *flags: str) -> Iterator[FuzzedGenerator]:
    """A fuzzed that is ready, ended with the block."""
    file, said = folder / "address", folder / "log"
    command = [sys.executable, "-m", "zrelay_generator", "--model", str(model), "--listen", "127.0.0.1:0"]
    with said.open("wb") as log:
        process = subprocess.Popen([*command, *FLAGS, *flags, "--address-file", str(file)], stderr=log)
    try:

        def listens() -> bool:
            assert process.poll() is None, said.read_text()
            return file.exists()

        until(listens, "the generator listens")
        found = FuzzedGenerator(process, file.read_text())
        request = pb.GeneratorServiceGetInfoRequest()
        until(lambda: found.stub.GetInfo(request, wait_for_ready=True, timeout=60).ready, "the model is loaded")
        yield found
        found.channel.close()
    finally:
        process.terminate()
        process.wait(60)


def paths(descriptor: Descriptor, before: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Every field of a message type, with the fields that lead to it."""
    for field in descriptor.fields:
        here = (*before, field)
        yield here
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            yield from paths(field.message_type, here)


def fields_of(message: type[Message]) -> list[tuple[FieldDescriptor, ...]]:
    """Every field of a message type as the way to it, always in the same order."""
    descriptor: Any = message.DESCRIPTOR
    return sorted(paths(descriptor), key=lambda path: [field.number for field in path])


NUMBERS: dict[int, list[Any]] = {
    FieldDescriptor.CPPTYPE_UINT32: [0, 1, 7, 64, 65, 128, (1 << 31) - 1, (1 << 32) - 1],
    FieldDescriptor.CPPTYPE_INT32: [0, -1, 1, -(1 << 31), (1 << 31) - 1],
    FieldDescriptor.CPPTYPE_UINT64: [0, 1, 1 << 40, (1 << 64) - 1],
    FieldDescriptor.CPPTYPE_INT64: [0, -1, 1 << 40, -(1 << 63)],
    FieldDescriptor.CPPTYPE_FLOAT: [0.0, -0.0, 0.5, 1.0, -1.0, 2.5, 1e-45, 3e38, float("inf"), float("nan")],
    FieldDescriptor.CPPTYPE_DOUBLE: [0.0, -1.0, 1e308, float("inf"), float("nan")],
    FieldDescriptor.CPPTYPE_ENUM: [0, 1, 2, 3, 99, -1],
    FieldDescriptor.CPPTYPE_BOOL: [False, True],
}
TEXTS = ["", "a", "a b", "../../etc/passwd", "\0", "\x1b[2J", "狐" * 300, "x" * 70_000, "0" * 64]
BYTES = [b"", b"\0", b"\x89PNG\r\n\x1a\n" + b"\xff" * 40, bytes(5120), b"\xff" * 5120, bytes(1 << 20)]


def values(field: FieldDescriptor) -> list[Any]:
    """What is worth trying in a field that is no message."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return BYTES if field.type == FieldDescriptor.TYPE_BYTES else TEXTS
    return NUMBERS[field.cpp_type]


def repeated(field: FieldDescriptor) -> bool:
    described: Any = field
    return bool(described.is_repeated if hasattr(field, "is_repeated") else described.label == described.LABEL_REPEATED)


def changed(message: Message, path: tuple[FieldDescriptor, ...], pick: int, times: int) -> None:
    """Sets, clears or repeats the field at the end of a path."""
    *way, field = path
    into: Any = message
    for step in way:
        held = getattr(into, step.name)
        into = held if not repeated(step) else held[0] if len(held) else held.add()
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(into, field.name).update({str(i): TEXTS[pick % len(TEXTS)] for i in range(times)})
    elif field.message_type is not None:
        if repeated(field):
            for _ in range(times):
                getattr(into, field.name).add()
        elif pick % 3:
            getattr(into, field.name).SetInParent()
        else:
            into.ClearField(field.name)
    elif repeated(field):
        options = values(field)
        getattr(into, field.name).extend(options[(pick + i) % len(options)] for i in range(times))
    else:
        setattr(into, field.name, values(field)[pick % len(values(field))])


def check(fuzzed: FuzzedGenerator, method: str, *raws: bytes) -> None:
    code, details = fuzzed.status(method, *raws)
    assert code in PROPER, f"{method}: {code}: {details}"
    assert "Traceback" not in details and "/zrelay_" not in details and str(Path.home()) not in details
    assert fuzzed.process.poll() is None
