"""Many pictures, several endpoints, and what is sent once: the library against real services."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.jobs import NOBODY, PROMPT, SMALL
from tests.helpers.links import linked
from tests.helpers.polling import until_async
from tests.helpers.refusals import refused_async
from zrelay_client import (
    AsyncClient,
    Cancelled,
    Embeds,
    EncoderMismatch,
    FailedPrecondition,
    GenerateOptions,
    InvalidArgument,
    Notice,
    Outcome,
    Unavailable,
)
from zrelay_client.stack.bundle import demo_checkpoint
from zrelay_generator.service import GeneratorServicer
from zrelay_shared.service.roles import GeneratorConfig

from .conftest import RecordingGenerator, Services

DETERMINISTIC: dict[str, Any] = {**SMALL, "deterministic": True}


@pytest.fixture(scope="module")
def embeds(services: Services) -> Embeds:
    async def encoded() -> Embeds:
        async with AsyncClient(encoder=services.encoder) as client:
            return await client.encode(PROMPT)

    return asyncio.run(encoded())


async def all_of(client: AsyncClient, *args: Any, **options: Any) -> list[Outcome]:
    outcomes = [outcome async for outcome in client.generate_many(*args, **options)]
    return sorted(outcomes, key=lambda outcome: outcome.index)


async def test_every_prompt_with_every_seed_though_the_queue_is_short(services: Services) -> None:
    seen: list[int] = []
    async with AsyncClient(**services.endpoints) as client:
        outcomes = await all_of(
            client, [PROMPT, "a fox"], seeds=range(5), on_event=lambda index, event: seen.append(index), **DETERMINISTIC
        )
        alone = await client.generate("a fox", seed=3, **DETERMINISTIC)
    assert [(one.prompt_index, one.seed) for one in outcomes] == [(p, s) for p in range(2) for s in range(5)]
    assert [one.error for one in outcomes if one.error] == []
    assert outcomes[8].result is not None
    assert outcomes[8].result.images[0].pixels_sha256 == alone.images[0].pixels_sha256
    assert set(seen) == set(range(10))


async def test_the_seed_of_the_options_is_used(services: Services, embeds: Embeds) -> None:
    async with AsyncClient(**services.endpoints) as client:
        (by_keyword,) = await all_of(client, embeds, seed=4, **DETERMINISTIC)
        (by_options,) = await all_of(client, embeds, GenerateOptions(seed=5), **DETERMINISTIC)
    assert by_keyword.result is not None and by_options.result is not None
    assert (by_keyword.seed, by_keyword.result.seed) == (4, 4)
    assert (by_options.seed, by_options.result.seed) == (5, 5)


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"seed": 4, "seeds": [1, 2]}, "seeds", r"expected none beside seed=4, got \[1, 2\]"),
        ({"in_flight": 0}, "in_flight", "expected a whole number from 1 to [0-9]+, got 0"),
        ({"in_flight": -1}, "in_flight", "expected a whole number from 1 to [0-9]+, got -1"),
    ],
)
async def test_an_invalid_batch_is_refused_before_a_service_is_called(
    embeds: Embeds, options: dict[str, Any], field: str, message: str
) -> None:
    async with AsyncClient(generator=NOBODY) as client:
        reason = f"{field.upper()}_INVALID"
        await refused_async(
            all_of(client, embeds, **options),
            InvalidArgument,
            reason=reason,
            field=field,
            match=f"^{field}: {message}$",
        )


async def test_a_failing_job_stops_nobody(services: Services, embeds: Embeds) -> None:
    async with AsyncClient(**services.endpoints) as client:
        outcomes = await all_of(client, [embeds, "", embeds], seeds=[1, 2], **DETERMINISTIC)
    assert [one.error is not None for one in outcomes] == [False, False, True, True, False, False]
    assert isinstance(outcomes[2].error, InvalidArgument)


async def test_a_batch_that_is_repeated_is_the_same_jobs(services: Services, embeds: Embeds) -> None:
    async with AsyncClient(**services.endpoints) as client:
        first = await all_of(client, embeds, seeds=[None, None], batch_id="twice", **DETERMINISTIC)
        again = await all_of(client, embeds, seeds=[None, None], batch_id="twice", **DETERMINISTIC)
    results = [(a.result, b.result) for a, b in zip(first, again, strict=True)]
    assert all(a and b and (a.job_id, a.seed) == (b.job_id, b.seed) for a, b in results)
    assert len({a.seed for a, _ in results if a}) == 2


async def test_leaving_it_cancels_what_is_under_way(services: Services, embeds: Embeds) -> None:
    async with AsyncClient(**services.endpoints) as client:
        outcomes = client.generate_many(embeds, seeds=range(100), width=64, height=64, num_inference_steps=4)
        await anext(outcomes)
        await outcomes.aclose()
        assert client.running() == ()
        await services.idle()


async def test_a_callback_that_fails_ends_it_all(services: Services, embeds: Embeds) -> None:
    def fail(index: int, event: object) -> None:
        raise OSError("the disk is full")

    async with AsyncClient(**services.endpoints) as client:
        with pytest.raises(OSError, match="full"):
            await all_of(client, embeds, seeds=range(10), on_event=fail, **DETERMINISTIC)
        await services.idle()


async def test_a_thousand_seeds_upload_one_embedding(services: Services, embeds: Embeds) -> None:
    async with AsyncClient(**services.endpoints) as client:
        services.take_uploads()
        await all_of(client, embeds, seeds=range(12), in_flight=2, **DETERMINISTIC)
        await client.generate(embeds, seed=1, **DETERMINISTIC)
    assert services.take_uploads() == [embeds.contents["prompt"].sha256]


async def test_content_that_the_generator_lost_is_sent_again(services: Services, tmp_path: Path) -> None:
    """It keeps the contents of one prompt; another prompt displaces them."""
    async with AsyncClient(encoder=services.encoder) as client:
        first, other = await client.encode_batch([f"{word}, in words enough to be sent by digest" for word in "ab"])
    digests = [embeds.contents["prompt"].sha256 for embeds in (first, other)]
    keep = first.contents["prompt"].size_bytes * 3 // 2
    config = GeneratorConfig(model=demo_checkpoint(), device="cpu", threads=1, state=tmp_path, keep_contents_bytes=keep)
    forgetful = RecordingGenerator(config)
    async with AsyncClient(generator=services.start(forgetful)) as client:
        for embeds in (first, first, other, first):
            (outcome,) = await all_of(client, embeds, seeds=[1], **DETERMINISTIC)
            assert outcome.error is None
    assert forgetful.uploads == [digests[0], digests[1], digests[0]]


async def test_content_that_is_not_kept_travels_whole(services: Services, embeds: Embeds) -> None:
    config = GeneratorConfig(model=demo_checkpoint(), device="cpu", threads=1, state=None, keep_contents_bytes=0)
    async with AsyncClient(generator=services.start(GeneratorServicer(config))) as client:
        outcomes = await all_of(client, embeds, seeds=range(3), **DETERMINISTIC)
        job = await client.submit(embeds, seed=3, **DETERMINISTIC)
        assert len(await client.jobs.fetch(job.job_id)) == 1
    assert [one.error for one in outcomes] == [None] * 3


async def test_a_dead_generator_among_several_costs_nothing(services: Services, embeds: Embeds) -> None:
    both = [NOBODY, services.generator]
    async with AsyncClient(encoder=services.encoder, generator=both) as client:
        assert (await client.generate(PROMPT, seed=1, **DETERMINISTIC)).generator == both[1]
        outcomes = await all_of(client, embeds, seeds=range(6), in_flight=2, **DETERMINISTIC)
        status = await client.status()
    assert {one.result.generator for one in outcomes if one.result} == {both[1]}
    assert [(one.role, one.endpoint, one.error is None) for one in status] == [
        ("encoder", services.encoder, True),
        ("generator", NOBODY, False),
        ("generator", both[1], True),
    ]
    async with AsyncClient(generator=f"{NOBODY},127.0.0.1:2") as client:
        with pytest.raises(Unavailable, match=NOBODY):
            await client.generate(embeds, **DETERMINISTIC)


async def test_closing_the_client_cancels_what_is_under_way(services: Services, embeds: Embeds) -> None:
    client = AsyncClient(**services.endpoints)
    long = client.generate(embeds, request_id="closed", width=512, height=512, num_inference_steps=100)
    work = asyncio.create_task(long)

    async def running() -> int:
        return (await client.generator_info()).queue.running

    await until_async(running, "the job runs")
    await client.aclose()
    assert await services.was_cancelled("closed")
    with pytest.raises(Cancelled):
        await work


async def test_encoders_stand_in_only_where_they_make_the_same(services: Services, stranger: str) -> None:
    own = services.encoder
    async with AsyncClient(encoder=[own, stranger], generator=services.generator) as client:
        events: list[object] = []
        await client.generate(PROMPT, on_event=events.append, seed=1, **DETERMINISTIC)
        assert not [event for event in events if isinstance(event, Notice)]
    async with AsyncClient(encoder=[NOBODY, own], generator=services.generator) as client:
        events = []
        await client.generate(PROMPT, on_event=events.append, seed=1, **DETERMINISTIC)
        (told,) = [event for event in events if isinstance(event, Notice)]
        assert (told.kind, NOBODY in told.message) == ("encoder", True)
    async with linked(own) as link, AsyncClient(encoder=[link.endpoint, stranger]) as client:
        await client.encode(PROMPT)
        await link.cut()
        await refused_async(
            client.encode(PROMPT), FailedPrecondition, reason="ENCODERS_DIFFER", match="makes other embeddings"
        )
    async with AsyncClient(encoder=[NOBODY, own]) as client:
        (note,) = (await client.encode(PROMPT)).notes
        assert NOBODY in note, "embeddings tell what no event does"
    async with (
        linked(own) as first,
        linked(own) as second,
        AsyncClient(encoder=[first.endpoint, second.endpoint]) as client,
    ):
        await client.encode(PROMPT)
        await first.cut()
        await second.cut()
        second.target = stranger  # as if it were started again, with another model
        await second.restore()
        await refused_async(
            client.encode(PROMPT), FailedPrecondition, reason="ENCODERS_DIFFER", match="makes other embeddings"
        )
    async with AsyncClient(encoder=stranger, generator=services.generator) as client:
        with pytest.raises(EncoderMismatch):
            await client.generate(PROMPT, **DETERMINISTIC)


@pytest.mark.parametrize("bad", ["a b/c", ["127.0.0.1:1", ""], "127.0.0.1:0,"])
def test_invalid_endpoints_are_refused_by_the_constructor(bad: Any) -> None:
    with pytest.raises(InvalidArgument, match="expected an endpoint"):
        AsyncClient(generator=bad)
