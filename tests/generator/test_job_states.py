"""The state machine of a job, checked against a model: the pure transition, and the manager over a real store."""

import asyncio
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from zrelay_demo import CHECKPOINT
from zrelay_generator.engine.events import JobFailed, JobStage, StageProgress
from zrelay_generator.engine.job import StageTimings
from zrelay_generator.jobs.events import ImageFinished, JobAccepted, JobEvent, JobSucceeded, PreviewReady
from zrelay_generator.jobs.transitions import Detached, transition
from zrelay_generator.scheduling.scheduler import QueueStanding
from zrelay_generator.store.clock import Moment
from zrelay_generator.store.records import JobState
from zrelay_shared.callers import NOBODY
from zrelay_shared.errors import Cancelled, IdempotencyConflict, InternalError

from .managed_jobs import ManagedJobs, collected, finished_image
from .stores import row

PROGRESS = StageProgress(JobStage.DENOISE, 1, 4, 0.1, 1.0)
EVENTS: dict[str, JobEvent | Detached] = {
    "accepted": JobAccepted(0, 0.0, 0.0),
    "standing": QueueStanding(1, 1.0),
    "progress": PROGRESS,
    "preview": PreviewReady(0, 1, b""),
    "image": finished_image(),
    "succeeded": JobSucceeded(2, StageTimings()),
    "failed": JobFailed(InternalError("a bug")),
    "cancelled": JobFailed(Cancelled("on request")),
    "detached": Detached(),
}
NEXT_STATE = {
    "progress": JobState.RUNNING,
    "succeeded": JobState.SUCCEEDED,
    "failed": JobState.FAILED,
    "cancelled": JobState.CANCELLED,
}


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=30))
def test_transitions_follow_the_table(names: list[str]) -> None:
    record, state, detached, kept = row(1), JobState.QUEUED, False, 1
    for sequence, name in enumerate(names, start=2):
        before = record
        record = transition(record, EVENTS[name], sequence=sequence, at=Moment(float(sequence), 2.0 * sequence))
        if state.ended:
            assert record is before, "nothing follows the last event"
            continue
        state, detached = NEXT_STATE.get(name, state), detached or name == "detached"
        if name in ("image", "succeeded", "failed", "cancelled"):
            kept = sequence
        assert (record.state, record.detached, record.sequence) == (state, detached, kept)
        assert (record.ended_at, record.ended_s) == ((float(sequence), 2.0 * sequence) if state.ended else (0.0, 0.0))
        assert (record.error is not None) == (state in (JobState.FAILED, JobState.CANCELLED))
        assert (record.arrival, record.accepted, record.work_s) == (before.arrival, before.accepted, before.work_s)


