"""Whether one more job is taken: by estimated work and by what it would keep on disk, told with numbers."""

from dataclasses import dataclass

from zrelay_generator.jobs.request import Request
from zrelay_generator.settings import GeneratorConfig
from zrelay_shared.errors import DeadlineExceeded, QueueFull, QuotaExceeded

_MIB = 1 << 20
_SURELY_LATE = 1.5
"""Estimates may be this many times too high: only what is over the budget by more cannot be done in time."""
_RETRY_S = (1.0, 60.0)


@dataclass(frozen=True, slots=True)
class Load:
    """What is before a job: `waiting` jobs in all, `ahead` of it, `wait_s` their work, `next_s` until the first of
    them is done; `input_bytes` on disk for those that wait, `caller_waiting` of the same caller."""

    waiting: int
    ahead: int
    wait_s: float
    next_s: float
    input_bytes: int
    caller_waiting: int


def admit(request: Request, run_s: float, load: Load, config: GeneratorConfig) -> None:
    """Raises QueueFull and QuotaExceeded with a retry hint, DeadlineExceeded where the job cannot be done in time."""
    _refuse_quota(request, load, config)
    _refuse_overload(request, load, config)
    _refuse_late(request, run_s, load)


def _refuse_quota(request: Request, load: Load, config: GeneratorConfig) -> None:
    most = config.max_caller_waiting
    if most is None or load.caller_waiting < most:
        return
    retry = _retry(load.next_s)
    raise QuotaExceeded(
        f"{load.caller_waiting} of your requests wait here (at most {most} for one caller); try again in {retry:.0f} s",
        metadata={"waiting": load.caller_waiting, "max_caller_waiting": most},
        retry_after_s=retry,
    )


def _refuse_overload(request: Request, load: Load, config: GeneratorConfig) -> None:
    # A job is always taken when nothing is before it: it may be longer than any limit by itself.
    fits = load.waiting < config.max_waiting and load.input_bytes + request.new_bytes <= config.max_waiting_bytes
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


def _refuse_late(request: Request, run_s: float, load: Load) -> None:
    budget = request.budget_s
    if budget is None or load.wait_s + run_s <= _SURELY_LATE * budget:
        return
    stage = "queue" if load.wait_s > _SURELY_LATE * budget else "generate"
    raise DeadlineExceeded(
        f"about {load.wait_s:.1f} s of waiting and {run_s:.1f} s of work, but the call ends in {budget:.1f} s: "
        "allow it more, ask for less, or use SubmitJob",
        metadata={"stage": stage, "wait_s": f"{load.wait_s:.1f}", "run_s": f"{run_s:.1f}", "budget_s": f"{budget:.1f}"},
    )


def _retry(seconds: float) -> float:
    least, most = _RETRY_S
    return min(most, max(least, seconds))
