"""The checks of `zrelay doctor`: each hop in turn, with a remedy for what is wrong."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote

from zrelay_client._pool.generators import require_alike
from zrelay_client._transport.deadline import CONNECT_S
from zrelay_client._transport.endpoint import Endpoint
from zrelay_client.client import AsyncClient
from zrelay_client.info import ConnectionReport, EncoderInfo, GeneratorInfo, ServiceInfo, VisionInfo
from zrelay_client.settings import Settings
from zrelay_shared import __version__, exits, fingerprint
from zrelay_shared.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    FeatureMissing,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    ZrelayError,
)
from zrelay_shared.limits import DEFAULT_PORTS
from zrelay_shared.status import NOT_GRPC, plain_words

OK, WARN, FAIL = "ok", "warn", "fail"
_PROMPT = "a red circle"
_LOW_MEMORY = 0.05
"""Share of free memory below which a warning is given."""
_CALL_S = 60.0
EXPIRY_DAYS = 30
"""A certificate or token that ends within this many days is a warning."""
_MAX_SKEW_S = 60
"""Difference of two clocks from which on a warning is given. A new certificate is valid from 5 minutes ago."""
_PERMISSIONS = {"encoder": "encode", "vision": "vision", "generator": "generate"}
_TLS_REASONS = {
    *("AUTHORITY_UNKNOWN", "CERTIFICATE_EXPIRED", "CERTIFICATE_MISSING", "CERTIFICATE_NOT_YET_VALID"),
    *("CERTIFICATE_REFUSED", "SERVER_NAME_MISMATCH", "TLS_NOT_OFFERED", "TLS_REQUIRED"),
}
_JOIN_AGAIN = "run `zrelay pair` there and `zrelay join CODE` here"


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Attributes:
        state: "ok", "warn" or "fail".
        fix: What to do about it.
        exit_code: The exit code of `zrelay doctor` after this failure.
    """

    name: str
    state: str
    message: str
    fix: str = ""
    exit_code: int = exits.OK


async def check_services(settings: Settings, *, connect_s: float = CONNECT_S) -> AsyncIterator[Check]:
    """Checks every configured service, and whether they fit together. Yields each result as soon as it is known.

    A service gets `connect_s` seconds to report whether it is ready.
    """
    for profile in settings.joined:
        if _is_readable_by_others(profile.file):
            message = f"{profile.file} holds private keys, and other users of this machine can read it"
            yield Check(f"profile {profile.name}", WARN, message, f"chmod 600 {quote(str(profile.file))}")
    found: list[ServiceInfo] = []
    first: dict[str, Endpoint] = {}
    for role in settings.texts:
        try:
            endpoints = settings.endpoints(role)
        except ZrelayError as error:
            yield _failed(f"{role} endpoint", error)
            continue
        for endpoint in endpoints:
            name = f"{role} {endpoint}" if len(endpoints) > 1 else role
            if endpoint.token is not None and _is_readable_by_others(endpoint.token.path):
                file = endpoint.token.path
                message = f"other users of this machine can read the token in {file}"
                yield Check(f"{name} token file", WARN, message, f"chmod 600 {quote(str(file))}")
            async for result in _check_service(endpoint, name, connect_s):
                if isinstance(result, Check):
                    yield result
                else:
                    found.append(result)
                    first.setdefault(role, endpoint)
    encoders = [info for info in found if isinstance(info, EncoderInfo)]
    generators = [info for info in found if isinstance(info, GeneratorInfo)]
    for check in _check_alike(encoders, generators):
        yield check
    encoder, generator = next(iter(encoders), None), next(iter(generators), None)
    for info in found:
        if isinstance(info, VisionInfo):
            for check in _check_vision(info, encoder, generator):
                yield check
    if encoder is not None:
        if generator is not None:
            yield check_pair(encoder, generator)
        if encoder.ready:
            yield await _check_encode(first[encoder.role], generator)


