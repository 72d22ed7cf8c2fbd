"""One job from its first submission to its last event, wherever it is painted.

A lost stream is taken up again where it was (WatchJob, within the generator's lease); a job whose generator stays away
goes to another under the same request_id and seed, so that it is the same picture. Its caller sees every image once.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from zrelay_client._budget import RECONNECT_S, Budget
from zrelay_client._contents import LEAST_BYTES, Content, content_of_file
from zrelay_client._embeds import Embeds
from zrelay_client._events import Accepted, Done, Event, Image, Notice
from zrelay_client._fleet import FailureKind, failure_kind
from zrelay_client._generators import Generator, Generators
from zrelay_client._jobs import Job
from zrelay_client._options import GenerateOptions
from zrelay_client._replies import Message, event_of, sequence_of
from zrelay_client._requests import IMAGE, generate_request, submit_request
from zrelay_client._silence import listen
from zrelay_shared.errors import DeadlineExceeded, InternalError, NotFound, Unavailable, ZrelayError

_CANCEL_S = 3.0
"""A caller who gives up waits this long for the generator to say that it stopped."""
_REACH_S = 3.0
_MOVE_S = 3.0
"""A generator that does not answer is tried for so long where another could take the job: the time of a hiccup."""
_SENDS = 3
"""A generator that asks for the same content more often has no room for it: it travels whole."""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job as it is asked for, wherever it is painted. The seed is among the options.

    `work` is what it costs, in pixels times steps. `named` sends the embeddings by digest from the first time on,
    `patient` waits where every generator is busy.
    """

    embeds: Embeds
    options: GenerateOptions
    request_id: str
    work: float
    named: bool = False
    patient: bool = False

    @property
    def contents(self) -> dict[str, Content]:
        """What of it may go by its name."""
        image = self.options.get("image")
        return {**self.embeds.contents, **({IMAGE: content_of_file(image)} if isinstance(image, bytes) else {})}