class ManagedJobsMachine(RuleBasedStateMachine):
    """Submits, runs, cancels and restarts; a model knows what each request's job must be."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.states: dict[str, JobState] = {}
        self.ids: dict[str, str] = {}
        self.images: dict[str, int] = {}
        self.detached: set[str] = set()
        self.specs: dict[str, Any] = {}

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @initialize()
    def start(self) -> None:
        self.run(self._open())

    async def _open(self) -> None:
        self.made = ManagedJobs(CHECKPOINT, state=Path(self.folder.name), lease_s=1e6)
        self.made.specs = self.specs
        await self.made.manager.restore()

    async def _close(self) -> None:
        await self.made.manager.close()
        self.made.store.close()

    @rule(target=requests, number=st.integers(0, 5), detached=st.booleans())
    def submit(self, number: int, detached: bool) -> str:
        name = f"request-{number}"
        job = self.run(self.made.submit(name, identity="0" * 64, detached=detached, num_images=2))
        known = self.states.get(name)
        if known in (None, JobState.FAILED, JobState.CANCELLED):
            assert job.record.job_id != self.ids.get(name)
            self.ids[name], self.states[name], self.images[name] = job.record.job_id, JobState.QUEUED, 0
            self.detached -= {name}
        else:
            assert job.record.job_id == self.ids[name], "a repeat attaches"
        if detached and not self.states[name].ended:
            self.detached.add(name)
        return name

    @rule(name=requests)
    def another_request_under_the_same_id_is_refused(self, name: str) -> None:
        with pytest.raises(IdempotencyConflict):
            self.run(self.made.submit(name, identity="1" * 64))

    @rule(name=requests, event=st.sampled_from(["progress", "image", "image", "succeeded", "failed"]))
    def happens(self, name: str, event: str) -> None:
        """The device reports something; reports on jobs that are over must change nothing."""
        device_job = next((job for job in reversed(self.made.jobs) if job.id == self.ids[name]), None)
        if device_job is None:
            return
        known = self.states[name]
        if event == "succeeded" and self.images[name] < 2 and not known.ended:
            return  # a device reports success after the last image
        value = EVENTS[event]
        if event == "image":
            number = self.images[name]
            if number == 2 and not known.ended:
                return
            value = ImageFinished(number, 1, 1, 1, finished_image().format, *_file(f"{self.ids[name]} {number}"))
        assert not isinstance(value, Detached)
        self.run(self._then_settled(name, lambda: self.made.manager.publish(device_job, value)))
        if known.ended:
            return
        if event == "image":
            self.images[name] += 1
        self.states[name] = NEXT_STATE.get(event, known)

    @rule(name=requests)
    def completes(self, name: str) -> None:
        """The device does all that is left of a job."""
        for event in ("progress", "image", "image", "succeeded"):
            self.happens(name, event)

    @rule(name=requests)
    def cancel(self, name: str) -> None:
        job = self.run(self.made.manager.directory.by_id(self.ids[name], NOBODY))
        self.run(self._then_settled(name, lambda: self.made.manager.cancel(job)))
        if not self.states[name].ended:
            self.states[name] = JobState.CANCELLED

    @rule()
    def restart(self) -> None:
        self.run(self._close())
        self.run(self._open())
        self.states = {
            name: JobState.QUEUED if state is JobState.RUNNING else state for name, state in self.states.items()
        }

    @invariant()
    @precondition(lambda self: hasattr(self, "made"))
    def every_job_is_as_the_model_says(self) -> None:
        for name, job_id in self.ids.items():
            job = self.run(self.made.manager.directory.by_id(job_id, NOBODY))
            assert job.record.state is self.states[name]
            assert len(job.log.images) == self.images[name]
            if not self.states[name].ended:
                assert job.record.detached == (name in self.detached)
        waiting = sum(state is JobState.QUEUED for state in self.states.values())
        running = sum(state is JobState.RUNNING for state in self.states.values())
        assert (self.made.scheduler.waiting, self.made.scheduler.running) == (waiting, running)

    @precondition(lambda self: any(state is JobState.SUCCEEDED for state in self.states.values()))
    @rule()
    def watching_what_is_over_shows_every_result(self) -> None:
        for name, state in self.states.items():
            if state is JobState.SUCCEEDED:
                job = self.run(self.made.manager.directory.by_id(self.ids[name], NOBODY))
                events = self.run(collected(self.made.manager, job))
                images = [event for event in events if isinstance(event, ImageFinished)]
                assert [image.data for image in images] == [_file(f"{self.ids[name]} {n}")[0] for n in (0, 1)]
                assert isinstance(events[-1], JobSucceeded)

    async def _then_settled(self, name: str, call: Callable[[], None]) -> None:
        call()
        job = self.made.manager.directory.living(self.ids[name])
        if job is not None:
            await self.made.manager.settled(job)

    def teardown(self) -> None:
        if hasattr(self, "made"):
            self.run(self._close())
        self.loop.close()
        self.folder.cleanup()


def _file(name: str) -> tuple[bytes, str, str]:
    """The bytes of an image file, their SHA-256, and no digest of pixels."""
    data = name.encode()
    return data, hashlib.sha256(data).hexdigest(), ""


TestManagedJobs = ManagedJobsMachine.TestCase
TestManagedJobs.settings = settings(stateful_step_count=25)
