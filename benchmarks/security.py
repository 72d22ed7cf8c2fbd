"""What TLS and authentication cost, side by side with plaintext in one run, and what refused callers can disturb.

    python benchmarks/security.py [--only S1,S2,S3,S4] [--rounds N] [--json]

S1: 7.7 MB of embeddings from one process through a client into another (as P7), TLS on both links over plaintext.
S2: a small call (GetInfo), TLS over plaintext. S3: new connections with a certificate and a call, one after another.
S4: calls without a token that are refused while a generator runs a job, and its P8 meanwhile. `--json` prints one
object of goal to measured value.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import handover
from measuring import Goal, Say, sayer, tell
from pinging import pings

GOALS = ("S1", "S2", "S3", "S4")
_JOB = {"width": 256, "height": 256, "num_inference_steps": 40, "seed": 1}
_ATTACKERS = 4
Tls = tuple[bytes | None, bytes | None, bytes | None]
"""Certificate of the authority, key and certificate of the client."""


@dataclass(frozen=True)
class ServedPorts:
    """HOST:PORT of a service in plaintext, with TLS, for tokens, and for health checks."""

    plaintext: str
    tls: str
    token: str
    health: str


def make_installation(folder: Path) -> Tls:
    """Makes what `zrelay pair` and `zrelay join` make, and returns the credentials of the machine that joined."""
    from zrelay_shared.security import certificates
    from zrelay_shared.security.installation import Installation

    installation = Installation(folder)
    installation.prepare("box", ["127.0.0.1"])
    key = certificates.new_key()
    certificate = installation.issue(certificates.new_request(key, "member"), "member")
    return installation.authority_certificate, key, certificate


def _serve(make: Callable[[], Any], folder: Path, ready: Connection) -> None:
    """Serves one service in plaintext and another with TLS, in a process of its own."""
    from zrelay_shared.service import authentication, lifecycle
    from zrelay_shared.service.listening import ListenAddress

    free = ListenAddress("127.0.0.1", 0)
    security = authentication.installed(folder, None, authentication.utc_now)
    secured = lifecycle.ServeOptions(free, tls=True, security=security, token_listen=free, health_listen=free)

    async def run() -> None:
        async with (
            lifecycle.running(make(), lifecycle.ServeOptions(free)) as plain,
            lifecycle.running(make(), secured) as tls,
        ):
            await asyncio.gather(plain.loaded, tls.loaded)
            ready.send(ServedPorts(*map(str, (plain.address, tls.address, tls.token_address, tls.health_address))))
            await asyncio.Event().wait()

    asyncio.run(run())


def _stored_encoder() -> Any:
    return handover.stored_service("encoder")


def _stored_generator() -> Any:
    return handover.stored_service("generator")


def _demo_encoder() -> Any:
    from zrelay_demo import CHECKPOINT
    from zrelay_encoder.api.servicer import EncoderServicer
    from zrelay_encoder.config import EncoderConfig

    return EncoderServicer(EncoderConfig(model=CHECKPOINT, threads=1))


def _demo_generator() -> Any:
    from zrelay_demo import CHECKPOINT
    from zrelay_generator.service import GeneratorServicer
    from zrelay_shared.service.roles import GeneratorConfig

    state = Path(tempfile.mkdtemp(prefix="zrelay-"))
    return GeneratorServicer(GeneratorConfig(model=CHECKPOINT, threads=1, state=state))


@contextmanager
def served(*makers: Callable[[], Any], folder: Path) -> Iterator[list[ServedPorts]]:
    """Serves what each maker makes in a process of its own."""
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    for make in makers:
        here, there = context.Pipe()
        processes.append(context.Process(target=_serve, args=(make, folder, there), daemon=True))
        processes[-1].start()
        pipes.append(here)
    try:
        yield [pipe.recv() for pipe in pipes]
    finally:
        for process in processes:
            process.terminate()
            process.join()


async def in_turns(ways: list[Callable[[], Awaitable[object]]], rounds: int, warm: int = 5) -> list[float]:
    """Returns the median seconds of each way."""
    times: list[list[float]] = [[] for _ in ways]
    for turn in range(warm + rounds):
        for way, took in zip(ways, times, strict=True):
            started = time.perf_counter()
            await way()
            if turn >= warm:
                took.append(time.perf_counter() - started)
    return [statistics.median(took) for took in times]


async def costs(
    encoder: ServedPorts, generator: ServedPorts, tls: Tls, rounds: int, wanted: set[str], say: Say
) -> list[Goal]:
    """S1, S2 and S3."""
    from zrelay.v1 import encoder_pb2, generator_pb2
    from zrelay_shared.channels import dial
    from zrelay_shared.rpc import Stub
    from zrelay_shared.service import process

    process.keep_large_buffers()
    encodes = encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"]
    paints = generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"]
    goals: list[Goal] = []

    async def get_info(stub: Stub) -> None:
        request = encoder_pb2.EncoderServiceGetInfoRequest()
        await stub.call("GetInfo", request, encoder_pb2.EncoderServiceGetInfoResponse)

    async def connect() -> None:
        async with dial(encoder.tls, tls=tls) as channel:
            await get_info(Stub(channel, encodes))

    async with AsyncExitStack() as stack:
        open_ = [await stack.enter_async_context(dial(one.plaintext)) for one in (encoder, generator)]
        secured = [await stack.enter_async_context(dial(one.tls, tls=tls)) for one in (encoder, generator)]
        pairs = [(Stub(encode, encodes), Stub(paint, paints)) for encode, paint in (open_, secured)]
        if "S1" in wanted:
            plain_s, tls_s = await in_turns(
                [lambda pair=pair: handover.hand_over(*pair) for pair in pairs],  # type: ignore[misc]
                rounds,
            )
            say(f"S1: hand-over {plain_s * 1e3:.2f} ms in plaintext, {tls_s * 1e3:.2f} ms with TLS")
            goals.append(Goal("S1", "hand-over with TLS / in plaintext", tls_s / plain_s, 1.9))
        if "S2" in wanted:
            plain_s, tls_s = await in_turns(
                [lambda pair=pair: get_info(pair[0]) for pair in pairs],  # type: ignore[misc]
                20 * rounds,
            )
            say(f"S2: small call {plain_s * 1e3:.3f} ms in plaintext, {tls_s * 1e3:.3f} ms with TLS")
            goals.append(Goal("S2", "small call with TLS / in plaintext", tls_s / plain_s, 1.3))
        if "S3" in wanted:
            [connect_s] = await in_turns([connect], 2 * rounds)
            goals.append(Goal("S3", "handshakes a second, one after another", 1 / connect_s, 50, "/s", at_least=True))
    return goals


def _attack(endpoint: str, authority: bytes, ready: Connection) -> None:
    """Calls without a token until a message comes, and sends the number of refusals a second."""
    from zrelay.v1 import generator_pb2, generator_pb2_grpc

    async def run() -> float:
        credentials, refused = grpc.ssl_channel_credentials(authority), 0
        async with grpc.aio.secure_channel(endpoint, credentials) as channel:
            stub: Any = generator_pb2_grpc.GeneratorServiceStub(channel)  # type: ignore[no-untyped-call]

            async def call() -> None:
                nonlocal refused
                while not ready.poll():
                    try:
                        await stub.GetInfo(generator_pb2.GeneratorServiceGetInfoRequest())
                    except grpc.aio.AioRpcError as error:
                        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                            raise
                        refused += 1

            started = time.perf_counter()
            await asyncio.gather(*(call() for _ in range(_ATTACKERS)))
            return refused / (time.perf_counter() - started)

    ready.send(asyncio.run(run()))


def refusing(encoder: ServedPorts, generator: ServedPorts, tls: Tls, say: Say) -> list[Goal]:
    """S4: refused calls a second while a job runs, and P8 of the generator meanwhile."""
    from zrelay.v1 import encoder_pb2, encoder_pb2_grpc, generator_pb2, generator_pb2_grpc

    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    credentials = grpc.ssl_channel_credentials(*tls)
    rates: list[float] = []
    with (
        grpc.secure_channel(encoder.tls, credentials) as encodes,
        grpc.secure_channel(generator.tls, credentials) as paints,
    ):
        encoder_stub: Any = encoder_pb2_grpc.EncoderServiceStub(encodes)  # type: ignore[no-untyped-call]
        generator_stub: Any = generator_pb2_grpc.GeneratorServiceStub(paints)  # type: ignore[no-untyped-call]
        prompts = [encoder_pb2.Prompt(text="a small red circle")]
        encoded = encoder_stub.EncodePrompts(encoder_pb2.EncodePromptsRequest(prompts=prompts))
        request = generator_pb2.GenerateRequest()
        request.spec.prompt.prompt_embeds.CopyFrom(encoded.results[0].prompt_embeds)
        for name, value in _JOB.items():
            setattr(request.spec.sampling, name, value)

        def busy() -> None:
            attack = context.Process(target=_attack, args=(generator.token, tls[0], there), daemon=True)
            attack.start()
            events = [reply.event.WhichOneof("event") for reply in generator_stub.Generate(request)]
            here.send("end")
            rates.append(here.recv())
            attack.join()
            if events[-1] != "done":
                raise RuntimeError(f"expected a job that ends with done, got {events[-1]}")

        goal = pings(generator.health, busy, say, "S4.P8")
    say(f"S4: {rates[0]:.0f} refused calls a second")
    return [Goal("S4", "refused calls a second while a job runs", rates[0], 200, "/s", at_least=True), goal]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one object of goal to measured value")
    parser.add_argument("--only", default=",".join(GOALS), help="goals to measure, separated by commas")
    parser.add_argument("--rounds", type=int, default=40, help="hand-overs of each kind; more of what is shorter")
    arguments = parser.parse_args()
    wanted, say, goals = set(arguments.only.split(",")), sayer(arguments.json), []
    if wanted - set(GOALS):
        parser.error(f"--only: expected some of {', '.join(GOALS)}, got {arguments.only}")
    with tempfile.TemporaryDirectory(prefix="zrelay-") as work:
        tls = make_installation(Path(work) / "security")
        if wanted & {"S1", "S2", "S3"}:
            with served(_stored_encoder, _stored_generator, folder=Path(work) / "security") as (encoder, generator):
                goals += asyncio.run(costs(encoder, generator, tls, arguments.rounds, wanted, say))
        if "S4" in wanted:
            with served(_demo_encoder, _demo_generator, folder=Path(work) / "security") as (encoder, generator):
                goals += refusing(encoder, generator, tls, say)
    tell(goals, arguments.json)


if __name__ == "__main__":
    main()
