"""The fake services behave as the real ones: every scenario runs against both.

And what only the fakes have: recorded calls, failures on request, and jobs that are held.
"""

import asyncio
import contextlib
import io
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pictures

from tests.helpers.images import png
from tests.helpers.jobs import ENDLESS, PROMPT, QUICK
from tests.helpers.polling import until_async
from tests.helpers.refusals import refused, refused_async
from zrelay.v1 import generator_pb2 as pb
from zrelay_client import (
    Accepted,
    AsyncClient,
    Cancelled,
    Client,
    Done,
    Event,
    FailedPrecondition,
    IdempotencyConflict,
    Image,
    InvalidArgument,
    ModelLoading,
    NotFound,
    OutOfMemory,
    Preview,
    Progress,
    QueueFull,
    Unavailable,
    read_provenance,
)
from zrelay_client.testing import FakeServices, pictures
from zrelay_shared import channels
from zrelay_shared.rpc import Stub
from zrelay_shared.wire import Parcel

from .conftest import Services


@dataclass(frozen=True)
class Backend:
    """Services under test.

    Attributes:
        endpoints: Keywords of a client.
        omni: A generator that has Omni.
        held: Keeps jobs of `ENDLESS` from ending while the block runs.
    """

    endpoints: dict[str, Any]
    omni: str
    held: Callable[[], AbstractContextManager[object]]


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServices]:
    with FakeServices(max_waiting=1) as fake:
        yield fake


