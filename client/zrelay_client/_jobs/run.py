"""One job from its submission to its last event, on whichever generator it runs.

A lost stream is resumed where it was (WatchJob, within the generator's lease). A job whose generator stays away moves
to another one with the same request_id and seed, which makes the same image. The caller receives every image once.
"""

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from zrelay_client._pool.generators import Generator, Generators
from zrelay_client._pool.policy import FailureKind, failure_kind
from zrelay_client._transport.deadline import RECONNECT_S, Budget
from zrelay_client._transport.stub import listen
from zrelay_client._wire.contents import MIN_BYTES, Content, content_of_file
from zrelay_client._wire.replies import JobMessageEvent, event_of, sequence_of
from zrelay_client._wire.requests import IMAGE, generate_request, submit_request
from zrelay_client.embeds import Embeds
from zrelay_client.events import Accepted, Done, Event, Image, Job, Notice, Sampling
from zrelay_client.options import GenerateOptions
from zrelay_client.results import Result, Timings
from zrelay_shared.errors import DeadlineExceeded, InternalError, NotFound, Unavailable, ZrelayError

_CANCEL_S = 3.0
"""How long a caller that gives up waits for the generator to confirm that it stopped."""
_REACH_S = 3.0
_MOVE_S = 3.0
"""A generator that does not answer is retried for this long if another could take the job."""
_MAX_SENDS = 3
"""A generator that reports the same content missing more often has no room for it: the content is sent by value."""
_MAX_INLINE_BYTES = 16 * 1024 * 1024
"""Bytes of reference images within a request. More are uploaded one by one, since the size of a message is limited."""


