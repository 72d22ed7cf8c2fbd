"""`zrelay jobs`: the jobs that generators keep."""

import re
import shlex
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from zrelay_client.cli._options import (
    PATH,
    Flags,
    Integer,
    OptionsCommand,
    client_of,
    force_option,
    json_option,
    load_settings,
    option,
    quiet_option,
    run,
)
from zrelay_client.cli._output import Console, counted, echo, file_error_text, print_json, print_table, show_event
from zrelay_shared import exits
from zrelay_shared.errors import Cancelled, FailedPrecondition, ZrelayError
from zrelay_shared.limits import JOB_ID
from zrelay_shared.requests import request_setting

if TYPE_CHECKING:
    from pathlib import Path

    from click.shell_completion import CompletionItem

    from zrelay_client.cli._files import JobFiles, Previews
    from zrelay_client.events import Image, Job
    from zrelay_client.settings import Settings

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]
_STATES = ("queued", "running", "succeeded", "failed", "cancelled")
_COMPLETE_S = 1.0
"""Seconds in which job ids must be found while the user waits for the completion."""
_COMPLETE_JOBS = 50
_FILE_REASON = "LOCAL_FILE"
"""The reason in --json where an image could not be written; it is no error of zrelay."""
_HEADER = ("JOB", "STATE", "AGE", "SIZE", "STEPS", "SEED", "GENERATOR", "NOTE")
_TIMEOUT = [request_setting("generate.timeout_s")]
_output = option(
    "-o",
    "--output",
    heading="Output",
    type=PATH,
    metavar="PATH",
    help="A file, or a folder with / at its end, which is created; - is standard output.",
)