@pytest.fixture(params=["fake", "real"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "fake":
        fake: FakeServices = request.getfixturevalue("fake")

        @contextlib.contextmanager
        def held() -> Iterator[None]:
            fake.generator.hold()
            try:
                yield
            finally:
                fake.generator.release()

        return Backend({**fake.endpoints}, fake.generator.endpoint, held)
    services: Services = request.getfixturevalue("services")
    endpoints = {**services.endpoints, "vision": request.getfixturevalue("vision")}
    return Backend(endpoints, request.getfixturevalue("omni"), contextlib.nullcontext)


@pytest.fixture
async def client(backend: Backend) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(**backend.endpoints) as client:
        yield client


async def test_information(client: AsyncClient) -> None:
    assert await client.serving() == {"encoder": True, "vision": True, "generator": True}
    info = await client.info()
    assert info.encoder is not None and info.generator is not None and info.vision is not None
    assert info.encoder.ready and info.generator.ready and info.vision.ready
    assert info.encoder.fingerprint is not None and info.generator.limits is not None
    assert info.encoder.fingerprint.width == info.generator.limits.embeds_width
    assert info.generator.queue.waiting == 0
    assert {engine.name for engine in info.vision.engines} == {"siglip", "qwen3_vl"}
    assert all(feature.name for feature in info.generator.features)


async def test_embeddings_report_tokens_and_identity(client: AsyncClient, tmp_path: Path) -> None:
    embeds, same, other = await client.encode_batch([PROMPT, PROMPT, "something else"])
    assert embeds.report.token_count == embeds.report.formatted_tokens >= 9
    assert embeds.report.long_prompt_action == "" and embeds.prompt == PROMPT
    data = [each.parcel.to_bytes() for each in (embeds, same, other)]
    assert data[0] == data[1] != data[2]
    short = await client.encode(PROMPT, text_limit=6)
    assert (short.report.token_count, short.report.long_prompt_action) == (6, "truncate")
    assert short.report.dropped_tokens == short.report.formatted_tokens - 6
    assert (await client.encode(PROMPT, hidden_layer=-3)).fingerprint.digest != embeds.fingerprint.digest
    embeds.save(tmp_path / "embeds.safetensors")
    assert type(embeds).load(tmp_path / "embeds.safetensors").parcel.to_bytes() == data[0]


@pytest.mark.parametrize(
    ("options", "reason", "field", "message"),
    [
        (
            {"prompt": "  "},
            "PROMPT_EMPTY",
            "prompt",
            "^prompt: expected a description of the image, got an empty prompt$",
        ),
        ({"text_limit": 6, "long_prompt_mode": "refuse"}, "PROMPT_TOO_LONG", "prompt", "^prompt: expected at most 6"),
        ({"hidden_layer": -77}, "HIDDEN_LAYER_INVALID", "hidden_layer", "^hidden_layer: expected .* to -1, got -77"),
    ],
)
async def test_encoding_is_refused(
    client: AsyncClient, options: dict[str, Any], reason: str, field: str, message: str
) -> None:
    call = client.encode(**{"prompt": PROMPT, **options})
    await refused_async(call, InvalidArgument, reason=reason, field=field, match=message)


async def test_an_image_has_the_requested_size_and_depends_on_prompt_and_seed(client: AsyncClient) -> None:
    size: dict[str, Any] = {"width": 96, "height": 64, "num_inference_steps": 2}
    first = await client.generate(PROMPT, seed=7, **size)
    (image,) = first.images
    assert (image.width, image.height, image.seed, image.format) == (96, 64, 7, "png")
    with Pictures.open(io.BytesIO(image.data)) as picture:
        assert (picture.size, picture.format, picture.mode) == ((96, 64), "PNG", "RGB")
    assert (first.encoder_relation, first.seed, first.sampling.num_inference_steps) == ("exact", 7, 2)
    again = await client.generate(PROMPT, seed=7, **size)
    assert again.images[0].pixels_sha256 == image.pixels_sha256
    for prompt, seed in ((PROMPT, 8), ("something else entirely", 7)):
        other = await client.generate(prompt, seed=seed, **size)
        assert other.images[0].pixels_sha256 != image.pixels_sha256


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
async def test_every_format_can_be_opened_and_has_its_provenance(client: AsyncClient, format: Any) -> None:
    result = await client.generate(PROMPT, format=format, labels={"series": "é"}, **QUICK)
    (image,) = result.images
    with Pictures.open(io.BytesIO(image.data)) as picture:
        assert (picture.format, picture.size) == (format.upper(), (64, 64))
        picture.load()
    provenance = read_provenance(image.data)
    assert provenance is not None
    assert (provenance["prompt"], provenance["labels"]) == (PROMPT, {"series": "é"})
    assert provenance["sampling"]["seed"] == 7 and provenance["pixels_sha256"] == image.pixels_sha256
    bare = await client.generate(PROMPT, format=format, provenance=False, **QUICK)
    assert read_provenance(bare.images[0].data) is None


async def test_events_begin_with_accepted_and_end_with_done(client: AsyncClient) -> None:
    events: list[Event] = []
    await client.generate(PROMPT, seed=3, num_images=2, preview_every=1, on_event=events.append, width=64, height=64)
    accepted, done = events[0], events[-1]
    assert isinstance(accepted, Accepted) and isinstance(done, Done) and done.images == 2
    steps = accepted.sampling.num_inference_steps
    assert [stage.name for stage in accepted.plan] == ["prepare", "denoise", "decode", "encode_image"]
    assert accepted.plan[1].total == 2 * steps and len(accepted.sigmas) == steps + 1 and accepted.sigmas[-1] == 0
    progress = [event for event in events if isinstance(event, Progress) and event.stage == "denoise"]
    assert (progress[-1].completed, progress[-1].total) == (2 * steps, 2 * steps)
    assert [event.seed for event in events if isinstance(event, Image)] == [3, 4]
    previews = [event for event in events if isinstance(event, Preview)]
    assert previews
    with Pictures.open(io.BytesIO(previews[0].jpeg)) as picture:
        assert picture.format == "JPEG" and max(picture.size) <= 256


async def test_guidance_takes_a_negative_prompt(client: AsyncClient) -> None:
    result = await client.generate(PROMPT, negative_prompt="blurry", guidance_scale=2.0, **QUICK)
    provenance = read_provenance(result.images[0].data)
    assert provenance is not None
    assert (provenance["negative_prompt"], provenance["sampling"]["guidance_scale"]) == ("blurry", 2.0)
    await refused_async(
        client.generate(await client.encode(PROMPT), guidance_scale=2.0, **QUICK), InvalidArgument, field=None
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"width": 65}, "WIDTH_INVALID"),
        ({"num_inference_steps": 5000}, "NUM_INFERENCE_STEPS_INVALID"),
        ({"num_images": 999}, "NUM_IMAGES_INVALID"),
        ({"sigmas": [0.5, 0.7]}, "SIGMAS_INVALID"),
    ],
)
async def test_generation_is_refused(client: AsyncClient, options: dict[str, Any], reason: str) -> None:
    error = await refused_async(client.generate(PROMPT, **options), InvalidArgument, reason=reason)
    assert re.search(r"expected .*, got ", error.message)


