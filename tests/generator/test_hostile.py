"""Anything in a GenerateRequest gets a proper status from a real process, which lives on and takes no more memory."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
FLAGS = ("--max-side", "128", "--max-steps", "8", "--max-images", "2", "--threads", "1", "--state", "none")
FLAGS += ("--keep-results-mib", "16", "--keep-contents-mib", "16")
"""So that whatever is accepted is soon done."""


class Victim:
    """A generator process and a plain protobuf client of it."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.process = process
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)])
        self.stub = rpc.GeneratorServiceStub(self.channel)
        self.raw = self.channel.unary_stream("/zrelay.v1.GeneratorService/Generate")
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def status(self, raw: bytes) -> tuple[grpc.StatusCode, str]:
        """How a request of these bytes ends."""
        call = self.raw(raw, timeout=120)
        try:
            for _ in call:
                pass
        except grpc.RpcError:
            pass
        return call.code(), call.details()

    def resident_mib(self) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024


@pytest.fixture(scope="module")
def victim(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    if not Path("/proc/self/status").exists():
        pytest.skip("reads memory from /proc")
    folder = tmp_path_factory.mktemp("victim")
    file, said = folder / "address", folder / "log"
    command = [sys.executable, "-m", "zrelay_generator", "--model", str(demo), "--listen", "127.0.0.1:0"]
    with said.open("wb") as log:
        process = subprocess.Popen([*command, *FLAGS, "--address-file", str(file)], stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not file.exists():
            assert process.poll() is None and time.monotonic() < deadline, said.read_text()
            time.sleep(0.05)
        found = Victim(process, file.read_text())
        while not found.stub.GetInfo(pb.GeneratorServiceGetInfoRequest(), wait_for_ready=True, timeout=60).ready:
            time.sleep(0.05)
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


PATHS = sorted(paths(pb.GenerateRequest.DESCRIPTOR), key=lambda path: [field.number for field in path])
NUMBERS = {
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
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED)


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


def check(victim: Victim, raw: bytes) -> None:
    code, details = victim.status(raw)
    assert code in PROPER, f"{code}: {details}"
    assert "Traceback" not in details and "/zrelay_" not in details and str(Path.home()) not in details
    assert victim.process.poll() is None


@pytest.fixture(scope="module")
def good(request_of, embeds) -> bytes:
    """A request that paints."""
    asked = {"num_inference_steps": 2, "width": 64, "height": 64, "guidance_scale": 1.0, "seed": 3}
    return request_of(negative=embeds(3, 128), **asked).to_bytes()


CHANGES = st.tuples(st.sampled_from(PATHS), st.integers(0, 50), st.sampled_from([1, 2, 40, 400]))
QUIET = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def test_any_request(victim, good):
    for _ in range(3):
        assert victim.status(good)[0] is grpc.StatusCode.OK
    before = victim.resident_mib()

    @QUIET
    @given(st.lists(CHANGES, min_size=1, max_size=4))
    def fields(changes):
        message = pb.GenerateRequest.FromString(good)
        for path, pick, times in changes:
            changed(message, path, pick, times)
        check(victim, message.SerializeToString())

    @QUIET
    @given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6), st.integers(0, 1 << 20))
    def bits(flips, cut):
        raw = bytearray(good)
        for place, value in flips:
            raw[place % len(raw)] = value
        check(victim, bytes(raw[: cut % (2 * len(raw))]))

    @QUIET
    @given(st.binary(max_size=200))
    def noise(raw):
        check(victim, raw)

    fields()
    bits()
    noise()
    assert victim.health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    assert victim.status(good)[0] is grpc.StatusCode.OK
    grown = victim.resident_mib() - before
    print(f"\nthe process took {grown:.0f} MiB more")
    assert grown < MOST_MORE_MIB


def test_requests_that_are_given_up(victim, good):
    """Callers that come and go at once leave nothing behind."""
    for number in range(60):
        call = victim.raw(good, timeout=60)
        if number % 2:
            next(call)
        call.cancel()
    deadline = time.monotonic() + 60
    while (queue := victim.stub.GetInfo(pb.GeneratorServiceGetInfoRequest()).queue).waiting + queue.running:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert victim.status(good)[0] is grpc.StatusCode.OK
