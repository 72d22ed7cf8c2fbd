"""`zrelay jobs`: the durable jobs of the generators."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from zrelay_client.cli._flags import PLACE, endpoint_options
from zrelay_client.cli._job_ids import complete_jobs
from zrelay_client.settings import Settings
from zrelay_shared.errors import Cancelled, FailedPrecondition, ZrelayError

if TYPE_CHECKING:
    from zrelay_client.client import AsyncClient

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
_STATES = ("queued", "running", "succeeded", "failed", "cancelled")
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
_quiet = click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
_output = click.option(
    "-o", "--output", type=PLACE, metavar="FILE", help="File or folder. Default: a name from prompt and seed."
)
_force = click.option("--force", is_flag=True, help="Replace files that exist.")
_timeout = click.option("--timeout", type=float, metavar="SECONDS", help="Default: 1800.")
_id = click.argument("job_id", shell_complete=complete_jobs())


def _client(generator: str | None, profile: str | None, timeout: float | None = None) -> "AsyncClient":
    """Returns a client of the generators."""
    from zrelay_client.client import AsyncClient

    settings = Settings.load(profile, {"generator.endpoint": generator, "generate.timeout_s": timeout})
    settings.require("generator")
    return AsyncClient.from_settings(settings, roles=("generator",))


@click.group("jobs")
def command() -> None:
    """Look at jobs that generators keep, watch and cancel them, and fetch their pictures.

    \b
    zrelay generate "a red fox" --detach     leaves a job and prints its id
    zrelay jobs list --state running
    zrelay jobs watch ID                     its progress, to its end
    zrelay jobs fetch ID -o fox.png          its pictures
    """


@command.command("list")
@click.option("--state", "states", type=click.Choice(_STATES), multiple=True, help="Only these; repeat it for several.")
@click.option("--limit", type=click.IntRange(1), default=20, metavar="N", help="The newest N. Default: 20.")
@click.option("--all", "everything", is_flag=True, help="All of them, however many.")
@_json
@endpoint_options("generator")
def list_(
    states: tuple[str, ...], limit: int, everything: bool, as_json: bool, generator: str | None, profile: str | None
) -> None:
    """List jobs of all generators, newest first."""
    from zrelay_client.cli._job_table import plain_job, table
    from zrelay_client.events import Job

    client_of_generators = _client(generator, profile)

    missing: dict[str, str] = {}

    def silent(endpoint: str, error: ZrelayError) -> None:
        missing[endpoint] = error.message

    async def read() -> tuple[list[Job], bool]:
        jobs: list[Job] = []
        async with client_of_generators as client:
            async for job in client.jobs.list(states=states, on_failure=silent):
                if not everything and len(jobs) == limit:
                    return jobs, True
                jobs.append(job)
        return jobs, False

    jobs, more = asyncio.run(read())
    if as_json:
        said = {"jobs": [plain_job(job) for job in jobs], "more": more, "missing": missing}
        click.echo(json.dumps(said, ensure_ascii=False))
        return
    for endpoint, message in missing.items():
        click.echo(f"note: the jobs of {endpoint} are missing: {message}", err=True)
    for line in table(jobs) if jobs else ["no jobs"]:
        click.echo(line)
    if more:
        click.echo(f"the newest {limit}; --limit N or --all shows more", err=True)


@command.command("watch")
@_id
@click.option(
    "--after", type=click.IntRange(0, (1 << 63) - 1), default=0, metavar="N", help="From behind this sequence number."
)
@_output
@_force
@click.option("--preview", type=PLACE, metavar="PLACE", help="Write previews: a .jpg, or a folder that keeps all.")
@_timeout
@_json
@_quiet
@endpoint_options("generator")
def watch(
    job_id: str,
    after: int,
    output: str | None,
    force: bool,
    preview: str | None,
    timeout: float | None,
    as_json: bool,
    quiet: bool,
    generator: str | None,
    profile: str | None,
) -> None:
    """Watch the job to its end; with --output, write its pictures. Ctrl-C stops watching, not the job."""
    from zrelay_client.cli._console import Console
    from zrelay_client.cli._job_files import JobFiles
    from zrelay_client.cli._previews import Previews
    from zrelay_client.cli._watching import watched

    _check_stdout(output, as_json=as_json)
    client, console = _client(generator, profile, timeout), Console(quiet=quiet)
    files = JobFiles(output, force=force) if output is not None else None
    previews = Previews(Path(preview)) if preview is not None else None
    work = watched(client, job_id, after, files, previews, console)
    said = _run(work, console, "stopped watching; the job goes on if it was left running")
    _show(said, as_json=as_json)


@command.command("fetch")
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB_ID...", shell_complete=complete_jobs("succeeded"))
@_output
@_force
@_timeout
@_json
@_quiet
@endpoint_options("generator")
def fetch(
    job_ids: tuple[str, ...],
    output: str | None,
    force: bool,
    timeout: float | None,
    as_json: bool,
    quiet: bool,
    generator: str | None,
    profile: str | None,
) -> None:
    """Write the pictures of jobs, waiting for those that are not done. Never replaces a file unless told to."""
    from zrelay_client.cli._console import Console
    from zrelay_client.cli._job_files import JobFiles
    from zrelay_client.cli._watching import fetched

    _check_stdout(output, as_json=as_json)
    client, console = _client(generator, profile, timeout), Console(quiet=quiet)
    files = JobFiles(output, force=force, several=len(job_ids) > 1)
    work = fetched(client, job_ids, files, console)
    said = _run(work, console, "stopped waiting; the jobs go on")
    _show(said, as_json=as_json)
    if said["failed"]:
        raise FailedPrecondition(
            "; ".join(f"{job['job_id']}: {job['message']}" for job in said["failed"]),
            reason=said["failed"][0]["reason"],
        )


@command.command("cancel")
@click.argument(
    "job_ids", nargs=-1, required=True, metavar="JOB_ID...", shell_complete=complete_jobs("queued", "running")
)
@_json
@endpoint_options("generator")
def cancel(job_ids: tuple[str, ...], as_json: bool, generator: str | None, profile: str | None) -> None:
    """Cancel jobs: one that runs ends within a denoising step; one that has ended stays as it is."""
    from zrelay_client.cli._job_table import plain_job
    from zrelay_client.events import Job

    client_of_generators = _client(generator, profile)

    async def cancelled() -> tuple[list[Job], ZrelayError | None]:
        jobs, failure = [], None
        async with client_of_generators as client:
            for job_id in job_ids:
                try:
                    jobs.append(await client.jobs.cancel(job_id))
                except ZrelayError as error:
                    failure = failure or error
        return jobs, failure

    jobs, failure = asyncio.run(cancelled())
    if as_json:
        click.echo(json.dumps({"jobs": [plain_job(job) for job in jobs]}, ensure_ascii=False))
    else:
        for job in jobs:
            click.echo(f"{job.job_id} {job.state}")
    if failure is not None:
        raise failure


def _run(work: Coroutine[Any, Any, T], console: Any, stopped: str) -> T:
    """Runs it; Ctrl-C raises KeyboardInterrupt with what became of it. A job that was cancelled is no interruption of
    this command."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(stopped) from None
    except Cancelled as error:
        raise FailedPrecondition(error.message, reason=error.reason, metadata=error.metadata) from error
    finally:
        console.clear()


def _show(said: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(said, ensure_ascii=False))
        return
    for file in said["files"]:
        if file["path"] != "-":
            click.echo(file["path"])


def _check_stdout(output: str | None, *, as_json: bool) -> None:
    if as_json and output == "-":
        raise click.UsageError("--json and --output -: both want stdout; write the pictures to a file")
