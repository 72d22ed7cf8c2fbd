"""The asynchronous client: carries prompts, embeddings and images between services that never call each other."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack, cast

from zrelay_client._jobs.batch import IN_FLIGHT, BatchJob, SharedEmbeds, batch_jobs, run_batch
from zrelay_client._jobs.run import Hops, JobRequest, JobRun, collect, uses_guidance
from zrelay_client._pool.encoders import Encoders
from zrelay_client._pool.generators import Generators
from zrelay_client._transport.deadline import CONNECT_S, DEFAULT_S, Budget
from zrelay_client._transport.endpoint import Endpoint, EndpointSource
from zrelay_client._vision.calls import VisionService, condition_prompt, encode_images, score_images
from zrelay_client._vision.references import (
    ReferenceEncoder,
    check_image_count,
    check_reference_files,
    encode_options_for,
    has_references,
)
from zrelay_client.embeds import Conditioned, Embeds
from zrelay_client.events import Event, Job, Notice, Sampling
from zrelay_client.image_embeds import ImageEmbeds, ImageScores
from zrelay_client.image_files import ImageSource
from zrelay_client.info import EncoderInfo, GeneratorInfo, Info, ServiceStatus, VisionInfo
from zrelay_client.jobs import AsyncJobs, attempt
from zrelay_client.options import (
    ConditionKeywords,
    ConditionOptions,
    EncodeImagesKeywords,
    EncodeImagesOptions,
    EncodeKeywords,
    EncodeOptions,
    Engine,
    GenerateKeywords,
    GenerateOptions,
    checked_id,
    checked_integer,
    checked_seconds,
    checked_word,
    options_of,
    refusal,
)
from zrelay_client.profiles import AddressBook
from zrelay_client.results import Outcome, Result
from zrelay_client.start_size import with_size
from zrelay_shared.config import ROLES, checked_role
from zrelay_shared.errors import InvalidArgument, NotFound, ZrelayError

if TYPE_CHECKING:
    from zrelay_client.settings import Settings

_MAX_IN_FLIGHT = 1 << 16


class AsyncClient:
    """Generates images through an encoder and a generator, or several of each.

        async with AsyncClient(encoder="macbook.local", generator=["box1", "box2:7503"]) as client:
            result = await client.generate("a red fox", seed=7)
            result.images[0].save("fox.png")

    Several generators must serve the same model. A job goes to the generator that would finish it first; if that
    generator dies, another one makes the same image. Of several encoders the first one counts, and others replace it if
    they make the same embeddings. `jobs` has the jobs that the generators keep.

    Methods take their options as an object, as keywords, or as both; keywords replace fields of the object. Every
    failure of a service or of a value is a ZrelayError, that of a local file an OSError. An unknown keyword is a
    TypeError.

    Args:
        encoder: Endpoints: `HOST`, `HOST:PORT`, a target of gRPC, or an Endpoint; several as a sequence, or separated
            by commas. The host and port of a box that `zrelay join` has paired get its certificates; `box:NAME` is
            such a box. Without any endpoint, or with a profile, missing ones come from the configuration (`zrelay
            config`), the services that `zrelay up` runs, and joined boxes.
        generator: As `encoder`.
        vision: As `encoder`.
        profile: The profile of the configuration file.
        timeout_s: Timeout in seconds of each call with all of its hops, including queues.

    Raises:
        InvalidArgument: ENDPOINT_INVALID, BOX_UNKNOWN, CONFIG_INVALID, TIMEOUT_INVALID.
        FailedPrecondition: PROFILE_INVALID, the file of a joined profile is damaged.
    """

    def __init__(
        self,
        *,
        encoder: EndpointSource = None,
        generator: EndpointSource = None,
        vision: EndpointSource = None,
        profile: str | None = None,
        timeout_s: float = DEFAULT_S,
    ) -> None:
        given: dict[str, EndpointSource] = {"encoder": encoder, "vision": vision, "generator": generator}
        if profile is not None or all(source is None or source == "" for source in given.values()):
            from zrelay_client.settings import resolve  # imports what manages the processes of `zrelay up`

            self._endpoints = resolve(given, profile)
        else:
            addresses = AddressBook.of_joined()
            self._endpoints = {role: addresses.endpoints(role, source) for role, source in given.items()}
        self._timeout_s = checked_seconds("timeout_s", timeout_s)
        self._open_encoders: Encoders | None = None
        self._open_generators: Generators | None = None
        self._open_vision: VisionService | None = None
        self._runs: dict[str, JobRun] = {}
        self.jobs = AsyncJobs(lambda: self._generators, self._timeout_s)

    @classmethod
    def from_settings(
        cls, settings: "Settings", *, roles: Sequence[str] = ROLES, timeout_s: float | None = None
    ) -> "AsyncClient":
        """Returns a client of the endpoints of loaded settings.

        Args:
            settings: The settings.
            roles: The roles whose endpoints the client uses.
            timeout_s: Timeout of each call in seconds. Default: that of the settings.

        Raises:
            InvalidArgument: ENDPOINT_INVALID, ROLE_INVALID.
            TypeError: `roles` is one text.
        """
        return cls(**client_arguments(settings, roles, timeout_s))

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancels the jobs of this client that still run, and closes the connections."""
        await asyncio.gather(*(run.stop() for run in self._runs.values()))
        for connection in (self._open_encoders, self._open_generators, self._open_vision):
            if connection is not None:
                await connection.close()
        self._open_encoders = self._open_generators = self._open_vision = None

    # Information

    async def info(self) -> Info:
        """Returns what the first service of each role reports. Raises the first failure."""
        encoder, vision, generator = await asyncio.gather(
            self._encoders.first.info() if self._has("encoder") else _nothing(),
            self._vision.info() if self._has("vision") else _nothing(),
            self._generators.first.info() if self._has("generator") else _nothing(),
        )
        return Info(encoder, vision, generator)

    async def status(self) -> tuple[ServiceStatus, ...]:
        """Returns the state of every endpoint: what its service reports, or the error of the call."""
        calls: list[Awaitable[ServiceStatus]] = []
        if self._has("encoder"):
            calls += [_status("encoder", service.endpoint, service.info) for service in self._encoders]
        if self._has("vision"):
            calls.append(_status("vision", self._vision.endpoint, self._vision.info))
        if self._has("generator"):
            calls += [_status("generator", each.endpoint, each.service.info) for each in self._generators]
        return tuple(await asyncio.gather(*calls))

    async def encoder_info(self) -> EncoderInfo:
        """Returns what the first encoder reports."""
        return await self._encoders.first.info()

    async def generator_info(self) -> GeneratorInfo:
        """Returns what the first generator reports."""
        return await self._generators.first.info()

    async def vision_info(self) -> VisionInfo:
        """Returns what the vision service reports."""
        return await self._vision.info()

    async def serving(self, *, connect_s: float = CONNECT_S) -> dict[str, bool]:
        """Returns role -> whether its first service is ready, each within `connect_s` seconds.

        Raises:
            ZrelayError: The first failure.
        """
        services = [
            *([self._encoders.first] if self._has("encoder") else []),
            *([self._vision] if self._has("vision") else []),
            *([self._generators.first] if self._has("generator") else []),
        ]
        answers = await asyncio.gather(*(service.serving(connect_s) for service in services))
        return {service.role: answer for service, answer in zip(services, answers, strict=True)}

    # Encode

    async def encode(
        self,
        prompt: str,
        options: EncodeOptions | EncodeKeywords | None = None,
        *,
        negative_prompt: str | None = None,
        timeout_s: float | None = None,
        **keywords: Unpack[EncodeKeywords],
    ) -> Embeds:
        """Encodes a prompt, and its negative prompt if there is one, in one call.

        Args:
            prompt: The prompt.
            options: Options of the encoder.
            negative_prompt: The negative prompt, which may be empty. Embeddings need one to be generated with a
                guidance_scale above 0.
            timeout_s: Timeout in seconds.
            **keywords: Fields of EncodeOptions.
        """
        chosen = options_of(EncodeOptions, options, keywords, AsyncClient.encode)
        return (await self._encode([prompt], chosen, negative_prompt, timeout_s))[0]

    async def encode_batch(
        self,
        prompts: Sequence[str],
        options: EncodeOptions | EncodeKeywords | None = None,
        *,
        negative_prompt: str | None = None,
        timeout_s: float | None = None,
        **keywords: Unpack[EncodeKeywords],
    ) -> list[Embeds]:
        """Encodes several prompts with the same negative prompt in one call: all of them or none.

        Arguments as `encode`.
        """
        chosen = options_of(EncodeOptions, options, keywords, AsyncClient.encode_batch)
        if isinstance(prompts, str):
            raise TypeError("prompts: expected several texts, got one: encode takes it")
        return await self._encode(prompts, chosen, negative_prompt, timeout_s)

    # Vision

    async def encode_images(
        self,
        images: Sequence[ImageSource],
        options: EncodeImagesOptions | EncodeImagesKeywords | None = None,
        *,
        engine: Engine,
        timeout_s: float | None = None,
        **keywords: Unpack[EncodeImagesKeywords],
    ) -> list[ImageEmbeds]:
        """Encodes images, for `condition_prompt`, for `generate` or for a file: all of them or none.

        Args:
            images: Paths of PNG, JPEG or WebP files, or their bytes.
            options: Options of the vision service.
            engine: "siglip" for grids, "qwen3_vl" for hidden states.
            timeout_s: Timeout in seconds.
            **keywords: Fields of EncodeImagesOptions.
        """
        chosen = options_of(EncodeImagesOptions, options, keywords, AsyncClient.encode_images)
        checked = cast(Engine, checked_word("engine", engine, Engine))
        return await encode_images(self._vision, images, checked, chosen, self._budget(timeout_s))

    async def score_images(
        self, images: Sequence[ImageSource], texts: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ImageScores]:
        """Scores how well each text describes each image, with the vision service's SigLIP2.

        Args:
            images: Paths of PNG, JPEG or WebP files, or their bytes.
            texts: The descriptions.
            timeout_s: Timeout in seconds.
        """
        if isinstance(texts, str):
            raise TypeError("texts: expected several texts, got one: put it into a list")
        return await score_images(self._vision, images, texts, self._budget(timeout_s))

    async def condition_prompt(
        self,
        embeds: Embeds,
        image: ImageSource | ImageEmbeds,
        options: ConditionOptions | ConditionKeywords | None = None,
        *,
        timeout_s: float | None = None,
        **keywords: Unpack[ConditionKeywords],
    ) -> Conditioned:
        """Blends an image into an encoded prompt.

        Args:
            embeds: The prompt.
            image: A path, bytes, hidden states from `encode_images`, or the path of their file.
            options: Options of the vision service. An alpha of 0 returns the prompt unchanged.
            timeout_s: Timeout in seconds.
            **keywords: Fields of ConditionOptions.
        """
        chosen = options_of(ConditionOptions, options, keywords, AsyncClient.condition_prompt)
        return await condition_prompt(self._vision, embeds, image, chosen, self._budget(timeout_s))

    # Generate

    async def generate(
        self,
        prompt: str | Embeds,
        options: GenerateOptions | GenerateKeywords | None = None,
        *,
        negative_prompt: str | None = None,
        encoding: EncodeOptions | EncodeKeywords | None = None,
        request_id: str | None = None,
        on_event: Callable[[Event], None] | None = None,
        timeout_s: float | None = None,
        **keywords: Unpack[GenerateKeywords],
    ) -> Result:
        """Generates images from a prompt or from embeddings.

        A lost connection is resumed, and a job whose generator stays away moves to another one. Cancelling the call
        cancels the job on the device.

        Args:
            prompt: The prompt, or embeddings from `encode`, `prepare` or a file.
            options: Options of the generation, reference images included.
            negative_prompt: The negative prompt. Default: the empty prompt where guidance is on.
            encoding: Options of the encoder.
            request_id: Names the job for `cancel` and `detach`. A repeat with the same id returns the result of that
                job.
            on_event: Called with each event.
            timeout_s: Timeout in seconds.
            **keywords: Fields of GenerateOptions.
        """
        chosen = options_of(GenerateOptions, options, keywords, AsyncClient.generate)
        encode_options = options_of(EncodeOptions, encoding, argument="encoding")
        request_id = checked_id("request_id", request_id)
        budget = self._budget(timeout_s)
        ready = await self._prepare(prompt, negative_prompt, encode_options, chosen, budget)
        for notice in ready.notices:
            if on_event is not None:
                on_event(notice)
        with self._running(ready.request(request_id), budget) as run:
            return await collect(run, ready.embeds, on_event, ready.hops, budget)

    async def stream(
        self,
        prompt: str | Embeds,
        options: GenerateOptions | GenerateKeywords | None = None,
        *,
        negative_prompt: str | None = None,
        encoding: EncodeOptions | EncodeKeywords | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
        **keywords: Unpack[GenerateKeywords],
    ) -> AsyncGenerator[Event, None]:
        """Yields the events of `generate`. Closing the iterator before Done cancels the job.

        Arguments as `generate`.
        """
        chosen = options_of(GenerateOptions, options, keywords, AsyncClient.stream)
        encode_options = options_of(EncodeOptions, encoding, argument="encoding")
        request_id = checked_id("request_id", request_id)
        budget = self._budget(timeout_s)
        ready = await self._prepare(prompt, negative_prompt, encode_options, chosen, budget)
        for notice in ready.notices:
            yield notice
        with self._running(ready.request(request_id), budget) as run:
            async with contextlib.aclosing(run.events()) as events:
                async for event in events:
                    yield event

    async def generate_many(
        self,
        prompts: str | Embeds | Iterable[str | Embeds],
        options: GenerateOptions | GenerateKeywords | None = None,
        *,
        seeds: Sequence[int | None] | None = None,
        negative_prompt: str | None = None,
        encoding: EncodeOptions | EncodeKeywords | None = None,
        batch_id: str | None = None,
        in_flight: int | None = None,
        on_event: Callable[[int, Event], None] | None = None,
        timeout_s: float | None = None,
        **keywords: Unpack[GenerateKeywords],
    ) -> AsyncGenerator[Outcome, None]:
        """Runs a job for each prompt and each seed, and yields each outcome as soon as its job ends.

        A prompt is encoded once, and its embeddings are sent once to each generator. A busy generator is waited for. A
        job that fails is an Outcome with an error and does not stop the others. Closing the iterator cancels the jobs
        in flight.

        Args:
            prompts: Prompts or embeddings.
            options: Options of all jobs.
            seeds: The seeds of each prompt, in place of `seed`. Default: one job per prompt.
            negative_prompt: As `generate`.
            encoding: As `generate`.
            batch_id: Names the jobs `<batch_id>-<index>`. A repeat of the batch returns the results of finished jobs.
            in_flight: Number of jobs in flight, at least 1. Default: 8 for each generator.
            on_event: Called with the index of a job and its event.
            timeout_s: Timeout of each job in seconds.
            **keywords: Fields of GenerateOptions.

        Raises:
            InvalidArgument: SEEDS_INVALID (`seeds` beside `seed`), SEED_INVALID, IN_FLIGHT_INVALID.
        """
        chosen = options_of(GenerateOptions, options, keywords, AsyncClient.generate_many)
        encode_options = options_of(EncodeOptions, encoding, argument="encoding")
        each_seed = _seeds_of(seeds, chosen)
        batch_id = checked_id("batch_id", batch_id)
        limit = None if in_flight is None else checked_integer("in_flight", in_flight, 1, _MAX_IN_FLIGHT)
        references, generators = await self._reference_encoder(chosen), self._generators
        budget = self._budget(timeout_s)
        info, chosen, notice = await self._connect(chosen, references, budget, encode=False)
        if references is not None:
            await references.encode(budget)

        async def prepare(prompt: str | Embeds) -> Embeds:
            _check_prompt(prompt, negative_prompt, chosen)
            own_budget = self._budget(timeout_s)
            embeds = await self._embeds_of(prompt, negative_prompt, encode_options, chosen, info, own_budget)
            return embeds if references is None else await references.apply(embeds, own_budget)

        shared = SharedEmbeds(prepare)

        async def run_one(job: BatchJob) -> Result:
            embeds = await shared.of(job)
            _require_negative(embeds, chosen, info.defaults)
            own_options = chosen.replaced(seed=job.seed)
            request = JobRequest.of(embeds, own_options, job.request_id, info.defaults, named=True, patient=True)

            def report(event: Event) -> None:
                for each in (*self._take_notices(), event):
                    if on_event is not None:
                        on_event(job.index, each)

            if notice is not None:
                report(notice)
            own_budget = self._budget(timeout_s)
            with self._running(request, own_budget) as run:
                return await collect(run, embeds, report, Hops(), own_budget)

        jobs = batch_jobs(prompts, each_seed, batch_id or uuid.uuid4().hex)
        try:
            outcomes = run_batch(jobs, run_one, limit or IN_FLIGHT * len(generators))
            async with contextlib.aclosing(outcomes):
                async for outcome in outcomes:
                    yield outcome
        finally:
            shared.close()

    async def prepare(
        self,
        prompt: str | Embeds,
        options: GenerateOptions | GenerateKeywords | None = None,
        *,
        negative_prompt: str | None = None,
        encoding: EncodeOptions | EncodeKeywords | None = None,
        timeout_s: float | None = None,
        **keywords: Unpack[GenerateKeywords],
    ) -> Embeds:
        """Returns the embeddings that `generate` would send, with reference images, for several generations.

        Arguments as `generate`.
        """
        chosen = options_of(GenerateOptions, options, keywords, AsyncClient.prepare)
        encode_options = options_of(EncodeOptions, encoding, argument="encoding")
        budget = self._budget(timeout_s)
        return (await self._prepare(prompt, negative_prompt, encode_options, chosen, budget)).embeds

    # Jobs

    async def submit(
        self,
        prompt: str | Embeds,
        options: GenerateOptions | GenerateKeywords | None = None,
        *,
        negative_prompt: str | None = None,
        encoding: EncodeOptions | EncodeKeywords | None = None,
        request_id: str | None = None,
        on_notice: Callable[[Notice], None] | None = None,
        timeout_s: float | None = None,
        **keywords: Unpack[GenerateKeywords],
    ) -> Job:
        """Submits a job that runs without a watcher, and returns at once.

        `jobs.watch` and `jobs.fetch` return to it by its job_id. Arguments as `generate`; `on_notice` is called with
        each notice before the job is submitted.
        """
        chosen = options_of(GenerateOptions, options, keywords, AsyncClient.submit)
        encode_options = options_of(EncodeOptions, encoding, argument="encoding")
        request_id = checked_id("request_id", request_id)
        budget = self._budget(timeout_s)
        ready = await self._prepare(prompt, negative_prompt, encode_options, chosen, budget)
        for notice in ready.notices:
            if on_notice is not None:
                on_notice(notice)
        with self._running(ready.request(request_id), budget) as run:
            return await run.submit()

    async def cancel(self, request_id: str) -> str:
        """Cancels the job of a request on any generator.

        Returns:
            The state of the job afterwards, for example "cancelled".

        Raises:
            NotFound: No generator knows the request.
        """
        checked_id("request_id", request_id)
        calls = [partial(each.service.cancel, request_id) for each in self._generators]
        answers = await asyncio.gather(*map(attempt, calls))
        jobs = [answer for answer in answers if isinstance(answer, Job)]
        failures = [answer for answer in answers if isinstance(answer, ZrelayError)]
        if not jobs:
            raise next((error for error in failures if not isinstance(error, NotFound)), failures[0])
        return next((job for job in jobs if job.state == "cancelled"), jobs[0]).state

    async def detach(self, request_id: str) -> Job:
        """Lets a job of this client continue without a watcher, so that the call that waits for it may be cancelled.

        Raises:
            NotFound: JOB_UNKNOWN, this client runs no such job.
        """
        run = self._runs.get(checked_id("request_id", request_id) or "")
        if run is None:
            raise NotFound(
                f"request_id: expected a job that this client runs, got {request_id!r}",
                reason="JOB_UNKNOWN",
                field="request_id",
            )
        return await run.detach()

    def running(self) -> tuple[str, ...]:
        """Returns the request_ids of the jobs that this client runs now."""
        return tuple(self._runs)

    # Connections

    @property
    def _encoders(self) -> Encoders:
        if self._open_encoders is None:
            self._open_encoders = Encoders(self._endpoints_of("encoder"))
        return self._open_encoders

    @property
    def _generators(self) -> Generators:
        if self._open_generators is None:
            self._open_generators = Generators(self._endpoints_of("generator"))
        return self._open_generators

    @property
    def _vision(self) -> VisionService:
        if self._open_vision is None:
            self._open_vision = VisionService(self._endpoints_of("vision")[0])
        return self._open_vision

    def _has(self, role: str) -> bool:
        return bool(self._endpoints.get(role))

    def _endpoints_of(self, role: str) -> tuple[Endpoint, ...]:
        """Returns the endpoints of a role. Raises InvalidArgument (ENDPOINT_MISSING) if there are none."""
        if not self._has(role):
            raise InvalidArgument(
                f"{role}: this client has no endpoint; pass {role}='HOST:PORT', or pass no endpoints at all to use the "
                "configuration or the services of `zrelay up --detach` on this machine",
                field=role,
                reason="ENDPOINT_MISSING",
            )
        return self._endpoints[role]

    def _budget(self, timeout_s: float | None) -> Budget:
        return Budget(self._timeout_s if timeout_s is None else checked_seconds("timeout_s", timeout_s))

    def _take_notices(self) -> list[Notice]:
        return [] if self._open_encoders is None else self._open_encoders.take_notices()

    def _notices(self, *notices: Notice | None) -> tuple[Notice, ...]:
        """Returns the given notices without None, followed by new notices of the encoders."""
        return (*(notice for notice in notices if notice is not None), *self._take_notices())

    @contextlib.contextmanager
    def _running(self, request: JobRequest, budget: Budget) -> Iterator[JobRun]:
        """Registers a job for `cancel`, `detach` and `aclose` while it runs."""
        run = self._runs[request.request_id] = JobRun(self._generators, request, budget)
        try:
            yield run
        finally:
            self._runs.pop(request.request_id, None)

    # Preparation of a job

    async def _encode(
        self, prompts: Sequence[str], options: EncodeOptions, negative_prompt: str | None, timeout_s: float | None
    ) -> list[Embeds]:
        """Encodes prompts, with the text limit of the generator if there is one and the options set none."""
        budget, encoders, limit = self._budget(timeout_s), self._encoders, None
        if self._has("generator") and options.text_limit is None:
            limit = _text_limit(await self._generators.connect(budget))
        made = await encoders.encode(prompts, negative_prompt, options, limit, budget)
        notes = tuple(notice.message for notice in self._take_notices())
        for embeds in made:
            embeds.notes = notes
        return made

    async def _prepare(
        self,
        prompt: str | Embeds,
        negative_prompt: str | None,
        encoding: EncodeOptions,
        options: GenerateOptions,
        budget: Budget,
    ) -> "_Prepared":
        """Connects to every service that is needed before anything is computed, and encodes the prompt and the
        reference images at the same time."""
        _check_prompt(prompt, negative_prompt, options)
        references = await self._reference_encoder(options)
        info, options, notice = await self._connect(options, references, budget, encode=isinstance(prompt, str))
        connect_s = budget.spent
        if isinstance(prompt, Embeds):
            _require_negative(prompt, options, info.defaults)
        encode = self._embeds_of(prompt, negative_prompt, encoding, options, info, budget)
        if references is None:
            embeds = await encode
            hops = Hops(connect_s, 0.0 if embeds is prompt else embeds.encode_s)
            return _Prepared(embeds, options, info.defaults, hops, self._notices(notice))
        encoded, _ = await asyncio.gather(encode, references.encode(budget))
        encode_s = 0.0 if encoded is prompt else encoded.encode_s
        embeds = await references.apply(encoded, budget)
        vision_s = max(0.0, budget.spent - connect_s - encode_s)
        hops = Hops(connect_s, encode_s, vision_s)
        return _Prepared(embeds, options, info.defaults, hops, self._notices(notice))

    async def _reference_encoder(self, options: GenerateOptions) -> ReferenceEncoder | None:
        """Returns the encoder of reference images, None if there are none. Raises OSError, InvalidArgument."""
        if not has_references(options):
            return None
        await asyncio.to_thread(check_reference_files, options)
        return ReferenceEncoder(self._vision, options)

    async def _connect(
        self, options: GenerateOptions, references: ReferenceEncoder | None, budget: Budget, *, encode: bool
    ) -> tuple[GeneratorInfo, GenerateOptions, Notice | None]:
        """Connects to the services that are needed.

        Returns:
            What the generator reports, the options with the size of an image to start from, and a notice about it.
        """
        generators, encoders = self._generators, self._encoders if encode else None
        others = [each.connect(budget) for each in (encoders, references) if each is not None]
        info, _ = await asyncio.gather(generators.connect(budget), asyncio.gather(*others))
        sized, notice = with_size(options, info)
        if references is not None:
            references.check(info, sized)
        return info, sized, notice

    async def _embeds_of(
        self,
        prompt: str | Embeds,
        negative_prompt: str | None,
        encoding: EncodeOptions,
        options: GenerateOptions,
        info: GeneratorInfo,
        budget: Budget,
    ) -> Embeds:
        """Encodes a prompt, with an empty negative prompt if guidance needs one. Returns embeddings as they are."""
        if isinstance(prompt, Embeds):
            return prompt
        if negative_prompt is None and uses_guidance(options, info.defaults):
            negative_prompt = ""
        encoding = encode_options_for(options, encoding)
        return (await self._encoders.encode([prompt], negative_prompt, encoding, _text_limit(info), budget))[0]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a job needs to be submitted.

    Attributes:
        embeds: The embeddings, with reference images.
        options: The options, with a size if an image to start from decides about it.
        defaults: The generator's defaults.
        hops: The time taken.
        notices: What the user should know before the job begins.
    """

    embeds: Embeds
    options: GenerateOptions
    defaults: Sampling
    hops: Hops
    notices: tuple[Notice, ...]

    def request(self, request_id: str | None) -> JobRequest:
        """Returns the job."""
        return JobRequest.of(self.embeds, self.options, request_id, self.defaults)


def client_arguments(settings: "Settings", roles: Sequence[str], timeout_s: float | None) -> dict[str, Any]:
    """Returns the arguments of a client of the endpoints of loaded settings.

    Raises:
        InvalidArgument: ENDPOINT_INVALID, ROLE_INVALID.
        TypeError: `roles` is one text.
    """
    if isinstance(roles, str):
        raise TypeError("roles: expected several roles, got one: put it into a list")
    for role in roles:
        checked_role(role)
    configured = settings.config.generate.timeout_s
    default = DEFAULT_S if configured is None else configured
    endpoints = {role: settings.endpoints(role) if role in roles else () for role in ROLES}
    return {**endpoints, "timeout_s": default if timeout_s is None else timeout_s}


def _seeds_of(seeds: Sequence[int | None] | None, options: GenerateOptions) -> Sequence[int | None]:
    """Returns the seeds of each prompt of a batch. Raises InvalidArgument (SEEDS_INVALID, SEED_INVALID)."""
    if seeds is None:
        return (options.seed,)
    if options.seed is not None:
        raise refusal("seeds", f"none beside seed={options.seed}", seeds)
    ends = (seeds[0], seeds[-1]) if isinstance(seeds, range) and seeds else seeds  # what lies between is valid, too
    for seed in ends:
        options.replaced(seed=seed)
    return seeds


def _check_prompt(prompt: object, negative_prompt: str | None, options: GenerateOptions) -> None:
    """Checks what the prompt is. Raises InvalidArgument, TypeError."""
    if isinstance(prompt, Embeds):
        if negative_prompt is not None:
            raise InvalidArgument(
                "negative_prompt: expected none beside embeddings, which hold their own; got one: encode both together",
                field="negative_prompt",
            )
        check_image_count(prompt, options)
    elif not isinstance(prompt, str):
        raise TypeError(f"prompt: expected a text or Embeds, got {type(prompt).__name__}")


def _require_negative(embeds: Embeds, options: GenerateOptions, defaults: Sampling) -> None:
    """Checks that embeddings have a negative prompt if guidance is on. Raises InvalidArgument."""
    if embeds.negative_report is None and uses_guidance(options, defaults):
        raise InvalidArgument(
            "negative_prompt: expected one within the embeddings, since guidance_scale is above 0, got none: encode "
            'again with a negative prompt, which may be empty (`zrelay encode ... --negative-prompt ""`), or set '
            "guidance_scale to 0",
            field="negative_prompt",
            reason="NEGATIVE_PROMPT_MISSING",
        )


def _text_limit(info: GeneratorInfo) -> int | None:
    """Returns the prompt length in tokens that the generator accepts, None while it does not know."""
    return info.limits.text_limit or None


async def _status(
    role: str, endpoint: str, call: Callable[[], Awaitable[EncoderInfo | VisionInfo | GeneratorInfo]]
) -> ServiceStatus:
    answer = await attempt(call)
    if isinstance(answer, ZrelayError):
        return ServiceStatus(role, endpoint, None, answer)
    return ServiceStatus(role, endpoint, answer, None)


async def _nothing() -> None:
    return None
