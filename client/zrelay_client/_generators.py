"""The generators of one client: connected, asked for their load, and given jobs as the policy of `_fleet` says."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence

from zrelay_client._budget import CONNECT_S, Budget
from zrelay_client._contents import Contents
from zrelay_client._fleet import FailureKind, Fleet, Member, failure_kind
from zrelay_client._generator_service import GeneratorService
from zrelay_client._info import GeneratorInfo
from zrelay_shared.errors import DeadlineExceeded, FailedPrecondition, ModelLoading, Unavailable, ZrelayError

_STRAGGLERS_S = 0.5
"""Once one of several generators has answered, the others get this long before work begins without them."""
_FRESH_S = 1.0
"""The load that one of several generators told is asked for again after this long."""
_ABANDONED = 1000
"""Jobs to cancel at a generator when it is back; beyond that its lease ends them."""


class Generator:
    """One generator: its channel, what it holds, what it said last, and its place in the policy."""

    def __init__(self, endpoint: str) -> None:
        self.service = GeneratorService(endpoint)
        self.endpoint = self.service.endpoint
        self.member = Member(self.endpoint)
        self.contents = Contents(self.service.send)
        self.info: GeneratorInfo | None = None
        self._asked_at = 0.0
        self._asking: asyncio.Task[GeneratorInfo] | None = None
        self._abandoned: deque[str] = deque(maxlen=_ABANDONED)

    @property
    def seconds_since_asked(self) -> float:
        """Since it was last asked for its load."""
        return time.monotonic() - self._asked_at

    def ask(self, timeout: float = CONNECT_S) -> "asyncio.Task[GeneratorInfo]":
        """Asks what it is and how busy it is; callers at one time share the answer. Its task raises ZrelayError."""
        if self._asking is None or self._asking.done():
            self._asked_at = time.monotonic()
            self._asking = asyncio.create_task(self._ask(timeout))
            self._asking.add_done_callback(_heard)
        return self._asking

    async def reach(self, timeout: float) -> None:
        """Returns once it answers. Raises Unavailable where it does not in time, and what it refuses with."""
        try:
            await asyncio.shield(self.ask(timeout))
        except DeadlineExceeded as error:
            raise Unavailable(f"no answer from {self.endpoint} in {timeout:g} s", metadata=error.metadata) from error

    def abandon(self, request_id: str) -> None:
        """Its job of this request was given to another generator: cancelled when this one is back."""
        self._abandoned.append(request_id)

    def adopt(self, request_id: str) -> None:
        """The request comes here (again): nothing of it is to be cancelled."""
        with contextlib.suppress(ValueError):
            self._abandoned.remove(request_id)

    async def close(self) -> None:
        """Ends the connection."""
        self.contents.close()
        if self._asking is not None:
            self._asking.cancel()
        await self.service.close()

    async def _ask(self, timeout: float) -> GeneratorInfo:
        try:
            said = await self.service.info(timeout)
            if said.ready:
                await self._cancel_abandoned()
        except ZrelayError as error:
            kind = failure_kind(error)
            if kind is FailureKind.LOST or error.code == "DEADLINE_EXCEEDED":
                self.member.lost(time.monotonic())
            else:
                self.member.rest(time.monotonic(), error.retry_after_s)
            raise
        self.info = said
        if said.ready:
            self.member.report(said.queue.estimated_wait_s)
        else:
            self.member.rest(time.monotonic(), 1.0)
        return said

    async def _cancel_abandoned(self) -> None:
        """Before it is given other work. Raises ZrelayError where it goes away again: the rest is kept for later."""
        for request_id in tuple(self._abandoned):
            if request_id not in self._abandoned:
                continue  # adopted meanwhile
            try:
                await self.service.cancel(request_id)
            except ZrelayError as error:  # it may never have had it; what it refuses for good is left to its lease
                away = failure_kind(error) in (FailureKind.BUSY, FailureKind.GOING, FailureKind.LOST)
                if away or error.code == "DEADLINE_EXCEEDED":
                    raise
            self.adopt(request_id)


class Generators:
    """All of them. Made inside the event loop that uses them."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._all = [Generator(endpoint) for endpoint in endpoints]
        self._by_member = {id(generator.member): generator for generator in self._all}
        self._reference: GeneratorInfo | None = None
        self._unlike: set[str] = set()
        self._fleet = Fleet([generator.member for generator in self._all])

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Generator]:
        return iter(self._all)

    @property
    def first(self) -> GeneratorService:
        """The first that was named."""
        return self._all[0].service

    async def connect(self, budget: Budget) -> GeneratorInfo:
        """Asks all of them, and does not wait for those that hang while others answer; what the first of those that
        answered said. Raises the first failure where none answered, and as `require_alike`."""
        timeout = budget.left("generator")
        asked = [generator.ask(timeout) for generator in self._all]
        waiting: set[asyncio.Task[GeneratorInfo]] = set(asked)
        while waiting and not any(_answered(task) for task in asked):
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        late = [each for each, task in zip(self._all, asked, strict=True) if task in waiting]
        if any(each.member.failures == 0 for each in late):
            await asyncio.wait(waiting, timeout=_STRAGGLERS_S)
        said = [task.result() for task in asked if _answered(task)]
        if not said:
            await asked[0]
        if self._reference is None or len(said) == len(self._all):  # all of them may have been given a new model
            self._reference = said[0]
            self._unlike.clear()
        require_alike([self._reference, *said])
        return said[0]

    async def place(
        self, work: float, without: Collection[str], budget: Budget, *, refusal: ZrelayError | None, patient: bool
    ) -> Generator:
        """A generator for a job of so much work, once one is free. Raises `refusal`, why the last did not take it,
        where nobody is left or, unless `patient`, nobody is free now."""
        while True:
            now, without = time.monotonic(), {*without, *self._unlike}
            self._refresh()
            member = self._fleet.choose(work, now, without)
            if member is not None:
                chosen = self._by_member[id(member)]
                if (refusal := self.unlike(chosen)) is None:
                    return chosen
                continue
            asked = {self._by_member[id(due)].ask() for due in self._fleet.due(now, without)}
            wait_s = self._fleet.wakes_in(now, without)
            if wait_s is None or (not asked and not patient and refusal is not None):
                raise refusal or Unavailable("no generator is left that could take this job")
            left = budget.left("generator")
            if asked:
                await asyncio.wait(asked, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                refusal = next((e for task in asked if task.done() and (e := _failure(task))), None) or refusal
            else:
                await asyncio.sleep(min(left, max(wait_s, 0.01)))

    def elsewhere(self, here: Generator, without: Collection[str]) -> bool:
        """Whether another generator could take a job from this one now. Those of which that is not known are asked."""
        for due in self._fleet.due(time.monotonic(), {*without, here.endpoint}):
            self._by_member[id(due)].ask()
        return self._fleet.choose(0.0, time.monotonic(), {*without, here.endpoint}) is not None

    def unlike(self, chosen: Generator) -> ZrelayError | None:
        """Why a generator, which may have come back with another model, cannot paint these pictures."""
        if self._reference is not None and chosen.info is not None:
            try:
                require_alike([self._reference, chosen.info])
            except FailedPrecondition as error:
                self._unlike.add(chosen.endpoint)
                return error
        return None

    def _refresh(self) -> None:
        """Asks those whose load was told long ago, and those that were lost, whether they are back, beside the work.
        One alone gets every job whatever its load."""
        if len(self._all) == 1:
            return
        for generator in self._all:
            if generator.member.fresh and generator.seconds_since_asked > _FRESH_S:
                generator.ask()
        for due in self._fleet.due(time.monotonic()):
            self._by_member[id(due)].ask()

    async def close(self) -> None:
        """Ends the connections."""
        await asyncio.gather(*(generator.close() for generator in self._all))


def require_alike(said: Sequence[GeneratorInfo]) -> None:
    """Raises FailedPrecondition (GENERATORS_DIFFER) where a job could not be moved and stay the same picture."""
    compared: tuple[tuple[str, Callable[[GeneratorInfo], object]], ...] = (
        ("transformer_digest", lambda info: info.transformer_digest),
        ("vae_digest", lambda info: info.vae_digest),
        ("defaults", lambda info: info.defaults if info.ready else None),
    )
    for name, value_of in compared:
        known = [(info, value) for info in said if (value := value_of(info))]
        for info, value in known[1:]:
            if value != known[0][1]:
                raise FailedPrecondition(
                    f"expected generators that paint the same picture, got another {name} at each of "
                    f"{_told(*known[0])} and {_told(info, value)}: name only those that serve the same folder",
                    reason="GENERATORS_DIFFER",
                    field="generator",
                    metadata={"field": name, "expected": known[0][1], "got": value},
                )


def _told(info: GeneratorInfo, value: object) -> str:
    return f"{info.endpoint} ({info.model_id}: {value[:12] if isinstance(value, str) else value})"


def _answered(task: "asyncio.Task[GeneratorInfo]") -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _failure(task: "asyncio.Task[GeneratorInfo]") -> ZrelayError | None:
    """Why the generator that was asked takes no job, None where it does."""
    if _answered(task):
        return None if task.result().ready else ModelLoading("the model is still being loaded; try again in a while")
    error = None if task.cancelled() else task.exception()
    return error if isinstance(error, ZrelayError) else None


def _heard(task: "asyncio.Task[GeneratorInfo]") -> None:
    """Whoever waits for the task sees its failure; where nobody does, it is no news."""
    if not task.cancelled():
        task.exception()
