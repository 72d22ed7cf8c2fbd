"""Attacks real services for a while, beside a caller that behaves well, and says which promise was broken.

    python benchmarks/hostile.py [--minutes 10] [--only NAME,...] [--skip NAME,...] [--seed 0] [--json]

Encoder, vision service and generator run as processes on the demo checkpoints. Each attack runs against each of them in
turn, then all attacks together; then the generator is killed in the middle of jobs and started again, and another one
runs on a file system of 24 MiB that fills. All the time a caller generates images. The promises: no process ends, each
service accepts new connections, no answer and no log reveals a bug, every job of the caller and every job that was
accepted is delivered whole, and no memory, file or thread stays behind. Exit code 0 if all are kept, else 1.

A service tells callers apart by their addresses, so the attackers have one of their own, 127.0.0.2, except in
`messages`, whose channel of gRPC cannot choose it. They have the lowest priority (nice 19), because an attacker on
another machine takes no processor time from a service.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from measuring import Say, sayer
from vitals import vitals

sys.path.insert(0, str(Path(__file__).parents[1]))

from attacks import ATTACKS, attack

from zrelay_client import AsyncClient, Embeds, GenerateKeywords, ZrelayError
from zrelay_demo import CHECKPOINT, VISION_CHECKPOINT

T = TypeVar("T")
EVENTS = ("kill", "disk")
NAMES = (*ATTACKS, "mixed", *EVENTS)
MODELS = {"encoder": CHECKPOINT, "vision": VISION_CHECKPOINT, "generator": CHECKPOINT}
FLAGS = {"generator": ("--max-side", "128", "--max-steps", "16")}
LIMITS = {"anonymous MiB": 300.0, "open files": 10.0, "threads": 40.0, "health check s": 5.0}
"""What may be left after the attacks, for each service, and the longest that a health check may take. Pools of threads
and of memory grow to their size once."""
_SMALL: GenerateKeywords = {"width": 64, "height": 64, "num_inference_steps": 2}
_LONG: GenerateKeywords = {"width": 128, "height": 128, "num_inference_steps": 12}
_PROMPT = "a small red circle on a blue background"
_PROBE_S, _SETTLE_S, _RESTART_S = 15.0, 20.0, 60.0
_LONGEST_S = _START_S = 600.0
_SMALL_DISK_MIB = 24
_FULL = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
"""How a client reports a generator whose disk is full. It tries again after UNAVAILABLE, until its deadline."""


@dataclass
class AttackedService:
    """A service process with its log, which can be killed and started again at the same address and with its state."""

    role: str
    folder: Path
    wrapper: tuple[str, ...] = ()
    process: "subprocess.Popen[bytes] | None" = None
    endpoint: str = "127.0.0.1:0"

    @property
    def log(self) -> Path:
        """The log of all its processes."""
        return self.folder / "log"

    @property
    def pid(self) -> int:
        """Process id."""
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Starts the process, and returns when it serves. Raises RuntimeError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        address = self.folder / "address"
        address.unlink(missing_ok=True)
        command = [*self.wrapper, sys.executable, "-m", f"zrelay_{self.role}", "--model", str(MODELS[self.role])]
        command += ["--listen", self.endpoint, "--address-file", str(address), "--threads", "1"]
        command += FLAGS.get(self.role, ())
        if self.role == "generator":
            command += ["--state", str(self.folder / "state")]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output)
        ends = time.monotonic() + _START_S
        while not (address.exists() and self._listens(address.read_text())):
            if not self.alive or time.monotonic() > ends:
                raise RuntimeError(f"{self.role}: expected a service that starts: {self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def _listens(self, endpoint: str) -> bool:
        self.endpoint = endpoint
        return self.serves()

    def end(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal to the service's process and waits until it has ended."""
        if self.process is not None:
            self.process.send_signal(number)
            try:
                self.process.wait(60.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def serves(self) -> bool:
        """Whether it says over a new connection that it serves."""
        return self.health() == health_pb2.HealthCheckResponse.SERVING

    def health(self) -> int | None:
        """Returns the status that it reports over a new connection; None if it does not answer."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self.endpoint, options=options) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs lack the methods
            try:
                answer = health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=_PROBE_S)
            except grpc.RpcError:
                return None
            return int(answer.status)

    def incidents(self) -> int:
        """Number of bugs in its log."""
        text = self.log.read_text("utf-8", "replace")
        return text.count(", incident ") + text.count("Traceback (most recent call last)")


@dataclass(frozen=True)
class Held:
    """What a process holds: anonymous memory in MiB, open files, threads."""

    mib: float
    files: int
    threads: int


def held_by(pid: int) -> Held:
    """Reads /proc."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    found = vitals(pid)
    return Held(int(status["RssAnon"].split()[0]) / 1024, found.files, found.threads)


@dataclass
class Report:
    """Figures by name, and the promises that were broken."""

    figures: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def add(self, name: str, value: float) -> None:
        """Adds to a figure."""
        self.figures[name] = round(self.figures.get(name, 0.0) + value, 3)


class WellBehavedCaller(threading.Thread):
    """A well-behaved caller. It encodes a prompt and generates an image, one after the other, until it is stopped.

    Its event loop is the only one of the process: grpc.aio polls for one loop, and calls from a second one can hang.
    """

    def __init__(self, encoder: str, generator: str) -> None:
        super().__init__(daemon=True)
        self._endpoints = encoder, generator
        self._over, self._closed = threading.Event(), threading.Event()
        self._loop = asyncio.new_event_loop()
        self.failures: list[str] = []
        self.phase = "before"
        self.by_phase: dict[str, list[float]] = {}

    def run(self) -> None:
        """Runs until `stop` and `close`."""
        self._loop.run_until_complete(self._generate())
        self._over.set()
        self._loop.run_until_complete(asyncio.to_thread(self._closed.wait))

    def stop(self) -> None:
        """Generates no more images."""
        self._over.set()

    def close(self) -> None:
        """Ends the event loop."""
        self.stop()
        self._closed.set()
        self.join(180.0)

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the caller's event loop, and returns its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_LONGEST_S)

    async def _generate(self) -> None:
        seed = 0
        while not self._over.is_set():
            async with AsyncClient(encoder=self._endpoints[0], generator=self._endpoints[1]) as client:
                for _ in range(20):  # then over new connections
                    if self._over.is_set():
                        return
                    seed += 1
                    if not await self._generate_one(client, seed):
                        break

    async def _generate_one(self, client: AsyncClient, seed: int) -> bool:
        """Generates one image. While the generator is killed and started again, the same request is sent until then."""
        phase, started = self.phase, time.monotonic()
        while True:
            try:
                options: GenerateKeywords = {**_SMALL, "seed": seed}
                name = f"caller-{os.getpid()}-{seed}"
                result = await client.generate(_PROMPT, options, request_id=name, timeout_s=90.0)
            except ZrelayError as error:
                await asyncio.sleep(0.5)
                if error.code == "UNAVAILABLE" and self.phase == "kill" and time.monotonic() - started < _RESTART_S:
                    continue
                self.failures.append(f"{phase}: {error.code} {error.reason} {error.message[:160]}")
                return False
            assert len(result.images) == 1
            self.by_phase.setdefault(phase, []).append(time.monotonic() - started)
            return True


class Pinger(threading.Thread):
    """Checks health over one connection 20 times a second: the longest answer is how long the event loop stalled."""

    def __init__(self, service: AttackedService) -> None:
        super().__init__(daemon=True)
        self._endpoint = service.endpoint
        self._over = threading.Event()
        self.worst = 0.0

    def run(self) -> None:
        """Runs until `stop`."""
        with grpc.insecure_channel(self._endpoint) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs lack the methods
            while not self._over.wait(0.05):
                started = time.monotonic()
                with contextlib.suppress(grpc.RpcError):
                    health.Check(health_pb2.HealthCheckRequest(), timeout=30.0)
                    self.worst = max(self.worst, time.monotonic() - started)

    def stop(self) -> float:
        """Stops the health checks and returns the longest one in seconds."""
        self._over.set()
        self.join(40.0)
        return self.worst


class Campaign:
    """The attacks on a set of services, and what came of them."""

    def __init__(self, services: dict[str, AttackedService], seed: int, say: Say) -> None:
        self._services, self._seed, self._say = services, seed, say
        self._caller = WellBehavedCaller(services["encoder"].endpoint, services["generator"].endpoint)
        self.report = Report()
        self.totals: Counter[str] = Counter()

    def run(self, names: Sequence[str], seconds: float) -> None:
        """Runs the attacks named, each against each service for `seconds` in all, and the events."""
        caller = self._caller
        caller.start()
        try:
            self._run(caller, names, seconds)
        finally:
            caller.close()

    def _run(self, caller: WellBehavedCaller, names: Sequence[str], seconds: float) -> None:
        time.sleep(min(10.0, max(3.0, seconds)))
        before = {role: held_by(service.pid) for role, service in self._services.items()}
        pids = {role: service.pid for role, service in self._services.items()}
        pingers = [Pinger(service) for service in self._services.values()]
        for pinger in pingers:
            pinger.start()
        for name in names:
            caller.phase = name
            if name == "mixed":
                together = [one for one in names if one in ATTACKS]
                self._attack("mixed", together, seconds * 3)
            elif name in ATTACKS:
                self._attack(name, [name], seconds)
        for role, pinger in zip(self._services, pingers, strict=True):
            worst = pinger.stop()
            self.report.figures[f"{role}: longest health check s"] = round(worst, 3)
            self._expect(worst <= LIMITS["health check s"], f"{role}: a health check took {worst:.1f} s")
        caller.phase = "after"
        self._compare(before, pids)
        if "kill" in names:
            caller.phase = "kill"
            self._kill(max(1, int(seconds // 5)))
        caller.stop()
        self._tell_of(caller)
        if "disk" in names:
            self._disk()
        for role, service in self._services.items():
            found = service.incidents()
            self.report.add("incidents in logs", found)
            self._expect(not found, f"{role}: {found} incidents or tracebacks in the log")
        for name, count in sorted(self.totals.items()):
            self.report.add(f"requests: {name}", count)

    def _expect(self, kept: bool, sentence: str) -> None:
        if not kept:
            self.report.broken.append(sentence)
            self._say(f"hostile: BROKEN: {sentence}")

    def _attack(self, label: str, names: Sequence[str], seconds: float) -> None:
        """Runs attacks at the same time against every service, and checks that each still serves."""
        running = []
        for role, service in self._services.items():
            for name in names:
                self._seed += 1
                order = json.dumps([name, role, service.endpoint, seconds, self._seed])
                command = [sys.executable, __file__, "--attack", order]
                running.append((role, name, subprocess.Popen(command, stdout=subprocess.PIPE)))
        for role, name, process in running:
            output, _ = process.communicate(timeout=seconds + 120.0)
            found: dict[str, Any] = json.loads(output or b'{"done": {}, "improper": ["the attack itself failed"]}')
            self.totals.update({f"{name} {what}": count for what, count in found["done"].items()})
            for line in found["improper"]:
                self._expect(False, f"{role}: {name}: {line}")
        for service in self._services.values():
            self._check(service, label)
        self._say(f"hostile: {label}: done")

    def _check(self, service: AttackedService, label: str) -> None:
        """Checks that a service lives and accepts connections; starts it again where it does not."""
        alive = service.alive
        self._expect(alive, f"{service.role}: its process ended during {label}")
        serves = alive and service.serves()
        self._expect(serves or not alive, f"{service.role}: accepts no new connection after {label}")
        if not serves:
            self.report.add("process deaths" if not alive else "deaf services", 1)
            self.report.add("restarts", 1)
            service.end(signal.SIGKILL)
            service.start()

    def _compare(self, before: dict[str, Held], pids: dict[str, int]) -> None:
        """Compares what each service holds with what it held before, when nothing is left to come."""
        for role, service in self._services.items():
            if service.pid != pids[role]:
                self._say(f"hostile: {role} was started again: what it holds is not compared")
                continue
            ends, then = time.monotonic() + _SETTLE_S, before[role]
            while True:
                now = held_by(service.pid)
                left = {
                    "anonymous MiB": now.mib - then.mib,
                    "open files": now.files - then.files,
                    "threads": now.threads - then.threads,
                }
                if all(value <= LIMITS[name] for name, value in left.items()) or time.monotonic() > ends:
                    break
                time.sleep(0.5)
            for name, value in left.items():
                self.report.figures[f"{role}: {name} more than before"] = round(value, 1)
                self._expect(value <= LIMITS[name], f"{role}: {value:.0f} {name} more than before")

    def _tell_of(self, caller: WellBehavedCaller) -> None:
        quiet = caller.by_phase.get("before", []) + caller.by_phase.get("after", [])
        kills = caller.by_phase.get("kill", [])
        others = caller.by_phase.keys() - {"before", "after", "kill"}
        loud = [seconds for phase in others for seconds in caller.by_phase[phase]]
        for name, times in (("without attack", quiet), ("under attack", loud), ("during kills", kills)):
            self.report.add(f"caller: images {name}", len(times))
            if times:
                self.report.figures[f"caller: median s {name}"] = round(statistics.median(times), 3)
                self.report.figures[f"caller: worst s {name}"] = round(max(times), 3)
        self.report.add("caller: failed jobs", len(caller.failures))
        for line in dict.fromkeys(caller.failures):
            self._expect(False, f"caller: {line}")

    def _kill(self, rounds: int) -> None:
        """Kills the generator in the middle of jobs, starts it again, and fetches every job that it had accepted."""
        service, chance = self._services["generator"], random.Random(self._seed)
        embeds = self._caller.wait_for(_embeds(self._services["encoder"].endpoint))
        for number in range(rounds):
            jobs = self._caller.wait_for(
                _submit(service.endpoint, embeds, [_LONG, _SMALL] * 4, f"kill-{self._seed}-{number}")
            )
            time.sleep(chance.uniform(0.0, 1.0))
            service.end(signal.SIGKILL)
            service.start()
            self._deliver(service, jobs, "kill")
            self.report.add("kills", 1)

    def _deliver(self, service: AttackedService, jobs: Sequence[str], label: str) -> None:
        whole, wrong = self._caller.wait_for(_fetch(service.endpoint, jobs))
        self.report.add(f"{label}: accepted jobs", len(jobs))
        self.report.add(f"{label}: delivered whole", whole)
        for line in wrong:
            self._expect(False, f"{label}: {line}")

    def _disk(self) -> None:
        """Fills the small file system of a second generator, makes room, and fetches every job that it had accepted."""
        with small_disk(self._services["generator"].folder.parent / "small") as service:
            if service is None:
                self._say("hostile: disk: left out, this machine allows no file systems of users (unshare -rm)")
                return
            embeds = self._caller.wait_for(_embeds(self._services["encoder"].endpoint))
            ballast = Path(f"/proc/{service.pid}/root{service.folder}/state/ballast")
            accepted = self._caller.wait_for(_submit(service.endpoint, embeds, [_SMALL] * 4, "disk-0"))
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(os.urandom(1 << 16))
            refusals: list[str] = []
            accepted += self._caller.wait_for(_submit(service.endpoint, embeds, [_SMALL] * 4, "disk-1", refusals))
            # A generator that cannot write says NOT_SERVING, and the client tries again until its deadline.
            self._expect(service.alive, "disk: the process ended on a full disk")
            self._expect(service.health() is not None, "disk: no answer to a health check on a full disk")
            if not service.alive:
                return
            self.report.add("disk: refused jobs", len(refusals))
            for line in {line for line in refusals if line.split()[0] not in _FULL}:
                self._expect(False, f"disk: a full disk is reported as {line}")
            ballast.unlink()
            ends = time.monotonic() + _RESTART_S
            while not service.serves() and time.monotonic() < ends:
                time.sleep(0.5)
            self._expect(service.serves(), "disk: does not serve again when the disk has room")
            self._deliver(service, accepted, "disk")
            found = service.incidents()
            self._expect(not found, f"disk: {found} incidents or tracebacks in the log")


async def _embeds(encoder: str) -> Embeds:
    async with AsyncClient(encoder=encoder) as client:
        return await client.encode(_PROMPT)


async def _until_reached(call: Callable[[], Awaitable[T]]) -> T:
    """Calls again while a restarted service cannot be reached: channels wait longer after each failure to connect."""
    ends = time.monotonic() + _RESTART_S
    while True:
        try:
            return await call()
        except ZrelayError as error:
            if error.code != "UNAVAILABLE" or time.monotonic() > ends:
                raise
        await asyncio.sleep(0.5)


async def _submit(
    generator: str, embeds: Embeds, wanted: Sequence[GenerateKeywords], name: str, refusals: list[str] | None = None
) -> list[str]:
    """Submits jobs; returns the ids of those that were accepted. Refusals go to `refusals`, else they are raised."""
    accepted = []
    async with AsyncClient(generator=generator, timeout_s=20.0) as client:
        for number, options in enumerate(wanted):
            try:
                chosen: GenerateKeywords = {**options, "seed": number}
                call = partial(client.submit, embeds, chosen, request_id=f"{name}-{number}")
                job = await (call() if refusals is not None else _until_reached(call))
                accepted.append(job.job_id)
            except ZrelayError as error:
                if refusals is None:
                    raise
                refusals.append(f"{error.code} {error.reason}")
    return accepted


async def _fetch(generator: str, jobs: Sequence[str]) -> tuple[int, list[str]]:
    """Fetches jobs; returns how many were delivered whole, and sentences about the others."""
    whole, wrong = 0, []
    async with AsyncClient(generator=generator) as client:
        for job in jobs:
            try:
                images = await _until_reached(partial(client.jobs.fetch, job, timeout_s=180.0))
            except ZrelayError as error:
                wrong.append(f"an accepted job was lost: {error.code} {error.reason} {error.message[:120]}")
                continue
            if len(images) == 1 and images[0].data.startswith(b"\x89PNG") and b"IEND" in images[0].data[-12:]:
                whole += 1
            else:
                wrong.append(f"an accepted job has {len(images)} images, or one that is not whole")
    return whole, wrong


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[AttackedService | None]:
    """A generator whose state is on a small file system of its own; None where this machine does not allow that."""
    (folder / "state").mkdir(parents=True)
    script = f'mount -t tmpfs -o size={_SMALL_DISK_MIB}m tmpfs "$0" && exec "$@"'
    wrapper = ("unshare", "-rm", "sh", "-c", script, str(folder / "state"))
    tried = subprocess.run([*wrapper, "true"], capture_output=True, check=False)
    if tried.returncode:
        yield None
        return
    service = AttackedService("generator", folder, wrapper)
    try:
        service.start()
        yield service
    finally:
        service.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", default="", help=f"attacks to run, of {', '.join(NAMES)}")
    parser.add_argument("--skip", default="", help="attacks to leave out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one object of figure name to value")
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the services end
    if args.attack:
        os.nice(19)
        print(json.dumps(attack(*json.loads(args.attack))))
        return 0
    only, skip = ([part for part in text.split(",") if part] for text in (args.only, args.skip))
    if unknown := {*only, *skip} - {*NAMES}:
        parser.error(f"unknown attacks {', '.join(sorted(unknown))}; known are {', '.join(NAMES)}")
    names = [name for name in NAMES if name in (only or NAMES) and name not in skip]
    say = sayer(args.json)
    with tempfile.TemporaryDirectory(prefix="zrelay-") as folder:
        services = {role: AttackedService(role, Path(folder) / role) for role in MODELS}
        try:
            for service in services.values():
                service.start()
            campaign = Campaign(services, args.seed, say)
            campaign.run(names, args.minutes * 60.0 / (len(names) + 2))
        finally:
            for service in services.values():
                service.end()
    report = campaign.report
    report.figures["broken promises"] = len(report.broken)
    if args.json:
        print(json.dumps(report.figures))
    for name, value in report.figures.items():
        say(f"hostile: {name}: {value:g}")
    say("every promise was kept" if not report.broken else "\n".join(["BROKEN:", *(f"- {x}" for x in report.broken)]))
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
