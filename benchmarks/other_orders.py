"""Orders of jobs to compare the scheduler with: first come, first served, and the order of the release before."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.job import DeviceJob, ImageState
from zrelay_generator.engine.ticks import DecodeTick, DenoiseTick, Tick
from zrelay_generator.priority import Priority
from zrelay_generator.store.records import JobRecord

_LEAD_S = {Priority.INTERACTIVE: 0.0, Priority.NORMAL: 60.0, Priority.BATCH: 3600.0}
_AGE_S, _NEAR, _MOST_NEAR = 60.0, 16, 32


class FirstComeFirstServed:
    """One job after another, as servers without step batching do."""

    def __init__(self, estimator: JobEstimator, clock: Callable[[], float]) -> None:
        self._estimator, self._clock = estimator, clock
        self._waiting: list[JobRecord] = []
        self.selector = self

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def enter(self, record: JobRecord) -> None:
        self._waiting.append(record)

    def leave(self, record: JobRecord) -> None:
        if record in self._waiting:
            self._waiting.remove(record)

    def next_to_load(self) -> JobRecord | None:
        return self._waiting[0] if self._waiting else None

    def load(self, record: JobRecord) -> None:
        self._waiting.remove(record)

    def on_device(self, device_job: DeviceJob) -> None:
        pass

    def started(self, job_id: str) -> None:
        pass

    def select(self, jobs: Sequence[DeviceJob], tick_tokens: int) -> Tick | None:
        if not jobs:
            return None
        image = next(image for image in min(jobs, key=lambda job: job.arrival).images if not image.decoded)
        return DecodeTick(image) if image.denoised else DenoiseTick((image,))

    def completed(self, jobs: Sequence[DeviceJob], tick: Tick, seconds: float) -> None:
        pass


class PreviousOrder(FirstComeFirstServed):
    """The order of version 0.1 before the scheduler was rebuilt: two orders that contradict each other.

    The queue puts normal jobs a minute and batch jobs an hour behind interactive ones; the device lifts a job by one
    class for each minute of waiting.
    """

    def __init__(self, estimator: JobEstimator, clock: Callable[[], float]) -> None:
        super().__init__(estimator, clock)
        self._keys: dict[int, float] = {}
        self._near: dict[str, tuple[JobRecord, DeviceJob | None]] = {}
        self._served: dict[str, float] = defaultdict(float)

    def enter(self, record: JobRecord) -> None:
        own = [one.work_s for one in self._waiting if one.caller == record.caller and one.work_s <= record.work_s]
        key = record.accepted_s + _LEAD_S[record.priority] + 2.0 * record.work_s + sum(own)
        self._keys[record.arrival] = key
        self._waiting.append(record)

    def leave(self, record: JobRecord) -> None:
        self._near.pop(record.job_id, None)
        super().leave(record)

    def next_to_load(self) -> JobRecord | None:
        heads = {
            priority: min(own, key=self._key)
            for priority in Priority
            if (own := [one for one in self._waiting if one.priority is priority])
        }
        return min(filter(self._allowed, heads.values()), key=self._key, default=None)

    def load(self, record: JobRecord) -> None:
        super().load(record)
        self._near[record.job_id] = (record, None)

    def on_device(self, device_job: DeviceJob) -> None:
        self._near[device_job.id] = (self._near[device_job.id][0], device_job)

    def select(self, jobs: Sequence[DeviceJob], tick_tokens: int) -> Tick | None:
        order = [job for job in self._ranked(jobs) if any(not image.decoded for image in job.images)]
        if not order:
            return None
        for image in order[0].images:
            if image.denoised and not image.decoded:
                return DecodeTick(image)
        images = [image for job in order for image in job.images if not image.denoised]
        chosen, size, bound_s = [images[0]], self._estimator.step_size(images[0]), math.inf
        if not images[0].job.spec.deterministic:
            bound_s = self._bound(images[0], math.inf)
            for image in images[1:]:
                own = self._estimator.step_size(image)
                before_s, after_s, own_s = map(self._estimator.cost.forward_s, (size, size + own, own))
                longer = own_s > self._estimator.cost.forward_s(self._estimator.step_size(images[0]))
                slows = image.job.spec.priority is Priority.INTERACTIVE and after_s > 1.25 * own_s
                saves = before_s + own_s - after_s >= 0.1 * own_s
                if saves and after_s <= bound_s and not slows and not (longer and after_s > 1.25 * before_s):
                    chosen.append(image)
                    size, bound_s = size + own, self._bound(image, bound_s)
        return DenoiseTick(tuple(chosen))

    def completed(self, jobs: Sequence[DeviceJob], tick: Tick, seconds: float) -> None:
        images = (tick.image,) if isinstance(tick, DecodeTick) else tick.images
        for job_id in {image.job.id for image in images}:
            self._served[job_id] += seconds

    def _bound(self, image: ImageState, bound_s: float) -> float:
        if image.job.spec.priority is not Priority.INTERACTIVE:
            return bound_s
        return min(bound_s, 1.25 * self._estimator.cost.forward_s(self._estimator.step_size(image)))

    def _ranked(self, jobs: Iterable[DeviceJob]) -> list[DeviceJob]:
        levels: dict[int, dict[str, list[tuple[float, int, DeviceJob]]]] = defaultdict(lambda: defaultdict(list))
        for job in jobs:
            waited = max(0.0, self._clock() - job.accepted_at - self._served[job.id])
            level = int(job.spec.priority) - int(waited / _AGE_S)
            levels[level][job.caller].append((self._estimator.remaining_s(job), job.arrival, job))
        order: list[DeviceJob] = []
        for _, callers in sorted(levels.items()):
            keyed = []
            for own in callers.values():
                total = 0.0
                for seconds, arrival, job in sorted(own, key=lambda one: one[:2]):
                    total += seconds
                    keyed.append((total, arrival, job))
            order += [job for *_, job in sorted(keyed, key=lambda one: one[:2])]
        return order

    def _key(self, record: JobRecord) -> tuple[float, int]:
        return self._keys[record.arrival], record.arrival

    def _allowed(self, record: JobRecord) -> bool:
        near = [pair for pair in self._near.values() if pair[0].priority <= record.priority]
        if len(near) >= _MOST_NEAR:
            return False
        if len(near) < _NEAR:
            return True
        return sum(self._near_key(*pair) < self._key(record) for pair in near) < _NEAR

    def _near_key(self, record: JobRecord, job: DeviceJob | None) -> tuple[float, int]:
        left_s = record.work_s if job is None else self._estimator.remaining_s(job)
        return self._keys[record.arrival] + 2.0 * min(0.0, left_s - record.work_s), record.arrival
