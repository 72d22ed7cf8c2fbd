"""Runs jobs of `zrelay generate`: one, many, or detached ones; and what Ctrl-C and other signals do to them.

Ctrl-C cancels the jobs at the generator. Pressed twice it leaves them running there, and prints the commands that fetch
their images. SIGTERM and SIGHUP, of `timeout` or a closed terminal, cancel the jobs at once; a second one ends the
process, and the jobs then end with their lease.
"""

import asyncio
import contextlib
import shlex
import signal
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from zrelay_client.cli._files import Previews, file_values
from zrelay_client.cli._image_jobs import ImageJob
from zrelay_client.cli._options import client_of, with_flag
from zrelay_client.cli._output import Console, counted, format_seconds, print_json, report_message, show_event
from zrelay_client.client import AsyncClient
from zrelay_client.embeds import Embeds
from zrelay_client.events import Event, Job, Notice, Preview
from zrelay_client.results import Outcome, Result
from zrelay_client.settings import Settings
from zrelay_shared import exits
from zrelay_shared.config import Config
from zrelay_shared.errors import ZrelayError
from zrelay_shared.signals import TERMINATING, on_signals

_SECOND_PRESS_S = 0.7
"""Seconds in which a second Ctrl-C counts as pressed twice."""
_SUBMITS_AT_ONCE = 32
_IDS_OF_A_COMMAND = 50
"""Job ids in one command that is printed. Systems limit the length of a command."""
_FETCH_FOLDER = "images/"
"""The output folder of the commands that fetch images of detached jobs."""
T = TypeVar("T")


class Interrupted(Exception):
    """A signal ended the work; the message says what became of the jobs. `number` is that of the signal."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


class Terminated(Exception):
    """A signal other than that of Ctrl-C ended the command; `exit_code` is the one that shells expect.

    It is no KeyboardInterrupt: click answers that one with a line on the terminal, which may be closed.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = exits.of_signal(number)


def run_one(settings: Settings, job: ImageJob, console: Console, *, as_json: bool) -> int:
    """Runs one job and prints its files; returns the exit code. Raises ZrelayError, OSError, KeyboardInterrupt."""
    values = run_interruptible(generate_one(settings, job, console, handle_ctrl_c=True), console)
    if as_json:
        print_json(values)
    else:
        for file in values["files"]:
            if file["path"] != "-":
                console.result(file["path"])
    for warning in values["warnings"]:
        console.message(f"note: {warning}", wrap=True)
    sampling, timings = values["sampling"], values["timings_s"]
    console.message(
        f"{sampling['width']} x {sampling['height']}, {counted(sampling['num_inference_steps'], 'step')}, seed "
        f"{values['seed']}, {format_seconds(timings['total'])}"
    )
    hidden = ("total",) if timings["vision"] else ("total", "vision")
    parts = ", ".join(f"{name} {format_seconds(took)}" for name, took in timings.items() if name not in hidden)
    console.message(f"  {parts}", wrap=True)
    return exits.OK


