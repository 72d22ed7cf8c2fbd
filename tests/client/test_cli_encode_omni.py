"""`zrelay encode --image-count`: prompts of Omni through a file, over real services."""

import json
from pathlib import Path

import pytest

from tests.helpers.jobs import PROMPT
from zrelay_client import Embeds
from zrelay_shared import exits

from .conftest import Services, Zrelay
from .test_references import A, B

QUICK = ("--size", "64x64", "--num-inference-steps", "2", "--seed", "7")


@pytest.fixture
def images(empty_home: Path) -> tuple[str, ...]:
    """Flags of two images to paint after."""
    Path("a.png").write_bytes(A)
    Path("b.png").write_bytes(B)
    return "--omni", "a.png", "--omni", "b.png"


async def encoded(zrelay: Zrelay, services: Services, count: int | None) -> str:
    """A file of embeddings with places for that many images."""
    name = f"{count}.safetensors"
    places = () if count is None else ("--image-count", str(count))
    ran = await zrelay("encode", PROMPT, "-o", name, "--encoder", services.encoder, "--json", *places)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["image_count"] == Embeds.load(name).image_count == (count or 0)
    return name


async def test_the_file_paints_what_the_prompt_paints(
    services: Services, vision: str, omni: str, zrelay: Zrelay, images: tuple[str, ...]
) -> None:
    file = await encoded(zrelay, services, 2)
    there = ("--vision", vision, "--generator", omni, *QUICK, *images, "--json")
    direct = await zrelay("generate", PROMPT, "--encoder", services.encoder, "-o", "direct.png", *there)
    ran = await zrelay("generate", "--prompt-embeds", file, "-o", "file.png", *there)
    assert (direct.returncode, ran.returncode) == (0, 0), direct.stderr + ran.stderr
    pictures = [json.loads(one.stdout)["files"][0]["pixels_sha256"] for one in (direct, ran)]
    assert pictures[0] == pictures[1]


async def test_a_file_for_more_or_fewer_images_is_refused_with_the_remedy(
    services: Services, vision: str, omni: str, zrelay: Zrelay, images: tuple[str, ...]
) -> None:
    there = ("--vision", vision, "--generator", omni, *QUICK)
    for count, given, says in (
        (1, images, "--image-count 2"),
        (None, images, "got an ordinary prompt: encode the prompt again with --image-count 2"),
        (1, (), "encode it without --image-count, or set omni to 1 images"),
        (1, ("--reference", "a.png"), "encode it without --image-count"),
    ):
        file = await encoded(zrelay, services, count)
        ran = await zrelay("generate", "--prompt-embeds", file, "-o", "no.png", *there, *given)
        assert ran.returncode == exits.REFUSED and says in ran.stderr, (count, given, ran.stderr)
        assert ran.stderr.count("\n") == 1 and not Path("no.png").exists()
        Path(file).unlink()


async def test_counts_that_omni_does_not_know(zrelay: Zrelay) -> None:
    for count in ("0", "9", "x"):
        assert (await zrelay("encode", PROMPT, "-o", "x.safetensors", "--image-count", count)).returncode == exits.USAGE
