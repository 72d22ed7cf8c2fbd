"""Inputs by their digest: uploaded whole or not at all, named in later requests, part of a request's identity."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests.helpers.images import encoded, picture
from tests.helpers.polling import eventually, until_async
from zrelay.v1 import content_pb2, tensor_pb2
from zrelay.v1 import generation_pb2 as gpb
from zrelay.v1 import generator_pb2 as pb
from zrelay_generator.api.contents import named
from zrelay_generator.api.requests import RequestReader
from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.store.sqlite import SqliteJobStore
from zrelay_shared.callers import NOBODY
from zrelay_shared.errors import (
    NotFound,
)
from zrelay_shared.wire import Parcel

from .fixture_types import Load, MakeEmbeds, RequestOf, Serve
from .generator_client import SERVICE, by_name, digest, images, pixels, serialized
from .parsing import accepts_of


@pytest.fixture(scope="session")
def accepts(demo: Path, load: Load, tmp_path_factory: pytest.TempPathFactory) -> Acceptance:
    return accepts_of(demo, load(demo), tmp_path_factory.mktemp("cache"))


async def test_embeddings_by_their_digest(
    serve_kept: Serve, request_of: RequestOf, embeds: MakeEmbeds, tmp_path: Path
) -> None:
    caller = await serve_kept()
    inline = request_of(request_id="inline", seed=5, num_inference_steps=2)
    data = serialized(inline)
    with pytest.raises(NotFound) as refused:
        await caller.generate(by_name(inline, data))
    assert (refused.value.reason, refused.value.metadata["sha256"]) == ("CONTENT_UNKNOWN", digest(data))
    assert refused.value.field == "spec.prompt.content"
    painted = await caller.generate(inline)
    assert pixels(await caller.generate(by_name(inline, data))) == pixels(painted), "sent inline, known by name"
    reference = by_name(request_of(request_id="named", seed=5, num_inference_steps=2), data)
    assert pixels(await caller.generate(reference)) == pixels(painted)
    for seed in range(20):  # many seeds, one embedding
        named_request = by_name(request_of(request_id=f"seed-{seed}", seed=seed, num_inference_steps=1), data)
        await caller.submit(named_request, detached=True)
    files = {path.name for path in (tmp_path / "state" / "blobs").iterdir()}
    assert digest(data) in files
    other = request_of(embeds(9, 128, 77), request_id="other", seed=5, num_inference_steps=2)
    assert not (await caller.upload(serialized(other))).existed
    assert (await caller.upload(serialized(other))).existed
    caller = await serve_kept()
    assert pixels(await caller.generate(by_name(other, serialized(other)))) != pixels(painted)


async def test_uploads_are_kept_whole_or_not_at_all(serve_kept: Serve, tmp_path: Path) -> None:
    caller = await serve_kept()
    data = bytes(range(256)) * 4096
    for changed, code in (
        ({"sha256": "0" * 64}, grpc.StatusCode.DATA_LOSS),
        ({"size": len(data) - 1}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"size": len(data) + 1}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"size": 1 << 40}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"sha256": "../../etc/passwd"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"sha256": digest(data).upper()}, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await caller.upload(data, **changed)
        assert refused.value.code() is code, changed
    call: Any = caller.channel.stream_unary(f"/{SERVICE.full_name}/UploadBlob")
    content = content_pb2.ContentRef(sha256=digest(data))

    async def broken_off() -> AsyncIterator[bytes]:
        yield pb.UploadBlobRequest(content=content, data=data[:1000]).SerializeToString()
        await asyncio.Event().wait()

    interrupted, blobs = call(broken_off()), tmp_path / "state" / "blobs"
    await eventually(lambda: list(blobs.iterdir()), "a part of the content is there")
    interrupted.cancel()
    await eventually(lambda: not list(blobs.iterdir()), "the part is removed")
    reply = await caller.upload(data, size=0)
    assert reply.content.size_bytes == len(data) and not reply.existed
    assert [path.name for path in (tmp_path / "state" / "blobs").iterdir()] == [digest(data)]


@pytest.mark.deep
async def test_calls_that_end_with_their_upload_leave_no_file_without_a_row(serve_kept: Serve, tmp_path: Path) -> None:
    """Each call is broken off at another moment around its end."""
    caller, blobs = await serve_kept(), tmp_path / "state" / "blobs"
    call: Any = caller.channel.stream_unary(f"/{SERVICE.full_name}/UploadBlob")
    for turn in range(250):
        data = turn.to_bytes(2, "big") * 1000

        async def parts(data: bytes = data) -> AsyncIterator[bytes]:
            content = content_pb2.ContentRef(sha256=digest(data))
            yield pb.UploadBlobRequest(content=content, data=data).SerializeToString()

        upload = call(parts())
        await asyncio.sleep(turn % 25 / 2500)  # the moment is the input of this test
        upload.cancel()
        await asyncio.gather(upload, return_exceptions=True)

    async def in_step() -> bool:
        files = {path.name for path in blobs.iterdir()}
        return files == {name for name in files if await caller.store.known_size(name, "") is not None}

    await until_async(in_step, "every file has a row")
    assert await caller.store.sweep() == 0


async def test_an_image_by_its_digest(serve_kept: Serve, request_of: RequestOf) -> None:
    caller = await serve_kept()
    (first,) = images(await caller.generate(request_of(seed=1, num_inference_steps=2)))
    inline, named_request = request_of(seed=2, request_id="i"), request_of(seed=2, request_id="i")
    inline.message.spec.image_to_image.image.data = first.data
    named_request.message.spec.image_to_image.image.content.sha256 = first.file_sha256
    by_value, by_digest = await caller.generate(inline), await caller.generate(named_request)
    assert pixels(by_value) == pixels(by_digest), "a result can be named at once"


def test_the_identity_is_of_the_whole_request(request_of: RequestOf, embeds: MakeEmbeds) -> None:
    def identity(request: Parcel[pb.GenerateRequest]) -> str:
        return named(request, request.message.spec).identity

    plain = request_of(seed=1)
    same, inline = request_of(seed=1), identity(plain)
    assert identity(same) == inline, "not of the markers that stand for the bytes"
    assert identity(by_name(plain, serialized(plain))) == inline
    others = [request_of(embeds(20, 128, 1), seed=1), request_of(seed=2), request_of()]
    labelled, formatted = request_of(seed=1), request_of(seed=1)
    labelled.message.spec.provenance.labels["a"] = "b"
    formatted.message.spec.output.format = gpb.IMAGE_FORMAT_JPEG
    omni = request_of(seed=1)
    grid = omni.message.spec.omni.siglip_embeds.add().grid
    omni.attach(grid, b"\0\0")
    found = [identity(request) for request in (*others, labelled, formatted, omni)]
    raw = Parcel(omni.message.spec.omni.siglip_embeds[0], omni).to_bytes()
    grids_by_name = request_of(seed=1)
    grids_by_name.message.spec.omni.siglip_contents.add(sha256=hashlib.sha256(raw).hexdigest())
    assert identity(grids_by_name) == found[-1]
    omni.attach(grid, b"\0\1")
    found.append(identity(omni))
    other_dtype = request_of(seed=1)
    other_dtype.message.spec.prompt.prompt_embeds.segments[0].prompt_embeds.dtype = tensor_pb2.TENSOR_DTYPE_F16
    found.append(identity(other_dtype))
    assert len({inline, *found}) == len(found) + 1


async def test_a_stored_spec_holds_the_sampling_that_was_used(
    accepts: Acceptance, opened: Callable[[], SqliteJobStore], request_of: RequestOf
) -> None:
    """Other defaults at the next start do not change a job that waits."""
    reader = RequestReader(accepts, opened(), lambda job: None)
    plain, started = request_of(), request_of()
    started.message.spec.image_to_image.image.data = encoded(picture(64, 64, 1))
    started.message.spec.image_to_image.strength = 0.5
    for parcel in (plain, started):
        request = await reader.read(parcel, parcel.message.spec, "request", caller=NOBODY)
        stored = Parcel.parse(gpb.GenerationSpec, request.spec).message.sampling
        assert (stored.width, stored.height, stored.num_inference_steps, stored.shift) == (128, 128, 8, 3.0)
        assert stored.seed == request.job.sampling.seed