def run_batch(
    settings: Settings, job: ImageJob, seeds: list[int], in_flight: int | None, console: Console, *, as_json: bool
) -> int:
    """Runs a job for each seed, and writes images as they arrive.

    Returns:
        The exit code: that of the first failure.

    Raises:
        ZrelayError: No job can start.
        OSError: An image cannot be written.
        KeyboardInterrupt: Ctrl-C; the message says what became of the jobs.
    """
    job.check()
    batch = BatchProgress(job.targets.count, console)
    files: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    notices: list[str] = []

    def on_event(index: int, event: Event) -> None:
        batch.event(event, job.previews, index)
        if isinstance(event, Notice) and event.message not in notices:
            notices.append(event.message)

    def write(outcome: Outcome) -> None:
        result = outcome.result
        if outcome.error is not None:
            error = with_flag(outcome.error)
            failures.append({"seed": outcome.seed, "reason": error.reason, "message": error.message})
            batch.failed(f"seed {outcome.seed}", error)
        if result is not None:
            for image in result.images:
                place = outcome.index * len(result.images) + image.image_index
                path = job.targets.write_one(place, image)
                files.append({**file_values(image, path), "generator": result.generator, "job_id": result.job_id})
                if not as_json:
                    console.result(str(path))
            batch.succeeded(result)

    async def work() -> None:
        console.status("connecting")
        async with client_of(settings) as client:

            async def generate() -> None:
                outcomes = client.generate_many(
                    job.prompt(),
                    job.read_options().replaced(seed=None),
                    seeds=seeds,
                    negative_prompt=job.negative_prompt,
                    encoding=job.encoding,
                    in_flight=in_flight,
                    on_event=on_event,
                )
                async with contextlib.aclosing(outcomes):
                    async for outcome in outcomes:
                        write(outcome)

            stopped = "jobs that were not done are cancelled at the generators"
            await interruptible(generate(), console, leave=leave_running(client, settings.config), stopped=stopped)

    run_interruptible(work(), console)
    console.message(batch.summary())
    if as_json:
        print_json({"files": files, "failures": failures, "notices": notices, "endpoints": dict(settings.texts)})
    return batch.exit_code


def run_detached(settings: Settings, job: ImageJob, seeds: list[int] | None, console: Console, *, as_json: bool) -> int:
    """Submits a job, or one for each seed, and prints the ids of those that were accepted.

    Raises:
        ZrelayError: A job was refused; raised after the ids are printed.
    """
    stopped = "jobs that were accepted run on; `zrelay jobs list` shows them"
    notices: dict[str, None] = {}

    def on_notice(notice: Notice) -> None:
        if notice.message not in notices:
            console.message(f"note: {notice.message}", wrap=True)
        notices[notice.message] = None

    work = terminable(_submit(settings, job, seeds, console, on_notice), stopped)
    jobs, refused = run_interruptible(work, console)
    if as_json:
        failures = [
            {"seed": seed, "reason": error.reason, "message": with_flag(error).message}
            for seed, error in refused.items()
        ]
        print_json({"jobs": [asdict(one) for one in jobs], "failures": failures, "notices": list(notices)})
    else:
        for one in jobs:
            console.result(one.job_id)
    if refused:
        console.message(f"{len(jobs)} of {counted(len(jobs) + len(refused), 'job')} submitted")
    if jobs and not as_json:
        show = "show the progress, or write the images" if len(jobs) == 1 else "write the images"
        endpoints = ", ".join(dict.fromkeys(one.endpoint for one in jobs))
        console.message(f"submitted to {endpoints}; {show}:", wrap=True)
        console.message("\n".join(_commands(jobs, settings.config)))
    for error in refused.values():
        raise error
    return exits.OK


async def generate_one(
    settings: Settings, job: ImageJob, console: Console, *, handle_ctrl_c: bool = False
) -> dict[str, Any]:
    """Runs one job and writes its images.

    Args:
        settings: The configuration and the services.
        job: The job.
        console: Where events are shown.
        handle_ctrl_c: Whether Ctrl-C is handled here.

    Returns:
        The result, as --json prints it.

    Raises:
        ZrelayError: The job failed.
        OSError: A file cannot be read or written.
        Interrupted: Ctrl-C.
    """
    job.check()
    prompt, request_id = job.prompt(), uuid.uuid4().hex

    notices: list[str] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Preview) and job.previews is not None:
            job.previews.write(event)
        if isinstance(event, Notice):
            notices.append(event.message)
        show_event(console, event)

    console.status("encoding" if isinstance(prompt, str) else "connecting")
    async with client_of(settings) as client:
        work = client.generate(
            prompt,
            job.read_options(),
            negative_prompt=job.negative_prompt,
            encoding=job.encoding,
            request_id=request_id,
            on_event=on_event,
        )
        if handle_ctrl_c:
            stopped = "no image was written, and the job is cancelled at the generator"
            leave = leave_running(client, settings.config, request_id)
            result = await interruptible(work, console, leave=leave, stopped=stopped)
        else:
            result = await work
    started = time.monotonic()
    paths = job.targets.write(result.images)
    return _result_values(result, paths, time.monotonic() - started, settings.texts, notices)