def complete_jobs(*states: str) -> Complete:
    """Returns a completion of the ids of the newest jobs in these states."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        flags = {"generator.endpoint": ctx.params.get("generator")}
        try:
            settings = load_settings(ctx.params.get("profile"), flags, "generator")
            return run(_matching_jobs(settings, states, incomplete))
        except (ZrelayError, OSError, TimeoutError):  # an unreachable generator must not disturb the shell
            return []

    return complete


def _checked_ids(ctx: click.Context, param: click.Parameter, value: str | tuple[str, ...]) -> Any:
    """Returns ids of jobs, which consist of characters that no shell and no terminal interprets."""
    for one in (value,) if isinstance(value, str) else value:
        if re.fullmatch(JOB_ID, one) is None:
            raise click.BadParameter(f"expected the id of a job, at most 64 of A-Z a-z 0-9 . _ -, got {one[:80]!r}")
    return value


def _job_ids(*states: str) -> Callable[[F], F]:
    """Declares the argument JOB_ID..., for which shells offer the jobs in these states."""
    return click.argument(
        "job_ids",
        nargs=-1,
        required=True,
        callback=_checked_ids,
        metavar="JOB_ID...",
        shell_complete=complete_jobs(*states),
    )


_job_id = click.argument("job_id", callback=_checked_ids, shell_complete=complete_jobs())


@click.group("jobs")
def command() -> None:
    """List the jobs that generators keep, watch and cancel them, and fetch their images.

    \b
    zrelay generate "a red fox" --detach     submits a job and prints its id
    zrelay jobs list --state running
    zrelay jobs watch ID                     shows its progress until it ends
    zrelay jobs fetch ID -o fox.png          writes its images
    """


@command.command("list", short_help="List the jobs of all generators.", cls=OptionsCommand, roles=("generator",))
@option("--state", "states", type=click.Choice(_STATES), multiple=True, help="Only this state; repeat it for more.")
@option("--limit", type=Integer(1), default=20, show_default=True, metavar="N", help="Only the newest N.")
@option("--all", "everything", is_flag=True, help="All jobs, without a limit.")
@json_option
def list_(
    states: tuple[str, ...], limit: int, everything: bool, as_json: bool, flags: Flags, profile: str | None
) -> None:
    """List the jobs of all generators, newest first."""
    settings = load_settings(profile, flags, "generator")
    missing: dict[str, str] = {}

    def on_failure(endpoint: str, error: ZrelayError) -> None:
        missing[endpoint] = error.message

    async def read() -> "tuple[list[Job], bool]":
        jobs: list[Job] = []
        async with client_of(settings, "generator") as client:
            async for job in client.jobs.list(states=states, on_failure=on_failure):
                if not everything and len(jobs) == limit:
                    return jobs, True
                jobs.append(job)
        return jobs, False

    jobs, more = run(read())
    if as_json:
        print_json({"jobs": [asdict(job) for job in jobs], "more": more, "missing": missing})
        return
    for endpoint, message in missing.items():
        echo(f"note: the jobs of {endpoint} are missing: {message}", err=True)
    if jobs:
        print_table(_HEADER, job_rows(jobs, time.time()), below=("GENERATOR", "NOTE"))
    else:
        echo("no jobs")
    if more:
        echo(f"these are the newest {limit}; --limit N or --all lists more", err=True)


@command.command(
    "watch", short_help="Show the progress of a job.", cls=OptionsCommand, settings=_TIMEOUT, roles=("generator",)
)
@_job_id
@option(
    "--after",
    type=Integer(0, (1 << 63) - 1),
    default=0,
    metavar="N",
    help="Only events after this sequence number.",
)
@_output
@force_option
@option(
    "--preview",
    heading="Output",
    type=PATH,
    metavar="PATH",
    help="Write previews: to a .jpg file that is replaced, or to a folder that keeps all.",
)
@json_option
@quiet_option
def watch(
    job_id: str,
    after: int,
    output: str | None,
    force: bool,
    preview: str | None,
    as_json: bool,
    quiet: bool,
    flags: Flags,
    profile: str | None,
) -> None:
    """Show the progress of a job until it ends; with --output, write its images. Ctrl-C stops watching, not the job."""
    from pathlib import Path

    from zrelay_client.cli._files import JobFiles, Previews

    _check_stdout(output, as_json=as_json)
    settings = load_settings(profile, flags, "generator")
    files = JobFiles(output, force=force) if output is not None else None
    previews = Previews(Path(preview)) if preview is not None else None
    with Console(quiet=quiet) as console:
        work = _watch(settings, job_id, after, files, previews, console)
        values = _run(work, "stopped watching; the job goes on if it was left running")
        _print_files(values, console, as_json=as_json)


@command.command(
    "fetch", short_help="Write the images of jobs.", cls=OptionsCommand, settings=_TIMEOUT, roles=("generator",)
)
@_job_ids("succeeded")
@_output
@force_option
@json_option
@quiet_option
def fetch(
    job_ids: tuple[str, ...],
    output: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    flags: Flags,
    profile: str | None,
) -> int:
    """Write the images of jobs, waiting for those that are not done.

    Without --output the file names are made of prompt and seed. Files that exist are kept, unless --force is given.
    """
    from zrelay_client.cli._files import JobFiles

    _check_stdout(output, as_json=as_json)
    settings = load_settings(profile, flags, "generator")
    files = JobFiles(output, force=force, several=len(job_ids) > 1)
    with Console(quiet=quiet) as console:
        written, failures = _run(_fetch(settings, job_ids, files, console), "stopped waiting; the jobs go on")
        _print_files({"files": written, "failed": [one.values() for one in failures]}, console, as_json=as_json)
    return _report(failures, several=len(job_ids) > 1)


@command.command("cancel", short_help="Cancel jobs.", cls=OptionsCommand, roles=("generator",))
@_job_ids("queued", "running")
@json_option
def cancel(job_ids: tuple[str, ...], as_json: bool, flags: Flags, profile: str | None) -> int:
    """Cancel jobs. A running job ends within one denoising step; one that has ended does not change.

    A job that cannot be cancelled does not keep the others from it.
    """
    settings = load_settings(profile, flags, "generator")
    ended, failures = run(_cancel(settings, job_ids))
    if as_json:
        jobs = [{**asdict(job), "outcome": "cancelled" if now else "already_over"} for job, now in ended]
        print_json({"jobs": jobs, "failed": [one.values() for one in failures]})
    else:
        for job, now in ended:
            echo(f"{job.job_id} {'cancelled' if now else f'already {job.state}'}")
    return _report(failures, several=len(job_ids) > 1)


def job_rows(jobs: "Sequence[Job]", now: float) -> list[tuple[str, ...]]:
    """Returns a row of the table for each job, which names the generator where they differ.

    Args:
        jobs: The jobs.
        now: Seconds since 1970.
    """
    several = len({job.endpoint for job in jobs}) > 1
    return [_row(job, now, job.endpoint if several else "") for job in jobs]


async def _watch(
    settings: "Settings",
    job_id: str,
    after: int,
    files: "JobFiles | None",
    previews: "Previews | None",
    console: Console,
) -> dict[str, Any]:
    """Shows a job until it ends and writes its images; returns what --json prints. Raises ZrelayError and OSError."""
    from zrelay_client.events import Accepted, Done, Image, Preview

    if previews is not None:
        previews.check()
    images: list[Image] = []
    done: Done | None = None
    console.status("connecting")
    async with client_of(settings, "generator") as client:
        job = await client.jobs.get(job_id)
        if files is not None:
            files.check(max(1, job.sampling.num_images))
        # Images before `after` are wanted, too, where images are written.
        async for event in client.jobs.watch(job_id, after_sequence=0 if files is not None else after):
            if isinstance(event, Preview) and previews is not None:
                previews.write(event)
            elif isinstance(event, Image):
                images.append(event)
            elif isinstance(event, Done):
                done = event
            if not isinstance(event, Accepted) or not job.ended:
                show_event(console, event)
    timings = {} if done is None else {name.removesuffix("_s"): took for name, took in asdict(done.timings).items()}
    written = [] if files is None else _write(job_id, tuple(images), files)
    if files is None:
        count = len(images) if done is None else done.images  # with --after, not all were received
        them = "it" if count == 1 else "them"
        fetch = shlex.join(["zrelay", "jobs", "fetch", job_id])
        console.message(f"done: {counted(count, 'image')}; `{fetch}` writes {them}")
    return {"job_id": job_id, "endpoint": job.endpoint, "files": written, "timings_s": timings}


@dataclass(frozen=True, slots=True)
class _FailedJob:
    """A job that could not be fetched or cancelled, and why."""

    job_id: str
    error: ZrelayError | OSError

    @property
    def exit_code(self) -> int:
        if isinstance(self.error, OSError):
            return exits.LOCAL_FILE
        # Cancelled: the job was cancelled, this command was not interrupted.
        return exits.REFUSED if isinstance(self.error, Cancelled) else exits.code_of(self.error)

    @property
    def message(self) -> str:
        return self.error.message if isinstance(self.error, ZrelayError) else file_error_text(self.error)

    def values(self) -> dict[str, str]:
        """Returns what --json prints."""
        reason = self.error.reason if isinstance(self.error, ZrelayError) else _FILE_REASON
        outcome = "not_found" if reason == "JOB_UNKNOWN" else "failed"
        return {"job_id": self.job_id, "outcome": outcome, "reason": reason, "message": self.message}


def _report(failures: Sequence[_FailedJob], *, several: bool) -> int:
    """Prints the failure of each job, and returns the exit code of the command: that of the first failure.

    `several` is whether the user named several jobs, so that each message names its own.
    """
    for one in failures:
        echo(f"error: {one.job_id}: {one.message}" if several else f"error: {one.message}", err=True)
    return failures[0].exit_code if failures else exits.OK


async def _cancel(settings: "Settings", job_ids: Sequence[str]) -> "tuple[list[tuple[Job, bool]], list[_FailedJob]]":
    """Cancels jobs. Returns those that have ended, each with whether this call ended it, and the failures."""
    ended: list[tuple[Job, bool]] = []
    failures: list[_FailedJob] = []
    async with client_of(settings, "generator") as client:
        for job_id in job_ids:
            try:
                before = await client.jobs.get(job_id)
                after = before if before.ended else await client.jobs.cancel(job_id)
                ended.append((after, not before.ended and after.state == "cancelled"))
            except ZrelayError as error:
                failures.append(_FailedJob(job_id, error))
    return ended, failures


async def _fetch(
    settings: "Settings", job_ids: Sequence[str], files: "JobFiles", console: Console
) -> tuple[list[dict[str, Any]], list[_FailedJob]]:
    """Writes the images of jobs, one job after another. Returns the files as --json prints them, and the failures."""
    written: list[dict[str, Any]] = []
    failures: list[_FailedJob] = []
    async with client_of(settings, "generator") as client:
        for job_id in job_ids:
            try:
                job = await client.jobs.get(job_id)
                files.check(max(1, job.sampling.num_images))
                console.status(f"{job_id}: {job.state}")
                written += _write(job_id, await client.jobs.fetch(job_id), files)
            except (ZrelayError, OSError) as error:
                failures.append(_FailedJob(job_id, error))
    return written, failures


def _write(job_id: str, images: "tuple[Image, ...]", files: "JobFiles") -> list[dict[str, Any]]:
    from zrelay_client.cli._files import file_values

    paths: Sequence[Path | None] = files.write(job_id, images)
    places = paths or [None] * len(images)  # no path on standard output
    return [{**file_values(image, path), "job_id": job_id} for image, path in zip(images, places, strict=True)]


async def _matching_jobs(settings: "Settings", states: tuple[str, ...], incomplete: str) -> "list[CompletionItem]":
    import asyncio

    from click.shell_completion import CompletionItem

    items: list[CompletionItem] = []
    async with asyncio.timeout(_COMPLETE_S), client_of(settings, "generator") as client:
        async for job in client.jobs.list(states=states):
            if job.job_id.startswith(incomplete):
                items.append(CompletionItem(job.job_id, help=job.state))
            if len(items) == _COMPLETE_JOBS:
                break
    return items


def _run(work: Coroutine[Any, Any, T], stopped: str) -> T:
    """Runs a coroutine. Ctrl-C raises KeyboardInterrupt with the message `stopped`."""
    try:
        return run(work)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(stopped) from None
    except Cancelled as error:  # the job was cancelled, this command was not interrupted
        raise FailedPrecondition(error.message, reason=error.reason, metadata=error.metadata) from error


def _print_files(values: dict[str, Any], console: Console, *, as_json: bool) -> None:
    console.clear()
    if as_json:
        print_json(values)
        return
    for file in values["files"]:
        if file["path"] != "-":
            console.result(file["path"])


def _check_stdout(output: str | None, *, as_json: bool) -> None:
    if as_json and output == "-":
        raise click.UsageError("--json and --output - both use standard output: choose one")


def _row(job: "Job", now: float, generator: str) -> tuple[str, ...]:
    sampling = job.sampling
    return (
        job.job_id,
        job.state,
        _age(now - job.accepted_at),
        f"{sampling.width}x{sampling.height}" + (f" x{sampling.num_images}" if sampling.num_images > 1 else ""),
        str(sampling.num_inference_steps),
        "" if sampling.seed is None else str(sampling.seed),
        generator,
        _note(job),
    )


def _note(job: "Job") -> str:
    if job.failure is not None:
        return job.failure.message
    if job.progress is None or job.ended:
        return ""
    if job.state == "queued":
        return f"{job.progress.queue_position} ahead"
    return f"{job.progress.stage.replace('_', ' ')} {job.progress.completed}/{job.progress.total}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
