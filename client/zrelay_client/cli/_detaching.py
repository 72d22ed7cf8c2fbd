"""Pictures left to the generators by `zrelay generate --detach`."""

import asyncio
from collections.abc import Mapping

from zrelay_client._jobs import Job
from zrelay_client._options import GenerateOptions
from zrelay_client.cli._console import Console
from zrelay_client.cli._painting import GenerateCommand, client_of

_AT_ONCE = 32
_PREPARED: GenerateOptions = {"reference": None, "conditioning": None, "omni": None}
"""References are seen once, and go with the embeddings."""


async def submit(
    order: GenerateCommand, seeds: list[int] | None, endpoints: Mapping[str, str], console: Console
) -> list[Job]:
    """Submits a job, or one for each seed, the prompt encoded once. Raises ZrelayError at the first that is refused."""
    console.status("submitting")
    async with client_of(endpoints, order.timeout_s) as client:
        what = order.what()
        if seeds is None:
            return [await client.submit(what, negative_prompt=order.negative_prompt, **order.options)]
        embeds = await client.prepare(what, negative_prompt=order.negative_prompt, **order.options)
        embeds.painted = True  # many times: by name from the first on
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(seed: int) -> Job:
            options: GenerateOptions = {**order.options, **_PREPARED, "seed": seed}
            async with gate:
                job = await client.submit(embeds, **options)
            console.status(f"seed {seed} submitted", now=False)
            return job

        tasks = [asyncio.ensure_future(one(seed)) for seed in seeds]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