class BatchProgress:
    """Shows the progress of many jobs, and keeps their counts and the exit code: that of the first failure."""

    def __init__(self, total: int, console: Console, *, unit: str = "images") -> None:
        """Starts to count; `total` is the number of units: images, or others whose jobs count as one."""
        self._total, self._console, self._unit = total, console, unit
        self._started = time.monotonic()
        self._warned: set[str] = set()
        self._done = 0
        self.images = 0
        self.failures = 0
        self.exit_code = exits.OK

    def event(self, event: Event, previews: Previews | None, index: int) -> None:
        """Writes a preview, shows a notice; steps of many jobs at once are not shown."""
        if isinstance(event, Preview) and previews is not None:
            previews.write(event, job=index)
        elif isinstance(event, Notice):
            self.warn(event.message)

    def succeeded(self, result: Result) -> None:
        """Counts the images of a job that succeeded, and shows its warnings."""
        for warning in warnings_of(result):
            self.warn(warning)
        self.images += len(result.images)
        self._done += len(result.images) if self._unit == "images" else 1
        self._show()

    def failed(self, name: str, error: ZrelayError) -> None:
        """Counts and shows a job that failed."""
        self.exit_code = self.exit_code or exits.code_of(error)
        self.failures += 1
        self._console.message(f"error: {name}: {error.message}")
        self._show()

    def summary(self) -> str:
        """Returns the counts and the time."""
        failed = f", {self.failures} failed" if self.failures else ""
        return f"{counted(self.images, 'image')}{failed} in {format_seconds(time.monotonic() - self._started)}"

    def warn(self, text: str) -> None:
        """Prints a message once."""
        if text not in self._warned:
            self._warned.add(text)
            self._console.message(f"note: {text}")

    def _show(self) -> None:
        took, done = time.monotonic() - self._started, self._done + self.failures
        left = (self._total - done) * took / done if done else 0.0
        failed = f", {self.failures} failed" if self.failures else ""
        note = f"{done}/{self._total} {self._unit}{failed}, {done / took:.2f}/s, {format_seconds(left)} left"
        self._console.status("generating", completed=done, total=self._total, note=note)


async def interruptible(
    work: Coroutine[Any, Any, T], console: Console, *, leave: Callable[[], Awaitable[str]], stopped: str
) -> T:
    """Does work whose cancellation cancels its jobs at the generator.

    Args:
        work: The work.
        console: Where the first Ctrl-C is confirmed.
        leave: Lets the jobs run on, and returns how to come back to them; called after a second Ctrl-C.
        stopped: What became of the jobs after one Ctrl-C.

    Raises:
        Interrupted: Ctrl-C was pressed, or the process got a signal of TERMINATING.
    """
    task = asyncio.ensure_future(work)
    message = stopped
    with _received("SIGINT", *TERMINATING) as signals:
        received = asyncio.ensure_future(signals.get())
        try:
            await asyncio.wait({task, received}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            number = received.result()
            if number == signal.SIGINT:
                console.status("Ctrl-C: stopping; press it again now to leave the job running")
                with contextlib.suppress(TimeoutError):
                    number = await asyncio.wait_for(signals.get(), _SECOND_PRESS_S)
                    message = await _left(leave) if number == signal.SIGINT else stopped
        finally:
            received.cancel()
    # From here on a signal ends the process as usual.
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, ZrelayError):
        return await task
    raise Interrupted(message, number)


