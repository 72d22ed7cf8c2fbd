"""The client: carries prompts, embeddings and pictures between services that never talk to each other."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import TypeVar

from zrelay_client._budget import DEFAULT_S, Budget
from zrelay_client._embeds import Embeds
from zrelay_client._events import Accepted, Done, Event, Image
from zrelay_client._hops import encode, paint
from zrelay_client._info import EncoderInfo, GeneratorInfo, Info, VisionInfo
from zrelay_client._options import EncodeOptions, GenerateOptions
from zrelay_client._results import Result, Timings
from zrelay_client._services import EncoderService, GeneratorService, VisionService
from zrelay_shared.errors import InternalError, InvalidArgument

T = TypeVar("T", EncoderService, GeneratorService, VisionService)
_ENCODING, _GENERATION = EncodeOptions(), GenerateOptions()


class AsyncClient:
    """Paints through an encoder and a generator.

        async with AsyncClient(encoder="macbook.local", generator="127.0.0.1:7503") as client:
            result = await client.generate("a red fox", GenerateOptions(seed=7))
            Path("fox.png").write_bytes(result.images[0].data)

    Endpoints are `HOST`, `HOST:PORT` or what gRPC resolves; one that is missing is asked for when it is needed.
    `timeout_s` is the budget of each call for all of its hops, queues included. Every failure is a ZrelayError.
    """

    def __init__(
        self,
        *,
        encoder: str | None = None,
        generator: str | None = None,
        vision: str | None = None,
        timeout_s: float = DEFAULT_S,
    ) -> None:
        self._endpoints = {"encoder": encoder, "vision": vision, "generator": generator}
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
        options: EncodeOptions = _ENCODING,
        *,
        negative_prompt: str | None = None,
        timeout_s: float | None = None,
    ) -> Embeds:
        """Embeddings of a prompt and, where given, of its negative prompt, in one call."""
        many = await self.encode_batch([prompt], options, negative_prompt=negative_prompt, timeout_s=timeout_s)
        return many[0]

    async def encode_batch(
        self,
        prompts: Sequence[str],
        options: EncodeOptions = _ENCODING,
        *,
        negative_prompt: str | None = None,
        timeout_s: float | None = None,
    ) -> list[Embeds]:
        """Embeddings of several prompts in one call, all with the same negative prompt; all or none."""
        budget = self._budget(timeout_s)
        encoder = self._service(EncoderService)
        limit = None
        if self._endpoints["generator"] is not None and options.text_limit is None:
            limit = await self._text_limit(budget)
        return await encode(encoder, prompts, options, negative_prompt, limit, budget)

    async def generate(
        self,
        prompt: str | Embeds,
        options: GenerateOptions = _GENERATION,
        *,
        negative_prompt: str | None = None,
        encoding: EncodeOptions = _ENCODING,
        request_id: str | None = None,
        on_event: Callable[[Event], None] | None = None,
        timeout_s: float | None = None,
    ) -> Result:
        """Paints a prompt, or embeddings made before. `on_event` is called with every event as it comes.

        `request_id` names the job for `cancel`, and makes a repeat return the same job's result. Being cancelled
        cancels the job on the device.
        """
        budget = self._budget(timeout_s)
        connect_s, limit = await self._connect(prompt, budget)
        embeds = await self._embeds_of(prompt, encoding, negative_prompt, limit, budget)
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
        options: GenerateOptions = _GENERATION,
        *,
        negative_prompt: str | None = None,
        encoding: EncodeOptions = _ENCODING,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Event, None]:
        """The events of `generate`, as they come. Closing the iterator before Done cancels the job."""
        budget = self._budget(timeout_s)
        _, limit = await self._connect(prompt, budget)
        embeds = await self._embeds_of(prompt, encoding, negative_prompt, limit, budget)
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
                f"{kind.role}: expected an endpoint, got none: say where the {kind.role} service is, "
                f"e.g. {kind.role}='127.0.0.1:PORT'",
                field=kind.role,
                reason="ENDPOINT_MISSING",
            )
        service = self._services.get(kind.role)
        if not isinstance(service, kind):
            service = self._services[kind.role] = kind(endpoint)
        return service

    async def _connect(self, prompt: str | Embeds, budget: Budget) -> tuple[float, int | None]:
        """Reaches every service that is needed before anything is computed: (seconds, the generator's text limit)."""
        started = budget.spent
        if isinstance(prompt, str):
            encoder = self._service(EncoderService)
            limit, _ = await asyncio.gather(self._text_limit(budget), encoder.info(budget.left("encoder")))
        else:
            limit = await self._text_limit(budget)
        return budget.spent - started, limit

    async def _text_limit(self, budget: Budget) -> int | None:
        """Tokens that the generator takes, None while it does not know yet."""
        said = await self._service(GeneratorService).info(budget.left("generator"))
        return said.limits.text_limit or None

    async def _embeds_of(
        self,
        prompt: str | Embeds,
        encoding: EncodeOptions,
        negative_prompt: str | None,
        limit: int | None,
        budget: Budget,
    ) -> Embeds:
        if isinstance(prompt, str):
            encoder = self._service(EncoderService)
            return (await encode(encoder, [prompt], encoding, negative_prompt, limit, budget))[0]
        if negative_prompt is not None:
            raise InvalidArgument(
                "negative_prompt: expected none beside embeddings, which hold their own; got one: encode both together",
                field="negative_prompt",
            )
        return prompt


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
