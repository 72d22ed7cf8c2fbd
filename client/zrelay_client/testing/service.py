"""What the fake services share: recorded calls, failures on request, deterministic tensors, and the server."""

import asyncio
import hashlib
import struct
import threading
from array import array
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from zrelay.v1.info_pb2 import DeviceInfo, Feature
from zrelay.v1.tensor_pb2 import Tensor
from zrelay_shared import rpc, tensors
from zrelay_shared.channels import server_options
from zrelay_shared.errors import ZrelayError
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.wire import Parcel

T = TypeVar("T")

DTYPE = "bfloat16"
BACKEND = "fake"
FAMILY = "fake"
DEVICE = DeviceInfo(kind="cpu", name="fake", compute_dtype=DTYPE)


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A call that a fake service received.

    Attributes:
        method: Name of the method in the contract, for example "EncodePrompts".
        request: The message, without the bytes of its tensors.
    """

    method: str
    request: Message


@dataclass(slots=True)
class _Failure:
    error: ZrelayError
    method: str | None
    left: int


@dataclass(eq=False)
class FakeService:
    """One fake service. Handlers run on the event loop of the server; `fail_next` may be called from any thread.

    Attributes:
        calls: The calls so far, oldest first, without those of GetInfo.
        endpoint: Where it listens, "" before it is served.
    """

    calls: list[RecordedCall] = field(default_factory=list, init=False)
    endpoint: str = field(default="", init=False)
    _failures: list[_Failure] = field(default_factory=list, init=False, repr=False)

    @property
    def descriptor(self) -> ServiceDescriptor:
        """The service of the contract."""
        raise NotImplementedError

    def fail_next(self, error: ZrelayError, *, method: str | None = None, count: int = 1) -> None:
        """Makes the next calls fail.

        Args:
            error: What the client raises. Its retry hint decides whether the client tries again.
            method: Only calls of this method fail, for example "SubmitJob". None: all but GetInfo.
            count: Number of calls that fail.
        """
        self._failures.append(_Failure(error, method, count))

    def _receive(self, method: str, request: Message) -> None:
        """Records a call, and raises the next injected error that applies."""
        kept = type(request)()
        kept.CopyFrom(request)
        _without_tensor_bytes(kept)
        self.calls.append(RecordedCall(method, kept))
        for failure in self._failures:
            if failure.method in (None, method):
                failure.left -= 1
                if not failure.left:
                    self._failures.remove(failure)
                raise failure.error


class ServerThread:
    """A thread whose event loop serves fake services on free loopback ports."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers: list[grpc.aio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="zrelay-fake", daemon=True)

    def start(self, services: Sequence[FakeService]) -> None:
        """Serves the services, and sets their endpoints."""
        self._thread.start()
        for service in services:
            self.run(self._serve(service))

    def stop(self) -> None:
        """Ends all calls, the servers and the thread."""
        self.run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the event loop, and returns its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _serve(self, service: FakeService) -> None:
        server = grpc.aio.server(options=server_options())
        rpc.add_service(server, service.descriptor, service)
        checks = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        for name in ("", service.descriptor.full_name):
            await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._servers.append(server)
        service.endpoint = f"127.0.0.1:{port}"

    async def _close(self) -> None:
        for server in self._servers:
            await server.stop(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def fake_fingerprint(width: int) -> EncoderFingerprint:
    """Returns the fingerprint that the fake encoder writes and the fake generator expects."""
    return EncoderFingerprint(
        family=FAMILY,
        width=width,
        model_id="fake",
        weights_digest=sha256_hex(b"weights"),
        configuration_digest=sha256_hex(b"configuration"),
        tokenizer_digest=sha256_hex(b"tokenizer"),
        chat_template_digest=sha256_hex(b"template"),
        compute_dtype=DTYPE,
        backend=BACKEND,
    )


def sha256_hex(data: bytes | bytearray) -> str:
    """Returns a SHA-256 digest in hex."""
    return hashlib.sha256(data).hexdigest()


def features(available: Sequence[str], unavailable: Sequence[str]) -> list[Feature]:
    """Returns the capabilities for GetInfo."""
    rows = [(name, True) for name in available] + [(name, False) for name in unavailable]
    return [Feature(name=name, available=is_available) for name, is_available in rows]


def values_of(text: str, count: int) -> "array[float]":
    """Returns `count` values of magnitude 0.5 to 2, exact in every float dtype, which depend on the text alone."""
    raw = hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(2 * count)
    out = array("f")
    for low, sign in zip(raw[::2], raw[1::2], strict=True):
        # 0x3f00 to 0x3fff are the bf16 values from 0.5 up to 2: 7 bits of mantissa, which f16 has too.
        out.extend(struct.unpack("<f", bytes((0, 0, low, 0x3F if sign & 1 else 0xBF))))
    return out


def attach(parcel: Parcel[Any], into: Tensor, values: Sequence[float], shape: Sequence[int], dtype: str) -> None:
    """Writes a tensor into a message.

    Args:
        parcel: The parcel whose message contains `into`.
        into: The message to fill.
        values: The elements. For BF16 they are truncated to 8 bits of precision.
        shape: The dimensions.
        dtype: BF16, F16 or F32.
    """
    if dtype == "F16":
        data = struct.pack(f"<{len(values)}e", *values)
    else:
        wide = struct.pack(f"<{len(values)}f", *values)
        data = wide if dtype == "F32" else _upper_halves(wide)
    into.CopyFrom(tensors.header(dtype, shape, data))
    parcel.attach(into, data)


def read_values(parcel: Parcel[Any], tensor: Tensor, path: str, *, rank: int) -> tuple["array[float]", tuple[int, ...]]:
    """Checks a received tensor, and returns its values and shape. Raises as `tensors.check`."""
    view = tensors.check(tensor, parcel.bytes_of(tensor), field=path, rank=rank)
    if view.dtype == "F16":
        return array("f", struct.unpack(f"<{view.data.nbytes // 2}e", view.data)), view.shape
    raw = view.data.tobytes()
    if view.dtype == "BF16":
        wide = bytearray(2 * len(raw))
        wide[2::4], wide[3::4] = raw[0::2], raw[1::2]
        raw = bytes(wide)
    return array("f", struct.unpack(f"<{len(raw) // 4}f", raw)), view.shape


def _upper_halves(wide: bytes) -> bytes:
    out = bytearray(len(wide) // 2)
    out[0::2], out[1::2] = wide[2::4], wide[3::4]
    return bytes(out)


def _without_tensor_bytes(message: Message) -> None:
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None or descriptor.message_type.GetOptions().map_entry:
            continue
        for inner in [value] if isinstance(value, Message) else value:
            if isinstance(inner, Tensor):
                inner.ClearField("data")
            else:
                _without_tensor_bytes(inner)
