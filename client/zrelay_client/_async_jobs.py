"""Durable jobs: looked at, watched, fetched and cancelled, on whichever of the generators they are."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

from zrelay_client._budget import CONNECT_S, DEFAULT_S, RECONNECT_S, Budget
from zrelay_client._events import Done, Event, Image
from zrelay_client._fleet import FailureKind, failure_kind
from zrelay_client._generators import Generator, Generators
from zrelay_client._jobs import Job, JobPage
from zrelay_client._replies import event_of, sequence_of
from zrelay_client._silence import listen
from zrelay_shared.errors import NotFound, Unavailable, ZrelayError

T = TypeVar("T")
_PAGE = 200
_REACH_S = 3.0
_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 3.0)


class AsyncJobs:
    """The jobs of a client's generators, as `client.jobs`."""

    def __init__(self, generators: Callable[[], Generators]) -> None:
        self._generators = generators

    async def list(
        self, *, states: Sequence[str] = (), on_failure: Callable[[str, ZrelayError], None] | None = None
    ) -> AsyncGenerator[Job, None]:
        """Every job in these states (all: none named), newest first, page by page as it is read.

        Of several generators those that do not answer are left out, and `on_failure` hears of them by their endpoint;
        where none answers, the first failure is raised. "queued", "running", "succeeded", "failed" and "cancelled" are
        states.
        """
        books = [_Book(generator, tuple(states)) for generator in self._generators()]
        await asyncio.gather(*(book.turn() for book in books))
        if all(book.failure is not None for book in books) and books[0].failure is not None:
            raise books[0].failure
        tell = on_failure or (lambda endpoint, error: None)
        for book in books:
            book.tell_failure(tell)
        while open_books := [book for book in books if book.jobs]:
            book = max(open_books, key=lambda book: book.jobs[0].accepted_at)
            yield book.jobs.pop(0)
            if not book.jobs and book.token:
                await book.turn()
                book.tell_failure(tell)

    async def get(self, job_id: str) -> Job:
        """A job by its id. Raises NotFound where no generator knows it."""
        return (await self._find(job_id))[1]

    async def cancel(self, job_id: str) -> Job:
        """Cancels a job by its id: a running one within a denoising step. One that has ended stays as it is."""
        here, _ = await self._find(job_id)
        return await here.service.cancel_job(job_id)

    async def watch(
        self, job_id: str, *, after_sequence: int = 0, timeout_s: float = DEFAULT_S
    ) -> AsyncGenerator[Event, None]:
        """What happens to a job, from behind a sequence number; Done is the last. A lost connection is taken up again.

        A job that failed or was cancelled ends it with that error. Closing it does not cancel the job, but one that was
        not submitted detached needs somebody who watches.
        """
        budget = Budget(timeout_s)
        here, _ = await self._find(job_id)
        sequence, heard, tries, again = after_sequence, time.monotonic(), 0, False
        while True:
            try:
                stream = here.service.watch(job_id, sequence, budget.left("generator"))
                messages = listen(stream, lambda: here.reach(_REACH_S))
                async with contextlib.aclosing(stream), contextlib.aclosing(messages):
                    async for message in messages:
                        sequence, heard, tries = sequence_of(message), time.monotonic(), 0
                        event = event_of(message)
                        if event is not None:
                            yield event
                        if isinstance(event, Done):
                            return
                job = await here.service.job(job_id, min(CONNECT_S, budget.left("generator")))
                if again or not job.ended:
                    raise Unavailable("the generator ended its stream before the job was done")
                again, sequence = True, max(0, job.sequence - 1)  # its end lies behind `sequence`: have it told again
            except ZrelayError as error:
                gone = failure_kind(error) in (FailureKind.LOST, FailureKind.GOING)
                if not gone or time.monotonic() - heard > RECONNECT_S:
                    raise
                pause_s = error.retry_after_s or _PAUSES_S[min(tries, len(_PAUSES_S) - 1)]
                tries += 1
                await asyncio.sleep(min(pause_s, budget.left("generator")))

    async def fetch(self, job_id: str, *, timeout_s: float = DEFAULT_S) -> tuple[Image, ...]:
        """The pictures of a job, in order, as soon as it is done. Raises what ended a job that failed."""
        images: dict[int, Image] = {}
        async with contextlib.aclosing(self.watch(job_id, timeout_s=timeout_s)) as events:
            async for event in events:
                if isinstance(event, Image):
                    images[event.image_index] = event
        return tuple(images[index] for index in sorted(images))

    async def _find(self, job_id: str) -> tuple[Generator, Job]:
        """The generator that has a job. Raises NotFound, or Unavailable where one that may have it does not answer."""
        generators = list(self._generators())
        asks = [_attempt(generator.service.job(job_id, CONNECT_S)) for generator in generators]
        answers = await asyncio.gather(*asks)
        for generator, answer in zip(generators, answers, strict=True):
            if isinstance(answer, Job):
                return generator, answer
        failures = [answer for answer in answers if isinstance(answer, ZrelayError)]
        raise next((error for error in failures if not isinstance(error, NotFound)), failures[0])


class _Book:
    """One generator's jobs, a page at a time."""

    def __init__(self, generator: Generator, states: tuple[str, ...]) -> None:
        self._generator, self._states = generator, states
        self.jobs: list[Job] = []
        self.token = ""
        self.failure: ZrelayError | None = None

    async def turn(self) -> None:
        """Reads the next page."""
        page = await _attempt(self._generator.service.jobs(self._states, _PAGE, self.token))
        if isinstance(page, JobPage):
            self.jobs, self.token = list(page.jobs), page.next_token
        else:
            self.failure, self.token = page, ""

    def tell_failure(self, tell: Callable[[str, ZrelayError], None]) -> None:
        """Says why the rest of its jobs is missing, where it is."""
        if self.failure is not None:
            tell(self._generator.endpoint, self.failure)


async def _attempt(work: Awaitable[T]) -> T | ZrelayError:
    try:
        return await work
    except ZrelayError as error:
        return error