@dataclass(frozen=True, slots=True)
class Hops:
    """Seconds spent before the call to the generator, as in Timings."""

    connect_s: float = 0.0
    encode_s: float = 0.0
    vision_s: float = 0.0


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job with its id and its seed, so that it gives the same image wherever and however often it is submitted.

    Attributes:
        request_id: Names the job on every generator.
        work: Cost of the job in pixels times transformer forwards, by which generators are compared.
        named: Whether the embeddings are sent by digest from the first time on.
        patient: Whether to wait while every generator is busy.
    """

    embeds: Embeds
    options: GenerateOptions
    request_id: str
    work: float
    named: bool = False
    patient: bool = False

    @property
    def contents(self) -> dict[str, Content]:
        """The inputs that may be sent by digest."""
        image = self.options.image
        return {**self.embeds.contents, **({IMAGE: content_of_file(image)} if image is not None else {})}

    @classmethod
    def of(
        cls,
        embeds: Embeds,
        options: GenerateOptions,
        request_id: str | None,
        defaults: Sampling,
        *,
        named: bool = False,
        patient: bool = False,
    ) -> "JobRequest":
        """Returns a request with an id and a seed.

        A seed that the options do not set is derived from the id, so that a repeat with this id is the same request.
        """
        name = request_id or uuid.uuid4().hex
        if options.seed is None:
            digest = hashlib.sha256(name.encode("utf-8", "replace")).digest()
            options = options.replaced(seed=int.from_bytes(digest[:4], "big"))
        large = embeds.omni is not None and embeds.omni.size_bytes > _MAX_INLINE_BYTES
        return cls(embeds, options, name, _work(options, defaults), named=named or large, patient=patient)


class JobRun:
    """Runs one job: either `events`, iterated once, or `submit`."""

    def __init__(self, generators: Generators, request: JobRequest, budget: Budget) -> None:
        self._generators, self._request, self._budget = generators, request, budget
        self._here: Generator | None = None
        self._job_id = ""
        self._sequence = 0
        self._images: set[int] = set()
        self._without: set[str] = set()
        self._refusal: ZrelayError | None = None
        self._lost_at: float | None = None
        self._attempts = self._sends = 0
        self._watchable = True
        self._rewound = self._detached = False

    @property
    def endpoint(self) -> str:
        """Address of the generator that has the job; "" if none has."""
        return self._here.endpoint if self._here is not None else ""

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yields the events of the job: Accepted first, Done last.

        Closing the iterator before Done cancels the job, and so does an expired deadline.

        Raises:
            ZrelayError: The job failed, or no generator could run it.
        """
        over = False
        try:
            while not over:
                here = self._here or await self._place()
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
            if not over and not self._detached:
                await self._cancel()
            raise
        finally:
            self._leave()

    async def detach(self) -> Job:
        """Lets the job continue without a watcher: closing `events` does not cancel it any more.

        Raises:
            NotFound: JOB_UNKNOWN, no generator has accepted the job yet.
        """
        if self._here is None:
            raise NotFound("no generator has taken this job yet", reason="JOB_UNKNOWN")
        job = await self._submit(self._here, _REACH_S)
        self._detached = True
        return job

    async def stop(self) -> None:
        """Cancels the job before the connection is closed, unless it was detached."""
        if not self._detached:
            self._detached = True
            await self._cancel()

    async def submit(self) -> Job:
        """Submits the job to run without a watcher."""
        while True:
            here = self._here or await self._place()
            try:
                return await self._submit(here)
            except ZrelayError as error:
                await self._next(here, error)
            finally:
                self._leave()

    async def _submit(self, here: Generator, timeout: float | None = None) -> Job:
        mine, named = self._request, await self._named(here)
        request = submit_request(mine.embeds, mine.options, mine.request_id, named)
        return await here.service.submit(request, self._budget.left("generator") if timeout is None else timeout)

    async def _place(self) -> Generator:
        """Returns the generator that the job runs on from now on."""
        here = await self._generators.place(
            self._request.work, self._without, self._budget, refusal=self._refusal, patient=self._request.patient
        )
        here.member.jobs += 1
        here.member.work += self._request.work
        here.adopt(self._request.request_id)
        self._here = here
        return here

    def _leave(self) -> None:
        """Records that the job does not run on its generator any more."""
        if self._here is not None:
            self._here.member.jobs -= 1
            self._here.member.work -= self._request.work
        self._here, self._job_id, self._sequence, self._watchable = None, "", 0, True

    async def _attempt(self, here: Generator) -> AsyncGenerator[Event, None]:
        """Makes one call: submits the job, or watches it from the last event on."""
        messages: AsyncGenerator[JobMessageEvent, None]
        if self._attempts:
            await here.reach(_REACH_S)  # detects a connection that hangs
        if self._job_id and self._watchable:
            messages = here.service.watch(self._job_id, self._sequence, self._budget.left("generator"))
        else:
            mine, named = self._request, await self._named(here)
            request = generate_request(mine.embeds, mine.options, mine.request_id, named)
            messages = here.service.generate(request, self._budget.left("generator"))
        received = listen(messages, lambda: here.reach(_REACH_S))
        async with contextlib.aclosing(messages), contextlib.aclosing(received):
            async for message in received:
                self._lost_at, self._attempts = None, 0
                event = self._take(here, message)
                if event is not None:
                    yield event

    def _take(self, here: Generator, message: JobMessageEvent) -> Event | None:
        """Returns the event of a message, or None if the caller has received it before."""
        event, sequence = event_of(message), sequence_of(message)
        if isinstance(event, Accepted) and event.job_id != self._job_id:
            self._job_id, self._sequence = event.job_id, sequence
            here.member.accepted(self._request.work, event.estimated_run_s)
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
        """Watches the job from its start, once, if images were sent while the stream was lost."""
        message = f"the generator sent {len(self._images)} of {done.images} images of this job"
        if self._rewound:
            raise InternalError(message)
        self._rewound, self._sequence = True, 0
        raise Unavailable(message)

    async def _named(self, here: Generator) -> dict[str, Content]:
        """Returns the contents that the request names by digest, after uploading those that the generator lacks."""
        embeds = self._request.embeds
        if self._sends >= _MAX_SENDS:
            return {}
        if not (self._request.named or embeds.sent):
            embeds.sent = True
            return {}
        contents = self._request.contents.items()
        large = {name: content for name, content in contents if content.size_bytes >= MIN_BYTES}
        held = await asyncio.gather(*(here.uploads.hold(content) for content in large.values()))
        return large if all(held) else {}

    async def _next(self, here: Generator, error: ZrelayError) -> Notice | None:
        """Decides where the job runs after a failure, and waits before another attempt on the same generator.

        Raises:
            ZrelayError: `error`, if no other attempt can help.
        """
        kind, now = failure_kind(error), time.monotonic()
        self._attempts += 1
        if kind is FailureKind.CONTENT and self._sends < _MAX_SENDS:
            self._sends += 1
            for content in self._request.contents.values():
                here.uploads.forget(content.sha256)
            return None
        if kind is FailureKind.FORGOTTEN and self._job_id:
            self._job_id, self._sequence = "", 0
            if (difference := self._generators.difference(here)) is not None:  # it was restarted with another model
                self._without.add(here.endpoint)
                self._refusal = difference
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
        """Moves the job away from a generator that does not answer or shuts down, or waits for a while."""
        now = time.monotonic()
        first = self._lost_at is None
        self._lost_at = now if self._lost_at is None else self._lost_at
        if going:
            here.member.rest(now, error.retry_after_s)
        else:
            here.member.lost(now)
        away_s = now - self._lost_at
        if self._generators.another_is_free(here, self._without) and (going or not self._job_id or away_s >= _MOVE_S):
            here.abandon(self._request.request_id)
            self._leave()
            self._lost_at, self._attempts = None, 0
            why = "shuts down" if going else "does not answer"
            return Notice("moved", f"{here.endpoint} {why}: the job moves to another generator")
        if away_s > RECONNECT_S and not going:
            here.abandon(self._request.request_id)
            raise error
        wait_s = min(max(0.05, here.member.rests_until - now), self._budget.left("generator"))
        await asyncio.sleep(wait_s)
        return Notice("lost", f"{here.endpoint} does not answer, trying again") if first and not going else None

    async def _cancel(self) -> None:
        """Cancels the job explicitly, which frees the device at once; otherwise it would run until its lease ends."""
        if self._here is None:
            return
        with contextlib.suppress(ZrelayError):
            if self._job_id:
                await self._here.service.cancel_job(self._job_id, timeout=_CANCEL_S)
            else:
                await self._here.service.cancel(self._request.request_id, timeout=_CANCEL_S)