async def terminable(work: Coroutine[Any, Any, T], stopped: str) -> T:
    """Does work that a signal of TERMINATING cancels, as Ctrl-C does without this function.

    Raises:
        Interrupted: The process got such a signal; the message is `stopped`.
    """
    task = asyncio.ensure_future(work)
    with _received(*TERMINATING) as signals:
        received = asyncio.ensure_future(signals.get())
        try:
            await asyncio.wait({task, received}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            received.cancel()
            if not task.done():
                task.cancel()
    with contextlib.suppress(asyncio.CancelledError, ZrelayError):
        return await task
    raise Interrupted(stopped, received.result())


def leave_running(client: AsyncClient, settings: Config, *request_ids: str) -> Callable[[], Awaitable[str]]:
    """Returns a function that lets jobs run on at their generators, and returns how to come back to them.

    Args:
        client: The client that runs the jobs.
        settings: The configuration that found the generators.
        *request_ids: The jobs; all that the client runs where none is named.
    """

    async def leave() -> str:
        jobs: list[Job] = []
        refusal: ZrelayError | None = None
        for request_id in request_ids or client.running():
            try:
                jobs.append(await client.detach(request_id))
            except ZrelayError as error:  # no generator has accepted it yet: it is cancelled, and the others are left
                refusal = error
        if not jobs and refusal is not None:
            raise refusal
        commands = "\n".join(_commands(jobs, settings))
        show = "show the progress, or write the images" if len(jobs) == 1 else "write the images"
        return f"left running; {show}:\n{commands}"

    return leave


def _commands(jobs: Sequence[Job], settings: Config) -> list[str]:
    """Returns lines with the commands for jobs, quoted for a shell, with the flags that find their generators again.

    One job has `zrelay jobs watch` and `fetch`. Several have `fetch`, which takes many ids.
    """
    flags: list[str] = []
    if settings.origins.get("profile") == "flag":
        flags += ["--profile", str(settings.profile)]
    if settings.origins.get("generator.endpoint") == "flag":
        for endpoint in dict.fromkeys(job.endpoint for job in jobs):
            flags += ["--generator", endpoint]
    commands = [["zrelay", "jobs", "watch", jobs[0].job_id, *flags]] if len(jobs) == 1 else []
    for start in range(0, len(jobs), _IDS_OF_A_COMMAND):
        ids = [job.job_id for job in jobs[start : start + _IDS_OF_A_COMMAND]]
        commands.append(["zrelay", "jobs", "fetch", *ids, *flags, "-o", _FETCH_FOLDER])
    return [f"  {shlex.join(command)}" for command in commands]


def result_values(result: Result) -> dict[str, Any]:
    """Returns what --json prints of every result, without its files."""
    return {
        "seed": result.seed,
        "request_id": result.request_id,
        "job_id": result.job_id,
        "generator": result.generator,
        "sampling": asdict(result.sampling),
        "encoder": {
            "relation": result.encoder_relation,
            "differences": list(result.encoder_differences),
            "model_id": result.embeds.fingerprint.model_id,
            "fingerprint": result.embeds.fingerprint.digest,
        },
        "prompt_report": asdict(result.embeds.report),
        "warnings": warnings_of(result),
    }


def long_prompt_warnings(embeds: Embeds) -> list[str]:
    """Returns what was done to prompts that were too long."""
    reports = (
        report_message("prompt", embeds.report),
        report_message("negative prompt", embeds.negative_report),
    )
    return [message for message in reports if message is not None]


def warnings_of(result: Result) -> list[str]:
    """Returns what the user should know although the job succeeded."""
    messages = long_prompt_warnings(result.embeds)
    if result.embeds.negative_report is not None and not result.sampling.guidance_scale:
        messages.append("the negative prompt had no effect: guidance_scale is 0")
    modifications = result.embeds.fingerprint.modifications
    if modifications[:1] == ("conditioning",) and len(result.encoder_differences) == 1:
        methods = ", ".join(modifications[1:])
        messages.append(f"the prompt was blended with a reference, which is experimental: {methods}")
    elif result.encoder_relation in ("experimental", "unverified"):
        differences = f" ({'; '.join(result.encoder_differences)})" if result.encoder_differences else ""
        messages.append(f"the encoder's relation to this generator is {result.encoder_relation}{differences}")
    return messages


def run_interruptible(work: Coroutine[Any, Any, T], console: Console) -> T:
    """Runs a coroutine. Interrupted becomes KeyboardInterrupt, or Terminated for another signal than that of Ctrl-C."""
    try:
        return asyncio.run(work)
    except Interrupted as interrupted:
        if interrupted.number == signal.SIGINT:
            raise KeyboardInterrupt(str(interrupted)) from None
        raise Terminated(str(interrupted), interrupted.number) from None
    finally:
        console.clear()


def _result_values(
    result: Result, paths: list[Path], write_s: float, endpoints: Mapping[str, str], notices: list[str]
) -> dict[str, Any]:
    places: list[Path | None] = [*paths] if paths else [None] * len(result.images)
    timings = {name.removesuffix("_s"): took for name, took in asdict(result.timings).items()}
    total = timings.pop("total") + write_s
    return {
        "files": [file_values(image, path) for image, path in zip(result.images, places, strict=True)],
        **result_values(result),
        "notices": notices,
        "endpoints": dict(endpoints),
        "timings_s": {name: round(took, 6) for name, took in {**timings, "write": write_s, "total": total}.items()},
    }


async def _submit(
    settings: Settings,
    job: ImageJob,
    seeds: list[int] | None,
    console: Console,
    on_notice: Callable[[Notice], None],
) -> tuple[list[Job], dict[int, ZrelayError]]:
    """Submits a job, or one for each seed, whose prompt is encoded once.

    Returns:
        The jobs that were accepted, and the seeds of the others with the error. After the first refusal no other
        submission starts; those seeds have the same error.

    Raises:
        ZrelayError: The prompt cannot be encoded, or the only job was refused.
    """
    console.status("submitting")
    async with client_of(settings) as client:
        options, prompt = job.read_options(), job.prompt()
        if seeds is None:
            submitted = await client.submit(
                prompt, options, negative_prompt=job.negative_prompt, encoding=job.encoding, on_notice=on_notice
            )
            return [submitted], {}
        embeds = await client.prepare(prompt, options, negative_prompt=job.negative_prompt, encoding=job.encoding)
        embeds.sent = True  # so that they are uploaded once and then named, from the first job on
        options = options.replaced(reference=None, conditioning=None, omni=None)  # these are part of the embeddings
        gate = asyncio.Semaphore(_SUBMITS_AT_ONCE)

        refused: dict[int, ZrelayError] = {}

        async def submit(seed: int) -> Job | None:
            async with gate:
                if refused:
                    refused[seed] = next(iter(refused.values()))
                    return None
                try:
                    submitted = await client.submit(
                        embeds, options.replaced(seed=seed), encoding=job.encoding, on_notice=on_notice
                    )
                except ZrelayError as error:
                    refused[seed] = error
                    return None
            console.status(f"submitted seed {seed}")
            return submitted

        tasks = [asyncio.ensure_future(submit(seed)) for seed in seeds]
        try:
            jobs = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                if not task.cancelling():
                    task.cancel()
        return [one for one in jobs if one is not None], refused


async def _left(leave: Callable[[], Awaitable[str]]) -> str:
    try:
        return await leave()
    except ZrelayError as error:
        return f"the job could not be left running, and is cancelled: {error.message}"


@contextlib.contextmanager
def _received(*names: str) -> Iterator["asyncio.Queue[int]"]:
    """Yields a queue that gets the number of each signal, where this process can handle them."""
    numbers = asyncio.Queue[int]()
    with contextlib.ExitStack() as stack:
        for name in names:
            if (number := getattr(signal, name, None)) is not None:
                stack.enter_context(on_signals((name,), partial(numbers.put_nowait, number)))
        yield numbers
