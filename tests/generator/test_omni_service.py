"""Omni over a real channel: the pictures of ZImageOmniPipeline, references by name, and truth in GetInfo."""

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers.images import encoded, picture
from zrelay.v1 import content_pb2
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import jobs_pb2 as jpb
from zrelay_generator.service import GeneratorServicer
from zrelay_shared.channels import dial
from zrelay_shared.errors import FeatureMissing, InvalidArgument, NotFound
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.rpc import Stub
from zrelay_shared.service.lifecycle import ServeOptions, running
from zrelay_shared.service.listening import parse_listen
from zrelay_shared.service.roles import GeneratorConfig
from zrelay_shared.wire import Parcel

from .fixture_types import Load, MakeSampling
from .generator_client import SERVICE
from .omni import Oracle, Words, request_with

PICTURES = [picture(128, 128, 1), picture(200, 90, 2)]
SERVED = Callable[[Path], Awaitable[Stub]]


@pytest.fixture
async def serve() -> AsyncIterator[SERVED]:
    """Starts a generator on a folder and gives a stub of it."""
    async with AsyncExitStack() as stack:

        async def started(folder: Path) -> Stub:
            config = GeneratorConfig(model=folder, device="cpu", dtype="float32", threads=1)
            options = ServeOptions(parse_listen("127.0.0.1:0"))
            server = await stack.enter_async_context(running(GeneratorServicer(config), options))
            await server.loaded
            return Stub(await stack.enter_async_context(dial(str(server.address))), SERVICE)

        yield started


async def paint(stub: Stub, request: Parcel[pb.GenerateRequest]) -> jpb.JobImage:
    events = [p.message.event async for p in stub.stream("Generate", request, pb.GenerateResponse, timeout=120)]
    (image,) = [event.image for event in events if event.WhichOneof("event") == "image"]
    return image


async def features(stub: Stub) -> dict[str, bool]:
    found = await stub.call("GetInfo", pb.GeneratorServiceGetInfoRequest(), pb.GeneratorServiceGetInfoResponse)
    return {feature.name: feature.available for feature in found.message.features}


def pixels(data: bytes) -> torch.Tensor:
    image = Image.open(io.BytesIO(data))
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3).int()


async def test_pictures_by_value_and_by_name(
    serve: SERVED,
    demo_omni: Path,
    load: Load,
    fingerprint: EncoderFingerprint,
    sampling: MakeSampling,
    provenance_in: Callable[[bytes], str],
) -> None:
    stub, oracle = await serve(demo_omni), Oracle(demo_omni)
    assert (await features(stub))["generate.omni"]
    words, negative = Words.of(2, 20, 128), Words.of(2, 3, 128, seed=1)
    files, grids = [encoded(one) for one in PICTURES], oracle.grids(PICTURES, 128 * 128)
    asked: dict[str, Any] = {"num_inference_steps": 4, "seed": 7, "guidance_scale": 2.0}
    request = request_with(fingerprint, words, files, grids, negative, **asked)
    ordinary = request_with(fingerprint, Words.of(0, 9, 128), [], [], **(asked | {"guidance_scale": 0.0}))
    ordinary.message.spec.ClearField("omni")
    ours, _ = await asyncio.gather(paint(stub, request), paint(stub, ordinary))

    latents = oracle.latents(PICTURES, words, sampling(guidance_scale=2.0), negative)
    apart = (pixels(ours.data) - load(demo_omni).vae.decode(latents).int()).abs()
    assert apart.max() <= 1 and apart.ne(0).float().mean() <= 0.001
    digests = [hashlib.sha256(data).hexdigest() for data in files]
    said = json.loads(provenance_in(ours.data))
    assert said["omni"] == {"file_sha256": digests, "siglip_encoders": ["5" * 64] * 2}

    named = request_with(fingerprint, words, files, grids, negative, **asked)
    for image, digest in zip(named.message.spec.omni.images, digests, strict=True):
        image.content.CopyFrom(content_pb2.ContentRef(sha256=digest))
    assert (await paint(stub, named)).pixels_sha256 == ours.pixels_sha256
    named.message.spec.omni.images[1].content.sha256 = "0" * 64
    with pytest.raises(NotFound) as caught:
        await paint(stub, named)
    assert caught.value.reason == "CONTENT_UNKNOWN" and caught.value.field == "spec.omni.images[1].content"

    with_grids = request_with(fingerprint, words, files, [], negative, **asked)
    whole = [Parcel(one, request).to_bytes() for one in request.message.spec.omni.siglip_embeds]
    for raw in whole:
        with_grids.message.spec.omni.siglip_contents.add(sha256=hashlib.sha256(raw).hexdigest())
    assert (await paint(stub, with_grids)).pixels_sha256 == ours.pixels_sha256
    with_grids.message.spec.omni.siglip_contents[1].sha256 = "0" * 64
    with pytest.raises(NotFound) as caught:
        await paint(stub, with_grids)
    assert caught.value.field == "spec.omni.siglip_contents[1]"
    with_grids.message.spec.omni.siglip_embeds.add()
    with pytest.raises(InvalidArgument, match="none beside siglip_embeds"):
        await paint(stub, with_grids)


async def test_a_generator_without_siglip_parts_refuses(
    serve: SERVED, demo: Path, fingerprint: EncoderFingerprint
) -> None:
    stub = await serve(demo)
    assert (await features(stub))["generate.omni"] is False
    request = request_with(fingerprint, Words.of(1, 9, 128), [encoded(PICTURES[0])], [torch.zeros(8, 8, 96)])
    with pytest.raises(FeatureMissing) as caught:
        await paint(stub, request)
    assert caught.value.metadata["feature"] == "generate.omni" and "Omni checkpoint" in caught.value.message
