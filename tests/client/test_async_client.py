"""The library against services that compute nothing, over real channels."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from zrelay_client import (
    Accepted,
    AsyncClient,
    DeadlineExceeded,
    Done,
    Embeds,
    EncodeOptions,
    Event,
    GenerateOptions,
    Image,
    InvalidArgument,
    PayloadCorrupt,
    Preview,
    Progress,
    Unavailable,
)

LIMIT = 77


async def test_a_prompt_becomes_a_picture(fakes: Any) -> None:
    events: list[Event] = []
    async with AsyncClient(**fakes.endpoints) as client:
        result = await client.generate("a red fox", GenerateOptions(seed=7), on_event=events.append)
    assert [image.seed for image in result.images] == [7]
    assert (result.seed, result.sampling.num_inference_steps, result.encoder_relation) == (7, 3, "exact")
    assert [type(e) for e in events] == [Accepted, Progress, Progress, Progress, Image, Done]
    assert result.embeds.report.token_count == 3
    timings = result.timings
    assert timings.denoise_s == 0.5
    assert timings.connect_s > 0
    assert timings.encode_s > 0
    assert timings.total_s >= timings.connect_s + timings.encode_s


async def test_absent_stays_absent_and_the_generators_text_limit_reaches_the_encoder(fakes: Any) -> None:
    async with AsyncClient(**fakes.endpoints) as client:
        await client.generate("a red fox")
    sampling = fakes.generator.requests[0].spec.sampling
    assert sampling.ByteSize() == 0
    assert len(fakes.generator.requests[0].request_id) == 32
    options = fakes.encoder.requests[0].options
    assert (options.text_limit, options.HasField("hidden_layer"), options.dtype) == (LIMIT, False, 0)


async def test_zero_is_not_absent(fakes: Any) -> None:
    async with AsyncClient(**fakes.endpoints) as client:
        await client.generate("a fox", GenerateOptions(seed=0, guidance_scale=0.0))
    sampling = fakes.generator.requests[0].spec.sampling
    assert sampling.HasField("seed")
    assert sampling.HasField("guidance_scale")
    assert not sampling.HasField("width")


async def test_every_option_reaches_the_wire(fakes: Any) -> None:
    options = GenerateOptions(
        width=64,
        height=32,
        num_inference_steps=2,
        guidance_scale=1.5,
        cfg_normalization=1.0,
        cfg_truncation=0.5,
        shift=2.0,
        seed=3,
        num_images=2,
        format="webp",
        quality=80,
        keep_prompt=False,
        labels={"a": "b"},
        preview_every=1,
        preview_max_side=64,
        priority="interactive",
        deterministic=True,
    )
    encoding = EncodeOptions(
        system_prompt="s", think_mode="empty", quote_stripping="json_keys", hidden_layer=-3, long_prompt_mode="pool"
    )
    async with AsyncClient(**fakes.endpoints) as client:
        result = await client.generate("a fox", options, negative_prompt="a dog", encoding=encoding)
    spec = fakes.generator.requests[0].spec
    assert [image.seed for image in result.images] == [3, 4]
    assert {image.format for image in result.images} == {"webp"}
    assert (spec.sampling.width, spec.sampling.height, spec.sampling.shift) == (64, 32, 2.0)
    assert not spec.provenance.HasField("prompt")
    assert dict(spec.provenance.labels) == {"a": "b"}
    assert spec.HasField("negative_prompt")
    assert spec.priority == 1
    assert spec.deterministic
    asked = fakes.encoder.requests[0]
    assert [prompt.text for prompt in asked.prompts] == ["a fox", "a dog"]
    assert (asked.prompts[0].think_mode, asked.prompts[0].quote_stripping) == (2, 2)
    assert (asked.options.hidden_layer, asked.options.long_prompt_mode) == (-3, 3)


async def test_embeddings_go_by_file_and_paint_the_same(fakes: Any, tmp_path: Path) -> None:
    file = tmp_path / "fox.safetensors"
    async with AsyncClient(encoder=fakes.endpoints["encoder"]) as client:
        (await client.encode("a red fox", negative_prompt="a dog")).save(file)
    async with AsyncClient(generator=fakes.endpoints["generator"]) as client:
        there = await client.generate(Embeds.load(file))
    async with AsyncClient(**fakes.endpoints) as client:
        direct = await client.generate("a red fox", negative_prompt="a dog")
    assert there.images[0].pixels_sha256 == direct.images[0].pixels_sha256
    assert Embeds.load(file).prompt == "a red fox"
    assert fakes.generator.requests[0].spec.HasField("negative_prompt")
    assert there.timings.encode_s == 0


async def test_a_file_may_keep_the_prompt_to_itself(fakes: Any, tmp_path: Path) -> None:
    async with AsyncClient(encoder=fakes.endpoints["encoder"]) as client:
        embeds = await client.encode("a secret fox")
    embeds.save(tmp_path / "fox.safetensors", keep_prompt=False)
    assert b"secret" not in (tmp_path / "fox.safetensors").read_bytes()
    assert Embeds.load(tmp_path / "fox.safetensors").prompt is None
    assert embeds.prompt == "a secret fox"


async def test_a_damaged_file_is_refused(fakes: Any, tmp_path: Path) -> None:
    async with AsyncClient(encoder=fakes.endpoints["encoder"]) as client:
        (await client.encode("a red fox")).save(tmp_path / "fox.safetensors")
    raw = bytearray((tmp_path / "fox.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(raw)
    with pytest.raises(PayloadCorrupt):
        Embeds.load(tmp_path / "bad.safetensors")


async def test_several_prompts_in_one_call_share_the_negative_one(fakes: Any) -> None:
    async with AsyncClient(encoder=fakes.endpoints["encoder"]) as client:
        many = await client.encode_batch(["one", "two words"], negative_prompt="no")
    assert [embeds.report.token_count for embeds in many] == [1, 2]
    assert {embeds.negative_prompt for embeds in many} == {"no"}
    assert len(fakes.encoder.requests) == 1


async def test_the_stream_tells_events_as_they_come(fakes: Any) -> None:
    async with AsyncClient(**fakes.endpoints) as client:
        kinds = [type(event) async for event in client.stream("a fox", GenerateOptions(preview_every=1))]
    assert kinds == [Accepted, *[Progress, Preview] * 3, Image, Done]


async def test_leaving_the_stream_cancels_the_job(fakes: Any) -> None:
    fakes.generator.step_s = 5.0
    async with AsyncClient(**fakes.endpoints) as client:
        events = client.stream("a fox", request_id="mine")
        assert isinstance(await anext(events), Accepted)
        await events.aclose()
        assert fakes.generator.cancelled == ["mine"]
        await asyncio.wait_for(fakes.generator.ended.wait(), 2)


async def test_being_cancelled_cancels_the_job(fakes: Any) -> None:
    fakes.generator.step_s = 5.0
    async with AsyncClient(**fakes.endpoints) as client:
        accepted = asyncio.Event()
        work = asyncio.create_task(client.generate("a fox", request_id="mine", on_event=lambda event: accepted.set()))
        await asyncio.wait_for(accepted.wait(), 5)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert fakes.generator.cancelled == ["mine"]
        await asyncio.wait_for(fakes.generator.ended.wait(), 2)
        assert await client.cancel("mine") == "cancelled"


async def test_the_budget_is_one_for_all_hops(fakes: Any) -> None:
    fakes.generator.step_s = 5.0
    async with AsyncClient(**fakes.endpoints, timeout_s=0.5) as client:
        with pytest.raises(DeadlineExceeded) as late:
            await client.generate("a fox")
    assert late.value.metadata["stage"] == "generator"


async def test_refusals_arrive_as_they_were_made(fakes: Any) -> None:
    async with AsyncClient(**fakes.endpoints) as client:
        with pytest.raises(InvalidArgument) as refused:
            await client.generate("a fox", GenerateOptions(width=100))
        assert refused.value.field == "spec.sampling.width"
        with pytest.raises(InvalidArgument, match="empty"):
            await client.generate("")
        assert len(fakes.generator.requests) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (GenerateOptions(width=-1), "width: expected a whole number"),
        (GenerateOptions(seed=1 << 64), "seed"),
        (GenerateOptions(format="bmp"), "format: expected one of png, jpeg, webp, got 'bmp'"),  # type: ignore[arg-type]
        (GenerateOptions(labels={"a": "\udcff"}), "Unicode"),
    ],
)
async def test_what_the_wire_cannot_carry_is_refused_here(fakes: Any, options: GenerateOptions, says: str) -> None:
    async with AsyncClient(**fakes.endpoints) as client:
        with pytest.raises(InvalidArgument, match=says):
            await client.generate("a fox", options)


async def test_a_service_that_is_not_there(fakes: Any) -> None:
    async with AsyncClient(encoder=fakes.endpoints["encoder"], generator="127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match=r"generator service at 127\.0\.0\.1:1"):
            await client.generate("a fox")
    assert fakes.encoder.requests == []


async def test_an_endpoint_is_asked_for_when_it_is_needed() -> None:
    async with AsyncClient(generator="127.0.0.1:1") as client:
        with pytest.raises(InvalidArgument, match="encoder: expected an endpoint") as missing:
            await client.encode("a fox")
    assert missing.value.reason == "ENDPOINT_MISSING"


async def test_info_of_all(fakes: Any) -> None:
    async with AsyncClient(**fakes.endpoints) as client:
        info = await client.info()
        assert await client.serving() == {"encoder": True, "generator": True}
    assert info.vision is None
    assert info.encoder is not None
    assert info.generator is not None
    assert info.encoder.text_limit_source == "default"
    assert info.generator.limits.text_limit == LIMIT
    assert info.generator.expected_encoder == info.encoder.fingerprint