class JobRun:
    """The life of one job. `events` is iterated once."""

    def __init__(self, generators: Generators, order: JobRequest, budget: Budget) -> None:
        self._generators, self._order, self._budget = generators, order, budget
        self._at: Generator | None = None
        self._job_id = ""
        self._sequence = 0
        self._images: set[int] = set()
        self._without: set[str] = set()
        self._refusal: ZrelayError | None = None
        self._lost_at: float | None = None
        self._attempts = self._sends = 0
        self._watchable = True
        self._rewound = self._left_alone = False

    @property
    def request_id(self) -> str:
        """What names the job everywhere."""
        return self._order.request_id

    @property
    def endpoint(self) -> str:
        """Where it is, "" where nowhere."""
        return self._at.endpoint if self._at is not None else ""

    async def events(self) -> AsyncGenerator[Event, None]:
        """Accepted first, Done last. Closing it before Done cancels the job, and so does a spent budget."""
        over = False
        try:
            while not over:
                here = self._at or await self._place()
                try:
                    async with contextlib.aclosing(self._attempt(here)) as events:
                        async for event in events:
                            over = isinstance(event, Done)
                            yield event
                    if not over:
                        raise Unavailable("the generator ended its stream before the job was done")
                except ZrelayError as error:
                    if (notice := await self._next(here, error)) is not None:
                        yield notice
        except (asyncio.CancelledError, GeneratorExit, DeadlineExceeded):
            if not over and not self._left_alone:
                await self._cancel()
            raise
        finally:
            self._leave()

    async def detach(self) -> Job:
        """Lets the job run on although nobody watches; closing `events` does not cancel it any more."""
        if self._at is None:
            raise NotFound("no generator has taken this job yet", reason="JOB_UNKNOWN")
        named = await self._named(self._at)
        request = submit_request(self._order.embeds, self._order.options, self._order.request_id, named)
        job = await self._at.service.submit(request, _REACH_S)
        self._left_alone = True
        return job

    async def stop(self) -> None:
        """Cancels the job where it is, before the connection ends."""
        if not self._left_alone:
            self._left_alone = True
            await self._cancel()

    async def submit(self) -> Job:
        """Submits it to run by itself, in place of `events`."""
        while True:
            here = self._at or await self._place()
            try:
                named = await self._named(here)
                request = submit_request(self._order.embeds, self._order.options, self._order.request_id, named)
                return await here.service.submit(request, self._budget.left("generator"))
            except ZrelayError as error:
                await self._next(here, error)
            finally:
                self._leave()

    async def _place(self) -> Generator:
        here = await self._generators.place(
            self._order.work, self._without, self._budget, refusal=self._refusal, patient=self._order.patient
        )
        here.member.jobs += 1
        here.member.work += self._order.work
        here.adopt(self._order.request_id)
        self._at = here
        return here

    def _leave(self) -> None:
        """The job is not (to be) at its generator any more."""
        if self._at is not None:
            self._at.member.jobs -= 1
            self._at.member.work -= self._order.work
        self._at, self._job_id, self._sequence, self._watchable = None, "", 0, True

    async def _attempt(self, here: Generator) -> AsyncGenerator[Event, None]:
        """One call: the job from its beginning, or from where it was last heard of."""
        messages: AsyncGenerator[Message, None]
        if self._attempts:
            await here.reach(_REACH_S)  # a connection that hangs is found in seconds
        if self._job_id and self._watchable:
            messages = here.service.watch(self._job_id, self._sequence, self._budget.left("generator"))
        else:
            order, named = self._order, await self._named(here)
            request = generate_request(order.embeds, order.options, order.request_id, named)
            messages = here.service.generate(request, self._budget.left("generator"))
        heard = listen(messages, lambda: here.reach(_REACH_S))
        async with contextlib.aclosing(messages), contextlib.aclosing(heard):
            async for message in heard:
                self._lost_at, self._attempts = None, 0
                event = self._take(here, message)
                if event is not None:
                    yield event

    def _take(self, here: Generator, message: Message) -> Event | None:
        """The event of a message, None for one that the caller has seen."""
        event, sequence = event_of(message), sequence_of(message)
        if isinstance(event, Accepted) and event.job_id != self._job_id:
            self._job_id, self._sequence = event.job_id, sequence
            here.member.accepted(self._order.work, event.estimated_run_s)
            return event
        if isinstance(event, Image):
            self._sequence = max(sequence, self._sequence)
            if event.image_index in self._images:
                return None
            self._images.add(event.image_index)
            return event
        if isinstance(event, Done):
            if len(self._images) < event.images:
                self._rewind(event)
            return event
        if sequence <= self._sequence:
            return None
        self._sequence = sequence
        return event

    def _rewind(self, done: Done) -> None:
        """Images are missing at the end (they were told while the stream was lost): has the job told anew, once."""
        said = f"the generator told {len(self._images)} of {done.images} images of this job"
        if self._rewound:
            raise InternalError(said)
        self._rewound, self._sequence = True, 0
        raise Unavailable(said)

    async def _named(self, here: Generator) -> dict[str, Content]:
        """The embeddings that go by their digest, held by the generator now."""
        embeds = self._order.embeds
        if self._sends >= _SENDS:
            return {}
        if not (self._order.named or embeds.painted):
            embeds.painted = True
            return {}
        contents = self._order.contents.items()
        large = {name: content for name, content in contents if content.size_bytes >= LEAST_BYTES}
        held = await asyncio.gather(*(here.contents.hold(content) for content in large.values()))
        return large if all(held) else {}

    async def _next(self, here: Generator, error: ZrelayError) -> Notice | None:
        """Settles where to try next after a failure, waiting where it is the same place. Raises where it is final."""
        kind, now = failure_kind(error), time.monotonic()
        self._attempts += 1
        if kind is FailureKind.CONTENT and self._sends < _SENDS:
            self._sends += 1
            for content in self._order.contents.values():
                here.contents.forget(content.sha256)
            return None
        if kind is FailureKind.FORGOTTEN and self._job_id:
            self._job_id, self._sequence = "", 0
            if (unlike := self._generators.unlike(here)) is not None:  # it came back with another model
                self._without.add(here.endpoint)
                self._refusal = unlike
                self._leave()
            return None
        if kind is FailureKind.UNFIT and self._job_id and self._watchable and error.code == "UNIMPLEMENTED":
            self._watchable = False  # an older generator: submitting again attaches to the job
            return None
        if kind is FailureKind.UNFIT:
            self._without.add(here.endpoint)
            self._refusal = error
            self._leave()
            return None
        if kind in (FailureKind.BUSY, FailureKind.GOING) and not self._job_id:
            here.member.rest(now, error.retry_after_s)
            self._refusal = error
            self._leave()
            return None
        if kind in (FailureKind.BUSY, FailureKind.GOING, FailureKind.LOST):
            return await self._outage(here, error, going=kind is not FailureKind.LOST)
        raise error

    async def _outage(self, here: Generator, error: ZrelayError, *, going: bool) -> Notice | None:
        """The generator does not answer, or lets go of what it has: moves the job, or waits for a while."""
        now = time.monotonic()
        first = self._lost_at is None
        self._lost_at = now if self._lost_at is None else self._lost_at
        if going:
            here.member.rest(now, error.retry_after_s)
        else:
            here.member.lost(now)
        away_s = now - self._lost_at
        if self._generators.elsewhere(here, self._without) and (going or not self._job_id or away_s >= _MOVE_S):
            here.abandon(self._order.request_id)
            self._leave()
            self._lost_at, self._attempts = None, 0
            why = "goes away" if going else "is lost"
            return Notice("moved", f"{here.endpoint} {why}: another generator paints this picture")
        if away_s > RECONNECT_S and not going:
            here.abandon(self._order.request_id)
            raise error
        wait_s = min(max(0.05, here.member.rests_until - now), self._budget.left("generator"))
        await asyncio.sleep(wait_s)
        return Notice("lost", f"{here.endpoint} does not answer, trying again") if first and not going else None

    async def _cancel(self) -> None:
        """Explicitly, which frees the device at once; the end of the call alone would leave it to the lease."""
        if self._at is None:
            return
        with contextlib.suppress(ZrelayError):
            if self._job_id:
                await self._at.service.cancel_job(self._job_id, timeout=_CANCEL_S)
            else:
                await self._at.service.cancel(self._order.request_id, timeout=_CANCEL_S)
