"""What a client does for its caller: services reached, prompts encoded, jobs begun and kept track of."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass

from zrelay_client._budget import Budget
from zrelay_client._connections import Connections
from zrelay_client._embeds import Embeds
from zrelay_client._events import Event
from zrelay_client._hops import encode, require_negative
from zrelay_client._info import GeneratorInfo
from zrelay_client._jobs import Job
from zrelay_client._many import IN_FLIGHT, Outcome, SharedEmbeds, Wanted, many
from zrelay_client._options import EncodeOptions, GenerateOptions
from zrelay_client._painting import Hops, collect, order
from zrelay_client._references import ReferenceEncoder, references_of
from zrelay_client._requests import guided
from zrelay_client._results import Result
from zrelay_client._run import JobRequest, JobRun
from zrelay_shared.errors import InvalidArgument, NotFound


@dataclass(frozen=True, slots=True)
class Batch:
    """What all pictures of `many` share. `timeout_s` is for each of them."""

    encoding: EncodeOptions
    negative_prompt: str | None
    options: GenerateOptions
    on_event: Callable[[int, Event], None] | None
    timeout_s: float | None
    in_flight: int | None


class Painter:
    """The hands of a client, over its connections. `timeout_s` is the budget where a call names none."""

    def __init__(self, connections: Connections, timeout_s: float) -> None:
        self._to = connections
        self._timeout_s = timeout_s
        self._runs: dict[str, JobRun] = {}

    def budget(self, timeout_s: float | None) -> Budget:
        """A call's budget, running."""
        return Budget(self._timeout_s if timeout_s is None else timeout_s)

    @property
    def painting(self) -> tuple[str, ...]:
        """The request_ids of the jobs under way."""
        return tuple(self._runs)

    async def stop(self) -> None:
        """Cancels the jobs that are under way."""
        await asyncio.gather(*(run.stop() for run in self._runs.values()))

    async def detach(self, request_id: str) -> Job:
        """Lets a job under way run on by itself. Raises NotFound where there is none of that name."""
        run = self._runs.get(request_id)
        if run is None:
            raise NotFound(f"this client paints no request {request_id!r}", reason="JOB_UNKNOWN", field="request_id")
        return await run.detach()

    @contextlib.contextmanager
    def running(self, job: JobRequest, budget: Budget) -> Iterator[JobRun]:
        """A job while it is under way."""
        run = self._runs[job.request_id] = JobRun(self._to.generators, job, budget)
        try:
            yield run
        finally:
            self._runs.pop(job.request_id, None)

    async def encode(
        self, prompts: Sequence[str], options: EncodeOptions, negative_prompt: str | None, timeout_s: float | None
    ) -> list[Embeds]:
        """Embeddings, cut to the generator's limit where there is one and no other is asked for."""
        budget, encoders, limit = self.budget(timeout_s), self._to.encoders, None
        if self._to.has("generator") and options.get("text_limit") is None:
            limit = _text_limit(await self._to.generators.connect(budget))
        made = await encode(encoders, prompts, options, negative_prompt, limit, budget)
        notes = tuple(notice.message for notice in self._to.notices())
        for embeds in made:
            embeds.notes = notes
        return made

    async def prepare(
        self,
        prompt: str | Embeds,
        negative_prompt: str | None,
        encoding: EncodeOptions,
        options: GenerateOptions,
        budget: Budget,
    ) -> tuple[Embeds, GeneratorInfo, Hops]:
        """Reaches every service that is needed before anything is computed: what to paint, what the generator said, and
        what it took. Reference images are read while the prompt is encoded."""
        _check(prompt, negative_prompt, options)
        reference_encoder = await self._reference_encoder(options)
        said = await self._reach(reference_encoder, options, budget, encode=isinstance(prompt, str))
        reached_s = budget.spent
        if isinstance(prompt, Embeds):
            require_negative(prompt, options, said.defaults)
        work = self._encoded(prompt, negative_prompt, encoding, options, said, budget)
        if reference_encoder is None:
            embeds = await work
            return embeds, said, Hops(reached_s, 0.0 if embeds is prompt else embeds.encode_s)
        words, _ = await asyncio.gather(work, reference_encoder.look(budget))
        encode_s = 0.0 if words is prompt else words.encode_s
        embeds = await reference_encoder.applied(words, budget)
        return embeds, said, Hops(reached_s, encode_s, max(0.0, budget.spent - reached_s - encode_s))

    async def _reference_encoder(self, options: GenerateOptions) -> ReferenceEncoder | None:
        """What looks at the references, None where there are none. Raises what they are refused with, and OSError."""
        references = references_of(options)
        await asyncio.to_thread(references.check_files)
        return ReferenceEncoder(self._to.vision, references) if references else None

    async def _reach(
        self, reference_encoder: ReferenceEncoder | None, options: GenerateOptions, budget: Budget, *, encode: bool
    ) -> GeneratorInfo:
        """Sees that every service is there that is needed; what the generator said."""
        generators, encoders = self._to.generators, self._to.encoders if encode else None
        others = [each.connect(budget) for each in (encoders, reference_encoder) if each is not None]
        said, _ = await asyncio.gather(generators.connect(budget), asyncio.gather(*others))
        if reference_encoder is not None:
            reference_encoder.check(said, options)
        return said

    async def _encoded(
        self,
        prompt: str | Embeds,
        negative_prompt: str | None,
        encoding: EncodeOptions,
        options: GenerateOptions,
        said: GeneratorInfo,
        budget: Budget,
    ) -> Embeds:
        """The prompt's embeddings; an empty negative prompt where guidance wants one and none is given."""
        if isinstance(prompt, Embeds):
            return prompt
        if negative_prompt is None and guided(options, said.defaults):
            negative_prompt = ""
        encoding = references_of(options).encoding(encoding)
        return (await encode(self._to.encoders, [prompt], encoding, negative_prompt, _text_limit(said), budget))[0]

    async def many(self, wanted: Iterator[Wanted], batch: Batch) -> AsyncGenerator[Outcome, None]:
        """What becomes of each; closing it cancels what is under way."""
        budget, generators, reference_encoder = (
            self.budget(batch.timeout_s),
            self._to.generators,
            await self._reference_encoder(batch.options),
        )
        said = await self._reach(reference_encoder, batch.options, budget, encode=False)
        if reference_encoder is not None:
            await reference_encoder.look(budget)

        async def prepared(prompt: str | Embeds) -> Embeds:
            budget, negative = self.budget(batch.timeout_s), batch.negative_prompt
            _check(prompt, negative, batch.options)
            embeds = await self._encoded(prompt, negative, batch.encoding, batch.options, said, budget)
            return embeds if reference_encoder is None else await reference_encoder.applied(embeds, budget)

        shared = SharedEmbeds(prepared)

        async def paint(one: Wanted) -> Result:
            embeds = await shared.of(one)
            require_negative(embeds, batch.options, said.defaults)
            options = batch.options.copy()
            options["seed"] = one.seed
            job = order(embeds, options, one.request_id, said.defaults, named=True, patient=True)

            def tell(event: Event) -> None:
                for told in (*self._to.notices(), event):
                    if batch.on_event is not None:
                        batch.on_event(one.index, told)

            budget = self.budget(batch.timeout_s)
            with self.running(job, budget) as run:
                return await collect(run, embeds, tell, Hops(), budget)

        try:
            in_flight = batch.in_flight or IN_FLIGHT * len(generators)
            async with contextlib.aclosing(many(wanted, paint, in_flight)) as outcomes:
                async for outcome in outcomes:
                    yield outcome
        finally:
            shared.close()


def _check(prompt: str | Embeds, negative_prompt: str | None, options: GenerateOptions) -> None:
    """Raises InvalidArgument, TypeError for what does not go together."""
    if isinstance(prompt, Embeds):
        if negative_prompt is not None:
            raise InvalidArgument(
                "negative_prompt: expected none beside embeddings, which hold their own; got one: encode both together",
                field="negative_prompt",
            )
        references_of(options).check_embeds(prompt)
    elif not isinstance(prompt, str):
        raise TypeError(f"prompt: expected a text or Embeds, got {type(prompt).__name__}")


def _text_limit(generator: GeneratorInfo) -> int | None:
    """Tokens that the generator takes, None while it does not know yet."""
    return generator.limits.text_limit or None
