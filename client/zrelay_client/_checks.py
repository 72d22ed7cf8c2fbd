"""What `zrelay doctor` checks: one hop after the other, each with the fix for what is wrong."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from zrelay_client._async_client import AsyncClient
from zrelay_client._budget import CONNECT_S
from zrelay_client._endpoints import parse_endpoint
from zrelay_client._info import EncoderInfo, GeneratorInfo, ServiceInfo, VisionInfo
from zrelay_shared import __version__, exits, fingerprint
from zrelay_shared.errors import DeadlineExceeded, Unavailable, ZrelayError

OK, WARN, FAIL = "ok", "warn", "fail"
_PROMPT = "a red circle"
_LOW_MEMORY = 0.05
_CALL_S = 60.0


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `state` is "ok", "warn" or "fail"; `fix` says what to do; `exit_code` is a failure's."""

    name: str
    state: str
    message: str
    fix: str = ""
    exit_code: int = exits.OK


async def check_service(role: str, target: str, *, name: str) -> AsyncIterator[Check | ServiceInfo]:
    """Name, port, health and GetInfo of one service, each told under `name`; then what it said, where it answered."""
    try:
        endpoint = parse_endpoint(role, target)
    except ZrelayError as error:
        yield _failed(f"{name} endpoint", error)
        return
    reached = True
    if not endpoint.startswith(("dns:", "ipv4:", "ipv6:", "unix")):
        host, port = endpoint.rpartition(":")[0].strip("[]"), int(endpoint.rpartition(":")[2])
        check = await _reach(role, name, host, port)
        reached = check.state == OK
        yield check
    if not reached:
        return
    async with _client_of(role, endpoint) as client:
        try:
            serving = (await client.serving())[role]
        except ZrelayError as error:
            yield _unhealthy(role, name, error)
            return
        state, message = (OK, "ready") if serving else (WARN, "not ready: it loads or drains")
        yield Check(f"{name} health", state, message, "" if serving else "wait, and look at the service's log")
        try:
            said = await _info_of(client, role)
        except ZrelayError as error:
            yield _failed(f"{name} info", error, fix=f"is that the {role}'s endpoint, not another service's?")
            return
    yield _version(name, said)
    yield check_memory(name, said)
    yield said


async def check_encode(encoder: EncoderInfo, generator: GeneratorInfo | None) -> Check:
    """A short prompt through the encoder."""
    limit = generator.limits.text_limit if generator is not None else 0
    try:
        async with AsyncClient(encoder=encoder.endpoint) as client:
            started = time.monotonic()
            embeds = await client.encode(_PROMPT, text_limit=limit or None, timeout_s=_CALL_S)
    except ZrelayError as error:
        return _failed("encode", error)
    took = (time.monotonic() - started) * 1e3
    return Check("encode", OK, f"{_PROMPT!r}: {embeds.report.token_count} tokens in {took:.0f} ms")


def check_pair(encoder: EncoderInfo, generator: GeneratorInfo) -> Check:
    """Whether the encoder is the one that the generator was trained with."""
    name = "encoder fits generator"
    if encoder.fingerprint is None or generator.expected_encoder is None:
        return Check(name, WARN, "not known while a model loads", "run `zrelay doctor` again when both are ready")
    try:
        comparison = fingerprint.compare(generator.expected_encoder, encoder.fingerprint)
    except ZrelayError as error:
        return _failed(name, error)
    if comparison.relation in (fingerprint.EXACT, fingerprint.EQUIVALENT):
        return Check(name, OK, "; ".join([comparison.relation, *comparison.differences]))
    fix = "serve the encoder from the generator's own pipeline folder: `zrelay serve encoder --model FOLDER`"
    if comparison.relation == fingerprint.UNVERIFIED:
        fix = "put text_encoder/ and tokenizer/ into the generator's folder for it to compare with, or trust it"
    return Check(name, WARN, "; ".join([comparison.relation, *comparison.differences]), fix)


async def _reach(role: str, name: str, host: str, port: int) -> Check:
    """Resolves the name and opens the port."""
    loop = asyncio.get_running_loop()
    try:
        found = await asyncio.wait_for(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM), CONNECT_S)
    except (OSError, TimeoutError) as error:
        fix = "check the spelling; where a .local name does not resolve, use the address"
        return Check(f"{name} name", FAIL, f"{host} does not resolve: {error}", fix, exits.UNREACHABLE)
    address = found[0][4][0]
    started = time.monotonic()
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_S)
    except (OSError, TimeoutError) as error:
        why = str(error) or f"no answer in {CONNECT_S:g} s"
        fix = (
            f"start it there (`zrelay serve {role} --model FOLDER`, or `zrelay up --detach` on this machine); services "
            "listen on their own machine only: open the SSH tunnel"
        )
        return Check(f"{name} port", FAIL, f"cannot connect to {host}:{port}: {why}", fix, exits.UNREACHABLE)
    took = (time.monotonic() - started) * 1e3
    writer.close()
    return Check(f"{name} port", OK, f"{host}:{port} ({address}) answers in {took:.1f} ms")


def _client_of(role: str, endpoint: str) -> AsyncClient:
    return AsyncClient(
        encoder=endpoint if role == "encoder" else None,
        vision=endpoint if role == "vision" else None,
        generator=endpoint if role == "generator" else None,
    )


async def _info_of(client: AsyncClient, role: str) -> EncoderInfo | VisionInfo | GeneratorInfo:
    ask: dict[str, Callable[[], Awaitable[EncoderInfo | VisionInfo | GeneratorInfo]]] = {
        "encoder": client.encoder_info,
        "vision": client.vision_info,
        "generator": client.generator_info,
    }
    return await ask[role]()


def _version(name: str, said: ServiceInfo) -> Check:
    device = said.device
    where = f" on {device.name or device.kind}, {device.compute_dtype}" if device is not None else ""
    message = f"zrelay {said.version}, contract {said.contract}{where}"
    if said.version == __version__:
        return Check(f"{name} version", OK, message)
    fix = "install the same version of zrelay on both machines"
    return Check(f"{name} version", WARN, f"{message}; this client is {__version__}", fix)


def check_memory(whose: str, said: ServiceInfo) -> Check:
    """Whether the device of a service has memory left."""
    name = f"{whose} memory"
    if said.device is None or not said.device.memory_total_bytes:
        return Check(name, OK, "the platform does not tell")
    free, total = said.device.memory_free_bytes, said.device.memory_total_bytes
    message = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if free < total * _LOW_MEMORY:
        return Check(name, WARN, message, "end what else uses the device, or ask for smaller pictures")
    return Check(name, OK, message)


def _unhealthy(role: str, name: str, error: ZrelayError) -> Check:
    """The port answers and the service does not: the far end of a tunnel is closed, or it is something else."""
    if not isinstance(error, (Unavailable, DeadlineExceeded)):
        return _failed(f"{name} health", error)
    why = error.metadata.get("grpc", error.message)
    fix = (
        f"where this is an SSH tunnel, nothing listens at its other end: start `zrelay serve {role} --model FOLDER` "
        "there; else another program has this port"
    )
    return Check(f"{name} health", FAIL, f"the port answers, no service does: {why}", fix, exits.UNREACHABLE)


def _failed(name: str, error: ZrelayError, *, fix: str = "") -> Check:
    return Check(name, FAIL, error.message, fix, exits.code_of(error))
