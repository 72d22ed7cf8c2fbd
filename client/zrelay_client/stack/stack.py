"""Starting, watching and ending the services of one machine."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from zrelay_client._transport.credentials import TlsOptions
from zrelay_client._transport.endpoint import Endpoint
from zrelay_client.stack import extras, memory, processes, record
from zrelay_client.stack.launch import Launched, StackOptions, check_host, launch
from zrelay_client.stack.record import StackRecord, StackService
from zrelay_shared import checkpoints, exits, private
from zrelay_shared.errors import CheckpointError, DeadlineExceeded, FailedPrecondition, Unavailable, ZrelayError

_POLL_S = 0.1
_AFTER_GRACE_S = 5.0
"""Seconds beyond a service's own grace period after which it is killed."""
Report = Callable[[str], None]


class Stack:
    """Services started by this process."""

    def __init__(self, options: StackOptions, launched: list[Launched], *, tightened: str = "") -> None:
        """Takes over started services; `tightened` is the message of `private.tighten` about their state."""
        self._options = options
        self._launched = launched
        self._tightened = tightened

    @property
    def endpoints(self) -> dict[str, str]:
        """Role -> endpoint."""
        return {service.role: service.address for service in self._launched}

    async def ready(self, report: Report, status: Report) -> None:
        """Waits until every service is ready.

        Args:
            report: Receives a line for each service that is ready, and one if the state was open to other users.
            status: Receives the progress while it waits.

        Raises:
            Unavailable, CheckpointError: A service has ended.
            DeadlineExceeded: A service takes too long.
        """
        if self._tightened:
            report(self._tightened)
        started = time.monotonic()
        waiting = list(self._launched)
        while waiting:
            self.check()
            status(f"waiting for {' and '.join(s.role for s in waiting)}, {time.monotonic() - started:.0f} s")
            for service in list(waiting):
                if await _serving(service, self._options.tls):
                    waiting.remove(service)
                    report(f"{service.role} ready on {service.address} after {time.monotonic() - started:.1f} s")
            if waiting and time.monotonic() - started > self._options.timeout_s:
                late = waiting[0]
                raise DeadlineExceeded(
                    f"the {late.role} is not ready after {self._options.timeout_s:g} s; its last lines:\n"
                    f"{late.last_lines()}\nallow more with --timeout"
                )
            await asyncio.sleep(_POLL_S)
        record.save(self._options.state, self.record())

    def check(self) -> None:
        """Checks that no service has ended.

        Raises:
            CheckpointError, Unavailable: A service has ended; the message holds the last lines of its log.
        """
        for service in self._launched:
            code = service.popen.poll()
            if code is not None:
                how = f"ended with exit code {code}" if code >= 0 else f"was ended by signal {-code}"
                kind = CheckpointError if code == exits.LOCAL_FILE else Unavailable
                raise kind(
                    f"the {service.role} {how}; its last lines:\n{service.last_lines()}\nthe log: {service.log}",
                    reason="SERVICE_ENDED",
                    metadata={"service": service.role, "exit_code": code},
                )

    @property
    def stopped(self) -> bool:
        """Whether a service has ended normally, because of `zrelay down` or a signal."""
        return any(service.popen.poll() == exits.OK for service in self._launched)

    def record(self) -> StackRecord:
        """Returns the record of the stack."""
        services = tuple(StackService(s.role, s.process, s.address, str(s.log)) for s in self._launched)
        security = "" if self._options.host is None else str(self._options.security)
        return StackRecord(str(self._options.model), self._options.grace_s, services, security)

    def stop(self) -> None:
        """Ends every service and removes the record."""
        _end(self._options.state, self.record())
        for service in self._launched:
            service.popen.wait()


def start(options: StackOptions) -> Stack:
    """Starts the services without waiting for them.

    Raises:
        FailedPrecondition: STACK_RUNS, services of an earlier `up` are running; NOT_PAIRED, there is no certificate
            for `options.host`.
        OutOfMemory: MEMORY_PLAN, the services do not fit into the memory together.
        CheckpointError, FeatureMissing, OSError: A service cannot be started; none is running then.
    """
    extras.require(*options.roles)
    if options.host is not None:
        check_host(options.host, options.security)
    checkpoints.open_pipeline(options.model)
    for flag, folder in (("--qwen3-vl", options.qwen3_vl), ("--siglip", options.siglip)):
        if folder is not None and not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{flag} {folder}: expected a checkpoint folder with config.json, got none there; name another"
            )
    with record.locked(options.state):
        tightened = private.tighten(options.state)
        known = record.load(options.state)
        if known is not None and known.alive:
            where = ", ".join(service.summary for service in known.services)
            raise FailedPrecondition(f"a stack runs already ({where}); end it with `zrelay down`", reason="STACK_RUNS")
        shares = memory.budgets(options)
        stack = Stack(options, [], tightened=tightened)
        try:
            for role in options.roles:
                stack._launched.append(launch(role, options, shares.get(role)))
                record.save(options.state, stack.record())
        except BaseException:
            stack.stop()
            raise
        return stack


def down(state: Path) -> list[StackService]:
    """Ends the processes of the recorded stack, and no others.

    Returns:
        The services that were running; empty where no stack is recorded.

    Raises:
        FailedPrecondition: STACK_BUSY, STACK_RECORD_INVALID.
        OSError: The folder exists, but cannot be written.
    """
    if not os.access(state, os.F_OK):  # where there is no home, there may be no folder
        return []
    with record.locked(state):
        known = record.load(state)
        if known is None:
            return []
        ran = [service for service in known.services if service.process.alive]
        _end(state, known)
        return ran


def _end(state: Path, known: StackRecord) -> None:
    processes.end([service.process for service in known.services], known.grace_s + _AFTER_GRACE_S)
    for service in known.services:
        (state / f"{service.role}.address").unlink(missing_ok=True)
    record.remove(state)


async def _serving(service: Launched, tls: TlsOptions | None) -> bool:
    address = service.address
    if not address:
        return False
    from zrelay_client._transport.stub import is_serving  # loads grpc, which is not needed before a service listens

    channel = Endpoint(service.role, address, tls=tls).channel()
    try:
        return await is_serving(channel, role=service.role, endpoint=address, timeout=1.0)
    except ZrelayError:
        return False
    finally:
        await channel.close()