async def test_both_sides_are_refused_at_once(client: AsyncClient) -> None:
    error = await refused_async(client.generate(PROMPT, width=9999, height=17), InvalidArgument, reason="WIDTH_INVALID")
    assert re.search(r"got 9999; use 2048, and (16|64) for height in place of 17", error.message)


async def test_a_repeated_request_id_is_the_same_job(client: AsyncClient) -> None:
    request_id = f"repeat-{id(client)}"
    first = await client.generate(PROMPT, request_id=request_id, **QUICK)
    again = await client.generate(PROMPT, request_id=request_id, **QUICK)
    assert (again.job_id, again.images[0].file_sha256) == (first.job_id, first.images[0].file_sha256)
    with pytest.raises(IdempotencyConflict):
        await client.generate("something else", request_id=request_id, **QUICK)


async def test_a_submitted_job_is_listed_watched_and_fetched(client: AsyncClient) -> None:
    job = await client.submit(PROMPT, **QUICK)
    images = await client.jobs.fetch(job.job_id)
    assert [image.seed for image in images] == [7]
    ended = await client.jobs.get(job.job_id)
    assert (ended.state, ended.request_id, ended.failure) == ("succeeded", job.request_id, None)
    assert ended.ended_at >= ended.accepted_at > 0 and ended.sampling.seed == 7
    assert job.job_id in [each.job_id async for each in client.jobs.list(states=["succeeded"])]
    assert job.job_id not in [each.job_id async for each in client.jobs.list(states=["failed"])]
    events = [event async for event in client.jobs.watch(job.job_id, after_sequence=1)]
    assert not any(isinstance(event, Accepted) for event in events) and isinstance(events[-1], Done)
    await refused_async(client.jobs.get("nosuchjob"), NotFound, reason="JOB_UNKNOWN")


async def test_a_running_job_is_cancelled(backend: Backend, client: AsyncClient) -> None:
    with backend.held():
        job = await client.submit(PROMPT, **ENDLESS)
        assert (await client.jobs.cancel(job.job_id)).state == "cancelled"
        with pytest.raises(Cancelled):
            await client.jobs.fetch(job.job_id)
        assert (await client.jobs.cancel(job.job_id)).state == "cancelled"
        await idle(client)


async def test_a_cancelled_call_cancels_its_job(backend: Backend, client: AsyncClient) -> None:
    with backend.held():
        accepted = asyncio.Event()
        work = asyncio.create_task(
            client.generate(PROMPT, request_id=f"left-{id(client)}", on_event=lambda event: accepted.set(), **ENDLESS)
        )
        await asyncio.wait_for(accepted.wait(), 20)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await idle(client)
    jobs = [job async for job in client.jobs.list() if job.request_id == f"left-{id(client)}"]
    assert [job.state for job in jobs] == ["cancelled"]


async def test_a_full_queue_refuses(backend: Backend, client: AsyncClient) -> None:
    with backend.held():
        jobs = [await client.submit(PROMPT, **ENDLESS)]

        async def running() -> bool:
            return (await client.jobs.get(jobs[0].job_id)).state == "running"

        await until_async(running, "the first job runs")
        jobs.append(await client.submit("another prompt", **ENDLESS))
        error = await refused_async(client.submit("one more", **ENDLESS), QueueFull, reason="QUEUE_FULL")
        assert error.retry_after_s is not None and error.retry_after_s > 0
        for job in jobs:
            await client.jobs.cancel(job.job_id)
        await idle(client)


async def test_many_prompts_with_many_seeds(client: AsyncClient) -> None:
    size: dict[str, Any] = {"width": 64, "height": 64, "num_inference_steps": 2}
    outcomes = [each async for each in client.generate_many([PROMPT, "a blue star"], seeds=[1, 2], in_flight=1, **size)]
    assert sorted(outcome.index for outcome in outcomes) == [0, 1, 2, 3]
    assert all(outcome.error is None for outcome in outcomes)


