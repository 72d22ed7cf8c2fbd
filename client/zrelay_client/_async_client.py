"""The client: carries prompts, embeddings and pictures between services that never talk to each other."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import TypeVar, Unpack

from zrelay_client._budget import DEFAULT_S, Budget
from zrelay_client._embeds import Embeds
from zrelay_client._events import Accepted, Done, Event, Image
from zrelay_client._hops import encode, paint, require_negative
from zrelay_client._info import EncoderInfo, GeneratorInfo, Info, VisionInfo
from zrelay_client._options import EncodeOptions, GenerateOptions, check_keywords
from zrelay_client._requests import guided
from zrelay_client._results import Result, Timings
from zrelay_client._services import EncoderService, GeneratorService, VisionService
from zrelay_shared.errors import InternalError, InvalidArgument

T = TypeVar("T", EncoderService, GeneratorService, VisionService)


class AsyncClient:
    """Paints through an encoder and a generator.

        async with AsyncClient(encoder="macbook.local", generator="127.0.0.1:7503") as client:
            result = await client.generate("a red fox", seed=7)
            result.images[0].save("fox.png")

    Endpoints are `HOST`, `HOST:PORT` or what gRPC resolves. With none of them, or with a `profile`, the rest are those
    of the configuration (`zrelay config`) and of the stack that `zrelay up` started. `timeout_s` is the budget of each
    call for all of its hops, queues included.

    Every failure is a ZrelayError; a keyword that does not exist is a TypeError.
    """

    def __init__(
        self,
        *,
        encoder: str | None = None,
        generator: str | None = None,
        vision: str | None = None,
        profile: str | None = None,
        timeout_s: float = DEFAULT_S,
    ) -> None:
        given = {"encoder": encoder, "vision": vision, "generator": generator}
        if profile is not None or not any(given.values()):
            from zrelay_client._settings import targets

            given = targets(profile, given)
        self._endpoints = given
        self._timeout_s = timeout_s
        self._services: dict[str, EncoderService | GeneratorService | VisionService] = {}

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the connections."""
        while self._services:
            await self._services.popitem()[1].close()

    async def info(self) -> Info:
        """What every configured service says of itself. Raises the first failure."""
        encoder, vision, generator = await asyncio.gather(
            self.encoder_info() if self._endpoints["encoder"] else _nothing(),
            self.vision_info() if self._endpoints["vision"] else _nothing(),
            self.generator_info() if self._endpoints["generator"] else _nothing(),
        )
        return Info(encoder, vision, generator)

    async def encoder_info(self) -> EncoderInfo:
        """What the encoder says of itself."""
        return await self._service(EncoderService).info()

    async def generator_info(self) -> GeneratorInfo:
        """What the generator says of itself."""
        return await self._service(GeneratorService).info()

    async def vision_info(self) -> VisionInfo:
        """What the vision service says of itself."""
        return await self._service(VisionService).info()

    async def serving(self) -> dict[str, bool]:
        """Role -> whether that service says it is ready, of every configured one. Raises the first failure."""
        services = [
            *([self._service(EncoderService)] if self._endpoints["encoder"] else []),
            *([self._service(VisionService)] if self._endpoints["vision"] else []),
            *([self._service(GeneratorService)] if self._endpoints["generator"] else []),
        ]
        answers = await asyncio.gather(*(service.serving() for service in services))
        return {service.role: answer for service, answer in zip(services, answers, strict=True)}

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
        return (await self._encode([prompt], options, negative_prompt, timeout_s))[0]

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
        return await self._encode(prompts, options, negative_prompt, timeout_s)

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

        Keywords are those of GenerateOptions. A guidance_scale above 0 without a negative prompt takes the empty one.
        `request_id` names the job for `cancel`, and makes a repeat return the same job's result. Being cancelled
        cancels the job on the device.
        """
        check_keywords(AsyncClient.generate, options, GenerateOptions)
        budget = self._budget(timeout_s)
        embeds, connect_s = await self._prepare(prompt, negative_prompt, encoding or {}, options, budget)
        encode_s = 0.0 if embeds is prompt else embeds.encode_s
        accepted, images, sent = None, [], budget.spent
        async with contextlib.aclosing(self._paint(embeds, options, request_id, budget)) as events:
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
                        connect_s=connect_s,
                        encode_s=encode_s,
                        generate_s=now - sent,
                        total_s=now,
                    )
                    return _result(accepted, images, timings, embeds)
        raise InternalError("the generator ended its stream without saying that the job was accepted and done")

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
        budget = self._budget(timeout_s)
        embeds, _ = await self._prepare(prompt, negative_prompt, encoding or {}, options, budget)
        async with contextlib.aclosing(self._paint(embeds, options, request_id, budget)) as events:
            async for event in events:
                yield event

    async def cancel(self, request_id: str) -> str:
        """Cancels a job by its request's id; the state it is in afterwards, e.g. "cancelled"."""
        return await self._service(GeneratorService).cancel(request_id)

    def _paint(
        self, embeds: Embeds, options: GenerateOptions, request_id: str | None, budget: Budget
    ) -> AsyncGenerator[Event, None]:
        return paint(self._service(GeneratorService), embeds, options, request_id or uuid.uuid4().hex, budget)

    def _budget(self, timeout_s: float | None) -> Budget:
        return Budget(self._timeout_s if timeout_s is None else timeout_s)

    def _service(self, kind: type[T]) -> T:
        """The one service of a kind, dialled when it is first needed (inside the loop that uses it)."""
        endpoint = self._endpoints[kind.role]
        if endpoint is None:
            raise InvalidArgument(
                f"{kind.role}: this client knows none: name it ({kind.role}='HOST:PORT'), or name none at all, to take "
                "those of the configuration or of `zrelay up --detach` on this machine",
                field=kind.role,
                reason="ENDPOINT_MISSING",
            )
        service = self._services.get(kind.role)
        if not isinstance(service, kind):
            service = self._services[kind.role] = kind(endpoint)
        return service

    async def _encode(
        self, prompts: Sequence[str], options: EncodeOptions, negative_prompt: str | None, timeout_s: float | None
    ) -> list[Embeds]:
        budget, encoder, limit = self._budget(timeout_s), self._service(EncoderService), None
        if self._endpoints["generator"] is not None and options.get("text_limit") is None:
            limit = _text_limit(await self._service(GeneratorService).info(budget.left("generator")))
        return await encode(encoder, prompts, options, negative_prompt, limit, budget)

    async def _prepare(
        self,
        prompt: str | Embeds,
        negative_prompt: str | None,
        encoding: EncodeOptions,
        options: GenerateOptions,
        budget: Budget,
    ) -> tuple[Embeds, float]:
        """Reaches every service that is needed before anything is computed: (what to paint, seconds until reached)."""
        check_keywords(AsyncClient.encode, encoding, EncodeOptions)
        generator = self._service(GeneratorService)
        if isinstance(prompt, Embeds):
            if negative_prompt is not None:
                raise InvalidArgument(
                    "negative_prompt: expected none beside embeddings, which hold their own; got one: encode both "
                    "together",
                    field="negative_prompt",
                )
            said = await generator.info(budget.left("generator"))
            require_negative(prompt, options, said.defaults)
            return prompt, budget.spent
        if not isinstance(prompt, str):
            raise TypeError(f"prompt: expected a text or Embeds, got {type(prompt).__name__}")
        encoder = self._service(EncoderService)
        said, _ = await asyncio.gather(generator.info(budget.left("generator")), encoder.info(budget.left("encoder")))
        reached_s = budget.spent
        if negative_prompt is None and guided(options, said.defaults):
            negative_prompt = ""
        many = await encode(encoder, [prompt], encoding, negative_prompt, _text_limit(said), budget)
        return many[0], reached_s


def _text_limit(generator: GeneratorInfo) -> int | None:
    """Tokens that the generator takes, None while it does not know yet."""
    return generator.limits.text_limit or None


async def _nothing() -> None:
    return None


def _result(accepted: Accepted, images: list[Image], timings: Timings, embeds: Embeds) -> Result:
    return Result(
        images=tuple(sorted(images, key=lambda image: image.image_index)),
        request_id=accepted.request_id,
        job_id=accepted.job_id,
        seed=accepted.seed,
        sampling=accepted.sampling,
        encoder_relation=accepted.encoder_relation,
        encoder_differences=accepted.encoder_differences,
        timings=timings,
        embeds=embeds,
    )
