"""The services of one client by role, dialled when they are first needed (inside the loop that uses them)."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from zrelay_client._encoders import Encoders
from zrelay_client._endpoints import parse_endpoints
from zrelay_client._events import Notice
from zrelay_client._generators import Generators
from zrelay_client._info import EncoderInfo, GeneratorInfo, Info, ServiceStatus, VisionInfo
from zrelay_client._jobs import Job
from zrelay_client._services import VisionService
from zrelay_shared.errors import InvalidArgument, NotFound, ZrelayError

T = TypeVar("T")


class Connections:
    """Where the services are, and the connections to those that were needed so far."""

    def __init__(
        self,
        *,
        encoder: str | Sequence[str] | None,
        generator: str | Sequence[str] | None,
        vision: str | None,
        profile: str | None,
    ) -> None:
        given: Mapping[str, str | Sequence[str] | None] = {"encoder": encoder, "vision": vision, "generator": generator}
        if profile is not None or not any(given.values()):
            from zrelay_client._settings import targets

            given = targets(profile, given)
        self._given = given
        self._encoders: Encoders | None = None
        self._generators: Generators | None = None
        self._vision: VisionService | None = None

    @property
    def encoders(self) -> Encoders:
        """Raises InvalidArgument (ENDPOINT_MISSING) where there is none."""
        if self._encoders is None:
            self._encoders = Encoders(self._endpoints("encoder"))
        return self._encoders

    @property
    def generators(self) -> Generators:
        """Raises InvalidArgument (ENDPOINT_MISSING) where there is none."""
        if self._generators is None:
            self._generators = Generators(self._endpoints("generator"))
        return self._generators

    @property
    def vision(self) -> VisionService:
        """Raises InvalidArgument (ENDPOINT_MISSING) where there is none."""
        if self._vision is None:
            self._vision = VisionService(self._endpoints("vision")[0])
        return self._vision

    def has(self, role: str) -> bool:
        """Whether there is an endpoint of a role."""
        return bool(self._given[role])

    def notices(self) -> list[Notice]:
        """What is to be told of the choice of encoders, once."""
        if self._encoders is None:
            return []
        told, self._encoders.notices = self._encoders.notices, []
        return told

    async def info(self) -> Info:
        """The first of each role. Raises the first failure."""
        encoder, vision, generator = await asyncio.gather(
            self.encoders.first.info() if self.has("encoder") else _nothing(),
            self.vision.info() if self.has("vision") else _nothing(),
            self.generators.first.info() if self.has("generator") else _nothing(),
        )
        return Info(encoder, vision, generator)

    async def status(self) -> tuple[ServiceStatus, ...]:
        """Every endpoint."""
        asks: list[Awaitable[ServiceStatus]] = []
        if self.has("encoder"):
            asks += [_status("encoder", service.endpoint, service.info()) for service in self.encoders]
        if self.has("vision"):
            asks.append(_status("vision", self.vision.endpoint, self.vision.info()))
        if self.has("generator"):
            asks += [_status("generator", each.endpoint, each.service.info()) for each in self.generators]
        return tuple(await asyncio.gather(*asks))

    async def serving(self) -> dict[str, bool]:
        """Role -> whether its first service is ready. Raises the first failure."""
        services = [
            *([self.encoders.first] if self.has("encoder") else []),
            *([self.vision] if self.has("vision") else []),
            *([self.generators.first] if self.has("generator") else []),
        ]
        answers = await asyncio.gather(*(service.serving() for service in services))
        return {service.role: answer for service, answer in zip(services, answers, strict=True)}

    async def cancel(self, request_id: str) -> Job:
        """Cancels a request wherever it is. Raises NotFound where no generator that answers knows it."""
        answers = await asyncio.gather(*(_attempt(each.service.cancel(request_id)) for each in self.generators))
        jobs = [answer for answer in answers if isinstance(answer, Job)]
        failures = [answer for answer in answers if isinstance(answer, ZrelayError)]
        if not jobs:
            raise next((error for error in failures if not isinstance(error, NotFound)), failures[0])
        return next((job for job in jobs if job.state == "cancelled"), jobs[0])

    async def close(self) -> None:
        """Ends the connections."""
        for open_ones in (self._encoders, self._generators, self._vision):
            if open_ones is not None:
                await open_ones.close()
        self._encoders = self._generators = self._vision = None

    def _endpoints(self, role: str) -> tuple[str, ...]:
        found = parse_endpoints(role, self._given[role])
        if not found:
            raise InvalidArgument(
                f"{role}: this client knows none: name it ({role}='HOST:PORT'), or name none at all, to take "
                "those of the configuration or of `zrelay up --detach` on this machine",
                field=role,
                reason="ENDPOINT_MISSING",
            )
        return found


async def _status(role: str, endpoint: str, ask: Awaitable[EncoderInfo | VisionInfo | GeneratorInfo]) -> ServiceStatus:
    said = await _attempt(ask)
    if isinstance(said, ZrelayError):
        return ServiceStatus(role, endpoint, None, said)
    return ServiceStatus(role, endpoint, said, None)


async def _attempt(work: Awaitable[T]) -> T | ZrelayError:
    try:
        return await work
    except ZrelayError as error:
        return error


async def _nothing() -> None:
    return None
