"""Chooses the work of each tick: which job leads it and which images join."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from zrelay_generator.cost.model import Size
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.job import DeviceJob, ImageState
from zrelay_generator.engine.ticks import DecodeTick, DenoiseTick, Tick, leading_image
from zrelay_generator.priority import Priority
from zrelay_generator.scheduling.order import Candidate, ranked
from zrelay_generator.scheduling.shares import ClassTurns, ServiceLedger

_LEAST_SAVING = 0.1
"""Share of its own time that an image must save by packing to join a tick."""
_LONGER_STEP_BOUND = 1.25
"""A tick takes at most this multiple of its time without the images whose own step is longer than the leader's."""
_LOWER_CLASS_BOUND = 1.05
"""A tick takes at most this multiple of its time without the images of lower classes: one part in 20, as for units."""


class TickSelector:
    """Chooses ticks for the step engine and accounts for them. Used by the device thread alone."""

    def __init__(self, estimator: JobEstimator, ledger: ServiceLedger) -> None:
        """Creates a selector.

        Args:
            estimator: Estimates steps and remaining work.
            ledger: Device seconds per caller; `completed` charges them.
        """
        self._estimator, self._ledger = estimator, ledger
        self._turns = ClassTurns()

    def select(self, jobs: Sequence[DeviceJob], tick_tokens: int) -> Tick | None:
        """Returns the work of the next tick, None if there is none.

        The first job of the class whose turn it is leads: a finished image of it is decoded, else its next image takes
        a step. Other images join in the same order if that pays, up to `tick_tokens` tokens. An image that must be
        alone has no company: images of deterministic jobs, so that no rounding depends on others, and images whose last
        tick failed.
        """
        by_class = _pending_by_class(jobs)
        if not by_class:
            return None
        first = self._turns.next_class(by_class)
        order = [
            job for priority in (first, *sorted(by_class.keys() - {first})) for job in self._ranked(by_class[priority])
        ]
        leader = order[0]
        for image in _pending(leader):
            if image.denoised and not image.decoding:
                return DecodeTick(image)
        candidates = [image for job in order for image in _steppable(job)]
        if not candidates:
            return None
        lead, *others = candidates
        tick = _TickBuilder(self._estimator, self._ledger, tick_tokens, lead, order)
        if not _is_alone(lead):
            for image in others:
                if not _is_alone(image) and tick.pays(image):
                    tick.add(image)
        return DenoiseTick(tuple(tick.images))

    def completed(self, jobs: Sequence[DeviceJob], tick: Tick, seconds: float) -> None:
        """Charges a tick to the callers of its images, in proportion to what each would have taken alone.

        Args:
            jobs: The jobs on the device when the tick was chosen.
            tick: The tick.
            seconds: How long it took on the device.
        """
        self._turns.completed(leading_image(tick).job.spec.priority, _pending_by_class(jobs))
        images = (tick.image,) if isinstance(tick, DecodeTick) else tick.images
        alone = [1.0] if len(images) == 1 else [self._alone_s(image) for image in images]
        total = sum(alone)
        for image, share in zip(images, alone, strict=True):
            part = share / total if total else 1.0 / len(images)
            self._ledger.charge(image.job.spec.priority, image.job.caller, seconds * part)

    def _ranked(self, jobs: Iterable[DeviceJob]) -> list[DeviceJob]:
        return ranked_jobs(jobs, self._estimator, self._ledger)

    def _alone_s(self, image: ImageState) -> float:
        return self._estimator.cost.forward_s(self._estimator.step_size(image))


def ranked_jobs(jobs: Iterable[DeviceJob], estimator: JobEstimator, ledger: ServiceLedger) -> list[DeviceJob]:
    """Orders jobs of one priority class that are on the device."""
    candidates = [Candidate(job, job.caller, job.accepted_at, job.arrival, estimator.remaining_s(job)) for job in jobs]
    if not candidates:
        return []
    priority = candidates[0].item.spec.priority
    order = ranked(candidates, lambda caller: ledger.received_s(priority, caller))
    return [one.candidate.item for one in order]


