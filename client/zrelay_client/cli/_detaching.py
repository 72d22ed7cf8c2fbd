"""Pictures left to the generators by `zrelay generate --detach`."""

import asyncio

from zrelay_client.cli._console import Console
from zrelay_client.cli._painting import GenerateCommand
from zrelay_client.client import AsyncClient
from zrelay_client.events import Job
from zrelay_client.settings import Settings

_AT_ONCE = 32


async def submit(order: GenerateCommand, seeds: list[int] | None, settings: Settings, console: Console) -> list[Job]:
    """Submits a job, or one for each seed, the prompt encoded once. Raises ZrelayError at the first that is refused."""
    console.status("submitting")
    async with AsyncClient.from_settings(settings) as client:
        what = order.what()
        if seeds is None:
            return [await client.submit(what, order.options, negative_prompt=order.negative_prompt)]
        embeds = await client.prepare(what, order.options, negative_prompt=order.negative_prompt)
        embeds.sent = True  # many times: by name from the first on
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(seed: int) -> Job:
            async with gate:  # the embeddings contain the references
                job = await client.submit(
                    embeds, order.options, reference=None, conditioning=None, omni=None, seed=seed
                )
            console.status(f"seed {seed} submitted", now=False)
            return job

        tasks = [asyncio.ensure_future(one(seed)) for seed in seeds]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
