"""Decides whether one more job is accepted, by estimated work and by bytes on disk. Refusals contain the numbers."""

import math
from dataclasses import dataclass

from zrelay_shared.errors import DeadlineExceeded, QueueFull, QuotaExceeded
from zrelay_shared.service.roles import GeneratorConfig
from zrelay_shared.shares import caller_share

_MIB = 1 << 20
_ESTIMATE_ERROR = 1.5
"""Estimates may be too high by this factor: only a job that exceeds its budget by more is certain to be late."""
_RETRY_S = (1.0, 60.0)


@dataclass(frozen=True, slots=True)
class CallerLoad:
    """What the caller of a submitted job has in the queue already.

    Attributes:
        waiting: Its jobs among `Load.waiting`.
        wait_s: Estimated seconds of its work among `Load.wait_s`.
        input_bytes: Its bytes among `Load.input_bytes`.
    """

    waiting: int
    wait_s: float
    input_bytes: int


@dataclass(frozen=True, slots=True)
class Load:
    """The load at the moment at which a job is submitted.

    Attributes:
        waiting: Jobs of its class and of more urgent ones that wait.
        ahead: Jobs that go before it.
        wait_s: Estimated seconds of their work.
        next_s: Seconds until the first job on the device is done.
        input_bytes: Bytes on disk that queued jobs need.
        caller_waiting: Jobs of the same caller that wait, of all classes.
        caller: What the same caller has of the above.
    """

    waiting: int
    ahead: int
    wait_s: float
    next_s: float
    input_bytes: int
    caller_waiting: int
    caller: CallerLoad


@dataclass(frozen=True, slots=True)
class Demand:
    """The resources that a new job needs.

    Attributes:
        run_s: Estimated seconds on the device.
        new_bytes: Bytes that it adds on disk.
        budget_s: Seconds that the caller waits for the result, None without a limit.
    """

    run_s: float
    new_bytes: int
    budget_s: float | None


def admit(demand: Demand, load: Load, config: GeneratorConfig) -> None:
    """Raises an error if a job exceeds the limits at the moment.

    Raises:
        QuotaExceeded: The caller has too many jobs that wait, or its share of the queue; with a retry hint.
        QueueFull: Too many jobs, seconds or bytes wait; with a retry hint.
        DeadlineExceeded: The job cannot be done within its budget.
    """
    _refuse_quota(load, config)
    _refuse_overload(demand, load, config)
    _refuse_share(demand, load, config)
    _refuse_late(demand, load)


def _refuse_quota(load: Load, config: GeneratorConfig) -> None:
    most = config.max_caller_waiting
    if most is None or load.caller_waiting < most:
        return
    retry = _retry(load.next_s)
    raise QuotaExceeded(
        f"{load.caller_waiting} of your requests wait here (at most {most} for one caller); try again in {retry:.0f} s",
        metadata={"waiting": load.caller_waiting, "max_caller_waiting": most},
        retry_after_s=retry,
    )


def _refuse_overload(demand: Demand, load: Load, config: GeneratorConfig) -> None:
    # A job is always accepted when nothing is before it: it may exceed the limit by itself.
    fits = load.waiting < config.max_waiting and load.input_bytes + demand.new_bytes <= config.max_waiting_bytes
    if fits and (not load.ahead or load.wait_s <= config.max_wait_s):
        return
    retry = _retry(max(load.wait_s - config.max_wait_s, load.next_s))
    raise QueueFull(
        f"{load.waiting} requests wait here (at most {config.max_waiting}), about {load.wait_s:.0f} s of work (at most "
        f"{config.max_wait_s:.0f} s) with {load.input_bytes / _MIB:.0f} MiB of inputs (at most "
        f"{config.max_waiting_bytes / _MIB:.0f}); try again in {retry:.0f} s, or use another generator",
        metadata={
            "waiting": load.waiting,
            "max_waiting": config.max_waiting,
            "wait_s": f"{load.wait_s:.1f}",
            "max_wait_s": f"{config.max_wait_s:g}",
        },
        retry_after_s=retry,
    )


def _refuse_share(demand: Demand, load: Load, config: GeneratorConfig) -> None:
    """Refuses a job of a caller that has its share of the queue: the rest is for others."""
    own, percent = load.caller, config.caller_share
    most = math.ceil(caller_share(config.max_waiting - (load.waiting - own.waiting), percent))
    most_s = caller_share(config.max_wait_s - (load.wait_s - own.wait_s), percent)
    most_bytes = caller_share(config.max_waiting_bytes - (load.input_bytes - own.input_bytes), percent)
    # As for the whole queue, the first job of a caller may exceed the share by itself.
    fits_disk = not own.input_bytes or own.input_bytes + demand.new_bytes <= most_bytes
    if own.waiting < most and fits_disk and (not own.wait_s or own.wait_s <= most_s):
        return
    retry = _retry(max(own.wait_s - most_s, load.next_s))
    raise QuotaExceeded(
        f"{own.waiting} of your requests wait here (at most {most}), about {own.wait_s:.0f} s of work (at most "
        f"{most_s:.0f} s) with {own.input_bytes / _MIB:.0f} MiB of inputs (at most {most_bytes / _MIB:.0f}); the rest "
        f"of the queue is for other callers: try again in {retry:.0f} s, use another generator, or have its operator "
        "raise --caller-share",
        metadata={
            "waiting": own.waiting,
            "max_waiting": most,
            "wait_s": f"{own.wait_s:.1f}",
            "max_wait_s": f"{most_s:g}",
            "caller_share": percent,
        },
        retry_after_s=retry,
    )


def _refuse_late(demand: Demand, load: Load) -> None:
    budget, run_s = demand.budget_s, demand.run_s
    if budget is None or load.wait_s + run_s <= _ESTIMATE_ERROR * budget:
        return
    stage = "queue" if load.wait_s > _ESTIMATE_ERROR * budget else "generate"
    raise DeadlineExceeded(
        f"about {load.wait_s:.1f} s of waiting and {run_s:.1f} s of work, but the call ends in {budget:.1f} s; "
        "allow more time, request less, or use SubmitJob",
        metadata={"stage": stage, "wait_s": f"{load.wait_s:.1f}", "run_s": f"{run_s:.1f}", "budget_s": f"{budget:.1f}"},
    )


def _retry(seconds: float) -> float:
    least, most = _RETRY_S
    return min(most, max(least, seconds))