@dataclass(slots=True)
class _TickBuilder:
    """A tick that is being built. `order` contains all jobs that have work, the leader first."""

    estimator: JobEstimator
    ledger: ServiceLedger
    tick_tokens: int
    lead: ImageState
    order: Sequence[DeviceJob]
    images: list[ImageState] = field(default_factory=list)
    size: Size = field(default_factory=Size)
    urgent_size: Size = field(default_factory=Size)
    short_size: Size = field(default_factory=Size)
    lower_begin_s: float = 0.0
    encodes: bool = False
    _planned_s: dict[tuple[Priority, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._planned_s = {
            key: self.ledger.received_s(*key) for key in {(job.spec.priority, job.caller) for job in self.order}
        }
        self.add(self.lead)

    def add(self, image: ImageState) -> None:
        own = self.estimator.step_size(image)
        begin_s = self._begin_s(image)
        self.encodes = self.encodes or begin_s > 0.0
        self.images.append(image)
        self.size = self.size + own
        if self._is_lower(image):
            self.lower_begin_s += begin_s
        else:
            self.urgent_size = self.urgent_size + own
        if not self._is_longer(own):
            self.short_size = self.short_size + own
        self._planned_s[_account(image)] += self._forward_s(own)

    def pays(self, image: ImageState) -> bool:
        """Whether an image may join."""
        own = self.estimator.step_size(image)
        together = self.size + own
        if together.tokens > self.tick_tokens:
            return False
        begin_s = self._begin_s(image)
        if self.encodes and begin_s > 0.0:
            return False  # a unit encodes the pictures of one job: the next unit encodes those of the next job
        before_s, own_s, after_s = self._forward_s(self.size), self._forward_s(own), self._forward_s(together)
        if before_s + own_s - after_s < _LEAST_SAVING * own_s:
            return False
        if self._is_longer(own) and after_s > self._forward_s(self.short_size) * _LONGER_STEP_BOUND:
            return False  # a short job must not pay for the step of a long one
        if self._is_lower(image):
            after_s += self.lower_begin_s + begin_s
            if after_s > self._forward_s(self.urgent_size) * _LOWER_CLASS_BOUND:
                return False
        return self._is_fair(image, own_s)

    def _is_fair(self, image: ImageState, own_s: float) -> bool:
        """Whether the image's caller would be at most this job's work ahead of the least served caller of its class."""
        priority, caller = account = _account(image)
        others = [seconds for key, seconds in self._planned_s.items() if key[0] is priority and key[1] != caller]
        if not others:
            return True
        return self._planned_s[account] + own_s <= min(others) + max(self.estimator.remaining_s(image.job), own_s)

    def _is_lower(self, image: ImageState) -> bool:
        """Whether an image is of a lower class than the leader's."""
        return image.job.spec.priority > self.lead.job.spec.priority

    def _begin_s(self, image: ImageState) -> float:
        """Seconds before the first step of an image's job; 0 if another image of the job takes them."""
        taken = any(other.job is image.job for other in self.images if other is not image)
        return 0.0 if taken else self.estimator.begin_s(image.job)

    def _is_longer(self, own: Size) -> bool:
        """Whether a step is longer than the leader's."""
        return self._forward_s(own) > self._forward_s(self.estimator.step_size(self.lead))

    def _forward_s(self, size: Size) -> float:
        return self.estimator.cost.forward_s(size)


def _account(image: ImageState) -> tuple[Priority, str]:
    return image.job.spec.priority, image.job.caller


def _pending_by_class(jobs: Iterable[DeviceJob]) -> dict[Priority, list[DeviceJob]]:
    """The jobs that have work for the device thread, by class."""
    found: dict[Priority, list[DeviceJob]] = defaultdict(list)
    for job in jobs:
        if any(not image.decoding for image in _pending(job)):
            found[job.spec.priority].append(job)
    return dict(found)


def _pending(job: DeviceJob) -> Sequence[ImageState]:
    """Images of a job that are not decoded yet."""
    return [image for image in job.images if not image.decoded]


def _steppable(job: DeviceJob) -> Sequence[ImageState]:
    """Images of a job that have steps left; those that have begun first."""
    images = [image for image in job.images if not image.denoised]
    return sorted(images, key=lambda image: image.done == 0)


def _is_alone(image: ImageState) -> bool:
    return image.alone or image.job.spec.deterministic
