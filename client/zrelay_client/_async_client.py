"""The client: carries prompts, embeddings and pictures between services that never talk to each other."""

import contextlib
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from types import TracebackType
from typing import Unpack

from zrelay_client._async_jobs import AsyncJobs
from zrelay_client._budget import DEFAULT_S
from zrelay_client._connections import Connections
from zrelay_client._embeds import Embeds
from zrelay_client._events import Event
from zrelay_client._info import EncoderInfo, GeneratorInfo, Info, ServiceStatus, VisionInfo
from zrelay_client._jobs import Job
from zrelay_client._many import Outcome, wanted_of
from zrelay_client._options import EncodeOptions, GenerateOptions, check_keywords
from zrelay_client._painter import Batch, Painter
from zrelay_client._painting import collect, order
from zrelay_client._results import Result
from zrelay_client._vision_calls import condition_prompt, encode_images, score_images
from zrelay_client._vision_embeds import Conditioned, ImageEmbeds, ImageScores
from zrelay_client._vision_images import ImageSource
from zrelay_client._vision_options import ConditionOptions, EncodeImagesOptions, Engine


class AsyncClient:
    """Paints through an encoder and a generator, or several of each.

        async with AsyncClient(encoder="macbook.local", generator=["box1", "box2:7503"]) as client:
            result = await client.generate("a red fox", seed=7)
            result.images[0].save("fox.png")

    Endpoints are `HOST`, `HOST:PORT` or what gRPC resolves; several of a role as a list, or joined by commas. With
    none of them, or with a `profile`, the rest are those of the configuration (`zrelay config`) and of the stack that
    `zrelay up` started. `timeout_s` is the budget of each call for all of its hops, queues included.

    Several generators must serve the same model: jobs go to the one that would be done first, and one whose generator
    dies is painted by another, the same picture. Of several encoders the first counts, and others stand in for it where
    they make the same embeddings. `jobs` has the durable jobs.

    Every failure is a ZrelayError; a keyword that does not exist is a TypeError.
    """

    def __init__(
        self,
        *,
        encoder: str | Sequence[str] | None = None,
        generator: str | Sequence[str] | None = None,
        vision: str | None = None,
        profile: str | None = None,
        timeout_s: float = DEFAULT_S,
    ) -> None:
        self._to = Connections(encoder=encoder, generator=generator, vision=vision, profile=profile)
        self._painter = Painter(self._to, timeout_s)
        self.jobs = AsyncJobs(lambda: self._to.generators)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the connections. Jobs that are still under way are cancelled."""
        await self._painter.stop()
        await self._to.close()

    async def info(self) -> Info:
        """What every configured service says of itself, the first of each role. Raises the first failure."""
        return await self._to.info()

    async def status(self) -> tuple[ServiceStatus, ...]:
        """Every configured endpoint: what it says of itself, or why it does not."""
        return await self._to.status()

    async def encoder_info(self) -> EncoderInfo:
        """What the (first) encoder says of itself."""
        return await self._to.encoders.first.info()

    async def generator_info(self) -> GeneratorInfo:
        """What the (first) generator says of itself."""
        return await self._to.generators.first.info()

    async def vision_info(self) -> VisionInfo:
        """What the vision service says of itself."""
        return await self._to.vision.info()

    async def serving(self) -> dict[str, bool]:
        """Role -> whether the (first) service says it is ready, of every configured role. Raises the first failure."""
        return await self._to.serving()

    async def encode(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[EncodeOptions],
    ) -> Embeds:
        """Embeddings of a prompt and, where given, of its negative prompt (which may be empty), in one call.

        Keywords are those of EncodeOptions. Embeddings that are to be painted with a guidance_scale above 0 need a
        negative prompt.
        """
        check_keywords(AsyncClient.encode, options, EncodeOptions)
        return (await self._painter.encode([prompt], options, negative_prompt, timeout_s))[0]

    async def encode_batch(
        self,
        prompts: Sequence[str],
        *,
        negative_prompt: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[EncodeOptions],
    ) -> list[Embeds]:
        """Embeddings of several prompts in one call, all with the same negative prompt; all or none."""
        check_keywords(AsyncClient.encode_batch, options, EncodeOptions)
        if isinstance(prompts, str):
            raise TypeError("prompts: expected several texts, got one: encode takes it")
        return await self._painter.encode(prompts, options, negative_prompt, timeout_s)

    async def encode_images(
        self,
        images: Sequence[ImageSource],
        *,
        engine: Engine,
        timeout_s: float | None = None,
        **options: Unpack[EncodeImagesOptions],
    ) -> list[ImageEmbeds]:
        """What one of the vision service's engines makes of images (paths of PNG, JPEG or WebP files, or their bytes),
        for `condition_prompt`, an Omni picture or a file. Keywords are those of EncodeImagesOptions."""
        check_keywords(AsyncClient.encode_images, options, EncodeImagesOptions)
        return await encode_images(self._to.vision, images, engine, options, self._painter.budget(timeout_s))

    async def score_images(
        self, images: Sequence[ImageSource], texts: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ImageScores]:
        """How well each of the texts describes each of the images, by the vision service's SigLIP2."""
        if isinstance(texts, str):
            raise TypeError("texts: expected several texts, got one: put it into a list")
        return await score_images(self._to.vision, images, texts, self._painter.budget(timeout_s))

    async def condition_prompt(
        self,
        embeds: Embeds,
        image: ImageSource | ImageEmbeds,
        *,
        timeout_s: float | None = None,
        **options: Unpack[ConditionOptions],
    ) -> Conditioned:
        """Blends an image (a path, bytes, states from `encode_images`, or the path of a file of them) into an encoded
        prompt. Keywords are those of ConditionOptions; alpha 0 gives the prompt back as it is."""
        check_keywords(AsyncClient.condition_prompt, options, ConditionOptions)
        return await condition_prompt(self._to.vision, embeds, image, options, self._painter.budget(timeout_s))

    async def generate(
        self,
        prompt: str | Embeds,
        *,
        negative_prompt: str | None = None,
        encoding: EncodeOptions | None = None,
        request_id: str | None = None,
        on_event: Callable[[Event], None] | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Result:
        """Paints a prompt, or embeddings made before. `on_event` is called with every event as it comes.

        Keywords are those of GenerateOptions, reference images among them. A guidance_scale above 0 without
        a negative prompt takes the empty one.
        `request_id` names the job for `cancel` and `detach`, and makes a repeat return the same job's result. A lost
        connection is taken up again, and a job whose generator stays away is moved. Being cancelled cancels the job on
        the device.
        """
        check_keywords(AsyncClient.generate, options, GenerateOptions)
        check_keywords(AsyncClient.encode, encoding or {}, EncodeOptions)
        budget = self._painter.budget(timeout_s)
        embeds, said, hops = await self._painter.prepare(prompt, negative_prompt, encoding or {}, options, budget)
        for notice in self._to.notices():
            if on_event is not None:
                on_event(notice)
        with self._painter.running(order(embeds, options, request_id, said.defaults), budget) as run:
            return await collect(run, embeds, on_event, hops, budget)

    async def stream(
        self,
        prompt: str | Embeds,
        *,
        negative_prompt: str | None = None,
        encoding: EncodeOptions | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerator[Event, None]:
        """The events of `generate`, as they come. Closing the iterator before Done cancels the job."""
        check_keywords(AsyncClient.stream, options, GenerateOptions)
        check_keywords(AsyncClient.encode, encoding or {}, EncodeOptions)
        budget = self._painter.budget(timeout_s)
        embeds, said, _ = await self._painter.prepare(prompt, negative_prompt, encoding or {}, options, budget)
        for notice in self._to.notices():
            yield notice
        with self._painter.running(order(embeds, options, request_id, said.defaults), budget) as run:
            async with contextlib.aclosing(run.events()) as events:
                async for event in events:
                    yield event

    async def generate_many(
        self,
        prompts: str | Embeds | Iterable[str | Embeds],
        *,
        seeds: Sequence[int | None] = (None,),
        negative_prompt: str | None = None,
        encoding: EncodeOptions | None = None,
        batch_id: str | None = None,
        in_flight: int | None = None,
        on_event: Callable[[int, Event], None] | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerator[Outcome, None]:
        """Paints every prompt with every seed, a job each, and yields each outcome as soon as there is one.

        A prompt is encoded once, and its embeddings are sent once to each generator. At most `in_flight` jobs (8 for
        each generator) are under way; a busy generator is waited for, and a job that fails is an Outcome with an error
        beside the others. `batch_id` names the jobs `<batch_id>-<index>`: a repeat of the batch returns what is done
        already. `on_event` gets the index and the event; `timeout_s` is for each job. Closing the iterator cancels what
        is under way.
        """
        check_keywords(AsyncClient.generate_many, options, GenerateOptions)
        check_keywords(AsyncClient.encode, encoding or {}, EncodeOptions)
        wanted = wanted_of(prompts, seeds, batch_id or uuid.uuid4().hex)
        batch = Batch(encoding or {}, negative_prompt, options, on_event, timeout_s, in_flight)
        async with contextlib.aclosing(self._painter.many(wanted, batch)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def prepare(
        self,
        prompt: str | Embeds,
        *,
        negative_prompt: str | None = None,
        encoding: EncodeOptions | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Embeds:
        """What `generate` would send to a generator, with its reference images, to be painted as often as wanted."""
        check_keywords(AsyncClient.prepare, options, GenerateOptions)
        check_keywords(AsyncClient.encode, encoding or {}, EncodeOptions)
        budget = self._painter.budget(timeout_s)
        return (await self._painter.prepare(prompt, negative_prompt, encoding or {}, options, budget))[0]

    async def submit(
        self,
        prompt: str | Embeds,
        *,
        negative_prompt: str | None = None,
        encoding: EncodeOptions | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Job:
        """Leaves a picture to a generator, which paints it whether somebody watches or not, and returns at once.

        `jobs.watch` and `jobs.fetch` come back to it, by its job_id. Keywords are those of `generate`.
        """
        check_keywords(AsyncClient.submit, options, GenerateOptions)
        check_keywords(AsyncClient.encode, encoding or {}, EncodeOptions)
        budget = self._painter.budget(timeout_s)
        embeds, said, _ = await self._painter.prepare(prompt, negative_prompt, encoding or {}, options, budget)
        with self._painter.running(order(embeds, options, request_id, said.defaults), budget) as run:
            return await run.submit()

    async def cancel(self, request_id: str) -> str:
        """Cancels a job by its request's id; the state it is in afterwards, e.g. "cancelled"."""
        return (await self._to.cancel(request_id)).state

    async def detach(self, request_id: str) -> Job:
        """Lets a job that this client paints run on by itself, so that the call that waits for it may be cancelled.

        Raises NotFound where this client paints no such job.
        """
        return await self._painter.detach(request_id)

    def painting(self) -> tuple[str, ...]:
        """The request_ids of the jobs that this client is painting now."""
        return self._painter.painting
