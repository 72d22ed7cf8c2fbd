"""Generators in processes of their own that answer how they are: the real service, store and server.

Processes come from a fork server that has imported the libraries once: their pages are shared, so thirty-two of them
fit into a small machine and start in seconds.
"""

import asyncio
import multiprocessing
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from vitals import Vitals, vitals

_START_S, _ANSWER_S, _STOP_S = 600.0, 120.0, 60.0


@dataclass(frozen=True, slots=True)
class HostedSettings:
    """How a hosted generator runs: `options` of its GeneratorConfig beside model and state folder; with `rate`, a
    simulated device of so many operations a second."""

    model: Path
    state: Path | None
    options: tuple[tuple[str, Any], ...] = ()
    rate: float | None = None


class HostedGenerator:
    """One such process. Made by `GeneratorHost.start`."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self._process, self._pipe = process, pipe

    @cached_property
    def endpoint(self) -> str:
        """Where it serves, once it does. Raises RuntimeError, EOFError where it does not start."""
        return str(self._answer(_START_S))

    @property
    def pid(self) -> int:
        if self._process.pid is None:
            raise RuntimeError("expected a process that was started")
        return self._process.pid

    def vitals(self) -> Vitals:
        """Of the process once it serves, and how many tasks its event loop has."""
        _ = self.endpoint
        self._pipe.send("tasks")
        return vitals(self.pid, int(self._answer(_ANSWER_S)))

    def stop(self) -> None:
        """Drains and ends it. Raises RuntimeError where it does not end well."""
        if self._process.is_alive():
            self._pipe.send("stop")
            self._process.join(_STOP_S)
        if self._process.exitcode is None:
            self._process.kill()
        if self._process.exitcode != 0:
            raise RuntimeError(f"expected a generator that ends with 0, got {self._process.exitcode}")

    def _answer(self, timeout_s: float) -> Any:
        if not self._pipe.poll(timeout_s):
            raise RuntimeError(f"expected an answer of a generator within {timeout_s:g} s, got none")
        return self._pipe.recv()


class GeneratorHost:
    """Starts hosted generators and ends them with its block."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["zrelay_generator.service"])
        self._stack = ExitStack()

    def __enter__(self) -> "GeneratorHost":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def start(self, settings: HostedSettings) -> HostedGenerator:
        """Starts a generator, which begins to load."""
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, settings), daemon=True)
        process.start()
        there.close()
        hosted = HostedGenerator(process, here)
        self._stack.callback(hosted.stop)
        return hosted


def _serve(pipe: Connection, settings: HostedSettings) -> None:
    from zrelay_shared.service import process

    process.keep_large_buffers()
    process.configure_logging("warning")
    asyncio.run(_run(pipe, settings))
    pipe.close()


async def _run(pipe: Connection, settings: HostedSettings) -> None:
    import simulated

    from zrelay_generator.model.loading import load_model
    from zrelay_generator.service import GeneratorServicer
    from zrelay_shared.service import lifecycle, process
    from zrelay_shared.service.listening import ListenAddress
    from zrelay_shared.service.roles import GeneratorConfig

    config = GeneratorConfig(model=settings.model, state=settings.state, **dict(settings.options))
    load = load_model if settings.rate is None else simulated.loader(simulated.DeviceSpeed(settings.rate))
    over = asyncio.Event()

    def asked() -> None:
        try:
            question = pipe.recv()
        except EOFError:  # who started it is gone
            question = "stop"
        if question == "tasks":
            pipe.send(len(asyncio.all_tasks()) - 1)
        else:
            over.set()

    options = lifecycle.ServeOptions(ListenAddress("127.0.0.1", 0), grace_s=2.0)
    # As a generator's own process does.
    async with lifecycle.running(GeneratorServicer(config, load), options, process.freeze_objects) as server:
        await server.loaded
        asyncio.get_running_loop().add_reader(pipe.fileno(), asked)
        pipe.send(str(server.address))
        await over.wait()
        asyncio.get_running_loop().remove_reader(pipe.fileno())
        await server.drain()