async def _check_service(endpoint: Endpoint, name: str, connect_s: float) -> AsyncIterator[Check | ServiceInfo]:
    """Checks name, port, health and GetInfo of one service; yields its info last."""
    role = endpoint.role
    if (tcp := endpoint.host_and_port) is not None:
        check = await _check_port(role, name, *tcp)
        yield check
        if check.state != OK:
            return
    async with _client_of(endpoint) as client:
        try:
            serving = (await client.serving(connect_s=connect_s))[role]
        except ZrelayError as error:
            yield _unhealthy(endpoint, name, error)
            return
        state, message = (OK, "ready") if serving else (WARN, "not ready: it loads or drains")
        yield Check(f"{name} health", state, message, "" if serving else "wait, and look at the service's log")
        try:
            info = await _info_of(client, role)
        except (Unauthenticated, PermissionDenied) as error:
            fix = _JOIN_AGAIN
            if endpoint.token is not None:
                fix = f"make a new token there, and write it to {endpoint.token.path}"
            yield _failed(f"{name} caller", error, fix=error.metadata.get("remedy", fix))
            return
        except ZrelayError as error:
            yield _failed(f"{name} info", error, fix=f"is that the {role}'s endpoint, not another service's?")
            return
    for check in check_connection(endpoint, name, info.connection):
        yield check
    yield _check_version(name, info)
    yield check_memory(name, info)
    yield info


async def _check_port(role: str, name: str, host: str, port: int) -> Check:
    """Resolves the name and opens the port."""
    loop = asyncio.get_running_loop()
    try:
        found = await asyncio.wait_for(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM), CONNECT_S)
    except (OSError, UnicodeError) as error:  # UnicodeError: not a name in IDNA, for example too long
        fix = "check the spelling; where a .local name does not resolve, use the address"
        why = "it is no valid name" if isinstance(error, UnicodeError) else _system_words(error)
        return Check(f"{name} name", FAIL, f"{host} does not resolve: {why}", fix, exits.UNREACHABLE)
    started = time.monotonic()
    try:
        address = await asyncio.wait_for(_connect([str(place[4][0]) for place in found], port), CONNECT_S)
    except OSError as error:
        message = f"cannot connect to {host}:{port}: {_system_words(error)}"
        return Check(f"{name} port", FAIL, message, _start_it(role), exits.UNREACHABLE)
    took = (time.monotonic() - started) * 1e3
    return Check(f"{name} port", OK, f"{host}:{port} ({address}) answers in {took:.1f} ms")


async def _connect(addresses: Sequence[str], port: int) -> str:
    """Opens and closes a connection to the first address that answers, and returns it. Raises OSError, the first."""
    failures = []
    for address in addresses:
        try:
            _, writer = await asyncio.open_connection(address, port)
        except OSError as error:
            failures.append(error)
        else:
            writer.close()
            return address
    raise failures[0]


def _system_words(error: OSError) -> str:
    """Returns the reason of a failed connection or look-up, in the words of the system."""
    if isinstance(error, socket.gaierror):
        words = error.strerror or "the look-up failed"  # its numbers are not those of errno
    elif error.errno is None:
        words = f"no answer in {CONNECT_S:g} s"
    else:
        words = os.strerror(error.errno)
    return words[0].lower() + words[1:]


def _start_it(role: str) -> str:
    return (
        f"start it there (`zrelay serve {role} --model FOLDER`, or `zrelay up --detach` on this machine); without "
        "--listen a service serves its own machine alone: pair the machines with `zrelay pair` and `zrelay join`, or "
        "open the SSH tunnel"
    )


def check_connection(
    endpoint: Endpoint, name: str, report: ConnectionReport | None, *, now: float | None = None
) -> Iterator[Check]:
    """Checks TLS, the client's credentials and permissions, and the clocks. Nothing on plain loopback connections.

    Args:
        endpoint: The endpoint.
        name: Begin of the names of the checks.
        report: What the service reports of the connection, None for an earlier release.
        now: The present time in seconds since 1970-01-01 UTC; by default that of this machine's clock.
    """
    now = time.time() if now is None else now
    if endpoint.tls is None and (report.security == "insecure" if report is not None else not endpoint.is_local):
        yield Check(
            f"{name} TLS",
            WARN,
            f"none: the service listens insecurely on {endpoint}, so that others on the network can read and change "
            "everything",
            f"{_JOIN_AGAIN}, and start the service without --insecure-listen",
        )
    if endpoint.tls is not None:
        yield _check_tls(endpoint, name, report, now)
    if report is None or (endpoint.tls is None and endpoint.is_local):
        return
    if endpoint.tls is not None:
        yield _check_credentials(endpoint, name, report, now)
    needed = _PERMISSIONS[endpoint.role]
    message = f"{report.caller} may {', '.join(report.permissions) or 'do nothing'}"
    if {needed, "administer"} & set(report.permissions):
        yield Check(f"{name} permissions", OK, message)
    else:
        fix = _grant(report.caller, {*report.permissions, needed})
        yield Check(f"{name} permissions", FAIL, f"{message}, not {needed}", fix, exits.REFUSED)
    skew = report.server_time - now
    words = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    if abs(skew) > _MAX_SKEW_S:
        fix = "correct both clocks (`date -u`): certificates and tokens are valid by them"
        yield Check(f"{name} clock", WARN, f"its clock is {words}", fix)
    else:
        yield Check(f"{name} clock", OK, "the clocks of both machines agree")


