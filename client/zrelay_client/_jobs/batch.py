"""Many jobs with a bounded number in flight. One failure does not stop the others."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from zrelay_client.embeds import Embeds
from zrelay_client.results import Outcome, Result
from zrelay_shared.errors import ZrelayError

IN_FLIGHT = 8
"""Default number of jobs in flight per generator: enough for the generator to batch them without waiting."""


@dataclass(frozen=True, slots=True)
class BatchJob:
    """One job of a batch. Fields as in Outcome."""

    index: int
    prompt_index: int
    prompt: str | Embeds
    seed: int | None
    request_id: str


class SharedEmbeds:
    """Prepares each prompt once for all of its seeds. Prompts come in order, and earlier ones are dropped."""

    def __init__(self, encode: Callable[[str | Embeds], Awaitable[Embeds]]) -> None:
        self._encode = encode
        self._tasks: dict[int, asyncio.Future[Embeds]] = {}

    async def of(self, job: BatchJob) -> Embeds:
        """Returns the embeddings of a job. Raises as `encode`."""
        task = self._tasks.get(job.prompt_index)
        if task is None:
            for old in [index for index, known in self._tasks.items() if known.done() and index < job.prompt_index]:
                del self._tasks[old]  # a late job of that prompt encodes it again
            task = self._tasks[job.prompt_index] = asyncio.ensure_future(self._encode(job.prompt))
        return await asyncio.shield(task)

    def close(self) -> None:
        """Cancels the encoding in progress."""
        for task in self._tasks.values():
            task.cancel()


def batch_jobs(
    prompts: str | Embeds | Iterable[str | Embeds], seeds: Sequence[int | None], batch_id: str
) -> Iterator[BatchJob]:
    """Yields a job for each prompt and each seed. Prompts are read as they are needed."""
    each = (prompts,) if isinstance(prompts, (str, Embeds)) else prompts
    pairs = ((place, prompt, seed) for place, prompt in enumerate(each) for seed in seeds)
    for index, (place, prompt, seed) in enumerate(pairs):
        yield BatchJob(index, place, prompt, seed, f"{batch_id}-{index}")


async def run_batch(
    jobs: Iterator[BatchJob], run: Callable[[BatchJob], Awaitable[Result]], in_flight: int
) -> AsyncGenerator[Outcome, None]:
    """Runs jobs, and yields their outcomes in the order in which they end.

    Closing the iterator cancels the jobs in flight. A slow reader holds back new jobs, so that results do not pile up.

    Args:
        jobs: The jobs; the next one is read when another ends.
        run: Runs one job.
        in_flight: Number of jobs in flight.

    Raises:
        Exception: `run` raised something other than a ZrelayError, for example in a callback; this ends the batch.
    """
    outcomes: asyncio.Queue[Outcome | Exception | None] = asyncio.Queue(maxsize=in_flight)

    async def work() -> None:
        try:
            for job in jobs:
                result, error = None, None
                try:
                    result = await run(job)
                except ZrelayError as failure:
                    error = failure
                await outcomes.put(Outcome(job.index, job.prompt_index, job.seed, job.request_id, result, error))
            await outcomes.put(None)
        except Exception as failure:
            await outcomes.put(failure)

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
