"""A generator dies while a client of two paints: nothing is lost, nothing comes twice, the pictures are the same."""

import asyncio
from typing import Any

from zrelay_client import Accepted, AsyncClient, Embeds, Event, GenerateOptions, Image, Notice, Outcome, Progress

PROMPT = "a small red circle on a blue background"
SMALL: GenerateOptions = {"width": 96, "height": 96, "num_inference_steps": 6, "deterministic": True}
LONG: GenerateOptions = {"width": 256, "height": 256, "num_inference_steps": 24, "deterministic": True, "seed": 3}


def pixels(outcomes: list[Outcome]) -> dict[int, str]:
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert sorted(outcome.index for outcome in outcomes) == list(range(len(outcomes)))
    return {outcome.seed or 0: outcome.result.images[0].pixels_sha256 for outcome in outcomes if outcome.result}


async def test_a_generator_killed_in_a_batch(generators: Any, embeds: Embeds) -> None:
    first, second = generators
    outcomes, seeds = [], range(40)
    async with AsyncClient(generator=[first.endpoint, second.endpoint], timeout_s=120) as client:
        async for outcome in client.generate_many(embeds, seeds=seeds, in_flight=8, **SMALL):
            outcomes.append(outcome)
            if len(outcomes) == 8:
                await asyncio.to_thread(first.kill)
    used = {outcome.result.generator for outcome in outcomes if outcome.result}
    assert used == {first.endpoint, second.endpoint}
    async with AsyncClient(generator=second.endpoint) as client:
        alone = [outcome async for outcome in client.generate_many(embeds, seeds=seeds, **SMALL)]
    first.start()
    assert pixels(outcomes) == pixels(alone)
    assert len(set(pixels(outcomes).values())) == len(seeds)


async def test_a_generator_killed_in_mid_job(generators: Any, embeds: Embeds) -> None:
    first, second = generators
    await asyncio.to_thread(first.ready)
    events: list[Event] = []
    killed = asyncio.Event()
    by_endpoint = {one.endpoint: one for one in generators}
    async with AsyncClient(generator=[first.endpoint, second.endpoint], timeout_s=120) as client:
        undisturbed = await client.generate(embeds, **LONG)

        def note(event: Event) -> None:
            events.append(event)
            if isinstance(event, Progress) and event.stage == "denoise" and event.completed == 4:
                killed.set()

        work = asyncio.create_task(client.generate(embeds, request_id="moved", on_event=note, **LONG))
        await asyncio.wait_for(killed.wait(), 60)
        running = {status.endpoint: status.info.queue.running for status in await client.status() if status.info}
        (here,) = [endpoint for endpoint, count in running.items() if count]
        await asyncio.to_thread(by_endpoint[here].kill)
        result = await work
        by_endpoint[here].start()
    assert result.generator == next(endpoint for endpoint in by_endpoint if endpoint != here)
    assert [event.kind for event in events if isinstance(event, Notice)] == ["lost", "moved"]
    assert [event.seed for event in events if isinstance(event, Accepted)] == [3, 3]
    assert len([event for event in events if isinstance(event, Image)]) == 1
    assert result.images[0].pixels_sha256 == undisturbed.images[0].pixels_sha256
    await asyncio.to_thread(by_endpoint[here].ready)