def _check_tls(endpoint: Endpoint, name: str, report: ConnectionReport | None, now: float) -> Check:
    """Describes the authority, and checks when the certificate of the service ends."""
    from zrelay_shared.security.certificates import describe

    authority = None if endpoint.tls is None else endpoint.tls.read()[0]
    by = "an authority of the system" if authority is None else describe(authority).name
    host = (endpoint.host_and_port or (str(endpoint), 0))[0]
    message = f"the certificate is valid for {host}, issued by {by}"
    if report is None or not report.server_certificate_ends:
        return Check(f"{name} TLS", OK, message)
    return _check_expiry(
        f"{name} TLS",
        message,
        report.server_certificate_ends,
        now,
        "run `zrelay pair --renew` there, or issue a new one if it is not from `zrelay pair`",
    )


def _check_credentials(endpoint: Endpoint, name: str, report: ConnectionReport, now: float) -> Check:
    """Checks when the client's own certificate or token ends."""
    if endpoint.token is not None and report.security == "token":
        fix = f"make a new token there, and write it to {endpoint.token.path}"
        return _check_expiry(f"{name} token", f"accepted as {report.caller}", report.credentials_end, now, fix)
    return _check_expiry(
        f"{name} client certificate", f"accepted as {report.caller}", report.credentials_end, now, _JOIN_AGAIN
    )


