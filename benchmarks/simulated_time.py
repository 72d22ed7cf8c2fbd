"""The scheduler in simulated time: real jobs, queue, prefetch and ticks; a unit takes what the cost model estimates."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from zrelay_generator.cost.model import Size
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.job import DeviceJob, ImageState
from zrelay_generator.engine.ticks import DecodeTick, Tick, leading_image
from zrelay_generator.features.image_to_image.spec import ImageToImageSpec
from zrelay_generator.features.protocol import JobSpec, Prompt, SamplingSettings
from zrelay_generator.features.schedule import shifted_schedule
from zrelay_generator.model.packing import Conditioning
from zrelay_generator.priority import Priority
from zrelay_generator.scheduling.scheduler import Scheduler
from zrelay_generator.store.records import JobRecord

TICK_TOKENS = 1 << 20
_BEGUN = Conditioning(0, torch.zeros(0), torch.zeros(0))
"""Marks a job whose images are encoded."""


@dataclass(frozen=True)
class SimulatedArrival:
    """A job that arrives: `side` pixels of a square image, `steps` forwards.

    `from_image` makes it start from an image, which is encoded by the VAE before the first step.
    """

    at: float
    priority: Priority = Priority.NORMAL
    caller: str = "caller"
    side: int = 64
    steps: int = 4
    deterministic: bool = False
    from_image: bool = False


@dataclass
class SimulatedUnit:
    """A tick that was run.

    Attributes:
        began: Simulated seconds at its start.
        seconds: How long it took, image encoding before a first step included.
        lead: The job that led it.
        waiting: The classes that had jobs on the device.
        urgent_s: How long it would have taken without images of lower classes than the lead's.
        encoding_jobs: Jobs whose pictures were encoded in it, before their first step.
        received_s: Its seconds by the caller of the images, in proportion to what each image would have taken alone.
    """

    began: float
    seconds: float
    lead: JobRecord
    waiting: frozenset[Priority]
    urgent_s: float
    encoding_jobs: int
    received_s: dict[str, float]


class TickChoice(Protocol):
    """Chooses ticks, as `scheduling.ticks.TickSelector` does."""

    def select(self, jobs: Sequence[DeviceJob], tick_tokens: int) -> Tick | None: ...
    def completed(self, jobs: Sequence[DeviceJob], tick: Tick, seconds: float) -> None: ...


class JobOrder(Protocol):
    """Orders jobs, as `scheduling.scheduler.Scheduler` does."""

    @property
    def selector(self) -> TickChoice: ...
    @property
    def waiting(self) -> int: ...
    def enter(self, record: JobRecord) -> None: ...
    def leave(self, record: JobRecord) -> None: ...
    def next_to_load(self) -> JobRecord | None: ...
    def load(self, record: JobRecord) -> None: ...
    def on_device(self, device_job: DeviceJob) -> None: ...
    def started(self, job_id: str) -> None: ...


MakeOrder = Callable[[JobEstimator, Callable[[], float]], JobOrder]


def make_scheduler(estimator: JobEstimator, clock: Callable[[], float]) -> JobOrder:
    """Makes the scheduler of the generator, which needs no clock."""
    return Scheduler(estimator)


@dataclass
class Simulation:
    """A device that runs jobs, and everything that happened.

    Attributes:
        base_s: Seconds of a forward without tokens.
        per_token_s: Further seconds per token.
        make_order: Makes the order of jobs from the cost model and a clock.
        now: Simulated seconds.
        units: Every tick that was run.
        began: Seconds at which each job began, by its number.
        ended: Seconds at which each job ended.
    """

    base_s: float = 0.01
    per_token_s: float = 1e-4
    make_order: MakeOrder = make_scheduler
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
        self.scheduler = self.make_order(self.estimator, lambda: self.now)
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
        schedule = shifted_schedule(arrival.steps, 3.0)
        sampling = SamplingSettings(arrival.side, arrival.side, 0.0, 0.0, 1.0, 3.0, schedule, number, 1)
        pixels = torch.zeros(1, dtype=torch.uint8).expand(3, arrival.side, arrival.side)
        spec = JobSpec(
            Prompt(torch.zeros(8, 8)),
            sampling,
            priority=arrival.priority,
            deterministic=arrival.deterministic,
            features=(ImageToImageSpec(pixels, "", strength=1.0),) if arrival.from_image else (),
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
            accepted_s=self.now,
            accepted=b"",
        )
        self.scheduler.enter(record)
        return spec

    def _load(self, specs: dict[int, JobSpec]) -> None:
        while (record := self.scheduler.next_to_load()) is not None:
            self.scheduler.load(record)
            spec = specs[record.arrival]
            job = DeviceJob(record.job_id, spec, record.arrival, accepted_at=record.accepted_s, caller=record.caller)
            self.scheduler.on_device(job)
            self.jobs.append(job)

    def _run(self, tick: Tick) -> None:
        images = (tick.image,) if isinstance(tick, DecodeTick) else tick.images
        seconds = self._seconds(tick, images)
        lead = leading_image(tick).job
        urgent_s = self._seconds(tick, [image for image in images if image.job.spec.priority <= lead.spec.priority])
        alone = [self._seconds(tick, [image]) for image in images]
        received: dict[str, float] = defaultdict(float)
        for image, alone_s in zip(images, alone, strict=True):
            received[image.job.caller] += seconds * alone_s / sum(alone)
        waiting = frozenset(job.spec.priority for job in self.jobs)
        encoding = {image.job.id for image in images if self.estimator.begin_s(image.job)}
        record = self.records[lead.arrival]
        self.units.append(SimulatedUnit(self.now, seconds, record, waiting, urgent_s, len(encoding), dict(received)))
        self.scheduler.selector.completed(self.jobs, tick, seconds)
        for image in images:
            self.began.setdefault(image.job.arrival, self.now)
            self.scheduler.started(image.job.id)
            if isinstance(tick, DecodeTick):
                image.decoded = True
            else:
                image.job.conditioning = _BEGUN
                image.done += 1
        self.now += seconds
        for job in [job for job in self.jobs if all(image.decoded for image in job.images)]:
            self.jobs.remove(job)
            self.ended[job.arrival] = self.now
            self.scheduler.leave(self.records[job.arrival])
            job.release()

    def _seconds(self, tick: Tick, images: Sequence[ImageState]) -> float:
        """How long a tick takes for some of its images."""
        if isinstance(tick, DecodeTick):
            return self.estimator.decode_s(tick.image.job)
        forward_s = self.estimator.cost.forward_s(sum((self.estimator.step_size(image) for image in images), Size()))
        return forward_s + sum(
            self.estimator.begin_s(job) for job in {id(image.job): image.job for image in images}.values()
        )
