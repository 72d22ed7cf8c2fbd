"""Serves a real model whose device or scheduler fails on purpose, in this process or as `python -m` of this module."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.helpers.polling import until_async
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.job import DeviceJob
from zrelay_generator.engine.ticks import Tick
from zrelay_generator.model.loading import LoadedModel, load_model
from zrelay_generator.runtime import LoadModel, MakeScheduler
from zrelay_generator.scheduling.scheduler import Scheduler
from zrelay_generator.scheduling.shares import ServiceLedger
from zrelay_generator.scheduling.ticks import TickSelector
from zrelay_generator.service import GeneratorServicer
from zrelay_shared.service.lifecycle import ServeOptions, serve
from zrelay_shared.service.listening import parse_listen
from zrelay_shared.service.roles import GeneratorConfig

from .generator_client import SERVICE, GeneratorClient, started

LOST = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"
FATAL_WIDTH = 80
"""Width in pixels of the image that loses the device, by default."""


class FailingTransformer:
    """A transformer whose forward raises `error` where `when` is true of its segments."""

    def __init__(self, transformer: Any, when: Callable[[Sequence[Any]], bool], error: Exception) -> None:
        self._transformer, self._when, self._error = transformer, when, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)

    def forward(self, segments: Sequence[Any]) -> Any:
        if self._when(segments):
            raise self._error
        return self._transformer.forward(segments)


def fatal(segments: Sequence[Any]) -> bool:
    """Whether an image of the fatal width is among the segments."""
    return any(segment.latents.shape[2] == FATAL_WIDTH // 8 for segment in segments)


def loader(
    when: Callable[[Sequence[Any]], bool] = fatal, error: Exception | None = None
) -> Callable[[Path, torch.device, torch.dtype, torch.dtype], LoadedModel]:
    """Returns a function that loads a model whose transformer fails."""
    raised = error or torch.AcceleratorError(LOST)

    def load(folder: Path, device: torch.device, dtype: torch.dtype, stored: torch.dtype) -> LoadedModel:
        model = load_model(folder, device, dtype, stored)
        return replace(model, transformer=FailingTransformer(model.transformer, when, raised))  # type: ignore[arg-type]

    return load


class FailingSelector(TickSelector):
    """A tick selector with a bug: it raises where `fails` is true of the jobs on the device."""

    def __init__(self, estimator: JobEstimator, fails: Callable[[Sequence[DeviceJob]], bool]) -> None:
        super().__init__(estimator, ServiceLedger())
        self._fails = fails

    def select(self, jobs: Sequence[DeviceJob], tick_tokens: int) -> Tick | None:
        if self._fails(jobs):
            raise KeyError("a bug of the scheduler")
        return super().select(jobs, tick_tokens)


def failing_scheduler(fails: Callable[[Sequence[DeviceJob]], bool]) -> MakeScheduler:
    """Makes schedulers whose tick selector is a FailingSelector."""

    def make(estimator: JobEstimator) -> Scheduler:
        scheduler = Scheduler(estimator)
        scheduler.selector = FailingSelector(estimator, fails)
        return scheduler

    return make


@pytest.fixture
async def serve_broken(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Awaitable[GeneratorClient]]]:
    """Starts a generator of a model that `load` loads; starting it again on the same state ends the one before."""
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path))
    async with AsyncExitStack() as stack:

        async def start(load: LoadModel, make_scheduler: MakeScheduler = Scheduler) -> GeneratorClient:
            await stack.aclose()
            make = partial(GeneratorServicer, load=load, make_scheduler=make_scheduler)
            caller = await started(stack, demo, make, state=tmp_path / "state")
            await caller.server.loaded
            return caller

        yield start


async def ready(channel: Any, is_so: bool = True) -> None:
    """Returns once health says that the generator is, or is not, ready."""
    health: Any = health_pb2_grpc.HealthStub(channel)
    reply = health_pb2.HealthCheckResponse

    async def reported() -> bool:
        found = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE.full_name))
        return bool(found.status == (reply.SERVING if is_so else reply.NOT_SERVING))

    await until_async(reported, "health says that the generator is " + ("ready" if is_so else "not ready"))


def main(model: str, state: str, address: str) -> int:
    """Serves as the command does."""
    config = GeneratorConfig(model=Path(model), state=Path(state), device="cpu", dtype="float32", threads=1)
    service = GeneratorServicer(config, loader())
    return serve(service, ServeOptions(parse_listen("127.0.0.1:0"), address_file=Path(address)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
