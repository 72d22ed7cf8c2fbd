"""The open calls of a server: how many there may be, and how long their callers may take to send and to read.

A caller is a network address. A call is open from its first header until its answer has left. Each of these is bounded,
in total and for one caller:

- open calls,
- requests that arrive slowly, each of which holds up to one message in memory,
- bytes of answers that are read slowly.

Nothing here waits for a caller, so that one caller's calls never hold up another's.
"""

import asyncio
import gc
import ipaddress
import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote
from weakref import WeakKeyDictionary, ref

import grpc
import grpc.aio

from zrelay_shared.errors import DeadlineExceeded, InvalidArgument, QuotaExceeded, invalid
from zrelay_shared.limits import MAX_OPEN_CALLS, MIB

log = logging.getLogger(__name__)
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Limits of the open calls of a server.

    Attributes:
        calls: Open calls. One caller may have three quarters of them.
        receive_s: Seconds within which the request must arrive once the call is open.
        prompt_receive_s: A request that takes longer counts as slow.
        slow_requests: Slow requests at once. One caller may have a quarter of them.
        send_s: Seconds within which a message must be read, besides the time for its size.
        send_rate: Bytes per second at which a caller must read; a large image passes over a link of half a megabit.
        prompt_send_s: A message that takes longer counts as read slowly.
        slow_bytes: Bytes of messages that are read slowly. One caller may have a quarter of them.
    """

    calls: int = MAX_OPEN_CALLS
    receive_s: float = 120.0
    prompt_receive_s: float = 5.0
    slow_requests: int = 128
    send_s: float = 30.0
    send_rate: float = 64 * 1024
    prompt_send_s: float = 10.0
    slow_bytes: int = 512 * MIB


DEFAULT_CALL_LIMITS = CallLimits()


class Shares:
    """Amounts that callers use of something limited."""

    def __init__(self, total: int, one_caller: int) -> None:
        """Starts with nothing in use.

        Args:
            total: Limit of what all callers use.
            one_caller: Limit of what one of them uses.
        """
        self.total, self.one_caller = total, max(1, one_caller)
        self._used = 0
        self._by_caller: Counter[str] = Counter()

    def take(self, caller: str, amount: int = 1) -> bool:
        """Takes an amount. Returns False, and takes nothing, if a limit would be exceeded."""
        if self._used + amount > self.total or self._by_caller[caller] + amount > self.one_caller:
            if not self._by_caller[caller]:
                del self._by_caller[caller]
            return False
        self._used += amount
        self._by_caller[caller] += amount
        return True

    def give(self, caller: str, amount: int = 1) -> None:
        """Returns an amount."""
        self._used -= amount
        self._by_caller[caller] -= amount
        if not self._by_caller[caller]:
            del self._by_caller[caller]

    def used_by(self, caller: str) -> int:
        """Returns what a caller uses."""
        return self._by_caller.get(caller, 0)


def caller_of(context: _Context) -> str:
    """Returns the caller of a call: its address without the port.

    A host usually has 2^64 IPv6 addresses of one network, which count as one caller.
    """
    peer = str(context.peer())
    if not peer.startswith(("ipv4:", "ipv6:")):
        return peer
    place = peer.rpartition(":")[0]
    try:
        address = ipaddress.IPv6Address(unquote(place.removeprefix("ipv6:")).strip("[]").partition("%")[0])
    except ValueError:
        return place
    if address.ipv4_mapped is not None:
        return f"ipv4:{address.ipv4_mapped}"
    if address.is_loopback or address.is_link_local:
        return f"ipv6:{address}"
    return f"ipv6:{ipaddress.ip_network((int(address) >> 64 << 64, 64))}"


class OpenCalls:
    """The open calls of one or more services.

    Attributes:
        limits: Their limits.
    """

    def __init__(self, limits: CallLimits = DEFAULT_CALL_LIMITS) -> None:
        self.limits = limits
        self.count = Shares(limits.calls, limits.calls - limits.calls // 4)
        self.slow_requests = Shares(limits.slow_requests, limits.slow_requests // 4)
        self.slow_bytes = Shares(limits.slow_bytes, limits.slow_bytes // 4)
        self._all: dict[OpenCall, None] = {}
        self.incomplete: dict[OpenCall, None] = {}
        """Calls whose request has not arrived, oldest first."""

    def __len__(self) -> int:
        return len(self._all)

    def open(self, context: _Context) -> "OpenCall":
        """Adds the call of the current task, until the task ends.

        If the limit is reached, the oldest call whose request has not arrived makes room: an honest request arrives at
        once, so that calls that send nothing do not keep it out.

        Raises:
            QuotaExceeded: Too many calls are open.
        """
        call = OpenCall(self, context)
        if not self.count.take(call.caller):
            self._drop_incomplete(call.caller)
            if not self.count.take(call.caller):
                raise self._refusal(call.caller)
        self._all[call] = None
        call.task.add_done_callback(call.close)  # a callback of the context would keep the call in a reference cycle
        return call

    def end_all(self) -> None:
        """Ends every open call."""
        for call in list(self._all):
            call.end()

    def remove(self, call: "OpenCall") -> None:
        """Stops counting a call."""
        if call in self._all:
            del self._all[call]
            self.count.give(call.caller)

    def _drop_incomplete(self, caller: str) -> None:
        mine_only = self.count.used_by(caller) >= self.count.one_caller
        for call in self.incomplete:
            if not mine_only or call.caller == caller:
                call.drop_request()
                self.remove(call)
                return

    def _refusal(self, caller: str) -> QuotaExceeded:
        shares, used = self.count, self.count.used_by(caller)
        whose, limit = ("of one caller", shares.one_caller) if used >= shares.one_caller else ("", shares.total)
        return QuotaExceeded(
            f"{limit} calls {whose + ' ' if whose else ''}are open, and no more may be: end some of them, or try again "
            "later; the server's --max-calls raises the limit",
            reason="CALLS_EXCEEDED",
            metadata={"open_calls": used, "limit": limit},
        )


class OpenCall:
    """One open call. Used by the task that serves it."""

    __slots__ = (
        "_calls",
        "_context",
        "_deadline",
        "_dropped",
        "_slow_bytes",
        "_slow_request",
        "_timer",
        "caller",
        "task",
    )

    def __init__(self, calls: OpenCalls, context: _Context) -> None:
        self._calls, self._context = calls, context
        self.caller = caller_of(context)
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("open call: expected a task, got none")
        self.task = task
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: asyncio.Timeout | None = None
        self._dropped = self._slow_request = False
        self._slow_bytes = 0

    async def request(self) -> bytes:
        """Receives the only message of the caller.

        Raises:
            DeadlineExceeded: It does not arrive in time.
            InvalidArgument: The caller sends no message.
            QuotaExceeded: It arrives slowly, and too many requests do.
        """
        limits, loop = self._calls.limits, asyncio.get_running_loop()
        self._calls.incomplete[self] = None
        slow = loop.call_later(limits.prompt_receive_s, self._request_is_slow)
        try:
            async with asyncio.timeout(limits.receive_s) as self._deadline:
                raw = await self._context.read()
        except TimeoutError as error:
            raise self._request_refusal() from error
        finally:
            slow.cancel()
            self._calls.incomplete.pop(self, None)
            if self._slow_request:
                self._slow_request = False
                self._calls.slow_requests.give(self.caller)
        if self._dropped:  # its place was given away while the request arrived
            raise self._request_refusal()
        if not isinstance(raw, bytes):
            raise invalid("request", "one message", "none", reason=InvalidArgument.default_reason)
        return raw

    def drop_request(self) -> None:
        """Refuses the request, which has not arrived."""
        self._calls.incomplete.pop(self, None)
        if self._deadline is not None:
            self._dropped = True
            self._deadline.reschedule(asyncio.get_running_loop().time())

    def sending(self, size: int) -> None:
        """Begins to watch the time that the caller takes to read a message of `size` bytes."""
        wait_s = self._calls.limits.prompt_send_s
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._message_is_slow, size)

    def sent(self) -> None:
        """Records that the message was sent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._slow_bytes:
            self._calls.slow_bytes.give(self.caller, self._slow_bytes)
            self._slow_bytes = 0

    def close(self, task: object = None) -> None:
        """The call is over."""
        self.sent()
        self._calls.remove(self)

    def end(self) -> None:
        """Ends the call at once, whatever its caller does. The caller receives CANCELLED."""
        _cancel(self.task)

    def _request_is_slow(self) -> None:
        self._slow_request = self._calls.slow_requests.take(self.caller)
        if not self._slow_request:
            self.drop_request()

    def _request_refusal(self) -> DeadlineExceeded | QuotaExceeded:
        limits = self._calls.limits
        if self._dropped:
            return QuotaExceeded(
                "the request did not arrive at once, and too many requests of slow callers are being received: send it "
                "again, and fewer at once",
                reason="CALLS_EXCEEDED",
                metadata={"slow_requests": self._calls.slow_requests.one_caller},
            )
        return DeadlineExceeded(
            f"the request did not arrive within {limits.receive_s:g} s: send it again, over a faster connection",
            metadata={"stage": "receive"},
        )

    def _message_is_slow(self, size: int) -> None:
        limits = self._calls.limits
        if not self._calls.slow_bytes.take(self.caller, size):
            log.info("a call is ended: its caller reads slowly, and too many bytes wait for slow callers")
            self.end()
            return
        self._slow_bytes = size
        rest_s = max(0.0, limits.send_s - limits.prompt_send_s) + size / limits.send_rate
        self._timer = asyncio.get_running_loop().call_later(rest_s, self._message_is_late)

    def _message_is_late(self) -> None:
        log.info("a call is ended: its caller does not read")
        self.end()


_keepers: "WeakKeyDictionary[asyncio.Task[Any], ref[asyncio.Task[Any]]]" = WeakKeyDictionary()
"""Task of a handler -> gRPC's task that keeps the call open until the caller ends it."""


def _cancel(handler: "asyncio.Task[Any]") -> None:
    """Cancels a handler and its call, even if a message still waits for a caller that does not read it.

    grpc.aio has no function for this: a status can only follow the message that waits, and a handler that ends leaves
    the call, with its message, to a task of gRPC that waits for the caller. When that task is cancelled, gRPC releases
    the call, resets the stream and frees the message. (grpcio keeps the first call of a server, and the latest one
    until the next.) The task is found as the one that refers to the handler's.
    """
    if handler not in _keepers:
        for task in asyncio.all_tasks():
            coroutine = task.get_coro()
            if getattr(coroutine, "__name__", "") == "_schedule_rpc_coro":
                for found in gc.get_referents(*gc.get_referents(coroutine)):
                    if isinstance(found, asyncio.Task):
                        _keepers[found] = ref(task)
    handler.cancel()
    if handler in _keepers and (keeper := _keepers[handler]()) is not None:
        keeper.cancel()
    else:
        log.warning("a call of a caller that does not read stays open: this version of grpcio hides it")