async def test_an_image_is_encoded_scored_and_blended_into_a_prompt(client: AsyncClient) -> None:
    image = png(64, 64)
    (grid,) = await client.encode_images([image], engine="siglip")
    (states,) = await client.encode_images([image], engine="qwen3_vl")
    assert (grid.engine, len(grid.shape), states.engine, len(states.shape)) == ("siglip", 3, "qwen3_vl", 2)
    assert grid.image_sha256 == states.image_sha256
    (scores,) = await client.score_images([image], ["a circle", "a star"])
    assert len(scores.probabilities) == 2 and all(0 <= each <= 1 for each in scores.probabilities)
    embeds = await client.encode(PROMPT)
    unchanged = await client.condition_prompt(embeds, image, alpha=0.0)
    assert unchanged.embeds.parcel.to_bytes() == embeds.parcel.to_bytes()
    blended = await client.condition_prompt(embeds, image, alpha=0.5)
    assert blended.embeds.fingerprint.modifications[0] == "conditioning"
    assert blended.report.before.tokens == embeds.report.token_count and not blended.report.calibrated
    await refused_async(
        client.condition_prompt(embeds, image, normalization="per_dim"),
        FailedPrecondition,
        reason="REFERENCE_STATISTICS_MISSING",
    )
    await refused_async(client.encode_images([b"no image"], engine="siglip"), InvalidArgument)
    result = await client.generate(PROMPT, reference=image, **QUICK)
    assert result.encoder_relation == "experimental"


async def test_an_image_is_where_generation_starts(client: AsyncClient) -> None:
    result = await client.generate(PROMPT, image=png(64, 64), strength=0.5, width=64, height=64, num_inference_steps=4)
    provenance = read_provenance(result.images[0].data)
    assert provenance is not None and provenance["image_to_image"]["strength"] == 0.5
    again = await client.generate(
        PROMPT, image=png(64, 64, seed=1), strength=0.5, width=64, height=64, seed=result.seed
    )
    assert again.images[0].pixels_sha256 != result.images[0].pixels_sha256


async def test_omni_images(backend: Backend) -> None:
    async with AsyncClient(**{**backend.endpoints, "generator": backend.omni}) as client:
        result = await client.generate(PROMPT, omni=[png(64, 64)], **QUICK)
    provenance = read_provenance(result.images[0].data)
    assert provenance is not None and len(provenance["omni"]["file_sha256"]) == 1


async def test_provenance_has_the_form_of_a_generators(fake: FakeServices, services: Services) -> None:
    forms = []
    for encoder, generator in (
        (fake.encoder.endpoint, fake.generator.endpoint),
        (services.encoder, services.generator),
    ):
        async with AsyncClient(encoder=encoder, generator=generator) as client:
            forms.append(_form(read_provenance((await client.generate(PROMPT, **QUICK)).images[0].data)))
    assert forms[0] == forms[1]


def _form(value: object) -> object:
    """Returns the names and types of a JSON value."""
    if isinstance(value, dict):
        return {key: _form(inner) for key, inner in value.items()}
    return float if isinstance(value, int | float) else type(value)


async def idle(client: AsyncClient) -> None:
    """Returns once no job runs or waits."""

    async def free() -> bool:
        queue = (await client.generator_info()).queue
        return not (queue.running or queue.waiting)

    await until_async(free, "the generator is idle", 30.0)


def test_calls_are_recorded() -> None:
    with FakeServices() as fake, fake.client() as client:
        client.generate(PROMPT, negative_prompt="blurry", guidance_scale=1.0, seed=5)
        assert fake.encoder.prompts == [PROMPT, "blurry"]
        (spec,) = fake.generator.specs
        assert (spec.sampling.seed, spec.sampling.guidance_scale, spec.provenance.prompt) == (5, 1.0, PROMPT)
        assert [call.method for call in fake.generator.calls] == ["Generate"]
        assert fake.vision.calls == []


def test_calls_fail_on_request() -> None:
    with FakeServices() as fake, fake.client() as client:
        fake.encoder.fail_next(ModelLoading("the model is loading", retry_after_s=0.01), count=2)
        fake.generator.fail_next(OutOfMemory("too large"), method="SubmitJob")
        client.generate(PROMPT)  # the client tries the encoder again, and Generate is another method
        with pytest.raises(OutOfMemory, match="too large"):
            client.submit(PROMPT)
        assert client.submit(PROMPT).state in ("queued", "running", "succeeded")


