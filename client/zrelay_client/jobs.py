"""The jobs that generators keep: list, read, watch, fetch and cancel them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from zrelay_client._pool.generators import Generator, Generators
from zrelay_client._pool.policy import MAX_PAUSE_S, FailureKind, failure_kind
from zrelay_client._transport.deadline import CONNECT_S, DEFAULT_S, RECONNECT_S, Budget
from zrelay_client._transport.stub import listen
from zrelay_client._wire.replies import event_of, sequence_of
from zrelay_client.events import Done, Event, Image, Job, JobPage
from zrelay_shared.errors import NotFound, Unavailable, ZrelayError

T = TypeVar("T")
_PAGE_SIZE = 200
_REACH_S = 3.0
_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 3.0)


class AsyncJobs:
    """The jobs of a client's generators: `client.jobs` of an AsyncClient.

    Args:
        generators: Returns the generators of the client.
        timeout_s: Timeout of a call that names none.
    """

    def __init__(self, generators: Callable[[], Generators], timeout_s: float = DEFAULT_S) -> None:
        self._generators = generators
        self._timeout_s = timeout_s

    async def list(
        self, *, states: Sequence[str] = (), on_failure: Callable[[str, ZrelayError], None] | None = None
    ) -> AsyncGenerator[Job, None]:
        """Yields jobs, newest first. Pages are read as they are needed.

        Args:
            states: "queued", "running", "succeeded", "failed" or "cancelled"; jobs in any state if there are none.
            on_failure: Called with the address and the error of a generator that does not answer. The jobs of the
                others are listed.

        Raises:
            ZrelayError: No generator answers.
        """
        if isinstance(states, str):
            raise TypeError("states: expected several states, got one: put it into a list")
        lists = [_JobList(generator, tuple(states)) for generator in self._generators()]
        await asyncio.gather(*(one.read_page() for one in lists))
        if all(one.failure is not None for one in lists) and lists[0].failure is not None:
            raise lists[0].failure
        report = on_failure or (lambda endpoint, error: None)
        for one in lists:
            one.report_failure(report)
        while unread := [one for one in lists if one.jobs]:
            one = max(unread, key=lambda one: one.jobs[0].accepted_at)
            yield one.jobs.pop(0)
            if not one.jobs and one.token:
                await one.read_page()
                one.report_failure(report)

    async def get(self, job_id: str) -> Job:
        """Returns a job.

        Raises:
            NotFound: No generator has it.
        """
        return (await self._find(job_id))[1]

    async def cancel(self, job_id: str) -> Job:
        """Cancels a job; a running one ends within a denoising step. A job that has ended does not change."""
        here, _ = await self._find(job_id)
        return await here.service.cancel_job(job_id)

    async def watch(
        self, job_id: str, *, after_sequence: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yields the events of a job; Done is the last one. A lost connection is resumed.

        Closing the iterator does not cancel the job. A job that was not submitted or detached needs a watcher, or its
        lease ends.

        Args:
            job_id: The job.
            after_sequence: Sequence number after which the events begin.
            timeout_s: Timeout in seconds. Default: that of the client.

        Raises:
            ZrelayError: The job failed or was cancelled, or its generator does not answer.
        """
        budget = Budget(self._timeout_s if timeout_s is None else timeout_s)
        here, _ = await self._find(job_id)
        sequence, last_message_at, attempts, repeated = after_sequence, time.monotonic(), 0, False
        while True:
            try:
                stream = here.service.watch(job_id, sequence, budget.left("generator"))
                messages = listen(stream, lambda: here.reach(_REACH_S))
                async with contextlib.aclosing(stream), contextlib.aclosing(messages):
                    async for message in messages:
                        sequence, last_message_at, attempts = sequence_of(message), time.monotonic(), 0
                        event = event_of(message)
                        if event is not None:
                            yield event
                        if isinstance(event, Done):
                            return
                job = await here.service.job(job_id, min(CONNECT_S, budget.left("generator")))
                if repeated or not job.ended:
                    raise Unavailable("the generator ended its stream before the job was done")
                repeated, sequence = (
                    True,
                    max(0, job.sequence - 1),
                )  # its last event is before `sequence`: read it again
            except ZrelayError as error:
                gone = failure_kind(error) in (FailureKind.LOST, FailureKind.GOING)
                if not gone or time.monotonic() - last_message_at > RECONNECT_S:
                    raise
                pause_s = min(error.retry_after_s or 0.0, MAX_PAUSE_S) or _PAUSES_S[min(attempts, len(_PAUSES_S) - 1)]
                attempts += 1
                await asyncio.sleep(min(pause_s, budget.left("generator")))

    async def fetch(self, job_id: str, *, timeout_s: float | None = None) -> tuple[Image, ...]:
        """Returns the images of a job, in order, once it is done.

        Args:
            job_id: The job.
            timeout_s: Timeout in seconds. Default: that of the client.

        Raises:
            ZrelayError: As `watch`.
        """
        images: dict[int, Image] = {}
        async with contextlib.aclosing(self.watch(job_id, timeout_s=timeout_s)) as events:
            async for event in events:
                if isinstance(event, Image):
                    images[event.image_index] = event
        return tuple(images[index] for index in sorted(images))

    async def _find(self, job_id: str) -> tuple[Generator, Job]:
        """Returns a job and its generator. Raises NotFound, or Unavailable if a generator that may have it is away."""
        generators = list(self._generators())
        calls = [partial(generator.service.job, job_id, CONNECT_S) for generator in generators]
        answers = await asyncio.gather(*map(attempt, calls))
        for generator, answer in zip(generators, answers, strict=True):
            if isinstance(answer, Job):
                return generator, answer
        failures = [answer for answer in answers if isinstance(answer, ZrelayError)]
        raise next((error for error in failures if not isinstance(error, NotFound)), failures[0])


class _JobList:
    """The jobs of one generator, a page at a time."""

    def __init__(self, generator: Generator, states: tuple[str, ...]) -> None:
        self._generator, self._states = generator, states
        self.jobs: list[Job] = []
        self.token = ""
        self.failure: ZrelayError | None = None

    async def read_page(self) -> None:
        """Reads the next page."""
        page = await attempt(partial(self._generator.service.jobs, self._states, _PAGE_SIZE, self.token))
        if isinstance(page, JobPage):
            self.jobs, self.token = list(page.jobs), page.next_token
        else:
            self.failure, self.token = page, ""

    def report_failure(self, report: Callable[[str, ZrelayError], None]) -> None:
        """Reports why the rest of the jobs is missing, if it is."""
        if self.failure is not None:
            report(self._generator.endpoint, self.failure)


async def attempt(call: Callable[[], Awaitable[T]]) -> T | ZrelayError:
    """Returns the result of a call, or its ZrelayError.

    Takes a function, as a coroutine that is cancelled before it starts is never awaited.
    """
    try:
        return await call()
    except ZrelayError as error:
        return error
