"""Embeddings as tensors and arrays: given to diffusers' pipelines, and back to a generator."""

import io
import re
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline
from PIL import Image

from tests.helpers.images import png
from tests.helpers.jobs import PROMPT
from zrelay_client import AsyncClient, Embeds, EncoderFingerprint, EncoderMismatch, InvalidArgument
from zrelay_client.stack.bundle import demo_checkpoint

from .conftest import Services

QUICK: dict[str, Any] = {"width": 96, "height": 64, "num_inference_steps": 4, "seed": 7, "deterministic": True}


@pytest.fixture
async def client(services: Services) -> Any:
    async with AsyncClient(**services.endpoints) as client:
        yield client


def pixels(data: bytes) -> numpy.ndarray[Any, Any]:
    return numpy.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize("guidance_scale", [0.0, 2.0])
async def test_diffusers_makes_the_same_image(client: AsyncClient, guidance_scale: float) -> None:
    embeds = await client.encode(PROMPT, negative_prompt="a green square", dtype="f32")
    ours = await client.generate(embeds, guidance_scale=guidance_scale, **QUICK)
    parts: Any = {"text_encoder": None, "tokenizer": None, "dtype": torch.float32}
    pipeline: Any = ZImagePipeline.from_pretrained(demo_checkpoint(), **parts)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=ours.sampling.shift)
    theirs = pipeline(
        prompt_embeds=embeds.to_torch(dtype=torch.float32),
        negative_prompt_embeds=embeds.to_torch(negative=True, dtype=torch.float32),
        width=96,
        height=64,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        generator=[torch.Generator("cpu").manual_seed(7)],
    ).images[0]
    difference = numpy.abs(pixels(ours.images[0].data) - numpy.asarray(theirs.convert("RGB")).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.001, "the tolerance of design.md for float32"


async def test_the_round_trip_through_torch_gives_the_same_image(client: AsyncClient) -> None:
    embeds = await client.encode(PROMPT, negative_prompt="a green square")
    (tensor,) = embeds.to_torch()
    (negative,) = embeds.to_torch(negative=True)
    assert tensor.dtype == torch.bfloat16
    assert tensor.shape == (embeds.report.token_count, embeds.fingerprint.width)
    ours = await client.generate(embeds, guidance_scale=2.0, **QUICK)
    for given in ([tensor], tensor, tensor[None]):
        back = Embeds.from_torch(given, negative, fingerprint=embeds.fingerprint, prompt=PROMPT)
        again = await client.generate(back, guidance_scale=2.0, **QUICK)
        assert again.images[0].pixels_sha256 == ours.images[0].pixels_sha256
        assert again.encoder_relation == "exact"
    assert (back.prompt, back.report.token_count) == (PROMPT, embeds.report.token_count)
    unknown = await client.generate(Embeds.from_torch(tensor, negative), guidance_scale=2.0, **QUICK)
    assert unknown.images[0].pixels_sha256 == ours.images[0].pixels_sha256
    assert unknown.encoder_relation == "unverified"
    assert any(line.startswith("weights_digest: not known, here ") for line in unknown.encoder_differences)


def test_the_page_runs(
    services: Services, empty_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2] / "docs/how-to/use-embeddings-with-diffusers.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    script = "\n".join(blocks).replace('"MODEL"', repr(str(demo_checkpoint()))).replace("1024", "64")
    monkeypatch.setenv("ZRELAY_ENCODER", services.encoder)
    monkeypatch.setenv("ZRELAY_GENERATOR", services.generator)
    exec(compile(script, page.name, "exec"), {})
    assert capsys.readouterr().out == "unverified\n"
    assert Path("fox.png").exists()


async def test_tensors_are_copies(client: AsyncClient) -> None:
    embeds = await client.encode(PROMPT)
    embeds.to_torch()[0].zero_()
    embeds.to_numpy()[0].fill(0)
    (tensor,) = embeds.to_torch()
    assert tensor.abs().sum() > 0
    back = Embeds.from_torch(tensor)
    tensor.zero_()
    assert back.to_torch()[0].abs().sum() > 0


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
async def test_arrays_are_float32(client: AsyncClient, dtype: Any) -> None:
    embeds = await client.encode(PROMPT, dtype=dtype)
    (array,) = embeds.to_numpy()
    (tensor,) = embeds.to_torch()
    assert array.dtype == numpy.float32
    assert numpy.array_equal(array, tensor.float().numpy())


async def test_an_omni_prompt_is_a_list_of_segments(services: Services, vision: str, omni: str) -> None:
    async with AsyncClient(encoder=services.encoder, vision=vision, generator=omni) as client:
        embeds = await client.encode(PROMPT, image_count=1)
        (segments,) = embeds.to_torch()
        assert len(segments) == 3
        assert [one.shape for one in embeds.to_numpy()[0]] == [tuple(one.shape) for one in segments]
        back = Embeds.from_torch([segments], fingerprint=embeds.fingerprint)
        results = [await client.generate(one, omni=[png(64, 64)], **QUICK) for one in (embeds, back)]
    assert results[0].images[0].pixels_sha256 == results[1].images[0].pixels_sha256


async def test_what_is_not_one_prompt_is_refused(client: AsyncClient) -> None:
    with pytest.raises(InvalidArgument, match="expected one within the embeddings, got none") as missing:
        (await client.encode(PROMPT)).to_torch(negative=True)
    assert missing.value.reason == "NEGATIVE_PROMPT_MISSING"
    tensor = torch.zeros(4, 8)
    wrong: list[Any] = [[tensor, tensor], torch.zeros(2, 4, 8), torch.zeros(8), tensor.double(), [[tensor] * 2], "fox"]
    for given in wrong:
        with pytest.raises(InvalidArgument) as refused:
            Embeds.from_torch(given)
        assert refused.value.reason == "PROMPT_EMBEDS_INVALID"
    with pytest.raises(InvalidArgument) as refused:
        Embeds.from_torch(tensor, torch.zeros(4, 9))
    assert refused.value.reason == "NEGATIVE_PROMPT_EMBEDS_INVALID"
    with pytest.raises(InvalidArgument, match=r"tensors \[T, 9\]"):
        Embeds.from_torch(tensor, fingerprint=EncoderFingerprint("qwen3", 9))
    with pytest.raises(EncoderMismatch, match="width"):
        await client.generate(Embeds.from_torch(tensor), **QUICK)
