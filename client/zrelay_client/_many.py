"""Many pictures: a bounded number of jobs in flight, results as they come, one failure stops nobody else."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from zrelay_client._embeds import Embeds
from zrelay_client._results import Result
from zrelay_shared.errors import ZrelayError

IN_FLIGHT = 8
"""Jobs in flight for each generator, unless asked otherwise: its engine packs them, and never waits for the next."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one of many pictures: `result`, or the `error` that ended it.

    `index` counts the pictures as they were asked for: every seed of the first prompt, then of the second, ...
    """

    index: int
    prompt_index: int
    seed: int | None
    request_id: str
    result: Result | None = field(repr=False)
    error: ZrelayError | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """One of many pictures, before it is painted."""

    index: int
    prompt_index: int
    prompt: str | Embeds
    seed: int | None
    request_id: str


class SharedEmbeds:
    """Prepares a prompt once for all its seeds. Prompts come one after another: those before are let go."""

    def __init__(self, encode: Callable[[str | Embeds], Awaitable[Embeds]]) -> None:
        self._encode = encode
        self._tasks: dict[int, asyncio.Future[Embeds]] = {}

    async def of(self, wanted: Wanted) -> Embeds:
        """The embeddings to paint. Raises as their preparation does."""
        task = self._tasks.get(wanted.prompt_index)
        if task is None:
            for old in [index for index, known in self._tasks.items() if known.done() and index < wanted.prompt_index]:
                del self._tasks[old]  # a straggler of that prompt would only encode it again
            task = self._tasks[wanted.prompt_index] = asyncio.ensure_future(self._encode(wanted.prompt))
        return await asyncio.shield(task)

    def close(self) -> None:
        """Ends the encoding that is under way."""
        for task in self._tasks.values():
            task.cancel()


async def many(
    wanted: Iterator[Wanted], paint: Callable[[Wanted], Awaitable[Result]], in_flight: int
) -> AsyncGenerator[Outcome, None]:
    """Paints what the iterator gives, taking the next as soon as one is done; outcomes in the order of their ends.

    Closing it cancels what is in flight. Whoever reads slowly holds back new jobs, so that results do not pile up. What
    is no ZrelayError (a callback's failure) ends it all.
    """
    outcomes: asyncio.Queue[Outcome | Exception | None] = asyncio.Queue(maxsize=in_flight)

    async def work() -> None:
        try:
            for one in wanted:
                result, error = None, None
                try:
                    result = await paint(one)
                except ZrelayError as failed:
                    error = failed
                await outcomes.put(Outcome(one.index, one.prompt_index, one.seed, one.request_id, result, error))
            await outcomes.put(None)
        except Exception as bug:
            await outcomes.put(bug)

    workers = [asyncio.create_task(work()) for _ in range(in_flight)]
    try:
        ended = 0
        while ended < in_flight:
            outcome = await outcomes.get()
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is None:
                ended += 1
            else:
                yield outcome
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def wanted_of(
    prompts: str | Embeds | Iterable[str | Embeds], seeds: Sequence[int | None], batch_id: str
) -> Iterator[Wanted]:
    """Every prompt with every seed, one after another as they are taken."""
    each = (prompts,) if isinstance(prompts, (str, Embeds)) else prompts
    pairs = ((place, prompt, seed) for place, prompt in enumerate(each) for seed in seeds)
    for index, (place, prompt, seed) in enumerate(pairs):
        yield Wanted(index, place, prompt, seed, f"{batch_id}-{index}")
