"""Runs a step engine tick by tick in the thread of the test."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from zrelay_generator.cost.model import CostModel, Size
from zrelay_generator.engine.engine import StepEngine, run_to_end
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.events import EngineEvent, ImagePixels, JobStage, StageProgress
from zrelay_generator.engine.job import DeviceJob
from zrelay_generator.features.protocol import JobSpec, Output, Prompt
from zrelay_generator.model.loading import LoadedModel
from zrelay_generator.model.vae import Vae
from zrelay_generator.priority import Priority
from zrelay_generator.scheduling.shares import ServiceLedger
from zrelay_generator.scheduling.ticks import TickSelector

from .fixture_types import MakeEmbeds, MakeSampling, MakeSpec


class LatentsKept:
    """A VAE whose pictures nobody looks at: it keeps the latents it is given. It encodes as the real one."""

    factor = 8

    def __init__(self, real: Vae) -> None:
        self.latents: list[Tensor] = []
        self.moments = real.moments
        self.reference = real.reference
        self.decode: Callable[[Tensor], Tensor] = self.keep

    def keep(self, latents: Tensor) -> Tensor:
        """Keeps latents, and returns black pixels."""
        self.latents.append(latents)
        return torch.zeros(8, 8, 3, dtype=torch.uint8)


class UnmeasuredCost(CostModel):
    """A cost model that learns nothing, so that everything is packed with everything."""

    def observe_forward(self, size: Size, seconds: float) -> None:
        """Ignores the measurement."""


class EngineHarness:
    """An engine on a model.

    Attributes:
        vae: Receives the finished latents.
        events: Every event with the id of its job.
        estimator: Estimates durations for the engine.
        engine: The engine.
    """

    def __init__(self, model: LoadedModel, tick_tokens: int = 1 << 20, packs: bool = False, **engine: Any) -> None:
        """Creates an engine without jobs.

        Args:
            model: The model.
            tick_tokens: Tokens that one forward may have.
            packs: All images share their ticks, whether that pays or not.
            engine: Other keywords of StepEngine.
        """
        self.vae = LatentsKept(model.vae)
        self.events: list[tuple[str, EngineEvent]] = []
        self.estimator = JobEstimator(UnmeasuredCost() if packs else CostModel())
        kept = replace(model, vae=self.vae)  # type: ignore[arg-type]
        selector = TickSelector(self.estimator, ServiceLedger())
        self.engine = StepEngine(
            kept,
            tick_tokens,
            self.estimator,
            selector.select,
            lambda job, event: self.events.append((job.id, event)),
            completed=selector.completed,
            **engine,
        )
        self._arrivals = 0

    def add(self, spec: JobSpec, name: str = "job") -> DeviceJob:
        """Adds a job."""
        self._arrivals += 1
        job = DeviceJob(name, spec, self._arrivals)
        self.engine.add(job)
        return job

    def tick(self) -> None:
        """Runs one tick."""
        with torch.inference_mode():
            self.engine.tick()

    def paint_as_they_come(self, specs: list[JobSpec], after: list[int]) -> dict[tuple[int, int], Tensor]:
        """Adds each job after a number of ticks, and returns the finished latents by job and image."""
        ticks, kept = 0, {}
        waiting = sorted(zip(after, range(len(specs)), strict=True))
        while waiting or not self.engine.idle:
            while waiting and (waiting[0][0] <= ticks or self.engine.idle):
                number = waiting.pop(0)[1]
                self.add(specs[number], str(number))
            before = len(self.events)
            self.tick()
            ticks += 1
            for job, event in self.events[before:]:
                if isinstance(event, ImagePixels):
                    kept[int(job), event.image_index] = self.vae.latents[-1]
        return kept

    def paint(self, *specs: JobSpec) -> list[Tensor]:
        """Runs jobs to their end, and returns the latents of every image in the order in which they were finished."""
        for number, spec in enumerate(specs):
            self.add(spec, f"job-{number}")
        run_to_end(self.engine)
        return self.vae.latents


@pytest.fixture
def spec(sampling: MakeSampling, embeds: MakeEmbeds) -> MakeSpec:
    """Makes the job of a 64 x 64 image, its sampling changed by keywords."""

    def made(
        output: Output | None = None, priority: Priority = Priority.NORMAL, deterministic: bool = False, **changed: Any
    ) -> JobSpec:
        asked = sampling(width=64, height=64, **changed)
        return JobSpec(
            Prompt(embeds(20, 128)), asked, output or Output(), priority=priority, deterministic=deterministic
        )

    return made


def event_types(harness: EngineHarness, name: str) -> list[type[EngineEvent]]:
    """Returns the types of the events of a job, in order."""
    return [type(event) for job, event in harness.events if job == name]


def denoised_by(on: EngineHarness, name: str) -> int:
    """Returns the number of denoising steps that a job received events of."""
    steps = [event for job, event in on.events if job == name and isinstance(event, StageProgress)]
    return sum(event.stage is JobStage.DENOISE for event in steps)
