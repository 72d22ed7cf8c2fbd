"""A caller that has its share of a generator's queue waits for it in a batch, as it does for a full queue."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.jobs import ENDLESS, PROMPT, SMALL
from tests.helpers.polling import until_async
from tests.helpers.servers import ServerThread
from zrelay_client import AsyncClient, QuotaExceeded
from zrelay_demo import CHECKPOINT
from zrelay_encoder.api.servicer import EncoderServicer
from zrelay_encoder.config import EncoderConfig
from zrelay_generator.service import GeneratorServicer
from zrelay_shared.service.roles import GeneratorConfig

pytestmark = pytest.mark.deep


@pytest.fixture
def both(tmp_path: Path) -> Iterator[AsyncClient]:
    """A client of an encoder and a generator at which eight jobs may wait."""
    services = ServerThread()
    encoder = services.start(EncoderServicer(EncoderConfig(model=CHECKPOINT, device="cpu", threads=1)))
    config = GeneratorConfig(model=CHECKPOINT, device="cpu", threads=1, max_waiting=8, state=tmp_path)
    yield AsyncClient(encoder=encoder, generator=services.start(GeneratorServicer(config)))
    services.stop()


async def test_a_batch_waits_for_its_share(both: AsyncClient) -> None:
    async with both as client:
        outcomes = [one async for one in client.generate_many(PROMPT, seeds=range(20), in_flight=20, **SMALL)]
    assert [outcome.error for outcome in outcomes if outcome.error] == [] and len(outcomes) == 20


async def test_a_single_job_is_refused_with_a_hint(both: AsyncClient) -> None:
    async with both as client:
        embeds = await client.encode(PROMPT)
        jobs = [await client.submit(embeds, seed=0, **ENDLESS)]

        async def begun() -> bool:
            return (await client.generator_info()).queue.running == 1

        await until_async(begun, "the first job runs")
        jobs += [await client.submit(embeds, seed=seed, **ENDLESS) for seed in range(1, 7)]
        with pytest.raises(QuotaExceeded, match="raise --caller-share") as refused:
            await client.generate(embeds, **SMALL)
        assert refused.value.retry_after_s and refused.value.metadata["max_waiting"] == "6"
        await asyncio.gather(*(client.cancel(job.request_id) for job in jobs))
