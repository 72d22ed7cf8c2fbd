"""A generator process, and messages in which any field has any value."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2_grpc
from servers import ServiceProcess, started

from tests.helpers.polling import until
from tests.helpers.processes import gone
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
    """A plain protobuf client of a generator process."""

    def __init__(self, process: ServiceProcess) -> None:
        self.process = process
        self.channel = grpc.insecure_channel(
            process.endpoint, options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
        )
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
        """Returns the resident memory of the process."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20


@contextmanager
def fuzzed_generator(model: Path, *flags: str) -> Iterator[FuzzedGenerator]:
    """A generator process that serves, ended with the block."""
    with started("generator", model, *FLAGS, *flags) as process:
        fuzzed = FuzzedGenerator(process)
        yield fuzzed
        fuzzed.channel.close()


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
    """Returns the values to try in a field that is not a message."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return BYTES if field.type == FieldDescriptor.TYPE_BYTES else TEXTS
    return NUMBERS[field.cpp_type]


def repeated(field: FieldDescriptor) -> bool:
    """Whether a field is repeated, in every version of protobuf."""
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
    """Calls a method, which must answer or refuse properly, without a traceback or a path, and live on."""
    code, details = fuzzed.status(method, *raws)
    assert code in PROPER, f"{method}: {code}: {details}"
    assert "Traceback" not in details and "/zrelay_" not in details and str(Path.home()) not in details
    assert not gone([fuzzed.process.pid])
