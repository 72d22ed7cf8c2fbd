"""Which work the next tick does: who leads it, and who joins. Pure: jobs, the cost model and the time in, work out."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from zrelay_generator.cost.model import Speed
from zrelay_generator.engine.job import ImageState, Job
from zrelay_generator.features.protocol import Priority
from zrelay_generator.model.size import Size

AGE_S = 60.0
"""Seconds of waiting that lift a job by one priority. Time on the device does not count, so what runs stays behind what
is shorter, and what waits is not overtaken for ever: only by what came at most a few minutes after it."""
_WORTH = 0.1
"""Share of its own time that a job must save by packing to join a tick that others wait for."""
_SLACK = 1.25
"""A tick with an interactive job in it takes at most this much longer by company, and any tick by an image whose own
step is longer than the leader's: a short job must not pay a poster's step for each of its own."""


@dataclass(frozen=True, slots=True)
class Steps:
    """One denoising step of these images, packed."""

    images: tuple[ImageState, ...]


@dataclass(frozen=True, slots=True)
class Decode:
    """One finished image to pixels."""

    image: ImageState


Work = Steps | Decode


@dataclass(slots=True)
class _Tick:
    """A tick that is being put together."""

    speed: Speed
    tick_tokens: int
    images: list[ImageState] = field(default_factory=list)
    size: Size = field(default_factory=Size)
    bound_s: float = float("inf")
    leader_s: float = 0.0

    def takes(self, image: ImageState) -> bool:
        """Adds the image where that pays; False leaves the tick as it was."""
        own = self.speed.step_size(image)
        together = self.size + own
        after_s, own_s = self.speed.forward_s(together), self.speed.forward_s(own)
        if self.images:
            before_s = self.speed.forward_s(self.size)
            saved_s = before_s + own_s - after_s
            if own_s > self.leader_s and after_s > before_s * _SLACK:
                return False
            if together.tokens > self.tick_tokens or saved_s < _WORTH * own_s or after_s > self.bound_s:
                return False
            if _is_interactive(image) and after_s > own_s * _SLACK:
                return False
        else:
            self.leader_s = own_s
        if _is_interactive(image):
            self.bound_s = min(self.bound_s, (after_s if not self.images else own_s) * _SLACK)
        self.images.append(image)
        self.size = together
        return True


def next_work(jobs: Iterable[Job], tick_tokens: int, speed: Speed, now: float) -> Work | None:
    """The work of the next tick, None where there is none. `now` is of time.monotonic.

    The first job in the order of `ranked` leads: a finished image of it is decoded, else its next image takes a step.
    Others join in the same order where it pays, up to `tick_tokens`. An image that must be alone has no company: those
    of a deterministic job, so that no rounding can depend on others, and those whose last tick failed.
    """
    order = [job for job in ranked(jobs, speed, now) if any(not image.decoding for image in pending(job))]
    if not order:
        return None
    for image in pending(order[0]):
        if image.denoised and not image.decoding:
            return Decode(image)
    candidates = [image for job in order for image in steppable(job)]
    if not candidates:
        return None
    lead, *others = candidates
    tick = _Tick(speed, tick_tokens)
    tick.takes(lead)
    if not _stands_alone(lead):
        for image in others:
            if not _stands_alone(image):
                tick.takes(image)
    return Steps(tuple(tick.images))


def ranked(jobs: Iterable[Job], speed: Speed, now: float) -> list[Job]:
    """The jobs in the order in which they are taken.

    By priority, a level up for each minute of waiting. Among equals by the work that is left, and not of the job alone
    but of its caller up to this job: who asks for a hundred pictures stands a hundred pictures behind, and who asks for
    one beside him is next. Then by arrival.
    """
    by_level: dict[int, dict[str, list[tuple[float, int, Job]]]] = defaultdict(lambda: defaultdict(list))
    for job in jobs:
        entry = (speed.remaining_s(job), job.arrival, job)
        by_level[level(job, now)][job.caller].append(entry)
    order: list[Job] = []
    for _, callers in sorted(by_level.items()):
        keyed = []
        for own in callers.values():
            total = 0.0
            for seconds, arrival, job in sorted(own, key=lambda entry: entry[:2]):
                total += seconds
                keyed.append((total, arrival, job))
        order += [job for _, _, job in sorted(keyed, key=lambda entry: entry[:2])]
    return order


def level(job: Job, now: float) -> int:
    """Priority after aging; lower is earlier."""
    waited = max(0.0, now - job.accepted_at - job.timings.served_s)
    return int(job.spec.priority) - int(waited / AGE_S)


def pending(job: Job) -> Sequence[ImageState]:
    """Images of a job that are not pictures yet."""
    return [image for image in job.images if not image.decoded]


def steppable(job: Job) -> Sequence[ImageState]:
    """Images of a job that have steps to take; those that have begun first."""
    images = [image for image in job.images if not image.denoised]
    return sorted(images, key=lambda image: image.done == 0)


def _stands_alone(image: ImageState) -> bool:
    return image.alone or image.job.spec.deterministic


def _is_interactive(image: ImageState) -> bool:
    return image.job.spec.priority is Priority.INTERACTIVE