async def collect(
    run: JobRun, embeds: Embeds, on_event: Callable[[Event], None] | None, hops: Hops, budget: Budget
) -> Result:
    """Runs a job to its end, and returns its result.

    Args:
        run: The job.
        embeds: Its embeddings, for the result.
        on_event: Called with each event.
        hops: Seconds spent in the services before this one.
        budget: The remaining time of the client's call.
    """
    accepted, images, sent = None, [], budget.spent
    async with contextlib.aclosing(run.events()) as events:
        async for event in events:
            if on_event is not None:
                on_event(event)
            if isinstance(event, Accepted):
                accepted = event
            elif isinstance(event, Image):
                images.append(event)
            elif isinstance(event, Done) and accepted is not None:
                now = budget.spent
                timings = Timings.of(
                    event.timings,
                    connect_s=hops.connect_s,
                    encode_s=hops.encode_s,
                    vision_s=hops.vision_s,
                    generate_s=now - sent,
                    total_s=now,
                )
                return _result(accepted, images, timings, embeds, run.endpoint)
    raise InternalError("the generator ended its stream without the events Accepted and Done")


def uses_guidance(options: GenerateOptions, defaults: Sampling) -> bool:
    """Returns whether classifier-free guidance is on, which needs a negative prompt."""
    return (defaults.guidance_scale if options.guidance_scale is None else options.guidance_scale) > 0


def _result(accepted: Accepted, images: list[Image], timings: Timings, embeds: Embeds, generator: str) -> Result:
    return Result(
        images=tuple(sorted(images, key=lambda image: image.image_index)),
        request_id=accepted.request_id,
        job_id=accepted.job_id,
        generator=generator,
        seed=accepted.seed,
        sampling=accepted.sampling,
        encoder_relation=accepted.encoder_relation,
        encoder_differences=accepted.encoder_differences,
        timings=timings,
        embeds=embeds,
    )


def _work(options: GenerateOptions, defaults: Sampling) -> float:
    """Returns the cost of a job in pixels times transformer forwards, 1 at least."""
    width, height = options.width or defaults.width, options.height or defaults.height
    steps = len(options.sigmas or ()) or options.num_inference_steps or defaults.num_inference_steps
    forwards = steps * (options.num_images or 1) * (2 if uses_guidance(options, defaults) else 1)
    return float(width * height * forwards) or 1.0
