"""The scheduler in simulated time: real jobs, queue, prefetch and ticks; the device takes what the cost model says."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from zrelay_generator.cost.size import Size
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.job import DeviceJob, ImageState
from zrelay_generator.engine.ticks import DecodeTick, Tick, leading_image
from zrelay_generator.features.protocol import JobSpec
from zrelay_generator.priority import Priority
from zrelay_generator.scheduling.scheduler import Scheduler
from zrelay_generator.store.records import JobRecord

from .helpers import make_sampling

TICK_TOKENS = 1 << 20


@dataclass(frozen=True)
class SimulatedArrival:
    """A job that arrives: `side` pixels of a square image, `steps` forwards."""

    at: float
    priority: Priority = Priority.NORMAL
    caller: str = "caller"
    side: int = 64
    steps: int = 4
    deterministic: bool = False


@dataclass
class SimulatedUnit:
    """A tick that was run: its lead and its images' callers, when it began and what it took."""

    began: float
    seconds: float
    lead: JobRecord
    waiting: frozenset[Priority]
    tick: Tick


@dataclass
class Simulation:
    """A device that runs `arrivals`, and everything that happened."""

    base_s: float = 0.01
    per_token_s: float = 1e-4
    now: float = 0.0
    units: list[SimulatedUnit] = field(default_factory=list)
    began: dict[int, float] = field(default_factory=dict)
    ended: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.estimator = JobEstimator()
        for tokens in (64, 256, 1024, 4096):
            size = Size(tokens, 0.0)
            self.estimator.cost.observe_forward(size, self.base_s + self.per_token_s * tokens)
            self.estimator.cost.observe_decode(tokens * 256, 0.001 + tokens * 1e-5)
        self.scheduler = Scheduler(self.estimator)
        self.jobs: list[DeviceJob] = []
        self.records: dict[int, JobRecord] = {}

    def run(self, arrivals: Iterable[SimulatedArrival], until: float = float("inf")) -> None:
        """Runs until every job is done, or until a moment in simulated time."""
        left = sorted(enumerate(arrivals), key=lambda pair: (pair[1].at, pair[0]))
        specs = {}
        while (left or self.jobs or self.scheduler.waiting) and self.now < until:
            while left and left[0][1].at <= self.now:
                number, arrival = left.pop(0)
                specs[number] = self._accept(number, arrival)
            self._load(specs)
            tick = self.scheduler.selector.select(self.jobs, TICK_TOKENS)
            if tick is not None:
                self._run(tick)
            elif left:
                self.now = left[0][1].at

    def _accept(self, number: int, arrival: SimulatedArrival) -> JobSpec:
        sampling = make_sampling(width=arrival.side, height=arrival.side, steps=arrival.steps, seed=number)
        spec = JobSpec(
            torch.zeros(8, 8), None, sampling, priority=arrival.priority, deterministic=arrival.deterministic
        )
        self.records[number] = record = JobRecord(
            arrival=number,
            job_id=str(number),
            request_id=str(number),
            identity="",
            priority=arrival.priority,
            caller=arrival.caller,
            model="",
            work_s=self.estimator.estimate(spec).seconds,
            input_bytes=0,
            accepted_at=self.now,
            accepted=b"",
        )
        self.scheduler.enter(record)
        return spec

    def _load(self, specs: dict[int, JobSpec]) -> None:
        while (record := self.scheduler.next_to_load()) is not None:
            self.scheduler.load(record)
            spec = specs[record.arrival]
            job = DeviceJob(record.job_id, spec, record.arrival, accepted_at=record.accepted_at, caller=record.caller)
            self.scheduler.on_device(job)
            self.jobs.append(job)

    def _run(self, tick: Tick) -> None:
        cost = self.estimator.cost
        if isinstance(tick, DecodeTick):
            images: tuple[ImageState, ...] = (tick.image,)
            seconds = self.estimator.decode_s(tick.image.job)
        else:
            images = tick.images
            seconds = cost.forward_s(sum((self.estimator.step_size(image) for image in images), Size()))
        lead = self.records[leading_image(tick).job.arrival]
        waiting = frozenset(job.spec.priority for job in self.jobs)
        self.units.append(SimulatedUnit(self.now, seconds, lead, waiting, tick))
        self.scheduler.selector.completed(self.jobs, tick, seconds)
        for image in images:
            self.began.setdefault(image.job.arrival, self.now)
            self.scheduler.started(image.job.id)
            if isinstance(tick, DecodeTick):
                image.decoded = True
            else:
                image.done += 1
        self.now += seconds
        for job in [job for job in self.jobs if all(image.decoded for image in job.images)]:
            self.jobs.remove(job)
            self.ended[job.arrival] = self.now
            self.scheduler.leave(self.records[job.arrival])
            job.release()
