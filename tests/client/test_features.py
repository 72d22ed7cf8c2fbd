"""Start images and skip-layer guidance through the library and the command line."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.images import png
from tests.helpers.jobs import PROMPT, QUICK
from zrelay_client import AsyncClient, InvalidArgument
from zrelay_shared import exits

from .conftest import Services, Zrelay

FOUR_STEPS: dict[str, Any] = {**QUICK, "num_inference_steps": 4, "deterministic": True}


async def test_a_start_image_by_value_and_by_name(services: Services) -> None:
    image = png(64, 64)
    services.take_uploads()
    async with AsyncClient(**services.endpoints) as client:
        started = await client.generate(PROMPT, image=image, strength=0.5, **FOUR_STEPS)
        named = await client.generate(started.embeds, image=image, strength=0.5, **FOUR_STEPS)
        plain = await client.generate(PROMPT, **FOUR_STEPS)
        with pytest.raises(InvalidArgument, match="no image to start from"):
            await client.generate(PROMPT, strength=0.5, **FOUR_STEPS)
        with pytest.raises(InvalidArgument, match="bytes of an image file"):
            await client.generate(PROMPT, image="fox.png", **FOUR_STEPS)  # type: ignore[arg-type]
    digests = {content.sha256 for content in named.embeds.contents.values()} | {hashlib.sha256(image).hexdigest()}
    assert sorted(services.take_uploads()) == sorted(digests), "each was sent once"
    assert named.images[0].pixels_sha256 == started.images[0].pixels_sha256 != plain.images[0].pixels_sha256


async def test_skip_layer_guidance(services: Services) -> None:
    skipping: dict[str, Any] = {"skip_layer_guidance_scale": 3.0, "skip_guidance_layers": [1, 2]}
    window: dict[str, Any] = {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    async with AsyncClient(**services.endpoints) as client:
        plain = await client.generate(PROMPT, **FOUR_STEPS)
        guided = await client.generate(PROMPT, **skipping, **window, **FOUR_STEPS)
        with pytest.raises(InvalidArgument, match="layers"):
            await client.generate(PROMPT, skip_guidance_layers=[1000], **FOUR_STEPS)
    assert guided.images[0].pixels_sha256 != plain.images[0].pixels_sha256


async def test_both_on_the_command_line(services: Services, zrelay: Zrelay) -> None:
    flags = ["--encoder", services.encoder, "--generator", services.generator]
    Path("start.png").write_bytes(png(64, 64))
    quick = ["--size", "64x64", "--num-inference-steps", "4", "--seed", "1"]
    skip = ["--skip-layer-guidance-scale", "2", "--skip-guidance-layers", "1, 2"]
    ran = await zrelay("generate", "fox", "--image", "start.png", "--strength", "0.5", *skip, *quick, *flags)
    assert (ran.returncode, ran.stdout) == (0, "fox-1.png\n"), ran.stderr
    missing = await zrelay("generate", "fox", "--image", "none.png", *quick, *flags)
    assert (missing.returncode, missing.stderr) == (exits.LOCAL_FILE, "error: none.png: No such file or directory\n")
    wrong = await zrelay("generate", "fox", "--skip-guidance-layers", "a", *quick, *flags)
    assert wrong.returncode == exits.USAGE