def test_a_job_fails_while_it_runs() -> None:
    with FakeServices() as fake, fake.client() as client:
        fake.generator.fail_next_job(OutOfMemory("decoding needs more memory"), after_steps=2)
        events: list[Event] = []
        with pytest.raises(OutOfMemory, match="more memory"):
            client.generate(PROMPT, request_id="r", on_event=events.append)
        assert [event.completed for event in events if isinstance(event, Progress) and event.stage == "denoise"] == [
            1,
            2,
        ]
        (job,) = client.jobs.list()
        assert job.state == "failed" and job.failure is not None and job.failure.reason == "OUT_OF_MEMORY"


def test_jobs_are_held_and_released() -> None:
    with FakeServices() as fake, fake.client() as client:
        fake.generator.hold()
        first = client.submit(PROMPT, seed=1)
        second = client.submit(PROMPT, seed=2, priority="batch")
        urgent = client.submit(PROMPT, seed=3, priority="interactive")
        positions = [client.jobs.get(job.job_id).progress for job in (urgent, second)]
        assert [each.queue_position for each in positions if each is not None] == [1, 2]
        fake.generator.release()
        assert [client.jobs.fetch(job.job_id)[0].seed for job in (first, second, urgent)] == [1, 2, 3]


def test_a_step_takes_the_requested_time() -> None:
    with FakeServices(step_s=0.05) as fake, fake.client() as client:
        started = time.monotonic()
        client.generate(PROMPT, num_inference_steps=4)
        assert time.monotonic() - started >= 4 * 0.05


def test_services_stop_while_jobs_run() -> None:
    with FakeServices(step_s=600.0) as fake, fake.client() as client:
        job = client.submit(PROMPT)
        assert client.jobs.get(job.job_id).state in ("queued", "running")
        assert client.jobs.cancel(job.job_id).state == "cancelled"
        left = client.submit(PROMPT)
        assert client.jobs.get(left.job_id).state in ("queued", "running")
        endpoint, started = fake.generator.endpoint, time.monotonic()
    assert time.monotonic() - started < 60
    with Client(generator=endpoint) as client:
        refused(lambda: client.jobs.get(left.job_id), Unavailable)


def test_services_are_served_once() -> None:
    with pytest.raises(RuntimeError, match="already"), FakeServices() as fake:
        fake.start()


async def test_a_job_that_nobody_watches_is_cancelled() -> None:
    """The client detaches or cancels what it leaves, so this is another caller."""
    with FakeServices() as fake:
        await _submit_and_leave(fake)


async def _submit_and_leave(fake: FakeServices) -> None:
    async with AsyncClient(**fake.endpoints) as client, channels.dial(fake.generator.endpoint) as channel:
        embeds = await client.encode(PROMPT)
        request = Parcel(pb.SubmitJobRequest(request_id="left"), embeds.parcel)
        request.message.spec.CopyFrom(embeds.parcel.message)
        fake.generator.hold()
        fake.generator.lease_s = 0.05
        reply = await Stub(channel, fake.generator.descriptor).call("SubmitJob", request, pb.SubmitJobResponse)

        async def cancelled() -> bool:
            return (await client.jobs.get(reply.message.job.job_id)).state == "cancelled"

        await until_async(cancelled, "the lease of the job has expired")


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.tuples(*[st.integers(0, 255)] * 3),
    st.sampled_from([pictures.png, pictures.jpeg, pictures.webp]),
)
def test_picture_files_are_valid(
    width: int, height: int, colour: pictures.Colour, write: Callable[[int, int, pictures.Colour, str], bytes]
) -> None:
    provenance = {"version": 1, "zrelay": "0.1.0"}
    data = write(width, height, colour, json.dumps(provenance))
    with Pictures.open(io.BytesIO(data)) as picture:
        assert picture.size == (width, height)
        ranges: Any = picture.convert("RGB").getextrema()
    tolerance = 2 if write is pictures.jpeg else 0
    assert all(low == high and abs(low - value) <= tolerance for (low, high), value in zip(ranges, colour, strict=True))
    assert read_provenance(data) == provenance
