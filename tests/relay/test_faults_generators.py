"""A generator dies while a client of two paints: nothing is lost, nothing comes twice, the pictures are the same."""

import asyncio
from typing import Any

from tests.helpers.processes import GeneratorProcess
from zrelay_client import (
    Accepted,
    AsyncClient,
    Embeds,
    Event,
    Image,
    Notice,
    Outcome,
    Progress,
    Result,
)

from .watched import LONG

SMALL: dict[str, Any] = {"width": 96, "height": 96, "num_inference_steps": 4, "deterministic": True}


def pixels(outcomes: list[Outcome]) -> dict[int, str]:
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert sorted(outcome.index for outcome in outcomes) == list(range(len(outcomes)))
    return {outcome.seed or 0: outcome.result.images[0].pixels_sha256 for outcome in outcomes if outcome.result}


async def test_a_generator_killed_in_a_batch(
    steadfast: GeneratorProcess, brief: GeneratorProcess, embeds: Embeds
) -> None:
    outcomes: list[Outcome] = []
    used, seeds = set[str](), range(16)
    async with AsyncClient(generator=[steadfast.endpoint, brief.endpoint], timeout_s=240) as client:
        async for outcome in client.generate_many(embeds, seeds=seeds, in_flight=6, **SMALL):
            outcomes.append(outcome)
            if outcome.result is None:
                continue
            if steadfast.endpoint not in used and outcome.result.generator == steadfast.endpoint:
                await asyncio.to_thread(steadfast.kill)
            used.add(outcome.result.generator)
    assert used == {steadfast.endpoint, brief.endpoint}
    async with AsyncClient(generator=brief.endpoint) as client:
        alone = [outcome async for outcome in client.generate_many(embeds, seeds=seeds, **SMALL)]
    steadfast.start()
    assert pixels(outcomes) == pixels(alone)
    assert len(set(pixels(outcomes).values())) == len(seeds)


async def test_a_generator_killed_in_mid_job(
    steadfast: GeneratorProcess, brief: GeneratorProcess, embeds: Embeds, undisturbed: Result
) -> None:
    events: list[Event] = []
    midway = asyncio.Event()
    by_endpoint = {one.endpoint: one for one in (steadfast, brief)}
    async with AsyncClient(generator=list(by_endpoint), timeout_s=240) as client:

        def note(event: Event) -> None:
            events.append(event)
            if isinstance(event, Progress) and event.stage == "denoise" and event.completed == 4:
                midway.set()

        work = asyncio.create_task(client.generate(embeds, request_id="moved", on_event=note, **LONG))
        await midway.wait()
        (here,) = [job.endpoint async for job in client.jobs.list(states=("running",)) if job.request_id == "moved"]
        await asyncio.to_thread(by_endpoint[here].kill)
        result = await work
        by_endpoint[here].start()
    assert result.generator == next(endpoint for endpoint in by_endpoint if endpoint != here)
    assert [event.kind for event in events if isinstance(event, Notice)] == ["lost", "moved"]
    assert [event.seed for event in events if isinstance(event, Accepted)] == [LONG["seed"]] * 2
    assert len([event for event in events if isinstance(event, Image)]) == 1
    assert result.images[0].pixels_sha256 == undisturbed.images[0].pixels_sha256
