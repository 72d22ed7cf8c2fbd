"""Servers and stubs made from the contract's descriptors, with Parcels at both ends.

This module parses requests, serialises responses and converts errors to statuses, for every method of every service. A
handler takes a `Parcel` of the request and the call's context, and returns (or yields) a message or a Parcel; it raises
ZrelayError to refuse a call. A Parcel is a message whose tensor bytes are kept apart from it (`wire.py`).
"""

import asyncio
import contextlib
import logging
import secrets
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from zrelay_shared import descriptors, status
from zrelay_shared.callers import Identify, by_address, set_current_caller
from zrelay_shared.calls import OpenCalls
from zrelay_shared.errors import InternalError, InvalidArgument, ZrelayError
from zrelay_shared.receiving import off_loop, received
from zrelay_shared.wire import Parcel

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Response = Message | Parcel[Any] | bytes
"""An answer: a message, a parcel, or the bytes of a message that was serialised off the event loop."""
_MAX_CAUSES = 10
"""Errors in a chain of causes whose frames are cleared."""
_MAX_TIMEOUT_S = 10 * 365 * 86400.0
"""Longest timeout that gRPC gets, about ten years. It adds the timeout to the clock in nanoseconds of 64 bits, so one
of 1e10 s would have passed at once."""


def add_service(
    server: grpc.aio.Server,
    service: ServiceDescriptor,
    servicer: object,
    calls_by_method: Mapping[str, OpenCalls] = MappingProxyType({}),
    calls: OpenCalls | None = None,
    identify: Identify = by_address,
) -> None:
    """Serves every method of `service` with the servicer's method of the same name.

    Args:
        server: The server, not yet started.
        service: The service of the contract.
        servicer: An object with a handler for each method.
        calls_by_method: Open calls of methods that have limits of their own.
        calls: Open calls of the other methods; by default with the default limits.
        identify: Identifies the caller of a call, and refuses callers that may not make it.

    Raises:
        TypeError: The servicer lacks a method. A method that is not supported must raise FeatureMissing.
    """
    missing = [method.name for method in service.methods if not callable(getattr(servicer, method.name, None))]
    if missing:
        raise TypeError(f"{type(servicer).__name__} lacks {', '.join(missing)} of {service.full_name}")
    calls = OpenCalls() if calls is None else calls
    handlers = {
        method.name: _handler(method, getattr(servicer, method.name), calls_by_method.get(method.name, calls), identify)
        for method in service.methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    server.add_registered_method_handlers(service.full_name, handlers)  # `service.grpc_server` needs them


def _handler(
    method: MethodDescriptor, serve: Callable[..., Any], calls: OpenCalls, identify: Identify
) -> "grpc.RpcMethodHandler[Any, Any]":
    """Returns the handler of a method.

    To gRPC every method streams its requests: the handler then starts before the request is received, and can refuse
    it, or end the wait for it. On the wire there is no difference.
    """
    request_type = GetMessageClass(method.input_type)
    name = f"{method.containing_service.full_name}/{method.name}"

    async def unary(requests: AsyncIterator[bytes], context: Context) -> bytes:
        async def answer() -> bytes:
            set_current_caller(identify(name, context))
            call = calls.open(context)
            raw = await _serialised(await serve(await received(method, request_type, await call.request()), context))
            call.sending(len(raw))
            return raw

        return await _guarded(answer, method, context)

    async def stream(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        events = None
        try:
            set_current_caller(identify(name, context))
            call = calls.open(context)
            events = serve(await received(method, request_type, await call.request()), context)
            async for event in events:
                raw = await _serialised(event)
                call.sending(len(raw))
                yield raw
                call.sent()
        except Exception as error:
            await _abort(error, method.name, context)
        finally:
            if events is not None:
                await events.aclose()

    async def collect(requests: AsyncIterator[bytes], context: Context) -> bytes:
        async def parsed() -> AsyncIterator[Parcel[Any]]:
            async for raw in requests:
                yield await received(method, request_type, raw)

        async def answer() -> bytes:
            set_current_caller(identify(name, context))
            call = calls.open(context)
            raw = await _serialised(await serve(parsed(), context))
            call.sending(len(raw))
            return raw

        return await _guarded(answer, method, context)

    if method.client_streaming:
        return grpc.stream_unary_rpc_method_handler(collect)
    if method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(stream)
    return grpc.stream_unary_rpc_method_handler(unary)


@contextlib.asynccontextmanager
async def refusing(method: str, context: Context) -> AsyncIterator[None]:
    """Ends the call with the status of an error that the block raises, for handlers that `add_service` does not add.

    Args:
        method: Name for the log.
        context: The call's context.
    """
    try:
        yield
    except Exception as error:
        await _abort(error, method, context)


async def _guarded(answer: Callable[[], Awaitable[bytes]], method: MethodDescriptor, context: Context) -> bytes:
    try:
        return await answer()
    except Exception as error:
        await _abort(error, method.name, context)
        raise  # not reached: abort raises


async def _abort(error: Exception, method: str, context: Context) -> None:
    """Ends the call with the status of an error.

    Any exception other than ZrelayError is a bug, unless no descriptor is free: it is logged with its traceback, and
    the client gets only an incident id.
    """
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, ZrelayError):
        log.info("%s refused: %s %s", method, error.code, error.reason)
        refusal = error
    elif descriptors.exhausted(error):
        log.warning("%s refused: %s", method, error)
        refusal = descriptors.refusal()
    else:
        incident = secrets.token_hex(4)
        log.error("%s failed, incident %s", method, incident, exc_info=error)
        refusal = InternalError(
            f"a bug in the server, incident {incident}: its log has the rest", metadata={"incident": incident}
        )
    _forget_frames(error)
    await context.abort(
        getattr(grpc.StatusCode, refusal.code), status.to_status(refusal).message, status.trailers(refusal)
    )


def _forget_frames(error: BaseException | None) -> None:
    """Clears the variables of the functions that an error has left, which may hold a request of many megabytes.

    gRPC's task, the error and its frames refer to each other, so that they stay until the garbage collector runs.
    """
    for _ in range(_MAX_CAUSES):
        if error is None:
            return
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _raw(response: Response) -> bytes:
    if isinstance(response, bytes):
        return response
    return response.to_bytes() if isinstance(response, Parcel) else response.SerializeToString()


async def _serialised(response: Response) -> bytes:
    """Returns the bytes of an answer. Many bytes of tensors are copied in a thread."""
    size = response.attached_bytes if isinstance(response, Parcel) else 0
    return await off_loop(size, lambda: _raw(response))


def _capped(timeout: float | None) -> float | None:
    return None if timeout is None else min(timeout, _MAX_TIMEOUT_S)


class Stub:
    """Calls the methods of a service over a channel. Failures are raised as ZrelayError.

    Timeouts are in seconds from the start of the call; None waits without limit.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        service: ServiceDescriptor,
        endpoint: str = "",
        explained: Callable[[ZrelayError], Awaitable[ZrelayError]] | None = None,
    ) -> None:
        """Uses a channel.

        Args:
            channel: The channel.
            service: The service of the contract.
            endpoint: Where it is, for messages.
            explained: Returns the error to raise for that of a failed call, perhaps one that says more.
        """
        self._channel = channel
        self._explained = explained
        self._service = service
        self._endpoint = endpoint
        self._name = service.name.removesuffix("Service").lower()

    async def call(
        self, method: str, request: Response, response_type: type[M], *, timeout: float | None = None
    ) -> Parcel[M]:
        """Sends one request and returns the response."""
        callable_: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(self._path(method))
        call = callable_(_raw(request), timeout=_capped(timeout))
        try:
            raw = await call
        except grpc.RpcError as error:
            raise await self._explain(error) from error
        except asyncio.CancelledError:
            call.cancel()
            raise
        return self._parsed(response_type, raw)

    async def stream(
        self, method: str, request: Response, response_type: type[M], *, timeout: float | None = None
    ) -> AsyncGenerator[Parcel[M], None]:
        """Sends one request and yields the responses. Closing the iterator cancels the call."""
        callable_: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(self._path(method))
        call = callable_(_raw(request), timeout=_capped(timeout))
        try:
            async for raw in call:
                yield self._parsed(response_type, raw)
        except grpc.RpcError as error:
            raise await self._explain(error) from error
        finally:
            call.cancel()

    async def send(
        self, method: str, requests: AsyncIterator[Message], response_type: type[M], *, timeout: float | None = None
    ) -> Parcel[M]:
        """Sends many requests and returns the response, which may arrive before all requests are sent."""
        callable_: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = self._channel.stream_unary(self._path(method))

        async def raw_requests() -> AsyncIterator[bytes]:
            async for request in requests:
                yield request.SerializeToString()

        call = callable_(raw_requests(), timeout=_capped(timeout))
        try:
            raw = await call
        except grpc.RpcError as error:
            raise await self._explain(error) from error
        except asyncio.CancelledError:
            call.cancel()
            raise
        return self._parsed(response_type, raw)

    def _path(self, method: str) -> str:
        return f"/{self._service.full_name}/{method}"

    def _parsed(self, response_type: type[M], raw: bytes) -> Parcel[M]:
        try:
            return Parcel.parse(response_type, raw)
        except InvalidArgument as error:  # the server's fault, not the caller's
            where = f"the {self._name} service" + (f" at {self._endpoint}" if self._endpoint else "")
            raise InternalError(
                f"{where} answered with {len(raw)} bytes that are not a {response_type.DESCRIPTOR.full_name}: it is "
                "another service or another version",
                reason=error.reason,
            ) from error

    async def _explain(self, error: grpc.RpcError) -> ZrelayError:
        found = status.from_call(error, service=self._name, endpoint=self._endpoint)
        return found if self._explained is None else await self._explained(found)
