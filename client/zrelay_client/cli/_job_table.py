"""Jobs as lines of a table, and as JSON's values."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from zrelay_client.events import Job

_HEAD = ("JOB", "STATE", "AGE", "SIZE", "STEPS", "SEED", "GENERATOR", "")


def table(jobs: Sequence[Job], now: float | None = None) -> list[str]:
    """A head and a line for each job."""
    rows = [_HEAD, *(_row(job, time.time() if now is None else now) for job in jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def plain_job(job: Job) -> dict[str, Any]:
    """A job as --json tells it."""
    return asdict(job)


def _row(job: Job, now: float) -> tuple[str, ...]:
    sampling = job.sampling
    return (
        job.job_id,
        job.state,
        _age(now - job.accepted_at),
        f"{sampling.width}x{sampling.height}" + (f" x{sampling.num_images}" if sampling.num_images > 1 else ""),
        str(sampling.num_inference_steps),
        "" if sampling.seed is None else str(sampling.seed),
        job.endpoint,
        _note(job),
    )


def _note(job: Job) -> str:
    if job.failure is not None:
        return job.failure.message
    if job.progress is None or job.ended:
        return ""
    if job.state == "queued":
        return f"{job.progress.queue_position} before"
    return f"{job.progress.stage.replace('_', ' ')} {job.progress.completed}/{job.progress.total}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
