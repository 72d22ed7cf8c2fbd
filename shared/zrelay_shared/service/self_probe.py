"""Detects that a service no longer accepts connections, with calls over real connections to its own port.

The process, its event loop and systemd's heartbeat can be alive while no caller gets through. Only a supervisor that
restarts the process helps then, so a false alarm is expensive: a service that is merely busy must not end itself.
"""

import asyncio
import enum
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from zrelay_shared import descriptors
from zrelay_shared.service.listening import ListenAddress

log = logging.getLogger(__name__)
_TICK_S = 0.1
_DATA, _HEADERS, _RST_STREAM, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _END_HEADERS = 1, 4
Tls: TypeAlias = Callable[[], ssl.SSLContext]
"""Makes the settings with which a probe connects to a port that has TLS."""


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """When a service probes itself.

    Attributes:
        interval_s: Seconds between two probes.
        deadline_s: Seconds that an answer may take.
        retry_s: Seconds until the next probe after one without an answer.
        failures: Failed probes, without an answered one between them, that prove that the service hears nobody.
        max_lag_s: Delay of the event loop beyond which a probe proves nothing: the loop has to send the answer.
    """

    interval_s: float = 10.0
    deadline_s: float = 5.0
    retry_s: float = 1.0
    failures: int = 5
    max_lag_s: float = 1.0


class ProbeResult(enum.Enum):
    """What a probe shows."""

    ANSWERED = "the server answers"
    REFUSED = "connections are refused"
    SILENT = "the server does not answer"
    UNKNOWN = "the probe proves nothing"
    """The event loop was busy, no descriptor was free, or the server ended the connection, as it does beyond its most
    connections."""


async def until_deaf(address: ListenAddress, options: ProbeOptions, tls: Tls | None = None) -> str:
    """Probes the server at `address` until it hears nobody, and returns why.

    A server that never answered is not judged: the machine does not permit the connection, for example by a firewall.
    """
    failures, answered = 0, False
    while True:
        outcome = await probe(address, options, tls)
        if outcome is ProbeResult.ANSWERED:
            failures, answered = 0, True
        elif outcome is not ProbeResult.UNKNOWN:
            failures += 1
            if failures == options.failures:
                why = f"{failures} probes of {address} failed: {outcome.value}"
                if answered:
                    return why
                log.warning("%s; the service cannot supervise itself", why)
        await asyncio.sleep(options.interval_s if outcome is ProbeResult.ANSWERED else options.retry_s)


async def probe(address: ListenAddress, options: ProbeOptions, tls: Tls | None = None) -> ProbeResult:
    """Calls the health service of the server at `address` over a new connection.

    A server that refuses the certificate of the probe has answered: it may admit clients of another authority.
    """
    clock = asyncio.get_running_loop().time
    call = asyncio.create_task(_call(address, tls))
    ends, lag = clock() + options.deadline_s, 0.0
    try:
        while not call.done() and (before := clock()) < ends:
            await asyncio.wait({call}, timeout=_TICK_S)
            lag = max(lag, clock() - before - _TICK_S)
        if not call.done():
            return ProbeResult.SILENT if lag <= options.max_lag_s and descriptors.any_free() else ProbeResult.UNKNOWN
        try:
            return ProbeResult.ANSWERED if call.result() else ProbeResult.UNKNOWN
        except ConnectionRefusedError:
            return ProbeResult.REFUSED
        except ssl.SSLEOFError:
            return ProbeResult.UNKNOWN
        except ssl.SSLError as error:  # an alert
            log.debug("the service refuses its own probe: %s", error)
            return ProbeResult.ANSWERED
        except OSError as error:  # no descriptor, no port, no route
            log.debug("the service cannot connect to itself: %s", error)
            return ProbeResult.UNKNOWN
    finally:
        call.cancel()
        await asyncio.wait({call})


async def _call(address: ListenAddress, tls: Tls | None) -> bool:
    """Sends a call and waits for the first frame of the answer. Returns whether the server has answered.

    A channel of gRPC would do the same, but it does not report why it cannot connect.
    """
    context = None if tls is None else tls()
    reader, writer = await asyncio.open_connection(address.local_host, address.port, ssl=context)
    try:
        writer.write(_REQUEST)
        while True:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] in (_HEADERS, _RST_STREAM):
                return True
    except (asyncio.IncompleteReadError, ConnectionError):
        return context is not None  # after the handshake the server ends a connection that has no certificate
    finally:
        writer.transport.abort()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _literal(name: str, value: str) -> bytes:
    """Encodes a header field as HPACK does without an index and without Huffman codes (RFC 7541, section 6.2.2)."""
    return b"\0" + b"".join(len(text).to_bytes(1, "big") + text.encode() for text in (name, value))


def _request() -> bytes:
    """Returns what a client sends that calls Check for the whole server: HTTP/2's preface and three frames."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Check",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            _frame(_SETTINGS, 0, 0, b""),
            _frame(_HEADERS, _END_HEADERS, 1, b"".join(_literal(*field) for field in fields.items())),
            # A message without a byte: a HealthCheckRequest that names no service.
            _frame(_DATA, _END_STREAM, 1, bytes(5)),
        )
    )


_REQUEST = _request()
