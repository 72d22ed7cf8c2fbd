"""The library against the real services, over real channels."""

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pictures

from tests.helpers.jobs import ENDLESS, PROMPT, QUICK
from tests.helpers.polling import until_async
from zrelay_client import (
    Accepted,
    AsyncClient,
    DeadlineExceeded,
    Done,
    Embeds,
    EncoderMismatch,
    Event,
    FeatureMissing,
    Image,
    InvalidArgument,
    PayloadCorrupt,
    Preview,
    Progress,
    QueueFull,
    Unavailable,
    read_provenance,
)

from .conftest import Services, provenance_of


async def begun(client: AsyncClient, request_id: str) -> "asyncio.Task[Any]":
    """A long job, once its first step is done."""
    first = asyncio.Event()

    def note(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "denoise":
            first.set()

    work = asyncio.create_task(client.generate(PROMPT, request_id=request_id, on_event=note, **ENDLESS))
    await asyncio.wait_for(first.wait(), 20)
    return work


async def test_a_prompt_becomes_a_picture(services: Services, tmp_path: Path) -> None:
    events: list[Event] = []
    async with AsyncClient(**services.endpoints) as client:
        result = await client.generate(PROMPT, seed=7, on_event=events.append)
    (image,) = result.images
    assert (image.width, image.height, image.seed, image.format) == (128, 128, 7, "png")
    assert (result.seed, result.sampling.num_inference_steps, result.encoder_relation) == (7, 8, "exact")
    assert [kind for kind, _ in zip(map(type, events), (1, 2), strict=False)] == [Accepted, Progress]
    assert [type(event) for event in events[-2:]] == [Image, Done]
    steps = [event.completed for event in events if isinstance(event, Progress) and event.stage == "denoise"]
    assert steps == list(range(1, 9))
    timings = result.timings
    assert min(timings.connect_s, timings.encode_s, timings.denoise_s) > 0
    assert timings.total_s >= timings.connect_s + timings.encode_s + timings.denoise_s
    image.save(tmp_path / "circle.png")
    red, green, blue = Pictures.open(tmp_path / "circle.png").convert("RGB").tobytes()[:3]
    assert blue > max(red, green)


async def test_a_name_that_misleads_is_refused(services: Services, tmp_path: Path) -> None:
    async with AsyncClient(**services.endpoints) as client:
        image = (await client.generate(PROMPT, format="jpeg", **QUICK)).images[0]
    with pytest.raises(InvalidArgument, match=r"expected a file name for the format jpeg, got one for png"):
        image.save(tmp_path / "circle.png")
    assert list(tmp_path.iterdir()) == []
    image.save(tmp_path / "circle.jpg")
    assert Pictures.open(io.BytesIO((tmp_path / "circle.jpg").read_bytes())).format == "JPEG"


async def test_the_generators_text_limit_reaches_the_encoder(services: Services, stranger: str) -> None:
    async with AsyncClient(**services.endpoints) as client:
        info = await client.generator_info()
        both = (await client.encode("fox")).report
        own = (await client.encode("fox", text_limit=99)).report
    async with AsyncClient(encoder=stranger) as client:
        alone = (await client.encode("fox")).report
    assert (both.text_limit, both.text_limit_source) == (info.limits.text_limit, "request")
    assert (own.text_limit, own.text_limit_source) == (99, "request")
    assert (alone.text_limit, alone.text_limit_source) == (1504, "default")


async def test_options_come_back_in_the_picture(services: Services) -> None:
    events: list[Event] = []
    async with AsyncClient(**services.endpoints) as client:
        result = await client.generate(
            PROMPT,
            negative_prompt="a green square",
            encoding={"think_mode": "empty"},
            on_event=events.append,
            width=96,
            height=64,
            num_inference_steps=2,
            guidance_scale=1.5,
            cfg_normalization=1.0,
            cfg_truncation=0.5,
            shift=2.0,
            seed=0,
            num_images=2,
            format="webp",
            quality=80,
            labels={"a": "b"},
            preview_every=1,
            preview_max_side=8,
            priority="interactive",
            deterministic=True,
        )
        sigmas = await client.generate(PROMPT, sigmas=[1.0, 0.4], width=64, height=64)
        quiet = await client.generate(PROMPT, provenance=False, **QUICK)
    assert [(image.seed, image.format) for image in result.images] == [(0, "webp"), (1, "webp")]
    said = provenance_of(result.images[1])
    assert said["prompt"] == PROMPT
    assert said["negative_prompt"] == "a green square"
    assert said["labels"] == {"a": "b"}
    assert said["encoder"]["think_mode"] == "empty"
    sampling = {"width": 96, "height": 64, "guidance_scale": 1.5, "cfg_normalization": 1.0, "cfg_truncation": 0.5}
    assert said["sampling"] | sampling | {"shift": 2.0, "seed": 1, "num_inference_steps": 2} == said["sampling"]
    previews = [event for event in events if isinstance(event, Preview)]
    assert previews
    assert max(Pictures.open(io.BytesIO(previews[0].jpeg)).size) == 8
    assert provenance_of(sigmas.images[0])["sampling"]["sigmas"][:2] == pytest.approx([1.0, 0.4])
    assert read_provenance(quiet.images[0].data) is None


async def test_guidance_without_a_negative_prompt_takes_the_empty_one(services: Services) -> None:
    async with AsyncClient(**services.endpoints) as client:
        by_default = await client.generate(PROMPT, guidance_scale=2.0, **QUICK)
        said = await client.generate(PROMPT, negative_prompt="", guidance_scale=2.0, **QUICK)
        other = await client.generate(PROMPT, negative_prompt="a red circle", guidance_scale=2.0, **QUICK)
        plain = await client.generate(PROMPT, **QUICK)
    assert by_default.images[0].data == said.images[0].data
    assert len({result.images[0].pixels_sha256 for result in (said, other, plain)}) == 3
    assert (
        provenance_of(by_default.images[0])["negative_prompt"],
        provenance_of(plain.images[0])["negative_prompt"],
    ) == ("", None)
    assert plain.embeds.negative_report is None


async def test_embeddings_without_a_negative_prompt_cannot_be_guided(services: Services) -> None:
    async with AsyncClient(**services.endpoints) as client:
        bare, both = await client.encode(PROMPT), await client.encode(PROMPT, negative_prompt="")
        with pytest.raises(InvalidArgument, match='--negative-prompt ""') as refused:
            await client.generate(bare, guidance_scale=2.0, **QUICK)
        direct = await client.generate(PROMPT, guidance_scale=2.0, **QUICK)
        assert (await client.generate(both, guidance_scale=2.0, **QUICK)).images == direct.images
        with pytest.raises(InvalidArgument, match="hold their own"):
            await client.generate(both, negative_prompt="a dog", **QUICK)
    assert refused.value.reason == "NEGATIVE_PROMPT_MISSING"


async def test_embeddings_go_by_file_and_paint_the_same(services: Services, tmp_path: Path) -> None:
    file = tmp_path / "fox.safetensors"
    async with AsyncClient(encoder=services.encoder) as client:
        (await client.encode(PROMPT, negative_prompt="a dog")).save(file)
    async with AsyncClient(generator=services.generator) as client:
        there = await client.generate(Embeds.load(file), guidance_scale=1.5, **QUICK)
    async with AsyncClient(**services.endpoints) as client:
        direct = await client.generate(PROMPT, negative_prompt="a dog", guidance_scale=1.5, **QUICK)
    assert there.images == direct.images
    assert Embeds.load(file).prompt == PROMPT
    assert there.timings.encode_s == 0


async def test_a_file_may_omit_the_prompt_and_is_refused_when_damaged(services: Services, tmp_path: Path) -> None:
    async with AsyncClient(encoder=services.encoder) as client:
        embeds = await client.encode("a secret fox")
    embeds.save(tmp_path / "fox.safetensors", keep_prompt=False)
    raw = bytearray((tmp_path / "fox.safetensors").read_bytes())
    assert b"secret" not in raw
    assert Embeds.load(tmp_path / "fox.safetensors").prompt is None
    assert embeds.prompt == "a secret fox"
    raw[-1] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(raw)
    with pytest.raises(PayloadCorrupt):
        Embeds.load(tmp_path / "bad.safetensors")


async def test_several_prompts_in_one_call_share_the_negative_one(services: Services) -> None:
    async with AsyncClient(encoder=services.encoder) as client:
        many = await client.encode_batch(["one", "two words of it"], negative_prompt="no")
        alone = await client.encode("two words of it", negative_prompt="no")
        with pytest.raises(TypeError, match="encode takes it"):
            await client.encode_batch("one")
    assert many[0].report.token_count < many[1].report.token_count == alone.report.token_count
    assert {embeds.negative_prompt for embeds in many} == {"no"}


async def test_the_stream_yields_events_as_they_arrive(services: Services) -> None:
    async with AsyncClient(**services.endpoints) as client:
        kinds = [type(event) async for event in client.stream(PROMPT, preview_every=1, **QUICK)]
    assert (kinds[0], kinds[-2:]) == (Accepted, [Image, Done])
    assert Preview in kinds


async def test_leaving_the_stream_cancels_the_job(services: Services) -> None:
    async with AsyncClient(**services.endpoints) as client:
        events = client.stream(PROMPT, request_id="left", **ENDLESS)
        assert isinstance(await anext(events), Accepted)
        await events.aclose()
        assert await services.was_cancelled("left")


async def test_being_cancelled_cancels_the_job(services: Services) -> None:
    async with AsyncClient(**services.endpoints) as client:
        work = await begun(client, "given-up")
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert await services.was_cancelled("given-up")
        assert await client.cancel("given-up") == "cancelled"


async def test_a_callback_that_fails_cancels_the_job(services: Services) -> None:
    def fail(event: Event) -> None:
        raise OSError("the disk is full")

    async with AsyncClient(**services.endpoints) as client:
        with pytest.raises(OSError, match="full"):
            await client.generate(PROMPT, request_id="failed", on_event=fail, **ENDLESS)
        assert await services.was_cancelled("failed")


async def test_a_job_is_cancelled_from_elsewhere_and_a_full_queue_says_when_to_retry(
    services: Services,
) -> None:
    async with AsyncClient(**services.endpoints) as client:
        runs = await begun(client, "runs")
        waits = asyncio.create_task(client.generate(PROMPT, request_id="waits", **QUICK))

        async def waiting() -> int:
            return (await client.generator_info()).queue.waiting

        await until_async(waiting, "the second job waits")
        with pytest.raises(QueueFull) as full:
            await client.generate(PROMPT, **QUICK)
        assert full.value.retry_after_s
        async with AsyncClient(generator=services.generator) as another:
            assert await another.cancel("runs") == "cancelled"
        assert (await waits).images
        ended = (await asyncio.gather(runs, return_exceptions=True))[0]
        assert "cancelled" in str(ended)


async def test_the_budget_is_one_for_all_hops(services: Services) -> None:
    async with AsyncClient(**services.endpoints, timeout_s=1.0) as client:
        with pytest.raises(DeadlineExceeded) as late:
            await client.generate(PROMPT, request_id="late", **ENDLESS)
    assert late.value.metadata["stage"] in ("generator", "generate")  # spent there, or refused there beforehand
    await services.idle()


async def test_jobs_have_the_timeout_of_the_client(services: Services) -> None:
    async with AsyncClient(**services.endpoints) as client:
        job = await client.submit(PROMPT, **ENDLESS)
        async with AsyncClient(generator=services.generator, timeout_s=0.5) as brief:
            with pytest.raises(DeadlineExceeded):
                await brief.jobs.fetch(job.job_id)
        await client.jobs.cancel(job.job_id)
    await services.idle()


async def test_a_repeat_of_a_request_is_the_same_job(services: Services) -> None:
    async with AsyncClient(**services.endpoints) as client:
        first = await client.generate(PROMPT, request_id="twice", **QUICK)
        again = await client.generate(PROMPT, request_id="twice", **QUICK)
    assert first.job_id == again.job_id
    assert first.images == again.images


async def test_refusals_arrive_as_they_were_made(services: Services, stranger: str) -> None:
    async with AsyncClient(**services.endpoints) as client:
        with pytest.raises(InvalidArgument, match="divisible by 16, got 100") as refused:
            await client.generate(PROMPT, width=100)
        assert refused.value.field == "width"
        assert refused.value.metadata["contract_field"] == "spec.sampling.width"
        for empty in ("", " \n"):
            with pytest.raises(InvalidArgument, match="empty"):
                await client.generate(empty, guidance_scale=2.0)
        with pytest.raises(FeatureMissing, match="quote_stripping"):
            await client.generate(PROMPT, encoding={"quote_stripping": "json_keys"})
    async with AsyncClient(encoder=stranger, generator=services.generator) as client:
        with pytest.raises(EncoderMismatch, match="width"):
            await client.generate(PROMPT, **QUICK)


async def test_a_service_that_is_not_there(services: Services) -> None:
    async with AsyncClient(encoder=services.encoder, generator="127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match=r"generator service at 127\.0\.0\.1:1"):
            await client.generate(PROMPT)


async def test_info_of_all(services: Services) -> None:
    async with AsyncClient(**services.endpoints) as client:
        info = await client.info()
        assert await client.serving() == {"encoder": True, "generator": True}
    assert info.vision is None
    assert info.encoder is not None
    assert info.generator is not None
    assert info.encoder.fingerprint is not None
    assert info.generator.expected_encoder is not None
    assert info.generator.expected_encoder.tokenizer_digest == info.encoder.fingerprint.tokenizer_digest
    assert info.generator.defaults.num_inference_steps == 8