def _check_expiry(name: str, message: str, ends: int, now: float, fix: str) -> Check:
    if not ends:
        return Check(name, OK, message)
    day = f"{datetime.fromtimestamp(ends, UTC):%Y-%m-%d}"
    days = int((ends - now) // 86400)
    if days < EXPIRY_DAYS:
        return Check(name, WARN, f"{message}, ends on {day}, in {days} days", fix)
    return Check(name, OK, f"{message}, until {day}")


def _check_version(name: str, info: ServiceInfo) -> Check:
    device = info.device
    where = f" on {device.name or device.kind}, {device.compute_dtype}" if device is not None else ""
    message = f"zrelay {info.version}, contract {info.contract}{where}"
    if info.version == __version__:
        return Check(f"{name} version", OK, message)
    fix = "install the same version of zrelay on both machines"
    return Check(f"{name} version", WARN, f"{message}; this client is {__version__}", fix)


def check_memory(service: str, info: ServiceInfo) -> Check:
    """Checks that the device of a service has memory left."""
    name = f"{service} memory"
    if info.device is None or not info.device.memory_total_bytes:
        return Check(name, OK, "the platform does not report it")
    free, total = info.device.memory_free_bytes, info.device.memory_total_bytes
    message = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if free < total * _LOW_MEMORY:
        return Check(name, WARN, message, "end other programs that use the device, or generate smaller images")
    return Check(name, OK, message)


async def _check_encode(encoder: Endpoint, generator: GeneratorInfo | None) -> Check:
    """Encodes a short prompt."""
    limit = generator.limits.text_limit if generator is not None else 0
    try:
        async with AsyncClient(encoder=encoder) as client:
            started = time.monotonic()
            embeds = await client.encode(_PROMPT, text_limit=limit or None, timeout_s=_CALL_S)
    except ZrelayError as error:
        return _failed("encode", error)
    took = (time.monotonic() - started) * 1e3
    return Check("encode", OK, f"{_PROMPT!r}: {embeds.report.token_count} tokens in {took:.0f} ms")


def _is_readable_by_others(file: Path) -> bool:
    return os.name != "nt" and file.exists() and bool(file.stat().st_mode & 0o077)


def _grant(caller: str, permissions: Set[str]) -> str:
    """Returns what gives a caller these permissions."""
    kind, _, name = caller.partition(" ")
    listed = ",".join(sorted(permissions))
    if kind == "token":
        return f"run `zrelay pair --token {name} --permissions {listed}` there, and use the new token"
    return (
        f"run `zrelay pair --renew {name} --permissions {listed}` there and `zrelay join CODE` here, or start the "
        "service with --tls-permissions if another authority issued the certificate"
    )


def check_pair(encoder: EncoderInfo, generator: GeneratorInfo) -> Check:
    """Checks whether the encoder is the one of the generator's checkpoint."""
    name = "encoder fits generator"
    if encoder.fingerprint is None or generator.expected_encoder is None:
        return Check(name, WARN, "not known while a model loads", "run `zrelay doctor` again when both are ready")
    try:
        comparison = fingerprint.compare(generator.expected_encoder, encoder.fingerprint)
    except ZrelayError as error:
        return _failed(name, error)
    message = "; ".join([comparison.relation, *comparison.differences])
    if comparison.relation in (fingerprint.EXACT, fingerprint.EQUIVALENT):
        return Check(name, OK, message)
    fix = "serve the encoder from the generator's own pipeline folder: `zrelay serve encoder --model FOLDER`"
    expected = generator.expected_encoder
    if comparison.relation == fingerprint.UNVERIFIED and expected.tokenizer_digest and not expected.weights_digest:
        message = f"still computing: the generator hashes its text encoder's weights ({message})"
        fix = "run `zrelay doctor` again in a minute; if nothing changes, see the generator's log"
    elif comparison.relation == fingerprint.UNVERIFIED:
        fix = "add text_encoder/ and tokenizer/ to the generator's folder, so that it can compare the encoder"
    return Check(name, WARN, message, fix)


def _check_alike(encoders: Sequence[EncoderInfo], generators: Sequence[GeneratorInfo]) -> list[Check]:
    """Checks whether several services of one role can replace each other. Returns nothing for single services."""
    checks = [_check_stand_in(encoders[0], other) for other in encoders[1:]]
    if len(generators) > 1:
        checks.append(_check_generators(generators))
    return checks


def _check_stand_in(first: EncoderInfo, other: EncoderInfo) -> Check:
    name = f"encoder {other.endpoint} stands in"
    if first.fingerprint is None or other.fingerprint is None:
        return Check(name, WARN, "not known while a model loads", "run `zrelay doctor` again when both are ready")
    if first.fingerprint.digest == other.fingerprint.digest:
        return Check(name, OK, f"the same embeddings as {first.endpoint}")
    try:
        found = fingerprint.compare(*fingerprint.comparable(first.fingerprint, other.fingerprint))
    except ZrelayError:
        found = fingerprint.EncoderComparison(fingerprint.REFUSED)
    if found.relation == fingerprint.EXACT:
        message = f"the same embeddings as {first.endpoint}, as far as the releases of both tell"
        return Check(name, WARN, message, "run the same release of both, so that configuration_digest is compared")
    if found.relation == fingerprint.EQUIVALENT:
        return Check(name, OK, f"equal to rounding ({'; '.join(found.differences)}): used while the first is away")
    fix = "serve the same folder from both, or name the first alone"
    return Check(name, WARN, "; ".join(["never: it makes other embeddings", *found.differences]), fix)


def _check_generators(generators: Sequence[GeneratorInfo]) -> Check:
    name = "generators alike"
    try:
        require_alike(generators)
    except FailedPrecondition as error:
        return Check(name, FAIL, error.message, exit_code=exits.code_of(error))
    devices = {f"{info.device.kind} {info.device.compute_dtype}" for info in generators if info.device is not None}
    if len(devices) > 1:
        message = f"the same model on {', '.join(sorted(devices))}: images are equal to rounding"
        return Check(name, WARN, message, "start all with the same --dtype for images that are equal bit for bit")
    return Check(name, OK, f"{len(generators)} that make the same images")


def _check_vision(info: VisionInfo, encoder: EncoderInfo | None, generator: GeneratorInfo | None) -> list[Check]:
    """Checks each engine of a vision service, and whether an engine is missing that the generator needs."""
    if not info.ready:
        return [Check("vision engines", WARN, "not known while they load", "run `zrelay doctor` again")]
    if not info.engines:
        fix = "start it with --qwen3-vl FOLDER or --siglip FOLDER"
        return [Check("vision engines", WARN, "none: only saved states can be blended into prompts", fix)]
    checks = []
    for engine in info.engines:
        message = f"{engine.model_id}, width {engine.width}"
        if engine.name == "qwen3_vl" and encoder is not None:
            checks.append(_check_states(message, engine.width, engine.calibrations, encoder))
        else:
            checks.append(Check(f"vision {engine.name}", OK, message))
    names = [engine.name for engine in info.engines]
    if generator is not None and "siglip" not in names and _is_omni(generator):
        fix = "start it with --siglip FOLDER, the Omni checkpoint's own"
        message = "the generator accepts omni images, but this service has no SigLIP2"
        checks.append(Check("vision fits generator", WARN, message, fix))
    return checks


def _check_states(message: str, width: int, calibrations: Sequence[str], encoder: EncoderInfo) -> Check:
    name, made_by = "vision fits encoder", encoder.fingerprint
    if made_by is None:
        return Check(name, WARN, "not known while the encoder loads", "run `zrelay doctor` again")
    if width != made_by.width:
        fix = f"serve a Qwen3-VL whose language model is {made_by.width} wide (Qwen3-VL-4B for Qwen3-4B)"
        reason = f"{message}: its states cannot be blended into prompts of width {made_by.width}"
        return Check(name, FAIL, reason, fix, exits.REFUSED)
    # Statistics of an earlier release have the digest without the configuration, and apply too.
    known = {made_by.digest, made_by.message_digest} & set(calibrations)
    statistics = "reference statistics of this encoder" if known else "no calibration"
    return Check(name, OK, f"{message}, {statistics}")


def _is_omni(generator: GeneratorInfo) -> bool:
    return any(feature.name == "generate.omni" and feature.available for feature in generator.features)


def _client_of(endpoint: Endpoint) -> AsyncClient:
    return AsyncClient(
        encoder=endpoint if endpoint.role == "encoder" else (),
        vision=endpoint if endpoint.role == "vision" else (),
        generator=endpoint if endpoint.role == "generator" else (),
    )


async def _info_of(client: AsyncClient, role: str) -> EncoderInfo | VisionInfo | GeneratorInfo:
    calls: dict[str, Callable[[], Awaitable[EncoderInfo | VisionInfo | GeneratorInfo]]] = {
        "encoder": client.encoder_info,
        "vision": client.vision_info,
        "generator": client.generator_info,
    }
    return await calls[role]()


def _unhealthy(endpoint: Endpoint, name: str, error: ZrelayError) -> Check:
    """Returns the check for a port that answers while the service does not, for example a tunnel with a closed end."""
    if error.reason in _TLS_REASONS:
        return _failed(f"{name} TLS", error)
    if not isinstance(error, (Unavailable, DeadlineExceeded)):
        return _failed(f"{name} health", error, fix=_wrong_port(endpoint.role))
    why = _plain(error)
    if endpoint.host_and_port is None:
        message = f"cannot connect to {endpoint}: {why}"
        return Check(f"{name} health", FAIL, message, _start_it(endpoint.role), exits.UNREACHABLE)
    fix = (
        "where this is an SSH tunnel, nothing listens at its other end: start "
        f"`zrelay serve {endpoint.role} --model FOLDER` there; else another program has this port"
    )
    if why == NOT_GRPC:
        fix = _wrong_port(endpoint.role)
    return Check(f"{name} health", FAIL, f"the port answers, no service does: {why}", fix, exits.UNREACHABLE)


def _wrong_port(role: str) -> str:
    return f"another program has this port: name the {role}'s port, {DEFAULT_PORTS[role]} unless it was changed"


def _plain(error: ZrelayError) -> str:
    """Returns why a call failed, without gRPC's own text."""
    text = error.metadata.get("grpc")
    if text is None:
        return error.message
    meaning = plain_words(text)
    if meaning != text:
        return meaning
    if isinstance(error, FeatureMissing):
        return "another service or an older zrelay answers there"
    return "no answer" if isinstance(error, (Unavailable, DeadlineExceeded)) else error.message


def _failed(name: str, error: ZrelayError, *, fix: str = "") -> Check:
    remedy = error.metadata.get("remedy", "")
    message = _plain(error).removesuffix(f": {remedy}") if remedy else _plain(error)
    return Check(name, FAIL, message, fix or remedy, exits.code_of(error))
