"""gRPC channel options of clients and servers, each with its reason."""

import json
from collections.abc import Callable

import grpc
import grpc.aio

from zrelay_shared.limits import (
    KEEPALIVE_S,
    KEEPALIVE_TIMEOUT_S,
    MAX_MESSAGE_BYTES,
    MAX_PENDING_CALLS,
)

_RETRIES = {
    # For failed connections and servers that load or drain. gRPC never retries after the first message of an answer,
    # but after a lost connection a handler may see a call twice; jobs have a request_id for that.
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

# A compressed message of kilobytes can become one of many megabytes, and older versions of gRPC expand it before they
# look at its size. Tensors and images hardly shrink. Bit 0 is "identity".
_NO_COMPRESSION = [("grpc.compression_enabled_algorithms_bitset", 1)]

CLIENT_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    *_NO_COMPRESSION,
    ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),  # detects a sleeping Mac within 40 s
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),  # reconnects to a restarted server within seconds;
    ("grpc.max_reconnect_backoff_ms", 3000),  # gRPC's default is up to two minutes
    ("grpc.enable_http_proxy", 0),  # http_proxy is meant for the web, not for hosts on the LAN
    ("grpc.service_config", json.dumps(_RETRIES)),
]


def server_options(max_request_bytes: int = MAX_MESSAGE_BYTES) -> list[tuple[str, int]]:
    """Returns the options of a server that receives messages of at most `max_request_bytes`."""
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", max_request_bytes),
        *_NO_COMPRESSION,
        ("grpc.so_reuseport", 0),  # binding a port that is in use must fail
        # Pings are answered however many arrive: an answer takes 0.3 µs, and no more are read while 10,000 wait. The
        # other values make gRPC end such a connection, but only after it has recorded an error for each ping that was
        # read with the third one, in quadratic time: a flood of pings over new connections then stops all callers.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
        # Calls that wait for the event loop. Beyond gRPC's default of 1,000 it ends calls of all callers at random with
        # CANCELLED, which one caller can cause by calls that it resets at once.
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_PENDING_CALLS),
    ]


def dial(
    endpoint: str,
    *,
    tls: tuple[bytes | None, bytes | None, bytes | None] | None = None,
    token: Callable[[], str] | None = None,
) -> grpc.aio.Channel:
    """Returns a channel to `host:port`. It connects with the first call; close it when done.

    Args:
        endpoint: The target.
        tls: Certificate of the authority, the client's key and its certificate, as PEM; None for those that are not
            used. Without a tuple the connection has no TLS.
        token: Returns the bearer token of a call. It is sent over TLS alone.
    """
    if tls is None:
        return grpc.aio.insecure_channel(endpoint, options=CLIENT_OPTIONS)
    credentials = grpc.ssl_channel_credentials(*tls)
    if token is not None:
        credentials = grpc.composite_channel_credentials(credentials, grpc.metadata_call_credentials(_Bearer(token)))
    return grpc.aio.secure_channel(endpoint, credentials, options=CLIENT_OPTIONS)


class _Bearer(grpc.AuthMetadataPlugin):
    """Adds the bearer token to every call. gRPC calls it in a thread of its own, and never without TLS."""

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        try:
            callback((("authorization", f"Bearer {self._token()}"),), None)
        except Exception as error:  # the file was removed: the call fails with this text
            callback((), error)
