"""A job manager on a real store, with a list in place of the device."""

import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from zrelay_generator.cost.model import Size
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.job import DeviceJob
from zrelay_generator.features.protocol import JobSpec, Prompt
from zrelay_generator.images.writing import ImageFormat
from zrelay_generator.jobs.events import ImageFinished, JobEvent
from zrelay_generator.jobs.intake import Submission
from zrelay_generator.jobs.live import LiveJob
from zrelay_generator.jobs.manager import Dependencies, Intervals, JobManager
from zrelay_generator.jobs.saver import DEFAULT_HELD_LIMITS, HeldLimits
from zrelay_generator.priority import Priority
from zrelay_generator.runtime import retention
from zrelay_generator.scheduling.scheduler import Scheduler
from zrelay_generator.store.clock import SYSTEM_CLOCKS, SystemClocks
from zrelay_generator.store.records import JobRecord
from zrelay_generator.store.sqlite import open_store
from zrelay_shared.service.roles import GeneratorConfig

from .helpers import make_embeds, make_sampling

_DIGESTS = itertools.count()


class ManagedJobs:
    """A job manager whose jobs go to a list.

    Attributes:
        jobs: What the manager handed to the device.
        specs: The spec of each job, by request id.
        clock_s: What the manager's clock shows: a test changes it to let time pass.
    """

    def __init__(
        self,
        model: Path,
        *,
        retry_s: float = 2.0,
        first_watch_s: float = 5.0,
        held_limits: HeldLimits = DEFAULT_HELD_LIMITS,
        clocks: SystemClocks = SYSTEM_CLOCKS,
        **changed: Any,
    ) -> None:
        """Opens a store and creates a manager.

        Args:
            model: The pipeline folder that the configuration names.
            retry_s: As in the manager's intervals.
            first_watch_s: As in the manager's intervals.
            held_limits: As in the manager's dependencies.
            clocks: The clocks of the system.
            changed: Settings of the generator.
        """
        self.clock_s = 1000.0
        self.jobs: list[DeviceJob] = []
        self.estimator = JobEstimator()
        self.config = GeneratorConfig(model=model, **changed)
        self.store = open_store(self.config.state, retention(self.config), clocks)
        self.scheduler = Scheduler(self.estimator)
        self.specs: dict[str, JobSpec] = {}
        self.manager = JobManager(
            self.config,
            Dependencies(
                self.store,
                self.estimator,
                self.scheduler,
                self.jobs.append,
                self.load,
                lambda *_: b"",
                intervals=Intervals(retry_s=retry_s, first_watch_s=first_watch_s),
                held_limits=held_limits,
                clock=lambda: self.clock_s,
            ),
        )

    async def load(self, record: JobRecord) -> JobSpec:
        """Returns the spec of a submitted job."""
        return self.specs[record.request_id]

    def measured(self) -> None:
        """Teaches the cost model that a step of the smallest image takes a second, and a decode another."""
        self.estimator.cost.observe_forward(Size(96, 0), 1.0)
        self.estimator.cost.observe_decode(128 * 128, 1.0)

    async def submit(
        self, name: str, identity: str = "", priority: Priority = Priority.NORMAL, **changed: Any
    ) -> LiveJob:
        """Submits a job. Keywords are options of Submission, or else change its sampling."""
        known = ("detached", "caller", "owner", "budget_s", "new_bytes")
        options = {key: changed.pop(key) for key in known if key in changed}
        spec = JobSpec(Prompt(make_embeds(4, 8)), make_sampling(**changed), priority=priority)
        self.specs[name] = spec
        return await self.manager.submit(Submission(name, identity, spec, b"spec", {}, {}, **options))

    def publish(self, *events: JobEvent, job: int = -1) -> None:
        """Reports events of a job on the device, by its index in `jobs`."""
        for event in events:
            self.manager.publish(self.jobs[job], event)

    async def ended(self, job: LiveJob) -> None:
        """Returns when what happened to a job is in the store."""
        await self.manager.settled(job)


@pytest.fixture
async def manager(demo: Path) -> AsyncIterator[Callable[..., ManagedJobs]]:
    """Makes job managers; they are closed after the test."""
    made: list[ManagedJobs] = []

    def make(**changed: Any) -> ManagedJobs:
        made.append(ManagedJobs(demo, **changed))
        return made[-1]

    yield make
    for one in made:
        await one.manager.close()
        one.store.close()


def finished_image(size: int = 10) -> ImageFinished:
    """Returns a finished image of `size` bytes, with another digest each time."""
    sha256 = f"{next(_DIGESTS):064x}"
    return ImageFinished(0, 1, 1, 1, ImageFormat.PNG, b"x" * size, sha256, "")


async def collected(manager: JobManager, job: LiveJob, after: int = 0) -> list[JobEvent]:
    """Returns all events of a job until its last."""
    return [event async for _, event in manager.watch(job, after)]
