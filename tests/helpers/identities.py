"""Callers with identities, as a service with TLS knows them: here a channel states its caller in its user agent."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from zrelay_shared import rpc
from zrelay_shared.callers import Caller
from zrelay_shared.channels import CLIENT_OPTIONS, server_options
from zrelay_shared.security.permissions import ALL, CALLER
from zrelay_shared.service.lifecycle import Service

ADMINISTRATOR = "boss"
"""The caller that administers; every other name is a member without that permission."""


def by_agent(method: str, context: "grpc.aio.ServicerContext[Any, Any]") -> Caller:
    """Identifies a caller by the first word of its user agent. Implements `zrelay_shared.callers.Identify`."""
    metadata = dict(context.invocation_metadata() or ())
    name = str(metadata["user-agent"]).split()[0]
    return Caller(f"member {name}", ALL if name == ADMINISTRATOR else CALLER)


def dial_as(name: str, endpoint: str) -> grpc.aio.Channel:
    """Returns a channel whose calls are those of a caller."""
    return grpc.aio.insecure_channel(endpoint, options=[*CLIENT_OPTIONS, ("grpc.primary_user_agent", name)])


@asynccontextmanager
async def serving_identities(service: Service) -> AsyncIterator[str]:
    """Serves a service whose callers have identities until the block ends. Yields its endpoint once it is loaded."""
    server = grpc.aio.server(options=server_options())
    rpc.add_service(server, service.descriptor, service, identify=by_agent)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        await service.load()
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
        await service.close()
